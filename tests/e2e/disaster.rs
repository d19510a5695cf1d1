//! The primary is lost, data directory and all: what was received comes back, and nothing of it is missing.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use backup_core::postgres::wal::Lsn;
use backup_tests::host::{Host, Running};
use backup_tests::physical::PublicDir;
use backup_tests::postgres::{NewServer, Server};
use backup_tests::site::{opened, until};
use rustix::process::Signal;

use super::recovery::documented;
use crate::BACKUP;

/// How often what is new becomes durable.
const FLUSH: Duration = Duration::from_secs(1);

/// A host whose program, repository and key the server's user can reach.
fn host(public: &PublicDir) -> Host {
    let program = public.path("backup");
    std::fs::copy(BACKUP, &program).unwrap();
    let mut host = Host::new(&program.display().to_string());
    host.set("BACKUP_REPO", public.path("repository"));
    host.set("BACKUP_TARGET", "db");
    host.backup(["init"]).run().succeeded();
    std::fs::rename(host.identity_file(), public.path("identity.txt")).unwrap();
    host.set("BACKUP_IDENTITY_FILE", public.path("identity.txt"));
    host
}

/// Gives files to the user who runs servers: the owner of `like`.
fn give(path: &Path, like: &Path) {
    let owner = std::fs::metadata(like).unwrap();
    use std::os::unix::fs::MetadataExt;
    let owner = format!("{}:{}", owner.uid(), owner.gid());
    assert!(Command::new("chown").arg("-R").arg(owner).arg(path).status().unwrap().success());
}

/// Loses a server and its data directory, and ends what received from it; returns the flags with which the server's user can restore.
fn lost(server: &Server, receiving: Running, public: &PublicDir) -> &'static [&'static str] {
    server.kill();
    std::fs::remove_dir_all(server.data()).unwrap();
    receiving.signal(Signal::TERM);
    receiving.wait().succeeded();
    for path in ["repository", "identity.txt"] {
        give(&public.path(path), &server.directory().join("log"));
    }
    if rustix::process::geteuid().is_root() { &["--owner", "postgres"] } else { &[] }
}

async fn one(server: &Server, sql: &str) -> String {
    server.sql(sql).await[0][0].clone().unwrap_or_default()
}

