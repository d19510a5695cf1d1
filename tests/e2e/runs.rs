//! What an auditor finds of what was done.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use backup_tests::host::{Host, files_below};
use backup_tests::s3::{Fault, Rule, S3};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::BACKUP;

fn outcomes(runs: &[Value]) -> Vec<(String, Value, Value)> {
    let of = |run: &Value| {
        (run["command"].as_str().unwrap_or_default().to_owned(), run["outcome"].clone(), run["exit_code"].clone())
    };
    runs.iter().map(of).collect()
}

#[test]
fn every_backup_restore_and_deep_verification_leaves_a_record_of_who_did_it_with_which_key() {
    let host = Host::initialised(BACKUP);
    let id = host.save("app", "what is backed up");
    let mut runs = host.runs();
    assert_eq!(outcomes(&runs), [("save".to_owned(), json!("done"), json!(0))]);
    let saved = runs.remove(0);
    assert_eq!((&saved["target"], &saved["backup"]), (&json!("app"), &json!(id)));
    assert!(saved["bytes"].as_u64() >= Some(17) && saved["who"]["pid"].as_u64() > Some(1), "{saved}");
    assert_eq!(saved["who"]["program"], json!(concat!("backup ", env!("CARGO_PKG_VERSION"))));
    let manifest = host.backup(["show", &id, "--json"]).run().json();
    assert_eq!(saved["recipients"], manifest["backup"]["recipients"]);
    assert_eq!(saved["data_key"], manifest["backup"]["data_key"]);

    let folder = |host: &Host| files_below(&host.repository().join("runs"));
    let before = folder(&host).len();
    host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    host.backup(["verify", &id, "--deep"]).run().succeeded();
    // What opens nothing is not recorded.
    host.backup(["verify", &id]).run().succeeded();
    host.backup(["list"]).run().succeeded();
    let runs = host.runs();
    assert_eq!(folder(&host).len(), before + 4, "the beginning and the end of two runs");
    for (run, command) in runs.iter().filter(|run| run["command"] != json!("save")).zip(["restore", "verify --deep"]) {
        assert_eq!((&run["command"], &run["backup"]), (&json!(command), &json!(id)), "{run}");
        assert_eq!(run["identities"], manifest["backup"]["recipients"], "{run}");
    }
}

#[test]
fn what_failed_is_recorded_too_and_says_neither_paths_nor_what_the_source_said() {
    let host = Host::initialised(BACKUP);
    host.backup(["save", "app", "--", "sh", "-c", "echo salaries >&2; exit 3"]).run().failed(1);
    host.save("app", "x");
    let file = host.write("in-the-way/data", "").parent().unwrap().display().to_string();
    host.backup(["restore", "app", "--to", &file]).run();
    let runs = host.runs();
    let failed = runs.iter().find(|run| run["outcome"] == json!("failed")).expect("it is recorded");
    assert_eq!((&failed["failed_at"], &failed["exit_code"]), (&json!("source"), &json!(1)));
    for (name, bytes) in host.objects().iter().filter(|(name, _)| name.starts_with("runs/")) {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains("salaries") && !text.contains("in-the-way"), "{name}: {text}");
    }
}

#[test]
fn a_restore_that_is_killed_was_recorded_before_it_handed_anything_out() {
    let host = Host::initialised(BACKUP);
    host.save("app", vec![7; 64 << 20]);
    let mut restore = host.backup(["restore", "app", "--to-stdout"]).unread().start();
    let begun = || files_below(&host.repository().join("runs")).iter().any(|name| name.ends_with(".begun.json"));
    while !begun() {
        assert!(restore.is_running());
        std::thread::sleep(Duration::from_millis(20));
    }
    restore.signal(Signal::KILL);
    restore.wait();
    let runs = host.runs();
    let restored = runs.iter().find(|run| run["command"] == json!("restore")).expect("it is recorded");
    assert_eq!(restored["outcome"], Value::Null, "{restored}");
    let listed = host.backup(["list", "--runs"]).run().succeeded();
    assert!(listed.text().contains("unfinished"), "{listed}");
}

#[test]
fn who_may_only_read_restores_with_a_warning() {
    let host = Host::initialised(BACKUP);
    host.save("app", "x");
    let mode = |mode: u32| {
        for folder in [host.repository(), host.repository().join("runs")] {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(mode)).unwrap();
        }
    };
    // Of another day, so that a folder would have to be made.
    std::fs::remove_dir_all(host.repository().join("runs")).unwrap();
    std::fs::create_dir(host.repository().join("runs")).unwrap();
    mode(0o500);
    let restored = host.without_override(["restore", "app", "--to-stdout"]).run().succeeded();
    mode(0o700);
    assert_eq!(restored.stdout(), b"x");
    restored.saying("this run is not recorded");
}

#[test]
fn a_prune_that_is_interrupted_is_recorded_as_that() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    host.save("app", "x");
    server.inject(Rule::new(Fault::Delay(Duration::from_secs(600)), "GET", "manifest.json"));
    let running = host.backup(["prune"]).start();
    while !server.has_struck() {
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(Signal::INT);
    running.wait().failed(130);
    server.mend();
    let runs = host.runs();
    let prune = runs.iter().find(|run| run["command"] == json!("prune")).expect("it is recorded");
    assert_eq!((&prune["outcome"], &prune["exit_code"]), (&json!("interrupted"), &json!(130)));
}
