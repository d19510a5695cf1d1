//! A cluster whose files are here: `save --base-backup --method local`, and what `auto` makes of where it is.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup_tests::host::{Host, Run, files_below};
use backup_tests::physical::{PublicDir, Restored};
use backup_tests::postgres::{NewServer, Server};
use serde_json::Value;

use crate::BACKUP;

/// Programs that only the distribution's version comes with.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

fn conninfo(server: &Server) -> String {
    format!("host={} port={} user=postgres", server.directory().display(), server.port())
}

fn save(host: &Host, server: &Server, more: &[&str]) -> Run {
    host.backup(["save", "db", "--method", "local", "--base-backup", &conninfo(server)]).args(more)
}

fn shown(host: &Host, reference: &str) -> Value {
    host.backup(["show", reference, "--json"]).run().json()
}

fn streams(shown: &Value) -> Vec<&str> {
    let streams = shown["backup"]["streams"].as_array().expect("a list of streams");
    streams.iter().map(|stream| stream["name"].as_str().expect("a name")).collect()
}

async fn one(server: &Server, sql: &str) -> String {
    server.sql(sql).await[0][0].clone().expect("a value")
}

/// The arguments that make the user who runs servers own the files, where that is not ourselves.
fn owner() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["--owner", "postgres"] } else { &[] }
}

/// Restores and starts a backup; tablespaces, by their locations, go below `to`.
fn restored(host: &Host, server: &Server, id: &str, to: &Path, tablespaces: &[PathBuf]) -> Restored {
    let mut restore = host.backup(["restore", id, "--to"]).args([to]).args(owner());
    for location in tablespaces {
        let new = to.with_extension(location.file_name().expect("a name"));
        restore = restore.args([format!("--tablespace-mapping={}={}", location.display(), new.display())]);
    }
    restore.run().succeeded();
    let restored = Restored::of_server(server, to);
    if restored_by_distribution(server) {
        assert_eq!(restored.verify(), "");
    }
    restored.started()
}

fn restored_by_distribution(server: &Server) -> bool {
    server.programs() == Path::new(PROGRAMS)
}

#[tokio::test]
async fn every_major_version_can_be_copied_and_comes_back() {
    for major in [13, 14, 15, 17, 18] {
        let server = NewServer::of_major(major).initdb("--data-checksums").start();
        server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g").await;
        server.sql("CREATE UNLOGGED TABLE u AS SELECT 1 AS n").await;
        let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
        let id = save(&host, &server, &["--label", "it's mine"]).run().succeeded().id();
        let shown = shown(&host, &id);
        assert_eq!(streams(&shown), ["base", "files", "backup_manifest", "pg_wal", "details"], "{major}");
        let cluster = &shown["backup"]["cluster"];
        assert_eq!(cluster["server_version_num"].as_u64().unwrap() / 10_000, u64::from(major));
        assert_eq!((&cluster["timeline"], &cluster["wal_included"]), (&1.into(), &true.into()));
        assert_eq!(shown["details"]["source"]["method"], "local");
        assert_eq!(shown["details"]["source"]["label"], "it's mine");
        host.backup(["verify", &id, "--deep"]).run().succeeded();

        let restored = restored(&host, &server, &id, &public.path("data"), &[]);
        assert_eq!(restored.sql("postgres", "SELECT count(*), sum(g) FROM t"), "50000|1250025000", "{major}");
        assert_eq!(restored.sql("postgres", "SELECT count(*) FROM u"), "0", "{major}: unlogged tables are empty");
        assert_eq!(one(&server, "SELECT count(*) FROM pg_replication_slots").await, "0");
    }
}

#[tokio::test]
async fn a_standby_is_copied_to_where_it_has_come() {
    let primary = NewServer::of_major(15).initdb("--data-checksums").setting("max_wal_senders", "5").start();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100000) g").await;
    let standby = NewServer::of_major(15).standby_of(&primary).start();
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    // A standby's backup begins at a restart point, for which there has to be something to replay.
    primary.sql("INSERT INTO t VALUES (0); CHECKPOINT").await;
    let replayed = one(&primary, "SELECT pg_current_wal_lsn()").await;
    let begun = Instant::now();
    while one(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{replayed}'")).await != "t" {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let id = save(&host, &standby, &[]).run().succeeded().id();
    let restored = restored(&host, &standby, &id, &public.path("data"), &[]);
    assert_eq!(restored.sql("postgres", "SELECT count(*), pg_is_in_recovery() FROM t"), "100001|f");
}

