//! A restored server whose fetches fail, for whatever reason, must not open with what it has; and must open with all of it when the reason is
//! gone. No recovery target is set: with one, PostgreSQL would notice by itself.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use backup_tests::postgres::{NewServer, Server};
use backup_tests::s3::S3;
use backup_tests::site::{Site, archived, opened};

use crate::BACKUP;
use crate::disk::mounted;

/// As many segments have to be fetched, and more.
const SEGMENTS: u32 = 16;
const ROWS: &str = "SELECT count(*) || ' ' || md5(string_agg(hash, '' ORDER BY n)) FROM t";

/// A restored cluster that was never started, and what it has to come to.
struct Restored {
    store: S3,
    site: Site,
    server: Server,
    rows: String,
    /// In the middle of what is fetched.
    middle: String,
}

impl Restored {
    async fn new() -> Self {
        let store = S3::start();
        let site = Site::with(BACKUP, |host| store.serve(host));
        site.host().backup(["init"]).run().succeeded();
        let server = site.archiving(NewServer::of_major(15).initdb("--wal-segsize=1")).start();
        server.sql("CREATE TABLE t (n serial, hash text)").await;
        site.back_up(&server);
        let mut names = Vec::new();
        for _ in 0..SEGMENTS {
            server.sql("INSERT INTO t (hash) SELECT md5(random()::text) FROM generate_series(1, 2000)").await;
            names.push(server.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await);
            server.sql("SELECT pg_switch_wal()").await;
        }
        let rows = server.value(ROWS).await;
        archived(&server).await;
        let middle = names.swap_remove(names.len() / 2);
        site.restoring(&server).run().succeeded();
        let this = Self { store, site, server, rows, middle };
        this.copy(&this.server.data(), &this.site.path("pristine"));
        // Before every call: whatever a test wants to happen to it.
        let script = this.site.path("fetch");
        let exports = this.site.command();
        let text = format!(
            "#!/bin/sh\n. '{}'\nexec {exports} wal fetch \"$1\" \"$2\" --prefetch=0 $flags\n",
            this.site.path("cause").display()
        );
        // It starts a process before it starts the program, which not every cause lets it.
        let text = text
            .replace(&this.site.path("backup").display().to_string(), &this.site.path("program").display().to_string());
        std::fs::write(&script, text).unwrap();
        this
    }

    fn copy(&self, from: &Path, to: &Path) {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    }

    fn cause(&self, lines: &str) {
        std::fs::write(self.site.path("cause"), lines).unwrap();
    }

    /// The restored cluster as it was, with our script between PostgreSQL and the program.
    fn afresh(&self) {
        let _ = std::fs::remove_dir_all(self.server.data());
        self.copy(&self.site.path("pristine"), &self.server.data());
        let settings = self.server.data().join("postgresql.auto.conf");
        let was = std::fs::read_to_string(&settings).unwrap();
        let targets = was.lines().filter(|line| line.starts_with("recovery_target") && !line.contains("_timeline"));
        assert!(was.contains("restore_command = '") && targets.count() == 0, "{was}");
        let script = self.site.path("fetch");
        std::fs::write(&settings, format!("{was}restore_command = 'sh {} %f %p'\n", script.display())).unwrap();
        let log = self.server.directory().join("log");
        std::fs::write(log, "").unwrap();
    }

    /// It stopped, and did so for the right reason, `words`; it has not opened.
    #[track_caller]
    fn has_stopped(&self, words: &str) {
        let log = self.server.log();
        assert!(log.contains("could not restore file") && log.contains("exit code 200"), "{words}: {log}");
        assert!(log.contains(words), "'{words}' is missing: {log}");
        assert!(
            !log.contains("selected new timeline") && !log.contains("archive recovery complete"),
            "it opened: {log}"
        );
        assert!(self.server.data().join("recovery.signal").exists(), "{words}");
    }

    /// When the cause is gone, all of it is there.
    async fn recovers(&self) {
        self.cause("");
        self.server.start();
        opened(&self.server).await;
        assert_eq!(self.server.value(ROWS).await, self.rows, "{}", self.server.log());
        assert!(self.server.log().contains("selected new timeline ID: 2"));
        self.server.stop();
    }
}

