//! What `backup wal push` and `backup wal fetch` tell PostgreSQL when something is in the way. It acts on their exit codes.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use backup_tests::host::{Host, Outcome, Run};
use backup_tests::port::Port;
use backup_tests::s3::{Fault, Rule, S3};
use backup_tests::wal::{DataDirectory, name, segment};
use rustix::process::Signal;

use crate::BACKUP;

/// A cluster that archives, where PostgreSQL would run the commands.
struct World {
    host: Host,
    data: DataDirectory,
}

impl World {
    fn with(mut host: Host) -> Self {
        host.set("BACKUP_TARGET", "app");
        let data = DataDirectory::create(host.path("data"));
        Self { host, data }
    }

    fn in_directory() -> Self {
        Self::with(Host::initialised(BACKUP))
    }

    fn on_s3() -> (S3, Self) {
        let server = S3::start();
        let mut host = Host::new(BACKUP);
        server.serve(&mut host);
        host.backup(["init"]).run().succeeded();
        (server, Self::with(host))
    }

    fn wal(&self, arguments: &[&str]) -> Run {
        self.host.backup(["wal"]).args(arguments).in_directory(self.data.path())
    }

    fn push(&self, name: &str) -> Run {
        self.wal(&["push", &format!("pg_wal/{name}")])
    }

    fn fetch(&self, name: &str) -> Run {
        self.wal(&["fetch", name, "pg_wal/RECOVERYXLOG", "--prefetch=0", "--patience=0"])
    }

    /// Archives these segments, and forgets them here.
    fn archived(self, numbers: &[u32]) -> Self {
        for number in numbers {
            let name = self.data.add(*number, "archived");
            self.push(&name).run().succeeded();
            std::fs::remove_file(self.data.pg_wal(&name)).unwrap();
        }
        self
    }

    fn restored(&self) -> Option<Vec<u8>> {
        std::fs::read(self.data.pg_wal("RECOVERYXLOG")).ok()
    }

    /// Demands that recovery stops there, that a standby asks again, and that nothing is left in `pg_wal`.
    #[track_caller]
    fn doubts(&self, run: impl Fn() -> Run) -> Outcome {
        let standby = run().args(["--standby"]).run();
        assert_eq!(standby.code(), Some(1), "{standby}");
        let outcome = run().run().failed(200);
        assert_eq!(self.restored(), None);
        let names = std::fs::read_dir(self.data.pg_wal("")).unwrap().map(|e| e.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("tmp")).collect();
        assert!(left.is_empty(), "{left:?}");
        outcome
    }
}

#[test]
fn what_is_there_is_fetched_and_the_end_of_the_archive_is_told_from_a_hole() {
    let world = World::in_directory().archived(&[3, 4, 6]);
    world.fetch(&name(3)).run().succeeded();
    assert!(world.restored() == Some(segment(3, "archived")));
    std::fs::remove_file(world.data.pg_wal("RECOVERYXLOG")).unwrap();
    for absent in [&name(7), "00000002.history"] {
        let outcome = world.fetch(absent).run();
        assert_eq!((outcome.code(), world.restored()), (Some(1), None), "{outcome}");
    }
    world.doubts(|| world.fetch(&name(5))).saying("the archive has a hole").hinting("gap");
    world.data.add(5, "archived");
    assert_eq!(world.fetch(&name(5)).run().code(), Some(1), "PostgreSQL has it");
}

#[test]
fn on_s3_the_end_of_the_archive_is_told_from_everything_else() {
    let (server, world) = World::on_s3();
    let mut world = world.archived(&[3, 4, 6]);
    world.fetch(&name(3)).run().succeeded();
    assert!(world.restored() == Some(segment(3, "archived")));
    std::fs::remove_file(world.data.pg_wal("RECOVERYXLOG")).unwrap();
    assert_eq!(world.fetch(&name(7)).run().code(), Some(1));
    world.doubts(|| world.fetch(&name(5))).saying("the archive has a hole");

    // Not found, and then no answer to the question whether this is still the repository.
    server.inject(Rule::new(Fault::Status(404), "GET", "repository.json").after(1));
    world.doubts(|| world.fetch(&name(7)));
    server.heal();
    server.inject(Rule::new(Fault::Status(403), "GET", "list-type=2"));
    let outcome = world.fetch(&name(7)).run().failed(200);
    outcome.saying("credentials");
    server.heal();
    server.inject(Rule::new(Fault::Corrupt, "GET", ".vol"));
    world.doubts(|| world.fetch(&name(3)));
    server.heal();
    server.inject(Rule::new(Fault::Truncate, "GET", ".vol").times(1));
    let outcome = world.fetch(&name(3)).run();
    assert!(outcome.code() == Some(0) || outcome.code() == Some(200), "{outcome}");
    server.heal();
    let _ = std::fs::remove_file(world.data.pg_wal("RECOVERYXLOG"));

    world.host.set("AWS_SECRET_ACCESS_KEY", "wrong");
    world.doubts(|| world.fetch(&name(3))).hinting("AWS_SECRET_ACCESS_KEY");
    world.doubts(|| world.fetch("00000002.history"));
    server.serve(&mut world.host);
    world.host.set("BACKUP_REPO", "s3://no-such-bucket/prefix");
    world.doubts(|| world.fetch(&name(3))).saying("the bucket does not exist");
    world.host.set("BACKUP_REPO", "s3://backups/another/prefix");
    world.doubts(|| world.fetch(&name(3))).saying("there is no repository");
}

