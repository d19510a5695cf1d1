//! `archive_command` and `restore_command` of a real PostgreSQL.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use backup_core::keys::Identity;
use backup_core::keys::age::AgeIdentity;
use backup_core::repository::Repository;
use backup_core::wal_archive::{Fetched, Fetcher, FetcherOptions};
use backup_tests::host::Host;
use backup_tests::postgres::Cluster;
use backup_tests::s3::{Fault, Rule, S3};

use futures::StreamExt;

use crate::BACKUP;

/// A cluster that archives to S3.
struct World {
    server: S3,
    host: Host,
    cluster: Cluster,
}

/// The first lines of docs/ARCHIVING.md that set these.
fn documented(settings: &[&str]) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ARCHIVING.md");
    let page = std::fs::read_to_string(page).unwrap();
    let line = |setting: &&str| {
        let begins = format!("{setting} = ");
        format!("{}\n", page.lines().find(|line| line.starts_with(&begins)).expect("it is documented"))
    };
    settings.iter().map(line).collect()
}

impl World {
    fn start(name: &str) -> Self {
        let server = S3::start();
        let mut host = Host::new(BACKUP);
        server.serve(&mut host);
        host.backup(["init"]).run().succeeded();
        let directory = Cluster::directory_of(name).join("own");
        std::fs::create_dir_all(directory.join("copies")).unwrap();
        // Where the server's user can reach them.
        let (program, identity) = (directory.join("backup"), directory.join("identity.txt"));
        std::fs::copy(BACKUP, &program).unwrap();
        std::fs::copy(host.identity_file(), &identity).unwrap();
        let script = directory.join("backup-wal");
        let exports: String = host
            .environment()
            .filter(|(name, _)| name.starts_with("BACKUP_") || name.starts_with("AWS_"))
            .map(|(name, value)| format!("export {name}='{value}'\n"))
            .collect();
        let identity = format!("export BACKUP_IDENTITY_FILE='{}'\n", identity.display());
        // What PostgreSQL hands over, beside what we store of it.
        let copy = format!("[ \"$1\" != push ] || cp \"$2\" '{}/copies' || exit\n", directory.display());
        let text = format!("#!/bin/sh\n{exports}{identity}{copy}exec '{}' wal \"$@\"\n", program.display());
        std::fs::write(&script, text).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, executable).unwrap();
        let script = script.display().to_string();
        let settings =
            documented(&["archive_mode", "archive_command", "restore_command"]).replace("backup wal", &script);
        let settings = format!("{settings}wal_keep_size = 4GB\nmax_wal_size = 4GB\nautovacuum = off\n");
        let cluster = Cluster::of_small_segments(name, &settings);
        cluster.give(&directory);
        host.set("BACKUP_TARGET", "app");
        Self { server, host, cluster }
    }

    fn data(&self) -> PathBuf {
        self.cluster.directory().join("data")
    }

    fn sql(&self, sql: &str) -> String {
        self.cluster.sql("postgres", sql)
    }

    /// Writes `count` segments, each fourth of them full.
    fn write(&self, count: u32) {
        self.sql(&format!(
            "DO $$ BEGIN FOR i IN 1..{count} LOOP
               INSERT INTO t SELECT n, md5(random()::text) || md5(random()::text)
                 FROM generate_series(1, CASE i % 4 WHEN 0 THEN 5000 ELSE 50 END) n;
               PERFORM pg_switch_wal();
               COMMIT;
             END LOOP; END $$"
        ));
    }

    /// Waits until nothing waits to be archived.
    fn archived(&self) {
        let status = self.data().join("pg_wal/archive_status");
        let waiting = || {
            let entries = std::fs::read_dir(&status).unwrap();
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter(|name| name.ends_with(".ready")).count()
        };
        let (mut least, mut round) = (usize::MAX, 0);
        // Two minutes in which it does not get on.
        while round < 2400 {
            let left = waiting();
            if left == 0 {
                return;
            }
            if left < least {
                (least, round) = (left, 0);
            }
            round += 1;
            thread::sleep(Duration::from_millis(50));
            // After three failures the archiver sleeps for a minute, unless there is something new.
            if round % 40 == 39 {
                self.sql("SELECT pg_logical_emit_message(false, 'wake', 'up'), pg_switch_wal()");
            }
        }
        panic!("{} files are not archived", waiting());
    }

    /// The segments that PostgreSQL has handed over, by name.
    fn handed_over(&self) -> Vec<String> {
        let copies = std::fs::read_dir(self.cluster.directory().join("own/copies")).unwrap();
        let names = copies.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut segments: Vec<String> = names.filter(|name| name.len() == 24).collect();
        segments.sort();
        segments
    }

    /// Demands that each of these segments comes back as PostgreSQL gave it. The store's files are a repository, too.
    fn same(&self, names: &[String]) {
        let repository = self.server.path("some/prefix");
        let compare = async {
            let repository = Repository::open(&repository.to_str().unwrap().parse().unwrap()).await.unwrap();
            let identity: Arc<dyn Identity> = Arc::new(AgeIdentity::load(&self.host.identity_file()).unwrap());
            let (target, options) = ("app".parse().unwrap(), FetcherOptions::default());
            let fetcher = &Fetcher::new(repository, target, vec![identity], options).unwrap();
            let compared = futures::stream::iter(names).for_each_concurrent(8, |name| async move {
                let fetched = self.host.path(name);
                let done = fetcher.fetch(name.parse().unwrap(), &fetched).await.unwrap();
                assert!(matches!(done, Fetched::Placed(_)), "{name} is lost");
                let was = std::fs::read(self.cluster.directory().join("own/copies").join(name)).unwrap();
                assert!(was == std::fs::read(&fetched).unwrap(), "{name} differs");
                std::fs::remove_file(fetched).unwrap();
            });
            compared.await;
        };
        tokio::runtime::Runtime::new().unwrap().block_on(compare);
    }

    fn copy_path(&self) -> PathBuf {
        self.cluster.directory().join("own/copy")
    }

    fn copy(&self, to: &Path) {
        let mut copy = self.cluster.as_server("pg_basebackup");
        copy.args(["-X", "none", "-c", "fast", "--no-sync", "-D"]).arg(to);
        let output = copy.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn stored(&self, part: &str) -> Vec<String> {
        self.server.objects().into_iter().filter(|name| name.contains(part)).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.cluster.directory().join("log")).unwrap_or_default()
    }

    fn until(&self, what: &str, happened: impl Fn() -> bool) {
        for _ in 0..1200 {
            if happened() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("never: {what}\n{:?}\n{}", self.stored("/wal/"), self.log());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The server of the copy is nobody's but this test's.
        if self.copy_path().exists() {
            self.cluster.control(&self.copy_path(), &["stop", "-m", "immediate"]);
        }
    }
}

