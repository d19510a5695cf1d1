//! Point-in-time recovery of a real cluster through the archive: `restore --target-…`, and what cannot be reached.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use backup_core::jiff::Timestamp;
use backup_tests::host::{Host, Run};
use backup_tests::physical::{PublicDir, Restored};
use backup_tests::postgres::Cluster;

use crate::BACKUP;

/// A cluster that archives, and a host on which it can be restored.
struct World {
    host: Host,
    cluster: Cluster,
    public: PublicDir,
    restores: std::cell::Cell<u32>,
}

impl World {
    fn start(name: &str) -> Self {
        let public = PublicDir::new();
        // Where the server's user can reach them.
        let (program, identity, repository) =
            (public.path("backup"), public.path("identity.txt"), public.path("repository"));
        std::fs::copy(BACKUP, &program).unwrap();
        let mut host = Host::new(&program.display().to_string());
        host.set("BACKUP_REPO", &repository);
        host.set("BACKUP_TARGET", "app");
        host.backup(["init"]).run().succeeded();
        std::fs::rename(host.identity_file(), &identity).unwrap();
        host.set("BACKUP_IDENTITY_FILE", &identity);
        let cluster = Cluster::of_small_segments(
            name,
            &format!(
                "archive_mode = on\narchive_command = '{} --repo {} --identity-file {} wal push %p --target app'\n\
                 autovacuum = off\nhot_standby = on\n",
                program.display(),
                repository.display(),
                identity.display()
            ),
        );
        let this = Self { host, cluster, public, restores: Default::default() };
        this.give();
        this.sql("CREATE TABLE t (n int)");
        this
    }

    /// Gives the repository to the user who runs servers.
    fn give(&self) {
        let (uid, gid) = self.cluster.owner();
        for name in ["repository", "identity.txt"] {
            let owner = format!("{uid}:{gid}");
            assert!(Command::new("chown").args(["-R", &owner]).arg(self.public.path(name)).status().unwrap().success());
        }
    }

    fn sql(&self, sql: &str) -> String {
        self.cluster.sql("postgres", sql)
    }

    fn back_up(&self) -> String {
        let conninfo = format!("host={} user=postgres", self.cluster.directory().display());
        let id = self.host.backup(["save", "app", "--base-backup", &conninfo]).run().id();
        self.give();
        id
    }

    /// Runs what a page says, in this world: its server, and `/srv` in a directory of its own.
    fn follow(&self, heading: &str, commands: &str) {
        let as_server = if rustix::process::geteuid().is_root() { "runuser -u postgres -- " } else { "" };
        let script = commands
            .replace("/srv/", &format!("{}/", self.public.path("srv").display()))
            .replace("host=/run/postgresql", &format!("host={}", self.cluster.directory().display()))
            // It would run for ever; so it stops as soon as it has begun.
            .replace("backup wal receive ", "backup wal receive --until-lsn 0/1 ")
            .replace("sudo -u postgres ", as_server);
        let prelude = format!(
            "set -e; cd /; backup() {{ \"$BACKUP\" \"$@\"; }}; export TZ=UTC PGHOST={} PGUSER=postgres; export PATH={}:$PATH\n",
            self.cluster.directory().display(),
            self.cluster.programs().display()
        );
        let outcome = self.host.shell(&(prelude + &script)).run();
        assert_eq!(outcome.code(), Some(0), "{heading}: {outcome}");
    }

