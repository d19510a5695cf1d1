//! `kill -9` of a prune at each of its deletes: what is kept can be restored, and the next prune ends what the last began.

use std::collections::BTreeMap;
use std::fs::File;
use std::thread;
use std::time::{Duration, SystemTime};

use backup_core::jiff::{SignedDuration, Timestamp};
use backup_tests::host::{Host, Run};
use backup_tests::s3::{Fault, Rule, S3};
use rustix::process::Signal;

use crate::BACKUP;

const DAY: Duration = Duration::from_secs(86_400);

/// A bucket with a backup of each of six days, of which the rules keep two; all of it came three days ago.
struct World {
    server: S3,
    host: Host,
    config: String,
    /// What each holds, by id: the newest last.
    saved: BTreeMap<String, String>,
}

impl World {
    fn new() -> Self {
        let (server, mut host) = (S3::start(), Host::new(BACKUP));
        server.serve(&mut host);
        host.backup(["init"]).run().succeeded();
        let now = Timestamp::try_from(SystemTime::now()).unwrap();
        let save = |day: i64| {
            let (at, data) = (now - SignedDuration::from_hours(24 * day), format!("of {day} days ago"));
            let saving = host.backup(["save", "app"]).env("BACKUP_UNDER_TEST_NOW", at.to_string());
            (saving.stdin(data.as_str()).run().id(), data)
        };
        let saved = (3..9).rev().map(save).collect();
        for key in server.objects() {
            let object = File::options().write(true).open(server.path(&key)).unwrap();
            object.set_modified(SystemTime::now() - 3 * DAY).unwrap();
        }
        let rules = "[retention]\ndaily = \"none\"\nweekly = \"none\"\nmonthly = \"none\"\nlast = 2\n";
        let config = host.write("backup.toml", rules).display().to_string();
        Self { server, host, config, saved }
    }

    fn prune(&self) -> Run {
        self.host.backup(["prune", "--config", &self.config])
    }

    /// Those that the rules keep.
    fn kept(&self) -> Vec<&String> {
        self.saved.keys().skip(self.saved.len() - 2).collect()
    }

    /// What is listed can be restored, and what the rules keep is listed.
    fn check(&self) {
        let listed = self.host.listed();
        assert!(self.kept().iter().all(|id| listed.contains(id)), "{listed:?}");
        for id in &listed {
            let restored = self.host.backup(["restore", id, "--to-stdout"]).run().succeeded();
            assert_eq!(restored.text(), self.saved[id]);
        }
        self.host.backup(["verify", "--all", "--deep"]).run().succeeded();
    }

    /// Kills a prune at its first delete, as `fault` says before it is done, or after and before that is told. False for one that has nothing to
    /// delete.
    fn is_killed_at_a_delete(&self, fault: Fault) -> bool {
        self.server.inject(Rule::new(fault, "DELETE", ""));
        self.server.inject(Rule::new(fault, "POST", "delete"));
        let mut running = self.prune().start();
        while running.is_running() && !self.server.has_struck() {
            thread::sleep(Duration::from_millis(2));
        }
        let struck = self.server.has_struck();
        if struck {
            // What is done before it is answered is done by then, or a moment after the kill: either will do.
            thread::sleep(Duration::from_millis(50));
            running.signal(Signal::KILL);
            assert_eq!(running.wait().signal(), Some(9));
        } else {
            running.wait().succeeded();
        }
        self.server.mend();
        struck
    }
}

/// Later than the kill.
const LATE: Duration = Duration::from_secs(30);

#[test]
fn a_prune_that_is_killed_at_each_delete_keeps_what_it_should_whole_and_the_next_goes_on() {
    let world = World::new();
    let before = world.server.objects().len();
    assert!(world.is_killed_at_a_delete(Fault::Delay(LATE)), "nothing is deleted");
    assert_eq!(world.server.objects().len(), before, "nothing was deleted yet");
    world.check();
    let mut kills = 0;
    while world.is_killed_at_a_delete(Fault::AnswerLate(LATE)) {
        kills += 1;
        assert!(kills < 50, "it does not come to an end");
        world.check();
    }
    // A manifest and a volume of each of four.
    assert!(kills >= 8, "only {kills}");
    let (listed, objects) = (world.host.listed(), world.server.objects());
    assert_eq!(listed.iter().collect::<Vec<_>>(), world.kept());
    let others = objects.iter().filter(|key| !listed.iter().any(|id| key.contains(id.as_str())));
    assert_eq!(others.count(), 1, "more than repository.json is left: {objects:?}");
}
