//! A configuration file that somebody else changes while a key is rotated or retired.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use backup_tests::host::{Outcome, Run};

use super::Office;

/// Runs `run` up to where it waits to change the configuration file, which it has read, and changes that to `text` before it.
fn overtaken(office: &Office, run: Run, text: &str) -> Outcome {
    let path = office.host.path("backup.toml");
    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    let mut running = run.start();
    let begun = Instant::now();
    // Should it never be seen to wait, what comes is not the case in question, and no failure.
    while running.is_running() && begun.elapsed() < Duration::from_secs(30) {
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        if locks.lines().any(|lock| lock.contains("->") && lock.contains(&inode)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::write(&path, text).unwrap();
    file.unlock().unwrap();
    running.wait()
}

#[test]
fn a_key_is_not_rotated_twice_at_once() {
    let office = Office::new();
    let [first, second] = ["first", "second"].map(|name| office.generate(name));
    let rotate = || office.backup(&["key", "rotate", "2026", "--recipient", &second]);
    let changed = format!("{}\n[keys.2027]\nrecipient = \"{first}\"\ncreated = 2026-01-10\n", office.config());
    // A key of another line took the name.
    let before = office.config();
    overtaken(&office, rotate(), &changed).succeeded().saying("'2028' replaces '2026'");
    assert!(office.config().starts_with(&changed) && office.config().contains("[keys.2028]"), "{}", office.config());
    office.host.write("backup.toml", before);
    overtaken(&office, rotate().args(["--name", "2027"]), &changed).failed(2).saying("a key '2027' already");
    assert_eq!(office.config(), changed);
    // And here it was rotated.
    let changed = format!("{changed}replaces = \"2026\"\n");
    office.host.write("backup.toml", changed.split("\n[keys.2027]").next().unwrap());
    overtaken(&office, rotate(), &changed).failed(2).saying("has a successor already: '2027'");
    assert_eq!(office.config(), changed);
}

#[test]
fn a_key_is_not_retired_when_who_opens_everything_is_given_up_meanwhile() {
    let mut office = Office::new();
    office.save("kept");
    office.now = "2026-11-01T00:00:00Z";
    let recipient = office.generate("2027");
    let alone = office.config();
    office.backup(&["key", "rotate", "2026", "--recipient", &recipient]).run().succeeded();
    office.with("2026", &["key", "rewrap"]).run().succeeded();
    office.now = "2026-12-02T00:00:00Z";
    let rotated = office.config();
    let retire = || office.with("2026", &["key", "retire", "2026"]);
    let given_up = rotated.replacen("[keys.2027]\n", "[keys.2027]\nexpires = 2026-12-01\n", 1);
    assert_ne!(given_up, rotated);
    overtaken(&office, retire(), &given_up).failed(12).saying("still needed by 1 backup");
    assert_eq!(office.config(), given_up);
    // Without the successor it is used until its own end.
    office.host.write("backup.toml", &rotated);
    overtaken(&office, retire(), &alone).failed(2).saying("is used until");
    assert_eq!(office.config(), alone);
    office.host.write("backup.toml", &rotated);
    let commented = format!("# by somebody else\n{rotated}");
    overtaken(&office, retire(), &commented).succeeded();
    assert!(office.config().starts_with("# by somebody else\n") && office.config().contains("retired = "));
}