#[test]
fn a_store_that_fails_at_random_costs_none_of_a_thousand_segments() {
    let world = World::start("archive");
    world.sql("CREATE TABLE t (n int, hash text)");
    for (fault, one_in) in
        [(Fault::Status(403), 12), (Fault::Status(503), 20), (Fault::LoseAnswer, 20), (Fault::Reset, 20)]
    {
        world.server.inject(Rule::new(fault, "PUT", "/wal/").one_in(one_in));
    }
    world.write(1000);
    world.archived();
    world.server.heal();
    let failed: u64 = world.sql("SELECT failed_count FROM pg_stat_archiver").parse().unwrap();
    assert!(failed > 0, "PostgreSQL has counted no failure");
    let segments = world.handed_over();
    assert!(segments.len() >= 1000, "{}", segments.len());
    world.same(&segments);

    let check = world.host.backup(["wal", "check", "--json", "-D"]).args([world.data()]).run().json();
    assert_eq!((&check["ok"], &check["problems"]), (&true.into(), &serde_json::json!([])));
    let timeline = &check["clusters"][0]["timelines"][0];
    assert_eq!((&timeline["segments"], &timeline["segment_bytes"]), (&segments.len().into(), &(1 << 20).into()));
    assert_eq!(
        check["clusters"][0]["system_identifier"],
        world.sql("SELECT system_identifier FROM pg_control_system()")
    );

    // A forced switch leaves a segment of almost nothing.
    world.sql("SELECT pg_logical_emit_message(false, 'a', 'b'), pg_switch_wal()");
    world.archived();
    let last = world.handed_over().pop().unwrap();
    let [object] = &world.stored(&format!("{last}.vol"))[..] else { panic!("{last} is not stored once") };
    let stored = world.server.object(object).len();
    assert!(stored < 10_000, "{stored} bytes");

    // Somebody removes one.
    std::fs::remove_file(world.server.path(&world.stored(&segments[500])[0])).unwrap();
    let check = world.host.backup(["wal", "check"]).run();
    assert_eq!(check.code(), Some(3), "{check}");
    check.saying(&format!("the segment {} of cluster", segments[500]));
}

