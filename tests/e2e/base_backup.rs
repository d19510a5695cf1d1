//! A cluster into a repository: `save --base-backup` and `run`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backup_tests::host::{Host, Input, Run};
use backup_tests::postgres::{NewServer, Server};
use serde_json::Value;

use crate::BACKUP;

fn save(host: &Host, server: &Server, more: &[&str]) -> Run {
    host.backup(["save", "db", "--method", "stream", "--base-backup", &server.conninfo()]).args(more)
}

fn shown(host: &Host, reference: &str) -> Value {
    host.backup(["show", reference, "--json"]).run().json()
}

fn streams(shown: &Value) -> Vec<&str> {
    let streams = shown["backup"]["streams"].as_array().expect("a list of streams");
    streams.iter().map(|stream| stream["name"].as_str().expect("a name")).collect()
}

fn stream(host: &Host, reference: &str, name: &str) -> Vec<u8> {
    host.backup(["restore", reference, "--stream", name, "--to-stdout"]).run().succeeded().stdout().to_vec()
}

/// Unpacks a tar stream into a directory.
fn unpack(tar: &[u8], directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    let mut child =
        Command::new("tar").args(["x", "-C"]).arg(directory).stdin(Stdio::piped()).spawn().expect("tar starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("it was piped"), tar).expect("tar reads");
    assert!(child.wait().expect("tar ends").success(), "no intact archive");
}

#[tokio::test]
async fn a_backup_that_is_being_taken_is_no_synchronous_standby() {
    let server = NewServer::of_major(15)
        .setting("synchronous_standby_names", "*")
        // Half of that after the last word it asks for one.
        .setting("wal_sender_timeout", "1s")
        .start();
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g").await;
    let host = Host::initialised(BACKUP);
    let mut running = save(&host, &server, &["--max-rate", "4MiB"]).start();
    let heard = "SELECT sync_state, flush_lsn IS NULL FROM pg_stat_replication WHERE write_lsn IS NOT NULL";
    let row = loop {
        if let Some(row) = server.sql(heard).await.into_iter().next() {
            break row;
        }
        assert!(running.is_running(), "it is over before it was heard");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let row: Vec<_> = row.iter().map(Option::as_deref).collect();
    assert_eq!(row, [Some("async"), Some("t")]);
    running.wait().id();
}

#[tokio::test]
async fn every_grammar_of_the_protocol_gives_a_backup_that_is_complete() {
    for major in [13, 15, 18] {
        let server = NewServer::of_major(major).start();
        server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g").await;
        let host = Host::initialised(BACKUP);
        let id = save(&host, &server, &[]).run().id();
        let shown = shown(&host, &id);
        assert_eq!(streams(&shown), ["base", "backup_manifest", "files", "pg_wal", "details"], "{major}");
        let cluster = &shown["backup"]["cluster"];
        assert_eq!(cluster["server_version_num"].as_u64().unwrap() / 10_000, u64::from(major));
        assert_eq!((&cluster["timeline"], &cluster["wal_included"]), (&1.into(), &true.into()));
        let system = &server.sql("SELECT system_identifier::text FROM pg_control_system()").await[0][0];
        assert_eq!(cluster["system_identifier"].as_str(), system.as_deref());
        assert_eq!(shown["details"]["source"]["method"], "stream");

        let base = stream(&host, &id, "base");
        assert!(base.ends_with(&[0; 1024]), "{major}: tar archives end with two blocks of zeros");
        for line in stream(&host, &id, "files").split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let entry: Value = serde_json::from_slice(line).unwrap();
            assert_eq!(entry["stream"], "base");
            if entry["path"] == "PG_VERSION" {
                let offset = usize::try_from(entry["offset"].as_u64().unwrap()).unwrap();
                assert!(base[offset..].starts_with(format!("{major}\n").as_bytes()));
            }
        }
        host.backup(["verify", &id, "--deep"]).run().succeeded();
    }
}

#[tokio::test]
async fn pg_verifybackup_accepts_what_was_stored() {
    let server = NewServer::of_major(15).initdb("--wal-segsize=1").start();
    let host = Host::initialised(BACKUP);
    for name in ["fast", "slow"] {
        let location = server.tablespaces().join(name);
        fs::create_dir_all(&location).unwrap();
        let owner = fs::metadata(server.data()).unwrap();
        use std::os::unix::fs::MetadataExt;
        for made in [&server.tablespaces(), &location] {
            std::os::unix::fs::chown(made, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        server.sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display())).await;
        server.sql(&format!("CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 1000) g")).await;
    }
    let id = save(&host, &server, &["--manifest-checksums", "sha256", "--label", "it's mine"]).run().id();
    let shown = shown(&host, &id);
    let tablespaces = shown["details"]["source"]["tablespaces"].as_array().unwrap();
    assert_eq!(tablespaces.len(), 2);

    let data = host.path("restored");
    unpack(&stream(&host, &id, "base"), &data);
    unpack(&stream(&host, &id, "pg_wal"), &data.join("pg_wal"));
    fs::write(data.join("backup_manifest"), stream(&host, &id, "backup_manifest")).unwrap();
    assert!(fs::read_to_string(data.join("backup_label")).unwrap().contains("LABEL: it's mine"));
    for tablespace in tablespaces {
        let oid = tablespace["oid"].to_string();
        let link = data.join("pg_tblspc").join(&oid);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new(tablespace["location"].as_str().unwrap()));
        fs::remove_file(&link).unwrap();
        unpack(&stream(&host, &id, &format!("tablespace-{oid}")), &link);
    }
    let verified = Command::new("/usr/lib/postgresql/15/bin/pg_verifybackup").arg(&data).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[tokio::test]
async fn damaged_pages_are_kept_marked_and_never_the_latest() {
    let server = NewServer::of_major(15).initdb("--data-checksums").start();
    let host = Host::initialised(BACKUP);
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 1000) g; CHECKPOINT").await;
    let good = save(&host, &server, &[]).run().id();
    let path = server.sql("SELECT pg_relation_filepath('t')").await[0][0].clone().unwrap();
    server.stop();
    fs::OpenOptions::new()
        .write(true)
        .open(server.data().join(&path))
        .unwrap()
        .write_all_at(b"rot", 8192 + 4000)
        .unwrap();
    server.start();

    let outcome = save(&host, &server, &[]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    for words in ["checksum verification failed", &path, "not be chosen as the latest"] {
        assert!(outcome.to_string().contains(words), "{words}: {outcome}");
    }
    let shown = shown(&host, outcome.text().trim());
    assert_eq!(shown["backup"]["condition"], "damaged");
    let warnings = shown["details"]["warnings"].to_string();
    assert!(warnings.contains(&path) && warnings.contains("XX001"), "{warnings}");
    assert_eq!(self::shown(&host, "db")["backup"]["id"], good.as_str());
    let unverified = save(&host, &server, &["--no-verify-checksums"]).run().id();
    assert_eq!(self::shown(&host, "db")["backup"]["id"], unverified.as_str());
}

#[tokio::test]
async fn without_wal_it_is_left_to_the_archive() {
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    let id = save(&host, &server, &["--no-wal"]).run().id();
    let shown = shown(&host, &id);
    assert_eq!(streams(&shown), ["base", "backup_manifest", "files", "details"]);
    assert_eq!(shown["backup"]["cluster"]["wal_included"], false);
    let slots = server.sql("SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots[0][0].as_deref(), Some("0"));
}

#[tokio::test]
async fn a_standby_can_be_backed_up() {
    let primary = NewServer::of_major(15).setting("max_wal_senders", "5").start();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) g").await;
    let standby = NewServer::of_major(15).standby_of(&primary).start();
    let host = Host::initialised(BACKUP);
    // A standby's backup can only end at a restart point, for which there has to be something to replay.
    primary.sql("INSERT INTO t VALUES (0); CHECKPOINT").await;
    let id = save(&host, &standby, &[]).run().id();
    assert!(streams(&shown(&host, &id)).contains(&"pg_wal"));
}

#[tokio::test]
async fn what_the_server_has_not_is_found_out_before_anything_is_read() {
    for (settings, words) in [
        ([("max_wal_senders", "1"), ("max_replication_slots", "5")], "max_wal_senders"),
        ([("max_wal_senders", "5"), ("max_replication_slots", "0")], "max_replication_slots"),
    ] {
        let server = settings.iter().fold(NewServer::of_major(15), |s, (name, value)| s.setting(name, value)).start();
        let host = Host::initialised(BACKUP);
        save(&host, &server, &[]).run().failed(1).saying(words).hinting("--no-wal");
        assert!(host.stored().is_empty(), "{words}");
    }
    let server = NewServer::of_major(13).start();
    let host = Host::initialised(BACKUP);
    save(&host, &server, &["--server-compression", "zstd"]).run().failed(2).saying("PostgreSQL 13 cannot compress");
    save(&host, &server, &["--max-rate", "1KiB"]).run().failed(2).saying("32 KiB");
    host.backup(["save", "db", "--base-backup", "host=/nowhere user=postgres"]).run().failed(1).saying("/nowhere");
    host.backup(["save", "db", "--no-wal"]).stdin("x").run().failed(2).saying("--base-backup");
    assert!(host.stored().is_empty());
}

#[tokio::test]
async fn what_the_server_compressed_is_stored_as_it_came() {
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    let id = save(&host, &server, &["--server-compression", "gzip:1"]).run().id();
    let shown = shown(&host, &id);
    assert_eq!(streams(&shown), ["base", "backup_manifest", "pg_wal", "details"]);
    assert_eq!(shown["details"]["source"]["compression"], "gzip");
    assert!(stream(&host, &id, "base").starts_with(&[0x1F, 0x8B]));
}

#[tokio::test]
async fn a_server_that_dies_and_a_user_who_gives_up_leave_nothing() {
    ends_early(|host, server| save(host, server, &["--max-rate", "1MiB"])).await;
}

/// Ends a backup in the middle, which `save` makes so slow that it is there for a while: its user gives up, and then the server dies. Neither
/// leaves anything, here or there.
pub(crate) async fn ends_early(save: impl Fn(&Host, &Server) -> Run) {
    let server = NewServer::of_major(15).start();
    // 40 MB with what a cluster begins with.
    server.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 200000) g").await;
    for dies in [false, true] {
        let host = Host::initialised(BACKUP);
        let mut running = save(&host, &server).start();
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
            // The one that asks has this name, too.
            let active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup'";
            let begun = Instant::now();
            while server.value(active).await != "1" {
                assert!(begun.elapsed() < Duration::from_secs(30), "its sessions stay");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(server.value("SELECT count(*) FROM pg_replication_slots").await, "0");
        }
        assert!(host.stored().is_empty() && host.listed().is_empty(), "{dies}: {:?}", host.stored());
    }
}