#[tokio::test]
async fn one_flipped_bit_is_found_and_named_and_only_then() {
    let server = NewServer::of_major(15).initdb("--data-checksums").start();
    let host = Host::initialised(BACKUP);
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g; CHECKPOINT").await;
    let good = save(&host, &server, &[]).run().succeeded().id();
    let path = one(&server, "SELECT pg_relation_filepath('t')").await;
    server.stop();
    let file = fs::OpenOptions::new().read(true).write(true).open(server.data().join(&path)).unwrap();
    let mut byte = [0];
    let at = 300 * 8192 + 5000;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    server.start();

    let outcome = save(&host, &server, &[]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    for words in [
        "checksum verification failed",
        &path,
        "block 300",
        "(t in the database postgres)",
        "not be chosen as the latest",
    ] {
        assert!(outcome.to_string().contains(words), "{words}: {outcome}");
    }
    let id = outcome.text().trim().to_owned();
    let shown = shown(&host, &id);
    assert_eq!((&shown["backup"]["condition"], &shown["backup"]["warnings"]), (&"damaged".into(), &1.into()));
    assert!(shown["details"]["warnings"].to_string().contains("block 300"));
    assert_eq!(self::shown(&host, "db")["backup"]["id"], good.as_str());
    // What is stored is what was read, and says so.
    host.backup(["verify", &id, "--deep"]).run().succeeded();
    let unverified = save(&host, &server, &["--no-verify-checksums"]).run().succeeded().id();
    assert_eq!(self::shown(&host, "db")["backup"]["id"], unverified.as_str());
    file.write_all_at(&byte, at).unwrap();
    save(&host, &server, &[]).run().succeeded();
}

#[tokio::test]
async fn only_a_directory_that_is_the_running_servers_is_copied() {
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    let method = |outcome: backup_tests::host::Outcome| {
        shown(&host, &outcome.succeeded().id())["details"]["source"]["method"].as_str().unwrap().to_owned()
    };
    let auto = |more: &[&str]| host.backup(["-v", "save", "db", "--base-backup", &conninfo(&server)]).args(more).run();
    assert_eq!(method(auto(&[])), "local");
    assert_eq!(method(auto(&["--method", "stream"])), "stream");
    // What only the server can do.
    let compressed =
        auto(&["--server-compression", "gzip:1"]).saying("the server compresses only what it sends itself");
    assert_eq!(method(compressed), "stream");
    save(&host, &server, &["--server-compression", "gzip:1"]).run().failed(2).saying("only what it sends itself");

    // A role that may replicate, and no more.
    server.sql("CREATE ROLE replicator LOGIN REPLICATION").await;
    let as_replicator = conninfo(&server).replace("user=postgres", "user=replicator");
    let outcome = host.backup(["-v", "save", "db", "--base-backup", &as_replicator]).run();
    assert_eq!(method(outcome.saying("this role may not start a backup")), "stream");
    let local = |conninfo: &str| host.backup(["save", "db", "--method", "local", "--base-backup", conninfo]).run();
    local(&as_replicator).failed(2).hinting("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean)");
    server.sql("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean), pg_catalog.pg_backup_stop(boolean) TO replicator").await;
    local(&as_replicator).failed(2).hinting("pg_read_all_settings");
    server.sql("GRANT pg_read_all_settings TO replicator").await;
    local(&as_replicator).succeeded();

    // A user who may not read the files.
    if rustix::process::geteuid().is_root() {
        let by_address = format!("host=127.0.0.1 port={} user=postgres", server.port());
        let denied = host.without_override(["-v", "save", "db", "--base-backup", &by_address]).run();
        assert_eq!(method(denied.saying("cannot be read here")), "stream");
    }
}

#[tokio::test]
async fn a_clone_of_the_directory_is_not_taken_for_the_server() {
    // Seen from the server its files are here, and what is here is yesterday's copy of them.
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    let data = server.data();
    let copied = Command::new("cp").arg("-a").arg(&data).arg(server.directory().join("clone")).status().unwrap();
    assert!(copied.success());
    // In a mount namespace of its own the program sees the clone in the data directory's place.
    let script = format!(
        "mount --make-rprivate / && mount --bind {} {} && exec \"$BACKUP\" -v save db --base-backup '{}' \"$@\"",
        server.directory().join("clone").display(),
        data.display(),
        conninfo(&server)
    );
    let elsewhere = |more: &[&str]| {
        let run = host.command("unshare").args(["--mount", "sh", "-c", &script, "sh"]).args(more);
        run.env("BACKUP", host.program()).run()
    };
    if host.command("unshare").args(["--mount", "mount", "--make-rprivate", "/"]).run().code() != Some(0) {
        // This user may not: nothing to see then.
        return;
    }
    elsewhere(&["--method", "local"]).failed(2).saying("is not that of the server that runs");
    elsewhere(&["--method", "local", "--no-wal"]).failed(2).saying("does not know of the checkpoint");
    // With that attempt the server has made a checkpoint.
    elsewhere(&["--method", "local"]).failed(2).saying("an older copy of this one");
    let id = elsewhere(&[]).saying("an older copy of this one").succeeded().id();
    assert_eq!(shown(&host, &id)["details"]["source"]["method"], "stream");
}

#[tokio::test]
async fn a_server_that_dies_and_a_user_who_gives_up_leave_nothing() {
    let server = NewServer::of_major(15).start();
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 200000) g").await;
    for dies in [false, true] {
        let host = Host::initialised(BACKUP);
        // 40 MB in some 20 s: it is in the middle, whenever.
        let mut running = save(&host, &server, &["--max-rate", "2MiB"]).start();
        while !host.stored().iter().any(|name| name.contains("base.")) {
            assert!(running.is_running(), "{}", running.wait());
            std::thread::sleep(Duration::from_millis(20));
        }
        if dies {
            server.kill();
            running.wait().failed(1).saying("lost the connection to PostgreSQL");
        } else {
            running.signal(rustix::process::Signal::TERM);
            running.wait().failed(130);
            let active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup'";
            let begun = Instant::now();
            while one(&server, active).await != "1" {
                assert!(begun.elapsed() < Duration::from_secs(30), "its sessions stay");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        assert!(host.stored().is_empty() && host.listed().is_empty(), "{dies}: {:?}", host.stored());
    }
}

/// Writes without end: transfers between accounts, and all that changes files.
struct Load(Vec<Child>);

impl Load {
    fn on(server: &Server, files: &Path) -> Self {
        let scripts = [
            (
                "transfer",
                "\\set a random(1, 20000)\n\\set b random(1, 20000)\n\\set n random(1, 100)\n\
                 BEGIN;\nUPDATE accounts SET balance = balance - :n WHERE id = :a;\n\
                 UPDATE accounts SET balance = balance + :n WHERE id = :b;\nINSERT INTO journal (n) VALUES (:n);\nCOMMIT;\n",
            ),
            (
                "tables",
                "\\set n random(1, 9)\nCREATE TABLE IF NOT EXISTS churn_:n AS SELECT g, md5(g::text) FROM generate_series(1, 3000) g;\n\
                 INSERT INTO churn_:n SELECT g, md5(g::text) FROM generate_series(1, 20000) g;\n\
                 CREATE INDEX ON churn_:n (g);\nDELETE FROM churn_:n WHERE g % 3 = 0;\nVACUUM churn_:n;\n\
                 TRUNCATE churn_:n;\nINSERT INTO churn_:n SELECT g, '' FROM generate_series(1, 100) g;\nDROP TABLE churn_:n;\n",
            ),
            (
                "rewrites",
                "UPDATE wide SET t = md5(t);\nVACUUM wide;\nDELETE FROM wide WHERE id % 10 = 3;\nVACUUM (TRUNCATE) wide;\n\
                 INSERT INTO wide SELECT g, md5(g::text) FROM generate_series(1, 2000) g;\nVACUUM FULL wide;\n\
                 CREATE TEMPORARY TABLE IF NOT EXISTS tt AS SELECT generate_series(1, 10000) g;\nTRUNCATE tt;\n\
                 UPDATE in_space SET g = g + 1 WHERE g % 7 = 0;\nINSERT INTO noted VALUES (1);\nREINDEX TABLE in_space;\n",
            ),
        ];
        let run = |(name, script): &(&str, &str)| {
            let path = files.join(format!("{name}.sql"));
            fs::write(&path, script).expect("a file can be written");
            let mut command = Command::new(format!("{PROGRAMS}/pgbench"));
            let clients = if *name == "transfer" { "2" } else { "1" };
            command.args(["-n", "-c", clients, "-T", "100000", "-f"]).arg(path).args(["-U", "postgres", "-h"]);
            command.arg(server.directory()).arg("-p").arg(server.port().to_string()).arg("postgres");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench starts")
        };
        Self(scripts.iter().map(run).collect())
    }

    fn runs(&mut self) -> bool {
        self.0.iter_mut().all(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A server with accounts whose balances sum to nothing, whatever is transferred, in two tablespaces more than it needs.
async fn busy_server() -> (Server, Vec<PathBuf>) {
    let server = NewServer::of_major(15)
        .initdb("--data-checksums")
        .setting("shared_buffers", "16MB")
        .setting("bgwriter_delay", "10ms")
        .setting("max_wal_size", "64MB")
        .setting("wal_keep_size", "256MB")
        .start();
    let mut locations = Vec::new();
    for name in ["fast", "slow"] {
        let location = server.make_tablespace_directory(name);
        server.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display())).await;
        locations.push(location);
    }
    server
        .sql(
            "CREATE EXTENSION amcheck; \
             CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL); \
             INSERT INTO accounts SELECT g, 0 FROM generate_series(1, 20000) g; \
             CREATE TABLE journal (id bigserial PRIMARY KEY, n int) TABLESPACE slow; \
             CREATE TABLE in_space (g int PRIMARY KEY USING INDEX TABLESPACE slow) TABLESPACE fast; \
             INSERT INTO in_space SELECT g * 10 FROM generate_series(1, 20000) g; \
             CREATE TABLE wide (id int, t text) WITH (autovacuum_enabled = off); \
             INSERT INTO wide SELECT g, md5(g::text) FROM generate_series(1, 20000) g; \
             CREATE UNLOGGED TABLE noted (n int)",
        )
        .await;
    (server, locations)
}

/// How many backups a soak takes; a few unless `BACKUPS` says otherwise.
fn backups() -> u32 {
    setting("BACKUPS", 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_every_backup_is_whole_and_none_is_suspected() {
    let (server, tablespaces) = busy_server().await;
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let mut load = Load::on(&server, &host.path(""));
    for n in 0..backups() {
        let committed: u64 = one(&server, "SELECT count(*) FROM journal").await.parse().unwrap();
        // Some slowly, so that much changes meanwhile; an odd one in one lane.
        let more: &[&str] = match n % 3 {
            0 => &["--max-rate", "20MiB"],
            1 => &["--workers", "1", "--memory", "32MiB"],
            _ => &[],
        };
        let id = save(&host, &server, more).run().succeeded().id();
        assert!(load.runs(), "backup {n}: nobody writes any more");
        let to = public.path(&format!("data{n}"));
        let restored = restored(&host, &server, &id, &to, &tablespaces);
        assert_eq!(restored.sql("postgres", "SELECT sum(balance) FROM accounts"), "0", "backup {n}");
        let journal: u64 = restored.sql("postgres", "SELECT count(*) FROM journal").parse().unwrap();
        assert!(journal >= committed, "backup {n}: {journal} of {committed} that were committed before it began");
        assert_eq!(
            restored.sql("postgres", "SELECT count(*) FROM noted"),
            "0",
            "backup {n}: unlogged tables are empty"
        );
        let checked = Command::new(format!("{PROGRAMS}/pg_amcheck"))
            .args(["--heapallindexed", "-U", "postgres", "-h"])
            .arg(restored.socket())
            .arg("postgres")
            .output()
            .unwrap();
        let said = [checked.stdout, checked.stderr].concat();
        assert!(checked.status.success(), "backup {n}: {}: {}", checked.status, String::from_utf8_lossy(&said));
        drop(restored);
        for gone in
            [to.clone()].into_iter().chain(tablespaces.iter().map(|t| to.with_extension(t.file_name().unwrap())))
        {
            fs::remove_dir_all(gone).unwrap();
        }
        let objects = host.repository().join("db");
        fs::remove_dir_all(objects).unwrap();
    }
}

/// How many bytes the program reads, of files and pipes, to run with these arguments. Linux counts them for the parent, too.
fn bytes_read(host: &Host, arguments: &[&str]) -> u64 {
    let run = host.shell("\"$BACKUP\" \"$@\" && cat /proc/$$/io").args(["sh"]).args(arguments);
    let outcome = run.run().succeeded();
    let line = outcome.text().lines().find_map(|line| line.strip_prefix("rchar: ")).expect("a count of bytes read");
    line.parse().expect("a number")
}

#[tokio::test]
async fn single_files_databases_and_tablespaces_come_out_of_both_kinds() {
    let server = NewServer::of_major(15).setting("autovacuum", "off").start();
    let location = server.make_tablespace_directory("fast");
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", location.display())).await;
    // Enough to be of several streams, and far more to read than a file takes.
    server
        .sql("CREATE TABLE big AS SELECT g, md5(g::text) || md5((g + 1)::text) AS h FROM generate_series(1, 900000) g")
        .await;
    server.sql("CREATE TABLE in_fast TABLESPACE fast AS SELECT g FROM generate_series(1, 10000) g; CHECKPOINT").await;
    let path = one(&server, "SELECT pg_relation_filepath('pg_am')").await;
    let database = one(&server, "SELECT 'base/' || oid FROM pg_database WHERE datname = current_database()").await;
    let tablespace = one(&server, "SELECT 'pg_tblspc/' || oid FROM pg_tablespace WHERE spcname = 'fast'").await;
    assert_eq!(fs::metadata(server.data().join(&path)).unwrap().len(), 8192);
    let host = Host::initialised(BACKUP);
    for method in ["local", "stream"] {
        let save = host.backup(["save", "db", "--method", method, "--base-backup", &conninfo(&server)]);
        let id = save.run().succeeded().id();
        if method == "local" {
            assert!(streams(&shown(&host, &id)).contains(&"base-01"), "its files are in several streams");
        }
        let to = |name: &str| host.path(format!("{method}-{name}"));
        let file = to("file").display().to_string();
        let read = bytes_read(&host, &["restore", &id, "--only", &path, "--to", &file]);
        assert!(read < 8 << 20, "{method}: {read} bytes were read for 8 KiB");
        assert_eq!(files_below(&to("file")), [path.as_str()], "{method}");

        let only = ["--only", &database, "--only", &tablespace, "--only", "global/pg_control"];
        let outcome = host.backup(["restore", &id, "--to"]).args([to("more")]).args(only).run().succeeded();
        outcome.saying("which no server starts from");
        let found = files_below(&to("more"));
        assert!(found.len() > 250 && found.iter().any(|path| path.starts_with(&tablespace)), "{method}: {found:?}");
        for path in found {
            let (is, was) = (fs::read(to("more").join(&path)).unwrap(), fs::read(server.data().join(&path)).unwrap());
            assert!(is == was || path == "global/pg_control", "{method}: {path} differs");
        }
        let restore = |more: &[&str]| host.backup(["restore", &id, "--to"]).args([to("none")]).args(more).run();
        restore(&["--only", "base/0"]).failed(10).saying("the backup has no base/0");
        restore(&["--only", "pg_wal"]).failed(10).hinting("--stream pg_wal");
        restore(&["--only", "/etc"]).failed(2).saying("is no path in a data directory");
        restore(&["--only", "base", "--standby"]).failed(2).saying("no cluster that could recover");
        assert!(!to("none").exists(), "nothing was made");
    }
    host.save("dump", "x");
    let other = host.backup(["restore", "dump", "--only", "base", "--to"]).args([host.path("x")]);
    other.run().failed(2).saying("does not say where its files are");
}

/// A number that a soak sets.
fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn many_files_and_a_large_one_need_no_more_memory() {
    let server = NewServer::of_major(15)
        .initdb("--data-checksums")
        .setting("autovacuum", "off")
        .setting("max_locks_per_transaction", "1024")
        .start();
    // Some 30 MiB to start with, then one table of TABLE_MIB, in segments of 1 GiB, and as many relations as RELATIONS says.
    let rows = setting("TABLE_MIB", 48) * 128;
    server.sql("CREATE TABLE large (t text); ALTER TABLE large ALTER t SET STORAGE PLAIN").await;
    server.sql(&format!("INSERT INTO large SELECT repeat(md5(g::text), 250) FROM generate_series(1, {rows}) g")).await;
    for from in (1..=setting("RELATIONS", 1000)).step_by(1000) {
        let create =
            format!("FOR n IN {from}..{} LOOP EXECUTE format('CREATE TABLE t%s (a int)', n); END LOOP", from + 999);
        server.sql(&format!("DO $$ BEGIN {create}; END $$")).await;
    }
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let outcome = save(&host, &server, &[]).within(Duration::from_secs(1800)).run().succeeded();
    // Pages of the program itself count too, which is larger here than a release is.
    assert!(outcome.peak_bytes < 64 << 20, "{} MiB", outcome.peak_bytes >> 20);
    let id = outcome.id();
    assert!(streams(&shown(&host, &id)).contains(&"base-01"));
    let restored = restored(&host, &server, &id, &public.path("data"), &[]);
    assert_eq!(restored.sql("postgres", "SELECT count(*) FROM large"), rows.to_string());
    let tables = restored.sql("postgres", "SELECT count(*) FROM pg_class WHERE relname ~ '^t[0-9]+$'");
    assert_eq!(tables, setting("RELATIONS", 1000).next_multiple_of(1000).to_string());
}