/// A shell's condition: for the segment in the middle only, or from the first call on.
fn moments(middle: &str) -> [String; 2] {
    ["true".to_owned(), format!("[ \"$1\" = {middle} ]")]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_whose_fetches_fail_never_opens_truncated() {
    let restored = Restored::new().await;
    let [first, middle] = moments(&restored.middle);
    for moment in [&first, &middle] {
        // A bad flag.
        restored.afresh();
        restored.cause(&format!("if {moment}; then flags=--no-such-flag; fi"));
        restored.server.start_and_fail();
        restored.has_stopped("--no-such-flag");
        restored.recovers().await;

        // A panic; and a host on which no thread can be started.
        for (harm, words) in [
            ("export BACKUP_UNDER_TEST_PANIC=1", "internal error"),
            ("ulimit -u 1 2>/dev/null || ulimit -p 1", "threads"),
        ] {
            restored.afresh();
            restored.cause(&format!("if {moment}; then {harm}; fi"));
            restored.server.start_and_fail();
            restored.has_stopped(words);
            restored.recovers().await;
        }
    }

    // A store that stops, while it is needed.
    restored.afresh();
    let (asked, go) = (restored.site.path("asked"), restored.site.path("go"));
    restored.cause(&format!(
        "if {middle}; then touch {}; until [ -e {} ]; do sleep 0.05; done; fi",
        asked.display(),
        go.display()
    ));
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| restored.server.start_and_fail());
        appears(&asked);
        restored.store.stop();
        std::fs::write(&go, "").unwrap();
        starting.join().unwrap();
    });
    restored.has_stopped("could not connect");
    restored.store.resume();
    for file in [asked, go] {
        std::fs::remove_file(file).unwrap();
    }
    restored.recovers().await;
}

fn appears(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `pg_wal` on a file system of its own, with room for what came with the backup and half of what is fetched.
#[tokio::test]
async fn a_restore_onto_a_disk_that_fills_up_never_opens_truncated() {
    let restored = Restored::new().await;
    restored.afresh();
    restored.cause("");
    let root = rustix::process::geteuid().is_root();
    let (data, programs) = (restored.server.data(), restored.server.programs());
    let script = format!(
        "set -e
        data={data}; log={log}; pg_wal=$data/pg_wal
        mkdir wal && cp -a $pg_wal/. wal
        mount -t tmpfs -o size={room}m,mode=700 tmpfs $pg_wal || exit 99
        cp -a wal/. $pg_wal; chown --reference=$data $pg_wal
        # As root of a namespace of our own we still are the user who runs servers: a server does not like to be told.
        server() {{ {whom} \"$@\"; }}
        start() {{ server {programs}/pg_ctl -D $data -l $log -w -t 90 -s start; }}
        start || true
        for i in $(seq 600); do [ -e $data/postmaster.pid ] || break; sleep 0.1; done
        [ ! -e $data/postmaster.pid ] || {{ echo 'it runs'; exit 98; }}
        cp $log first-log; : >$log
        mount -o remount,size=200m $pg_wal
        start
        sql() {{ {psql}/psql -XAtq -h {socket} -p {port} -U postgres -c \"$1\" postgres; }}
        for i in $(seq 600); do [ \"$(sql 'SELECT pg_is_in_recovery()')\" = f ] && break; sleep 0.1; done
        sql \"{rows}\" >rows
        server {programs}/pg_ctl -D $data -m fast -w -s stop
        cp $log second-log",
        data = data.display(),
        log = restored.server.directory().join("log").display(),
        room = 4 + SEGMENTS / 2,
        whom = if root { "runuser -u postgres --" } else { "unshare -U --map-user=1000 --map-group=1000 --" },
        programs = programs.display(),
        psql = "/usr/lib/postgresql/15/bin",
        socket = restored.server.directory().display(),
        port = restored.server.port(),
        rows = ROWS,
    );
    let flags = if root { "-m" } else { "-rm" };
    let outcome = restored.site.host().command("unshare").args([flags, "sh", "-c", &script]).run();
    let said = |name: &str| std::fs::read_to_string(restored.site.path(name)).unwrap_or_default();
    let outcome = mounted(outcome);
    assert_eq!(outcome.code(), Some(0), "{outcome}\n{}\n{}", said("first-log"), restored.server.log());
    let (first, second) = (said("first-log"), said("second-log"));
    assert!(first.contains("No space left on device") && first.contains("exit code 200"), "{first}");
    assert!(
        !first.contains("selected new timeline") && !first.contains("archive recovery complete"),
        "it opened: {first}"
    );
    assert!(second.contains("selected new timeline ID: 2"), "{second}");
    assert_eq!(said("rows").trim(), restored.rows);
}