#[tokio::test]
async fn configured_targets_are_run_one_after_the_other() {
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    host.write("etc/app.conf", "x = 1\n");
    let good = format!(
        "[targets.db]\nbase_backup = \"{}\"\ncheckpoint = \"fast\"\n[targets.etc]\ndirectory = \"etc\"\n[targets.hello]\ncommand = [\"echo\", \"hello\"]\n",
        server.conninfo()
    );
    host.write("backup.toml", &good);
    let listing = host.backup(["config", "show"]).run().succeeded();
    for words in ["targets.db", "base_backup host=", "directory etc", "command echo", "backup.toml:1"] {
        assert!(listing.text().contains(words), "{words}: {listing}");
    }
    assert_eq!(host.backup(["run"]).run().succeeded().text().lines().count(), 3);
    host.backup(["run", "etc"]).run().id();
    assert_eq!(host.listed().len(), 4);
    host.backup(["run", "other"]).run().failed(2).saying("'other'").saying("db, etc, hello");

    host.write("backup.toml", format!("{good}[targets.a]\ncommand = [\"false\"]\n"));
    let outcome = host.backup(["run"]).run().failed(1).saying("target 'a' failed").saying("1 of 4 targets failed: 'a'");
    assert_eq!(outcome.text().lines().count(), 3, "the others have a backup");

    for (wrong, words) in [
        ("[targets.a]\n", "does not say what to back up"),
        ("[targets.a]\npg_dump = \"x\"\ndirectory = \"y\"\n", "more than one thing"),
        ("[targets.a]\npg_dump = \"x\"\nmax_rate = \"1MiB\"\n", "how to copy a cluster"),
        ("[targets.latest]\npg_dump = \"x\"\n", "a meaning of its own"),
        ("[targets.a]\nbase_backup = \"x\"\nserver_compression = \"rar\"\n", "gzip, lz4 or zstd"),
        ("[targets.a]\ncommand = []\n", "an empty command"),
        ("\n[targets.a]\nbase_bakup = \"x\"\n", "backup.toml:3: unknown key 'base_bakup'"),
    ] {
        host.write("backup.toml", wrong);
        host.backup(["config", "check"]).run().failed(2).saying(words);
    }
    host.write("backup.toml", "");
    host.backup(["run"]).stdin(Input::Nothing).run().failed(2).saying("no target is configured");
}