#[test]
fn recovery_stops_when_in_doubt_and_ends_where_the_archive_does() {
    let world = World::start("recover");
    world.sql("CREATE TABLE t (n int, hash text)");
    let copy = world.copy_path();
    world.copy(&copy);
    world.write(25);
    let was = world.sql("SELECT count(*), md5(string_agg(hash, '')) FROM t");
    world.archived();
    assert!(world.cluster.control(&world.data(), &["stop", "-m", "fast"]));
    std::fs::write(copy.join("recovery.signal"), "").unwrap();
    world.cluster.give(&copy.join("recovery.signal"));

    // A segment in the middle that the store refuses, now and for good, must not look like the end.
    let middle = &world.stored("/00000001/00000001")[15];
    world.server.inject(Rule::new(Fault::Status(403), "GET", middle.rsplit('/').next().unwrap()));
    // It may serve queries before it comes there.
    let _ = world.cluster.control(&copy, &["start", "-t", "120"]);
    world.until("recovery stops", || !world.cluster.control(&copy, &["status"]));
    world.server.heal();
    let log = world.log();
    assert!(log.contains("FATAL:  could not restore file") && log.contains("exit code 200"), "{log}");
    assert!(!log.contains("selected new timeline"), "it started up truncated: {log}");

    assert!(world.cluster.control(&copy, &["start", "-t", "120"]), "{}", world.log());
    world.until("recovery ends", || world.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(world.sql("SELECT count(*), md5(string_agg(hash, '')) FROM t"), was);
    assert!(world.log().contains("selected new timeline ID: 2"), "{}", world.log());
    assert!(copy.join("pg_wal/.backup/prefetch").is_dir(), "segments were fetched ahead");

    // A new timeline, which archives beside the old one.
    world.sql("CREATE TABLE after_recovery (n int); SELECT pg_switch_wal();");
    world.until("the new timeline is archived", || !world.stored("/00000002/000000020000").is_empty());
    world.until("its history is archived", || world.stored("/00000002/00000002.history.vol").len() == 1);
    let check = world.host.backup(["wal", "check", "--json"]).run().json();
    assert_eq!(check["ok"], true, "{check}");
    assert_eq!(check["clusters"][0]["timelines"][1]["history"], true);

    // The old primary, promoted apart from the copy, finds its timeline taken.
    std::fs::write(world.host.path("00000002.history"), "1\t0/1\tanother\n").unwrap();
    let push = world.host.backup(["wal", "push", "00000002.history", "--system-identifier"]);
    let cluster = check["clusters"][0]["system_identifier"].as_str().unwrap();
    push.args([cluster]).run().failed(11).saying("timeline 2 is taken").hinting("When a timeline is taken");
}