/// A later timeline's history says that the log of this one went on, though nothing later of it is archived.
#[test]
fn a_segment_that_was_written_before_the_branch_is_no_end_of_the_archive() {
    let world = World::in_directory().archived(&[3]);
    // Segments are of 1 MiB: it was left in the middle of segment 6.
    std::fs::write(world.host.path("00000002.history"), "1\t0/680000\tno recovery target specified\n").unwrap();
    world.push("../../00000002.history").run().succeeded();
    for missing in [4, 5] {
        world.doubts(|| world.fetch(&name(missing))).saying("timeline 2 went on from 0/680000").hinting("gap");
    }
    for end in [6, 7] {
        assert_eq!(world.fetch(&name(end)).run().code(), Some(1), "{end}");
    }
    for (text, why) in
        [("", "no timeline is in it"), ("no history\n", "is not what its name says"), ("7\t0/1\n", "rise")]
    {
        std::fs::write(world.host.path("00000003.history"), text).unwrap();
        world.push("../../00000003.history").run().failed(1).saying(why);
    }
}

/// A standby that takes doubt for "there is no such timeline" follows one that was left.
#[test]
fn a_history_in_doubt_is_asked_for_again_and_then_warned_of() {
    let (server, world) = World::on_s3();
    std::fs::write(world.host.path("00000002.history"), "1\t0/300000\tno reason\n").unwrap();
    world.push("../../00000002.history").run().succeeded();
    let fetch = |patience: &str| world.wal(&["fetch", "00000002.history", "pg_wal/RECOVERYHISTORY", patience]);
    server.inject(Rule::new(Fault::Status(403), "GET", ".history.vol").times(2));
    fetch("--patience=30").run().succeeded();
    server.heal();
    server.inject(Rule::new(Fault::Status(403), "GET", ".history.vol"));
    fetch("--patience=2").run().failed(200);
    let outcome = fetch("--patience=2").args(["--standby"]).run().failed(1);
    assert!(outcome.elapsed >= Duration::from_secs(1), "{outcome}");
    outcome.saying("warning: it is not known whether 00000002.history exists");
    server.heal();
}

#[test]
fn a_store_that_is_down_is_no_end_of_the_archive() {
    let (_server, mut world) = World::on_s3();
    let nobody = Port::take();
    world.host.set("AWS_ENDPOINT_URL", format!("http://{}", nobody.address()));
    world.fetch(&name(3)).within(Duration::from_secs(90)).run().failed(200).saying("could not connect");
    let name = world.data.add(3, "x");
    let outcome = world.push(&name).args(["--timeout", "3"]).within(Duration::from_secs(20)).run();
    outcome.failed(11).saying("was not archived within 3 s");
}

#[test]
fn a_repository_that_is_not_mounted_or_damaged_is_no_end_of_the_archive() {
    let world = World::in_directory().archived(&[3]);
    let object = world.host.repository().join(world.host.stored().remove(0));
    let good = std::fs::read(&object).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&object, bad).unwrap();
    world.doubts(|| world.fetch(&name(3))).saying("is damaged at offset");
    std::fs::write(&object, &good[..good.len() / 2]).unwrap();
    world.doubts(|| world.fetch(&name(3))).saying("is damaged at offset");
    std::fs::write(&object, good).unwrap();

    let moved = world.host.path("unmounted");
    std::fs::rename(world.host.repository(), &moved).unwrap();
    world.doubts(|| world.fetch(&name(9))).hinting("mount");
    std::fs::create_dir(world.host.repository()).unwrap();
    world.doubts(|| world.fetch(&name(9))).saying("there is no repository");
    std::fs::remove_dir(world.host.repository()).unwrap();
    std::fs::rename(moved, world.host.repository()).unwrap();
    world.fetch(&name(3)).run().succeeded();
}

