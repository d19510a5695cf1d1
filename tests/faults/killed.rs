//! `kill -9` while a backup is made: what is listed is whole.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use backup_tests::data::Data;
use backup_tests::host::{Host, Input, Running};
use rustix::process::Signal;

use crate::BACKUP;

fn data() -> Data {
    Data::random(12_000_000, "killed")
}

fn kill(running: Running) -> bool {
    running.signal(Signal::KILL);
    let outcome = running.wait();
    assert!(outcome.code() == Some(0) || outcome.signal() == Some(9), "{outcome}");
    outcome.signal() == Some(9)
}

/// All that is listed can be restored in full, and the repository still works.
fn whole(host: &Host) {
    for id in host.listed() {
        host.backup(["verify", &id, "--deep"]).run().succeeded();
        let restored = host.backup(["restore", &id, "--to-stdout"]).run().succeeded();
        assert!(*restored.digest() == data().digest(), "{id}");
    }
    let id = host.save("app", data());
    assert!(host.listed().contains(&id));
}

#[test]
fn a_save_that_is_killed_at_any_moment_leaves_no_broken_backup_listed() {
    const KILLS: u32 = 40;
    let host = Host::initialised(BACKUP);
    // By the fastest run so far: the first may have waited for the disk.
    let mut whole_time = host.backup(["save", "app"]).stdin(data()).run().succeeded().elapsed;
    let (mut killed, mut runs) = (0, 0);
    while killed < KILLS {
        let running = host.backup(["save", "app"]).stdin(data()).start();
        let begun = Instant::now();
        // From its first moment to its last.
        thread::sleep(whole_time * (runs % 20) / 20);
        match kill(running) {
            true => killed += 1,
            false => whole_time = whole_time.min(begun.elapsed()),
        }
        runs += 1;
        assert!(runs < 5 * KILLS, "only {killed} of {runs} were killed before their end");
        host.listed();
    }
    whole(&host);
}

#[test]
fn a_save_that_is_killed_as_each_object_appears_leaves_no_broken_backup_listed() {
    let host = Host::initialised(BACKUP);
    let find = |suffix: &str| -> Option<PathBuf> {
        let backups = std::fs::read_dir(host.path("repository/app/backups")).ok()?;
        let latest = backups.filter_map(|entry| entry.ok().map(|e| e.path())).max()?;
        std::fs::read_dir(latest)
            .ok()?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .find(|p| p.to_string_lossy().ends_with(suffix))
    };
    for object in ["running.json", "data.00000.vol#1", "data.00000.vol", "details.00000.vol", "manifest.json"] {
        let (mut round, mut missed) = (0, 0);
        while round < 3 {
            // Ids of the same second sort by chance.
            let _ = std::fs::remove_dir_all(host.path("repository/app"));
            let mut running = host.backup(["save", "app"]).stdin(data()).start();
            while find(object).is_none() && running.is_running() {}
            if find(object).is_none() && !running.is_running() {
                // Some are there for moments only, in which we may have been kept waiting.
                running.wait().succeeded();
                missed += 1;
                assert!(missed < 20, "{object} does not come");
                continue;
            }
            round += 1;
            thread::sleep(Duration::from_micros(300 * round));
            kill(running);
            // On a busy machine the signal may come after the end.
            if !host.listed().is_empty() {
                host.backup(["verify", "--all", "--deep"]).run().succeeded();
            }
        }
    }
    whole(&host);
}

#[test]
fn a_killed_run_is_counted_as_unfinished_and_not_in_the_way() {
    let host = Host::initialised(BACKUP);
    let running = host.backup(["save", "app"]).stdin(Input::Endless(data())).start();
    let begun = Instant::now();
    while !host.stored().iter().any(|name| name.contains("data.00000.vol")) {
        assert!(begun.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(5));
    }
    assert!(kill(running));
    let listing = host.backup(["list", "--json"]).run().json();
    assert_eq!(listing["backups"], serde_json::json!([]));
    assert_eq!(listing["unfinished"][0]["target"], "app");
    host.backup(["restore", "app", "--to-stdout"]).run().failed(10);
    whole(&host);
}
