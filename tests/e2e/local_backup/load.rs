//! Clusters that are written to while they are copied, and large ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use backup_tests::host::Host;
use backup_tests::physical::PublicDir;
use backup_tests::postgres::{NewServer, Server};

use super::{PROGRAMS, large_table, restored, save, shown, streams};
use crate::BACKUP;

/// Writes without end: transfers between accounts, and all that changes files.
///
/// So many of each in a second that they keep a processor busy, and leave one to copy, restore and check what they write.
struct Load(Vec<Child>);

impl Load {
    fn on(server: &Server, files: &Path) -> Self {
        let scripts = [
            (
                "transfer",
                400,
                "\\set a random(1, 20000)\n\\set b random(1, 20000)\n\\set n random(1, 100)\n\
                 BEGIN;\nUPDATE accounts SET balance = balance - :n WHERE id = :a;\n\
                 UPDATE accounts SET balance = balance + :n WHERE id = :b;\nINSERT INTO journal (n) VALUES (:n);\nCOMMIT;\n",
            ),
            (
                "tables",
                3,
                "\\set n random(1, 9)\nCREATE TABLE IF NOT EXISTS churn_:n AS SELECT g, md5(g::text) FROM generate_series(1, 3000) g;\n\
                 INSERT INTO churn_:n SELECT g, md5(g::text) FROM generate_series(1, 20000) g;\n\
                 CREATE INDEX ON churn_:n (g);\nDELETE FROM churn_:n WHERE g % 3 = 0;\nVACUUM churn_:n;\n\
                 TRUNCATE churn_:n;\nINSERT INTO churn_:n SELECT g, '' FROM generate_series(1, 100) g;\nDROP TABLE churn_:n;\n",
            ),
            (
                "rewrites",
                3,
                "UPDATE wide SET t = md5(t);\nVACUUM wide;\nDELETE FROM wide WHERE id % 10 = 3;\nVACUUM (TRUNCATE) wide;\n\
                 INSERT INTO wide SELECT g, md5(g::text) FROM generate_series(1, 2000) g;\nVACUUM FULL wide;\n\
                 CREATE TEMPORARY TABLE IF NOT EXISTS tt AS SELECT generate_series(1, 10000) g;\nTRUNCATE tt;\n\
                 UPDATE in_space SET g = g + 1 WHERE g % 7 = 0;\nINSERT INTO noted VALUES (1);\nREINDEX TABLE in_space;\n\
                 DELETE FROM journal WHERE id < (SELECT max(id) - 20000 FROM journal);\nVACUUM journal;\n",
            ),
        ];
        let run = |(name, each_second, script): &(&str, u32, &str)| {
            let path = files.join(format!("{name}.sql"));
            fs::write(&path, script).expect("a file can be written");
            let mut command = Command::new(format!("{PROGRAMS}/pgbench"));
            let clients = if *name == "transfer" { "2" } else { "1" };
            command.args(["-n", "-c", clients, "-T", "100000", "-R", &each_second.to_string(), "-f"]).arg(path);
            command.args(["-U", "postgres", "-h"]);
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
    // With what a cluster begins with, it is enough for a second stream.
    large_table(&server, "still", 48).await;
    (server, locations)
}

/// How many backups a soak takes; a few unless `BACKUPS` says otherwise.
fn backups() -> u32 {
    setting("BACKUPS", 2)
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "whoever waits for an hour of it wants to see it go on")]
async fn under_load_every_backup_is_whole_and_none_is_suspected() {
    let (server, tablespaces) = busy_server().await;
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let mut load = Load::on(&server, &host.path(""));
    for n in 0..backups() {
        let committed: u64 = server.value("SELECT coalesce(max(id), 0) FROM journal").await.parse().unwrap();
        // Some slowly, so that much changes meanwhile; an odd one in one lane.
        let more: &[&str] = match n % 3 {
            0 => &["--max-rate", "20MiB"],
            1 => &["--workers", "1", "--memory", "32MiB"],
            _ => &[],
        };
        let id = save(&host, &server, more).run().succeeded().id();
        assert_eq!(streams(&shown(&host, &id)).contains(&"base-01"), n % 3 != 1, "backup {n}: its lanes");
        assert!(load.runs(), "backup {n}: nobody writes any more");
        let to = public.path(&format!("data{n}"));
        let restored = restored(&host, &server, &id, &to, &tablespaces);
        assert_eq!(restored.sql("postgres", "SELECT sum(balance) FROM accounts"), "0", "backup {n}");
        let journal: u64 = restored.sql("postgres", "SELECT coalesce(max(id), 0) FROM journal").parse().unwrap();
        assert!(
            journal >= committed,
            "backup {n}: entries up to {journal}, of {committed} that were there before it began"
        );
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
        eprintln!("backup {} of {}: whole", n + 1, backups());
    }
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
    large_table(&server, "large", rows / 128).await;
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