#[test]
fn a_wrong_key_flag_or_configuration_is_no_end_of_the_archive() {
    let world = World::in_directory().archived(&[3]);
    let stranger = Host::initialised(BACKUP);
    let identity = stranger.identity_file();
    world
        .doubts(|| world.fetch(&name(3)).env("BACKUP_IDENTITY_FILE", &identity))
        .saying("none of the given identities");
    world.doubts(|| world.fetch(&name(3)).env("BACKUP_IDENTITY_FILE", "/no/such/file"));
    world.doubts(|| world.fetch(&name(3)).args(["--no-such-flag"])).saying("--no-such-flag");
    world.doubts(|| world.wal(&["fecth", &name(3), "pg_wal/RECOVERYXLOG"]));
    world.doubts(|| world.wal(&["fetch", &name(3)]));
    world.doubts(|| world.wal(&["fetch", "no-segment", "pg_wal/RECOVERYXLOG"])).saying("is not the name of a WAL file");
    world.doubts(|| world.fetch(&name(3)).env("BACKUP_TARGET", "")).saying("no target is given");
    world.doubts(|| world.fetch(&name(3)).env("BACKUP_REPO", "")).saying("no repository is given");
    world.doubts(|| world.fetch(&name(3)).env("BACKUP_WORKERS", "none")).saying("BACKUP_WORKERS");
    let bad = world.host.write("bad.toml", "levl = 3");
    world.doubts(|| world.fetch(&name(3)).env("BACKUP_CONFIG", &bad)).saying("unknown key");
    let help = world.wal(&["fetch", "--help"]).run();
    assert_eq!(help.code(), Some(200), "whoever asks for help gets no file: {help}");

    // In a data directory there is no place for a configuration.
    world.host.write("data/backup.toml", "levl = 3");
    world.fetch(&name(3)).run().succeeded();
}

#[test]
fn a_full_disk_is_no_end_of_the_archive() {
    let world = World::in_directory().archived(&[3]);
    let flags = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let script = format!(
        "mkdir small && mount -t tmpfs -o size=512k tmpfs small || exit 99; \
         \"$BACKUP\" wal fetch {} small/RECOVERYXLOG --system-identifier {}; code=$?; find small -type f; exit $code",
        name(3),
        backup_tests::wal::SYSTEM_IDENTIFIER
    );
    let outcome = world.host.command("unshare").args([flags, "sh", "-c", &script]).env("BACKUP", BACKUP).run();
    assert_ne!(outcome.code(), Some(99), "cannot mount: run as root, or allow unprivileged user namespaces: {outcome}");
    assert_eq!(outcome.failed(200).text(), "", "nothing is left");
}

/// No thread can be started, which is a panic deep in the runtime: a real one.
#[test]
fn a_panic_is_no_end_of_the_archive_and_no_end_of_the_archiver() {
    let mut world = World::in_directory();
    let segment = world.data.add(3, "x");
    let root = rustix::process::geteuid().is_root();
    if root {
        // The limit is not for root.
        let everybody =
            world.host.command("chmod").args(["-R", "a+rX"]).args([world.host.path(""), world.data.path().into()]);
        everybody.run().succeeded();
    }
    world.host.set("BACKUP_WORKERS", "1");
    let run = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        let script = "ulimit -u 1 2>/dev/null || ulimit -p 1; exec \"$@\"";
        command.args(["-c", script, "sh", BACKUP, "wal"]).args(arguments).current_dir(world.data.path());
        command.env_clear().env("BACKUP_REPO", world.host.repository()).env("BACKUP_TARGET", "app");
        command.env("HOME", "/nonexistent").env("BACKUP_WORKERS", "1");
        command.env("BACKUP_RECIPIENTS", world.recipient()).env("BACKUP_IDENTITY_FILE", "/nonexistent");
        // It would be read by a thread of the runtime.
        command.env("BACKUP_PASSPHRASE_FILE", "/nonexistent");
        if root {
            command.uid(65_534).gid(65_534);
        }
        command.output().unwrap()
    };
    let fetched = run(&["fetch", &segment, "pg_wal/RECOVERYXLOG"]);
    let said = String::from_utf8_lossy(&fetched.stderr);
    assert_eq!(fetched.status.code(), Some(200), "{said}");
    let pushed = run(&["push", &format!("pg_wal/{segment}")]);
    let said = String::from_utf8_lossy(&pushed.stderr);
    assert!(matches!(pushed.status.code(), Some(1..=125)), "{:?} {said}", pushed.status);
    assert!(said.contains("internal error"), "{said}");
}