    /// Ends the present segment, and waits until it is archived.
    fn archived(&self) {
        // What is inserted is in the segment, and need not be written yet.
        let segment = self.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.sql("SELECT pg_switch_wal()");
        for _ in 0..600 {
            if self.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= segment {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("{segment} is not archived: {}", self.sql("SELECT * FROM pg_stat_archiver"));
    }

    /// A restore of `reference` about to run, and where to.
    fn restore(&self, reference: &str, flags: &[&str]) -> (Run, PathBuf) {
        self.restores.set(self.restores.get() + 1);
        let to = self.public.path(&format!("restored-{}", self.restores.get()));
        let owner: &[&str] = if rustix::process::geteuid().is_root() { &["--owner", "postgres"] } else { &[] };
        (self.host.backup(["restore", reference, "--to"]).args([&to]).args(owner).args(flags), to)
    }

    /// Restores, starts, waits until the recovery has ended or pauses, and returns the rows.
    fn rows(&self, reference: &str, flags: &[&str]) -> (String, Restored) {
        let (run, to) = self.restore(reference, flags);
        run.args(["--archive-mode", "off"]).run().succeeded();
        let restored = Restored::new(&self.cluster, &to);
        assert_eq!(restored.verify(), "", "{flags:?}");
        let restored = restored.started();
        let settled = "SELECT NOT pg_is_in_recovery() OR pg_get_wal_replay_pause_state() = 'paused'";
        until(|| restored.sql("postgres", settled) == "t", &restored);
        (rows(&restored), restored)
    }
}

fn rows(restored: &Restored) -> String {
    restored.sql("postgres", "SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM t")
}

#[track_caller]
fn until(condition: impl Fn() -> bool, restored: &Restored) {
    for _ in 0..600 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("never: {}", restored.log());
}

#[test]
fn every_kind_of_target_is_reached_and_what_is_out_of_reach_is_refused() {
    let world = World::start("pitr");
    let now = || {
        thread::sleep(Duration::from_millis(50));
        let now = world.sql("SELECT clock_timestamp()");
        thread::sleep(Duration::from_millis(50));
        now
    };
    let before = now();
    let id = world.back_up();
    world.sql("INSERT INTO t VALUES (1)");
    let time = now();
    world.sql("INSERT INTO t VALUES (2)");
    let lsn = world.sql("SELECT pg_current_wal_insert_lsn()");
    let xid = world.sql("BEGIN; INSERT INTO t VALUES (3); SELECT pg_current_xact_id(); COMMIT;");
    world.sql("SELECT pg_create_restore_point('it''s \\ the mark')");
    world.archived();
    world.sql("INSERT INTO t VALUES (4)");
    world.archived();

    for (reference, flags, expected) in [
        ("app", &["--target-time", time.as_str()][..], "1"),
        (&id, &["--target-lsn", &lsn], "1 2"),
        ("app", &["--target-xid", &xid], "1 2 3"),
        ("app", &["--target-xid", &xid, "--target-exclusive", "--target-action", "promote"], "1 2"),
        ("latest", &["--target-name", "it's \\ the mark"], "1 2 3"),
        ("app", &["--target", "immediate"], ""),
        ("app", &[], "1 2 3 4"),
        ("app", &["--target-timeline", "current"], "1 2 3 4"),
    ] {
        let (found, restored) = world.rows(reference, flags);
        assert_eq!(found, expected, "{flags:?}: {}", restored.log());
    }
    let check = world.host.backup(["wal", "check", "--target", "app", "--json"]).run().json();
    let reachable = |end: &str| check["clusters"][0]["reachable"][end].as_str().unwrap().parse::<Timestamp>().unwrap();
    let moment = |text: &str| text.replace(' ', "T").replace("+00", "Z").parse::<Timestamp>().unwrap();
    assert!(moment(&before) < reachable("oldest") && reachable("oldest") < moment(&time), "{check}");
    assert!(moment(&time) < reachable("newest") && reachable("newest") < moment(&now()), "{check}");
    world.host.backup(["wal", "check", "--target", "app"]).run().succeeded().saying("can be recovered to between");
    let refused = |reference: &str, flags: &[&str], why: &str| {
        let (run, to) = world.restore(reference, flags);
        let outcome = run.run().failed(10).saying(why);
        assert!(!to.exists(), "something was written: {outcome}");
    };
    refused("app", &["--target-time", &before], "no backup ended before");
    refused(&id, &["--target-time", &before], "ended after");
    refused("app", &["--target-time", "2100-01-01 00:00:00Z"], "was archived at");
    // Nor does a copy of the archive, all of which came there later, reach beyond the original.
    let after = now();
    let log = world.public.path("repository/app/wal");
    for name in backup_tests::host::files_below(&log) {
        std::fs::File::options().append(true).open(log.join(name)).unwrap().set_modified(SystemTime::now()).unwrap();
    }
    refused("app", &["--target-time", &after], "was archived at");
    refused("app", &["--target-lsn", "FFFF/0"], "before LSN FFFF/0");
    // Of the very end PostgreSQL would not know that it had come there. (Segments are of 1 MiB.)
    let last = u64::from_str_radix(&world.sql("SELECT last_archived_wal FROM pg_stat_archiver")[16..], 16).unwrap();
    refused("app", &["--target-lsn", &format!("0/{:X}", (last + 1) << 20)], "stops only where more follows");
    refused("app", &["--target-timeline", "7"], "no history of timeline 7");
    // A hole is no end.
    let archive = backup_tests::host::files_below(&world.public.path("repository/app/wal"));
    let is_segment =
        |name: &&String| name.rsplit('/').next().is_some_and(|file| file.len() == "000000010000000000000002.vol".len());
    let segments: Vec<&String> = archive.iter().filter(is_segment).collect();
    let hole = segments[segments.len() - 2];
    std::fs::remove_file(world.public.path("repository/app/wal").join(hole)).unwrap();
    refused("app", &[], "the archive has a gap");
}

#[test]
fn recovery_crosses_a_switch_of_timelines_and_can_stay_on_the_old_one() {
    let world = World::start("pitr-tli");
    world.back_up();
    world.sql("INSERT INTO t VALUES (1)");
    world.archived();
    let fork = world.sql("SELECT pg_current_wal_lsn()");
    world.sql("INSERT INTO t VALUES (2)");
    world.archived();

    // Promoted at the fork, and left to archive.
    let (run, to) = world.restore("app", &["--target-lsn", &fork, "--target-action", "promote"]);
    run.run().succeeded();
    let promoted = Restored::new(&world.cluster, &to).started();
    until(|| promoted.sql("postgres", "SELECT pg_is_in_recovery()") == "f", &promoted);
    promoted.sql("postgres", "INSERT INTO t VALUES (10)");
    let segment = promoted.sql("postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())");
    assert!(segment.starts_with("00000002"), "{segment}");
    promoted.sql("postgres", "SELECT pg_switch_wal()");
    until(|| promoted.sql("postgres", "SELECT last_archived_wal FROM pg_stat_archiver") >= segment, &promoted);

    for (flags, expected) in [
        (&[][..], "1 10"),
        (&["--target-timeline", "latest"], "1 10"),
        (&["--target-timeline", "2"], "1 10"),
        (&["--target-timeline", "1"], "1 2"),
        (&["--target-timeline", "current"], "1 2"),
    ] {
        let (found, restored) = world.rows("app", flags);
        assert_eq!(found, expected, "{flags:?}: {}", restored.log());
    }
}

#[test]
fn a_standby_follows_the_archive_alone() {
    let world = World::start("pitr-standby");
    world.back_up();
    world.sql("INSERT INTO t VALUES (1)");
    world.archived();
    let (run, to) = world.restore("app", &["--standby"]);
    run.run().succeeded().saying("is a standby that follows the archive");
    assert!(to.join("standby.signal").exists());
    let standby = Restored::new(&world.cluster, &to).started();
    until(|| rows(&standby) == "1", &standby);
    world.sql("INSERT INTO t VALUES (2)");
    world.archived();
    until(|| rows(&standby) == "1 2", &standby);
    assert_eq!(standby.sql("postgres", "SELECT pg_is_in_recovery()"), "t");
}

/// The commands of a page of the documentation, by the headings that they stand under.
pub(crate) fn documented(page: &str) -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(path).unwrap();
    let (mut sections, mut inside): (Vec<(String, Vec<String>)>, bool) = (Vec::new(), false);
    for line in text.lines() {
        match line.strip_prefix("## ") {
            Some(heading) => sections.push((heading.to_owned(), Vec::new())),
            // In a list they are indented.
            None if line.trim_start().starts_with("```") => inside = line.trim_start() == "```sh",
            None if inside => sections.last_mut().unwrap().1.push(line.to_owned()),
            None => {}
        }
    }
    sections.retain(|(_, commands)| !commands.is_empty());
    sections
}

#[test]
fn every_command_of_the_pages_on_restoring_recovering_and_standbys_works() {
    let world = World::start("pitr-docs");
    world.back_up();
    world.sql("INSERT INTO t VALUES (1)");
    world.archived();
    thread::sleep(Duration::from_millis(100));
    let time = world.sql("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD HH24:MI:SS.US')");
    world.sql("INSERT INTO t VALUES (2)");
    world.sql("SELECT pg_create_restore_point('before the release')");
    world.archived();
    // The server is lost: the restored one takes its port.
    let data = world.cluster.directory().join("data");
    assert!(world.cluster.control(&data, &["stop", "-m", "fast", "-w"]));
    let pages = ["RESTORING.md", "PITR.md", "STANDBY.md"];
    let sections: Vec<_> = pages.iter().flat_map(|page| documented(page)).collect();
    assert!(sections.len() >= 7, "{sections:?}");
    // What is restored stays until something else is, since a later section may be about it.
    let clear = || {
        for running in std::fs::read_dir(world.public.path("srv")).into_iter().flatten() {
            let data = running.unwrap().path();
            if data.join("postmaster.pid").exists() {
                assert!(world.cluster.control(&data, &["stop", "-m", "immediate", "-w"]));
            }
            std::fs::remove_dir_all(data).unwrap();
        }
    };
    for (heading, commands) in sections {
        let commands = commands.join("\n");
        if commands.contains("backup restore ") {
            clear();
        }
        world.follow(&heading, &commands.replace("2026-11-22 14:30:00", &time));
    }
    clear();
}

/// Its commands, and its settings: those that archive are in wal.rs, too.
#[test]
fn every_command_and_setting_of_the_page_on_archiving_works() {
    let world = World::start("pitr-archiving");
    world.back_up();
    world.sql("INSERT INTO t VALUES (1)");
    world.archived();
    let data = world.cluster.directory().join("data");
    let segment = world.sql("SELECT last_archived_wal FROM pg_stat_archiver");
    let sections = documented("ARCHIVING.md");
    assert!(sections.len() >= 2, "{sections:?}");
    for (heading, commands) in sections {
        let commands = commands.join("\n").replace("/var/lib/postgresql/15/main", &data.display().to_string());
        let here = format!("{}/pg_wal/{segment}", data.display());
        world.follow(&heading, &commands.replace("pg_wal/000000010000000000000029", &here));
    }
    world.give();

    // Of two settings for recovery the first is an ordinary server's, the second a standby's.
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ARCHIVING.md")).unwrap();
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("restore_command = ")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let program = format!(
        "{} --repo {} --identity-file {} wal fetch",
        world.host.program().display(),
        world.public.path("repository").display(),
        world.public.path("identity.txt").display()
    );
    for (line, flags) in lines.into_iter().zip([&[][..], &["--standby"]]) {
        let (run, to) = world.restore("app", flags);
        run.args(["--archive-mode", "off"]).run().succeeded();
        let settings = to.join("postgresql.auto.conf");
        let was = std::fs::read_to_string(&settings).unwrap();
        let now = line.replace("backup wal fetch", &program);
        std::fs::write(&settings, format!("{was}{now}\n")).unwrap();
        let restored = Restored::new(&world.cluster, &to).started();
        until(|| rows(&restored) == "1", &restored);
        if flags.is_empty() {
            until(|| restored.sql("postgres", "SELECT pg_is_in_recovery()") == "f", &restored);
        } else {
            world.sql("INSERT INTO t VALUES (2)");
            world.archived();
            until(|| rows(&restored) == "1 2", &restored);
        }
        assert_eq!(restored.sql("postgres", "SHOW restore_command"), now.split('\'').nth(1).unwrap());
    }
}

#[test]
fn every_command_of_the_pages_on_receiving_and_on_moving_works() {
    let world = World::start("pitr-pages");
    world.archived();
    for page in ["RECEIVING.md", "MOVING.md"] {
        let sections = documented(page);
        assert!(!sections.is_empty(), "{page}");
        for (heading, commands) in sections {
            world.follow(&heading, &commands.join("\n"));
        }
    }
    assert!(world.public.path("srv/trial/PG_VERSION").exists());
}
