//! A database there and back: `save --pg-dump`, `restore --into`.

use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use backup_tests::host::Host;
use backup_tests::postgres::Cluster;

use crate::BACKUP;

fn client(cluster: &Cluster) -> Host {
    let mut host = Host::initialised(BACKUP);
    cluster.serve(&mut host);
    host
}

/// Equal, or the first lines that differ.
fn assert_same(was: &str, is: &str) {
    if let Some((was, is)) = was.lines().zip(is.lines()).find(|(was, is)| was != is) {
        panic!("dumped: {was}\nrestored: {is}");
    }
    assert_eq!(was.len(), is.len(), "one is the beginning of the other");
}

/// Asks until the answer is not 0.
fn until(cluster: &Cluster, question: &str) {
    for _ in 0..1000 {
        if cluster.sql("postgres", question) != "0" {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("never: {question}");
}

#[test]
fn a_database_of_everything_comes_back_identical() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("everything");
    cluster.sql("everything", include_str!("postgres/everything.sql"));
    let was = cluster.dump("everything", &[]);
    let id = host.backup(["save", "app", "--pg-dump", "dbname=everything"]).run().id();

    host.backup(["restore", &id, "--into", "dbname=made"]).run().succeeded();
    assert_same(&was, &cluster.dump("made", &[]));
    cluster.create("empty");
    host.backup(["restore", &id, "--into", "dbname=empty"]).run().succeeded();
    assert_same(&was, &cluster.dump("empty", &[]));
    assert_eq!(cluster.databases(), ["empty", "everything", "made"], "no temporary database stays");
}

#[test]
fn ten_thousand_tables_come_back_identical() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("many");
    // In batches: one transaction would hold ten thousand locks.
    for batch in 0..10 {
        let create = "EXECUTE format('CREATE TABLE t%s (id int, n numeric)', n);";
        let (from, to) = (batch * 1000, batch * 1000 + 999);
        cluster.sql("many", &format!("DO $$ BEGIN FOR n IN {from}..{to} LOOP {create} END LOOP; END $$;"));
    }
    cluster.sql("many", "INSERT INTO t0 VALUES (1, 2.50); INSERT INTO t9999 VALUES (NULL, 'NaN');");
    let id = host.backup(["save", "app", "--pg-dump", "dbname=many"]).run().id();
    host.backup(["restore", &id, "--into", "dbname=many_again"]).run().succeeded();
    assert_same(&cluster.dump("many", &[]), &cluster.dump("many_again", &[]));
    assert_eq!(cluster.sql("many_again", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "10000");
}

#[test]
fn encoding_settings_owner_and_privileges_of_the_database_come_back() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.sql(
        "postgres",
        "CREATE ROLE landlord; CREATE ROLE tenant;
         CREATE DATABASE old ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 OWNER landlord CONNECTION LIMIT 7;
         ALTER DATABASE old SET work_mem = '7MB'; ALTER DATABASE old SET default_transaction_read_only = on;
         REVOKE ALL ON DATABASE old FROM PUBLIC; GRANT CONNECT ON DATABASE old TO tenant; COMMENT ON DATABASE old IS 'a comment';",
    );
    cluster.sql("old", "SET default_transaction_read_only = off; CREATE TABLE t AS SELECT chr(252) AS letter;");
    let id = host.backup(["save", "app", "--pg-dump", "dbname=old"]).run().id();
    host.backup(["restore", &id, "--into", "dbname=new"]).run().succeeded();
    let (was, is) = (cluster.dump("old", &["--create"]), cluster.dump("new", &["--create"]));
    let words = |dump: &str, name: &str| dump.replace(&format!(" {name}"), " NAME");
    assert_same(&words(&was, "old"), &words(&is, "new"));
}

#[test]
fn sql_from_a_pipe_is_loaded_as_well() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("plain");
    cluster.sql("plain", "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 1000) n;");
    host.shell("pg_dump plain | \"$BACKUP\" save app").run().id();
    cluster.create("plain_empty");
    for database in ["plain_made", "plain_empty"] {
        host.backup(["restore", "app", "--into"]).args([format!("dbname={database}")]).run().succeeded();
        assert_same(&cluster.dump("plain", &[]), &cluster.dump(database, &[]));
    }
}

