//! Pins where there is more than one repository.

use backup_tests::host::Host;
use serde_json::{Value, json};

use crate::BACKUP;

/// A host with a required repository and an optional one.
fn with_two() -> Host {
    let mut host = Host::new(BACKUP);
    let (first, second) = (host.repository(), host.path("second"));
    let text = format!(
        "[repositories.second]\nurl = \"{}\"\nrequired = false\n[repositories.first]\nurl = \"{}\"\n",
        second.display(),
        first.display()
    );
    host.unset("BACKUP_REPO");
    host.set("BACKUP_CONFIG", host.write("backup.toml", text));
    host.backup(["init"]).run().succeeded();
    host
}

/// The reasons of the pins of a backup, as they are listed.
fn reasons(host: &Host, repositories: &[&str], id: &str) -> Vec<Value> {
    let chosen = repositories.iter().flat_map(|name| ["--repo", name]);
    let listed = host.backup(["list", "--json"]).args(chosen).run().json();
    let backup = listed["backups"].as_array().unwrap().iter().find(|backup| backup["id"] == id).unwrap().clone();
    backup["pins"].as_array().unwrap().iter().map(|pin| pin["reason"].clone()).collect()
}

#[test]
fn one_backup_is_pinned_in_all_repositories_whatever_else_each_of_them_has() {
    let host = with_two();
    let both = host.save("app", "in both");
    let newer = host.backup(["save", "app", "--repo", "second"]).stdin("in one").run().id();
    host.backup(["pin", "app", "--reason", "audit"]).run().succeeded();
    for repository in ["first", "second"] {
        assert_eq!(reasons(&host, &[repository], &both), [json!("audit")], "{repository}");
    }
    assert_eq!(reasons(&host, &["second"], &newer), [] as [Value; 0]);
    // It was pinned once.
    assert_eq!(reasons(&host, &[], &both), [json!("audit")]);
    host.backup(["unpin", "app"]).run().succeeded();
    assert_eq!(reasons(&host, &[], &both), [] as [Value; 0]);
}

#[test]
fn a_backup_that_one_repository_lacks_is_pinned_in_the_others_with_a_warning() {
    let host = with_two();
    host.save("app", "in both");
    let newer = host.backup(["save", "app", "--repo", "second"]).stdin("in one").run().id();
    let pinned = host.backup(["pin", &newer, "--reason", "audit"]).run();
    assert_eq!(pinned.code(), Some(3), "{pinned}");
    pinned.saying("so it is not pinned there").saying("is pinned, until it is unpinned");
    assert_eq!(reasons(&host, &["second"], &newer), [json!("audit")]);
    host.backup(["pin", "20200101", "--reason", "x"]).run().failed(10);
}

#[test]
fn pins_of_each_repository_are_listed() {
    let host = with_two();
    let id = host.save("app", "in both");
    host.backup(["pin", &id, "--reason", "of the second", "--repo", "second"]).run().succeeded();
    assert_eq!(reasons(&host, &[], &id), [json!("of the second")]);
    host.backup(["pin", &id, "--reason", "of the first", "--repo", "first"]).run().succeeded();
    assert_eq!(reasons(&host, &[], &id).len(), 2);
    assert!(host.backup(["list"]).run().succeeded().text().contains("good, pinned"));
}