#[tokio::test]
async fn a_lost_primary_costs_no_more_than_the_flush_interval() {
    for major in [13, 15, 18] {
        let public = PublicDir::new();
        let host = host(&public);
        let server = NewServer::of_major(major)
            .initdb("--wal-segsize=1")
            .initdb("--data-checksums")
            .setting("synchronous_commit", "on")
            .start();
        let conninfo = format!("host={} port={} user=postgres", server.directory().display(), server.port());
        server.sql("CREATE TABLE t (n int PRIMARY KEY, hash text); CREATE UNLOGGED TABLE u AS SELECT 1 AS n").await;
        let interval = FLUSH.as_secs().to_string();
        let receive = ["wal", "receive", &conninfo, "--slot", "backup", "--create-slot", "--flush-interval", &interval];
        let receiving = host.backup(receive).start();
        let insert = |n: u32| format!("INSERT INTO t SELECT {n}, repeat(md5('{n}'), 100)");
        server.sql(&insert(0)).await;
        let saving = host.backup(["save", "db", "--base-backup", &conninfo]).start();
        let mut committed = Vec::new();
        let mut saving = Some(saving);
        let mut end = Instant::now() + Duration::from_secs(120);
        for n in 1.. {
            server.sql(&insert(n)).await;
            let lsn: Lsn = one(&server, "SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
            committed.push((Instant::now(), lsn));
            // Some seconds of writing after the backup, which was made meanwhile.
            if saving.as_mut().is_some_and(|saving| !saving.is_running()) {
                saving.take().unwrap().wait().id();
                end = Instant::now() + 8 * FLUSH;
            }
            if Instant::now() > end {
                break;
            }
        }
        let flushed = "SELECT max(flush_lsn) FROM pg_stat_replication";
        let target = one(&server, flushed).await;
        // What PostgreSQL meets behind it, and what was acknowledged by then.
        server.sql(&insert(u32::try_from(committed.len()).unwrap() + 1)).await;
        until("it is durable", &server, &format!("SELECT ({flushed}) > '{target}'")).await;
        let durable: Lsn = one(&server, flushed).await.parse().unwrap();
        let acknowledged = committed.iter().filter(|(_, lsn)| *lsn <= durable).count();
        let killed = Instant::now();
        let owner = lost(&server, receiving, &public);
        let restore = |to: &Path, lsn: &[&str]| host.backup(["restore", "db", "--to"]).args([to]).args(lsn).args(owner);
        // The server was told that this is safe, so it can be asked for, though its segment was never full; what comes later cannot.
        restore(&public.path("to-lsn"), &["--target-lsn", &target]).run().succeeded();
        restore(&public.path("beyond"), &["--target-lsn", "F/0"]).run().failed(10).saying("F/0");
        restore(&server.data(), &[]).run().succeeded();
        server.start();
        opened(&server).await;
        let rows: usize = one(&server, "SELECT count(*) FROM t").await.parse().unwrap();
        assert_eq!(one(&server, "SELECT max(n) + 1 FROM t").await, rows.to_string(), "{major}: a hole");
        assert_eq!(one(&server, "SELECT count(*) FROM u").await, "0", "{major}: unlogged tables are empty");
        assert_eq!(one(&server, "SELECT bool_and(hash = repeat(md5(n::text), 100)) FROM t").await, "t");
        assert!(rows > acknowledged, "{major}: {rows} rows, and {acknowledged} were acknowledged");
        // The flush and its upload; a machine that is busy with other tests may take several times as long.
        let due = committed.iter().filter(|(at, _)| *at + 6 * FLUSH < killed).count();
        assert!(due > 0 && rows > due, "{major}: {rows} rows of {}, and {due} were due", committed.len());
    }
}

/// The same with a standby that followed the archive: it takes over with what was received of the last segment, as its page says.
#[tokio::test]
async fn a_standby_takes_over_with_what_was_received_of_the_last_segment() {
    let public = PublicDir::new();
    let host = host(&public);
    let server = NewServer::of_major(15).initdb("--wal-segsize=1").setting("synchronous_commit", "on").start();
    server.sql("CREATE TABLE t (n int)").await;
    let receive = ["wal", "receive", &server.conninfo(), "--slot", "backup", "--create-slot", "--flush-interval", "1"];
    let receiving = host.backup(receive).start();
    until("it is received from", &server, "SELECT count(*) > 0 FROM pg_stat_replication").await;
    host.backup(["save", "db", "--base-backup", &server.conninfo()]).run().id();
    server.sql("INSERT INTO t SELECT generate_series(1, 500)").await;
    let lsn = one(&server, "SELECT pg_current_wal_insert_lsn()").await;
    let durable = format!("SELECT coalesce(bool_or(flush_lsn >= '{lsn}'), false) FROM pg_stat_replication");
    until("it is durable", &server, &durable).await;
    let owner = lost(&server, receiving, &public);
    host.backup(["restore", "db", "--standby", "--to"]).args([server.data()]).args(owner).run().succeeded();
    server.start();
    // It has replayed what whole segments hold, which is less.
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
    assert_eq!(one(&server, &replayed).await, "f");
    let sections = documented("STANDBY.md");
    let (_, commands) = sections.iter().find(|(heading, _)| heading == "Taking over").expect("that section");
    let statements = commands.iter().skip(1).take_while(|line| *line != "SQL");
    let file = host.write("take-over.sql", statements.map(|line| format!("{line}\n")).collect::<String>());
    server.client("psql", &["-X", "-Atq", "-f", file.to_str().unwrap()]);
    until("it replays the rest", &server, &replayed).await;
    server.sql("SELECT pg_promote()").await;
    opened(&server).await;
    assert_eq!(one(&server, "SELECT count(*) FROM t").await, "500");
}
