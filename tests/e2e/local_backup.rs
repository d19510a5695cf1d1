//! A cluster whose files are here: `save --base-backup --method local`, and what comes back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backup_tests::host::{Host, Outcome, Run};
use backup_tests::physical::{PublicDir, Restored};
use backup_tests::postgres::{NewServer, Server};
use backup_tests::s3::S3;
use serde_json::Value;

use crate::BACKUP;
use crate::base_backup::ends_early;

mod damage;
mod load;
mod only;
mod promotion;
mod proof;
mod tablespaces;

/// Programs that only the distribution's version comes with.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

fn save(host: &Host, server: &Server, more: &[&str]) -> Run {
    host.backup(["save", "db", "--method", "local", "--base-backup", &server.conninfo()]).args(more)
}

fn shown(host: &Host, reference: &str) -> Value {
    host.backup(["show", reference, "--json"]).run().json()
}

fn streams(shown: &Value) -> Vec<&str> {
    let streams = shown["backup"]["streams"].as_array().expect("a list of streams");
    streams.iter().map(|stream| stream["name"].as_str().expect("a name")).collect()
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
        assert_eq!(server.value("SELECT count(*) FROM pg_replication_slots").await, "0");
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
    follows(&standby, &primary).await;
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
    let path = server.value("SELECT pg_relation_filepath('t')").await;
    server.stop();
    flip(&server.data().join(&path), 300);
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
    flip(&server.data().join(&path), 300);
    save(&host, &server, &[]).run().succeeded();
}

/// Flips a bit of a page.
fn flip(file: &Path, block: u64) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let (mut byte, at) = ([0], block * 8192 + 5000);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Makes a table of so many MiB, in one row for each page, that nothing compresses away.
async fn large_table(server: &Server, name: &str, mib: u32) {
    server.sql(&format!("CREATE TABLE {name} (t text); ALTER TABLE {name} ALTER t SET STORAGE PLAIN")).await;
    let fill = format!("SELECT repeat(md5(g::text), 250) FROM generate_series(1, {}) g", mib * 128);
    server.sql(&format!("INSERT INTO {name} {fill}")).await;
}

#[tokio::test]
async fn a_flipped_bit_is_found_in_whatever_stream_its_file_is() {
    let server = NewServer::of_major(15).initdb("--data-checksums").setting("autovacuum", "off").start();
    let host = Host::initialised(BACKUP);
    let mut paths = Vec::new();
    for name in ["one", "other"] {
        large_table(&server, name, 40).await;
        paths.push(server.value(&format!("SELECT pg_relation_filepath('{name}')")).await);
    }
    server.stop();
    for path in &paths {
        // The last of its pages: the other stream has ended by then, or is about to.
        flip(&server.data().join(path), fs::metadata(server.data().join(path)).unwrap().len() / 8192 - 1);
    }
    server.start();
    // Slow enough that neither lane has taken both when the other comes.
    let outcome = save(&host, &server, &["--max-rate", "20MiB"]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    let id = outcome.text().trim().to_owned();
    let index = host.backup(["restore", &id, "--stream", "files", "--to-stdout"]).run().succeeded();
    let entries = index.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let streams: BTreeMap<String, String> = entries
        .map(|entry| [&entry["path"], &entry["stream"]].map(|text| text.as_str().unwrap().to_owned()).into())
        .collect();
    let mut of: Vec<&str> = paths.iter().map(|path| streams[path].as_str()).collect();
    of.sort_unstable();
    assert_eq!(of, ["base", "base-01"]);
    for (path, name) in paths.iter().zip(["one", "other"]) {
        let block = fs::metadata(server.data().join(path)).unwrap().len() / 8192 - 1;
        let words =
            [format!("checksum verification failed in {path}, block {block}"), format!("({name} in the database")];
        assert!(words.iter().all(|words| outcome.to_string().contains(words)), "{words:?}: {outcome}");
    }
    assert_eq!(shown(&host, &id)["backup"]["warnings"], 2);
}

#[tokio::test]
async fn a_role_whose_transactions_may_not_be_long_can_back_up() {
    // A checkpoint that takes its time takes six seconds, and not minutes.
    let server = NewServer::of_major(17).setting("checkpoint_timeout", "30s");
    let server = server.setting("checkpoint_completion_target", "0.2").start();
    // Whoever is connected keeps what was set before.
    server.sql("ALTER ROLE postgres SET transaction_timeout = '2s'").await;
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 500000) g").await;
    let host = Host::initialised(BACKUP);
    save(&host, &server, &["--checkpoint", "spread"]).within(Duration::from_secs(300)).run().succeeded();
}

#[tokio::test]
async fn a_server_that_dies_and_a_user_who_gives_up_leave_nothing() {
    ends_early(|host, server| save(host, server, &["--max-rate", "2MiB"])).await;
}

/// Waits until a standby has replayed what its primary has written.
async fn follows(standby: &Server, primary: &Server) {
    let written = primary.value("SELECT pg_current_wal_lsn()").await;
    let begun = Instant::now();
    while standby.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")).await != "t" {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_cluster_goes_to_s3_within_32_mib_of_memory_and_back() {
    let server = NewServer::of_major(15).initdb("--data-checksums").setting("autovacuum", "off").start();
    large_table(&server, "large", 48).await;
    let (s3, mut host, public) = (S3::start(), Host::new(BACKUP), PublicDir::new());
    s3.serve(&mut host);
    host.set("BACKUP_MEMORY", "32MiB");
    host.backup(["init"]).run().succeeded();
    // 8 MiB of parts for each stream would be 32 MiB by themselves.
    for method in ["local", "stream"] {
        let save = host.backup(["save", "db", "--base-backup", &server.conninfo(), "--method", method]);
        let outcome = save.within(Duration::from_secs(600)).run().succeeded();
        let to = public.path(method);
        let id = outcome.text().trim().to_owned();
        is_small(&outcome);
        assert!(!streams(&shown(&host, &id)).contains(&"base-01"), "there is memory for one lane");
        is_small(&host.backup(["restore", &id, "--to"]).args([&to]).args(owner()).run().succeeded());
        let restored = Restored::of_server(&server, &to).started();
        assert_eq!(restored.sql("postgres", "SELECT count(*) FROM large"), "6144", "{method}");
    }
    host.set("BACKUP_MEMORY", "20MiB");
    save(&host, &server, &[]).run().failed(2).hinting("the least that would do is 28 MiB");
}

/// Besides 32 MiB of buffers there are pages of the program itself, which is larger here than a release is.
fn is_small(outcome: &Outcome) {
    assert!(outcome.peak_bytes < 64 << 20, "{} MiB: {outcome}", outcome.peak_bytes >> 20);
}