impl World {
    fn recipient(&self) -> String {
        let text = std::fs::read_to_string(self.host.identity_file()).unwrap();
        let line = text.lines().find_map(|line| line.split_once("public key: ")).expect("a public key");
        line.1.to_owned()
    }
}

/// Waits until the store is asked for a volume, which it does not answer.
fn until_asked(server: &S3, method: &str) {
    let begun = Instant::now();
    while !server.was_asked(|request| request.method == method && request.target.contains(".vol")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no volume is asked for");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_fetch_that_is_told_to_end_dies_of_the_signal() {
    let (server, world) = World::on_s3();
    let world = world.archived(&[3]);
    server.inject(Rule::new(Fault::Delay(Duration::from_secs(30)), "GET", ".vol"));
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        server.take_requests();
        let running = world.fetch(&name(3)).start();
        until_asked(&server, "GET");
        running.signal(signal);
        let outcome = running.wait();
        assert_eq!(outcome.signal(), Some(signal.as_raw()), "{outcome}");
        assert_eq!(world.restored(), None);
    }
    server.heal();
    world.fetch(&name(3)).run().succeeded();
}

#[test]
fn a_push_that_is_told_to_end_does_so_with_an_exit_code_and_leaves_nothing() {
    let (server, world) = World::on_s3();
    let name = world.data.add(3, "x");
    server.inject(Rule::new(Fault::Delay(Duration::from_secs(20)), "PUT", ".vol"));
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        server.take_requests();
        let running = world.push(&name).start();
        until_asked(&server, "PUT");
        running.signal(signal);
        let begun = Instant::now();
        let outcome = running.wait().failed(1);
        assert!(begun.elapsed() < Duration::from_secs(10), "{outcome}");
    }
    server.heal();
    world.push(&name).run().succeeded();
}

#[test]
fn a_push_that_fails_has_a_code_that_postgresql_counts() {
    let (server, mut world) = World::on_s3();
    let name = world.data.add(3, "x");
    let failed = |run: Run| {
        let outcome = run.run();
        assert!(matches!(outcome.code(), Some(1..=125)), "{outcome}");
        assert!(outcome.stderr.contains("error: "), "{outcome}");
    };
    failed(world.push(&name).args(["--no-such-flag"]));
    failed(world.wal(&["push"]));
    failed(world.push("missing"));
    failed(world.push("missing").args(["--target", "fetch"]));
    failed(world.push("000000010000000000000009"));
    failed(world.push(&name).env("BACKUP_TARGET", ""));
    failed(world.push(&name).env("BACKUP_TARGET", "a/b"));
    failed(world.push(&name).env("BACKUP_RECIPIENTS", "age1nonsense"));
    failed(world.push(&name).env("BACKUP_REPO", "s3://no-such-bucket/x"));
    failed(world.push(&name).env("AWS_SECRET_ACCESS_KEY", "wrong"));
    server.inject(Rule::new(Fault::Status(403), "PUT", ".vol"));
    failed(world.push(&name));
    server.heal();
    let help = world.wal(&["push", "--help"]).run();
    assert_eq!(help.code(), Some(1), "whoever asks for help has archived nothing: {help}");
    assert_eq!(server.objects(), ["some/prefix/repository.json"]);

    for fault in [Fault::Status(503), Fault::Reset, Fault::LoseAnswer] {
        server.inject(Rule::new(fault, "PUT", ".vol").times(1));
        world.push(&name).run().succeeded();
        server.heal();
        world.push(&name).run().succeeded();
    }
    std::fs::write(world.data.pg_wal(&name), segment(3, "another")).unwrap();
    world.push(&name).run().failed(11).saying("is archived already").hinting("two servers");
    world.host.unset("BACKUP_TARGET");
    failed(world.push(&name));
}

#[test]
fn a_push_that_is_killed_at_any_moment_leaves_a_whole_object_or_none() {
    let world = World::in_directory();
    let mut whole_time = Duration::from_millis(200);
    let (mut killed, mut round) = (0, 0);
    while killed < 25 {
        let name = world.data.add(round, "killed");
        let begun = Instant::now();
        let running = world.push(&name).start();
        thread::sleep(whole_time * (round % 20) / 20);
        running.signal(Signal::KILL);
        match running.wait() {
            outcome if outcome.signal() == Some(9) => killed += 1,
            outcome => {
                outcome.succeeded();
                whole_time = whole_time.min(begun.elapsed());
            }
        }
        world.push(&name).run().succeeded();
        std::fs::remove_file(world.data.pg_wal(&name)).unwrap();
        world.fetch(&name).run().succeeded();
        assert!(world.restored() == Some(segment(round, "killed")));
        round += 1;
    }
}