#[test]
fn sql_that_psql_did_not_run_to_its_end_is_not_restored() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("here");
    // psql exits with 0 after each of them.
    for (name, sql) in [
        ("goes-on", "\\set ON_ERROR_STOP 0\nCREATE TABLE a ();\nSELECT 1/0;\n"),
        (
            "rolls-back-and-goes-on",
            "\\set ON_ERROR_STOP 0\n\\set ON_ERROR_ROLLBACK on\nSELECT 1/0;\nCREATE TABLE a ();\n",
        ),
        ("quits", "CREATE TABLE a ();\n\\quit\nCREATE TABLE b ();\n"),
        ("quits-quietly", "\\set ON_ERROR_STOP 0\nCREATE TABLE a ();\n\\quit\n"),
        ("ends-in-rows", "CREATE TABLE a (t text);\nCOPY a FROM STDIN;\none\n"),
        ("ends-in-if", "CREATE TABLE a ();\n\\if false\nCREATE TABLE b ();\n"),
        ("ends-in-string", "\\set ON_ERROR_STOP 0\nCREATE TABLE a ();\nSELECT 'x\n"),
    ] {
        host.save(name, sql);
        for database in ["here", "missing"] {
            let outcome = host.backup(["restore", name, "--into"]).args([format!("dbname={database}")]).run();
            outcome.failed(1);
            assert_eq!(cluster.databases(), ["here"], "{name}");
            assert_eq!(
                cluster.sql("here", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"),
                "0",
                "{name}"
            );
        }
    }
}

#[test]
fn a_transaction_that_the_sql_leaves_open_is_not_restored() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    for (name, sql) in [
        ("begins", "BEGIN;\nCREATE TABLE a ();\n"),
        ("no-autocommit", "\\set AUTOCOMMIT off\nCREATE TABLE a ();\n"),
        ("two", "BEGIN;\nCREATE TABLE a ();\nCOMMIT;\nBEGIN;\nCREATE TABLE b ();\n"),
    ] {
        host.save(name, sql);
        let outcome = host.backup(["restore", name, "--into", "dbname=missing"]).run();
        outcome.failed(1).hinting("does not commit");
        assert_eq!(cluster.databases(), [] as [&str; 0], "{name}");
    }
    host.save(
        "commits",
        "\\set AUTOCOMMIT off\n\\o nowhere\nCREATE TABLE a ();\nCOMMIT;\nSELECT 1;\nROLLBACK;\n\\echo -n x",
    );
    host.backup(["restore", "commits", "--into", "dbname=made"]).run().succeeded();
    assert_eq!(cluster.sql("made", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "1");
}

#[test]
fn what_is_no_dump_is_refused_before_a_database_is_made() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("source");
    cluster.sql("source", "CREATE TABLE t ();");
    for (name, command, what) in [
        ("tar", "pg_dump -Ft source", "a tar archive"),
        ("gzip", "pg_dump source | gzip", "compressed with gzip"),
        ("zeros", "head -c 100 /dev/zero", "neither SQL nor"),
    ] {
        host.shell(&format!("{command} | \"$BACKUP\" save {name}")).run().id();
        let outcome = host.backup(["restore", name, "--into", "dbname=missing"]).run();
        outcome.failed(2).saying(what).hinting("--to-stdout");
        assert_eq!(cluster.databases(), ["source"]);
    }
}

#[test]
fn a_load_that_fails_midway_leaves_no_database_and_no_table() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("source");
    // Four chunks, so that much is loaded before the last of them is found to be damaged.
    cluster.sql(
        "source",
        "CREATE TABLE t AS SELECT n, md5(n::text) || md5((-n)::text) AS hash FROM generate_series(1, 60000) n;",
    );
    let id = host.backup(["save", "app", "--pg-dump", "dbname=source"]).run().id();
    let conflicting = host.backup(["save", "other", "--pg-dump", "dbname=source"]).run().id();
    let volume = host.path(format!("repository/app/backups/{id}/dump.00000.vol"));
    let mut bytes = std::fs::read(&volume).unwrap();
    let late = bytes.len() - 10_000;
    bytes[late] ^= 1;
    std::fs::write(&volume, bytes).unwrap();

    cluster.create("taken");
    cluster.sql("taken", "CREATE TABLE mine AS SELECT 1 AS x;");
    let before = cluster.dump("taken", &[]);
    for database in ["missing", "taken"] {
        let outcome = host.backup(["restore", &id, "--into"]).args([format!("dbname={database}")]).run();
        outcome.failed(13).saying("dump.00000.vol is damaged at offset");
        assert_eq!(cluster.databases(), ["source", "taken"]);
        assert_same(&before, &cluster.dump("taken", &[]));
    }

    // What the server refuses: its last table is there already.
    cluster.sql("taken", "CREATE TABLE t (); CREATE TABLE mine_too ();");
    let before = cluster.dump("taken", &[]);
    let outcome = host.backup(["restore", &conflicting, "--into", "dbname=taken"]).run().failed(1);
    outcome.saying("relation \"t\" already exists").saying("pg_restore exited with status 1");
    assert_same(&before, &cluster.dump("taken", &[]));
}

#[test]
fn a_role_that_is_missing_is_told_with_a_hint_and_can_be_left_out() {
    let cluster = Cluster::shared();
    let host = client(cluster);
    cluster.create("owned");
    cluster.sql(
        "owned",
        "CREATE ROLE goner; CREATE TABLE t (x int); ALTER TABLE t OWNER TO goner; GRANT SELECT ON t TO goner;",
    );
    host.backup(["save", "app", "--pg-dump", "dbname=owned"]).run().id();
    cluster.sql("postgres", "DROP DATABASE owned; DROP ROLE goner;");
    host.backup(["restore", "app", "--into", "dbname=again"]).run().failed(1).hinting("role");
    assert_eq!(cluster.databases(), [] as [&str; 0]);
    host.backup(["restore", "app", "--into", "dbname=again", "--no-owner"]).run().succeeded();
    assert_eq!(cluster.sql("again", "SELECT tableowner FROM pg_tables WHERE tablename = 't'"), "postgres");
}

#[test]
fn a_pg_dump_that_fails_makes_no_backup_and_its_words_are_seen() {
    let cluster = Cluster::shared();
    let mut host = client(cluster);
    cluster.create("locked");
    cluster.sql("locked", "CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 100000) n;");
    let no_backup = |host: &Host| assert_eq!((host.listed(), host.stored()), (vec![], vec![]));

    let outcome = host.backup(["save", "app", "--pg-dump", "dbname=absent"]).run();
    outcome.failed(1).saying("database \"absent\" does not exist");
    host.backup(["save", "app", "--pg-dump", "host=/nowhere dbname=locked"]).run().failed(1).saying("/nowhere");
    no_backup(&host);

    // The server ends the session while pg_dump waits for a lock, after it has begun.
    let hold = "SET application_name = 'holder'; BEGIN; LOCK t IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600);";
    let holder = host.command("psql").args(["-Xq", "-d", "locked", "-c", hold]).start();
    until(
        cluster,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder' AND wait_event = 'PgSleep'",
    );
    let running = host.backup(["save", "app", "--pg-dump", "dbname=locked"]).start();
    until(
        cluster,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LOCK TABLE%' AND wait_event_type = 'Lock'",
    );
    running.wait().failed(1).saying("terminating connection").saying("error: pg_dump exited with status 1");
    drop(holder);
    cluster.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'");
    no_backup(&host);

    // Killed half way, as the system does when memory is short.
    let real = cluster.program("pg_dump").get_program().display().to_string();
    let script =
        format!("#!/bin/sh\ncase $* in *--version*) exec {real} --version;; esac\n{real} \"$@\"\nkill -9 $$\n");
    let fake = host.write("bin/pg_dump", script);
    std::fs::set_permissions(fake, PermissionsExt::from_mode(0o755)).unwrap();
    let bin = host.path("bin").display().to_string();
    let programs = std::path::Path::new(&real).parent().unwrap().display().to_string();
    host.set("PATH", format!("{bin}:{programs}:/usr/bin:/bin"));
    let outcome = host.backup(["save", "app", "--pg-dump", "dbname=locked"]).run();
    outcome.failed(1).saying("error: pg_dump was killed by signal 9 (SIGKILL)");
    no_backup(&host);
}
