//! Prunes of repositories of which not everything may be read, and of several.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use backup_tests::host::{Host, files_below};
use serde_json::{Value, json};

use super::{age, save_on};
use crate::BACKUP;

#[test]
fn what_this_user_may_not_read_in_a_local_repository_hides_nothing_else() {
    let host = Host::initialised(BACKUP);
    save_on(&host, [500, 499, 1].into_iter());
    host.save("other", "x");
    let upload = host.repository().join("app/backups/x.vol#1");
    std::fs::write(&upload, "never completed").unwrap();
    age(&host.repository());
    // As at the mount point of a file system.
    let lost = host.repository().join("lost+found");
    std::fs::create_dir(&lost).unwrap();
    host.forbid(&lost);
    let prune = || host.without_override(["prune", "--json"]).run();
    let pruned = prune().json();
    assert_eq!((&pruned["staging"]["objects"], &pruned["problems"]), (&json!(1), &json!([])), "{pruned}");
    assert!(!upload.exists() && pruned["removed"]["objects"].as_u64() > Some(1), "{pruned}");
    // The folder of another user is told, since it is a target.
    let other = host.repository().join("other");
    host.forbid(&other);
    let refused = prune();
    assert_eq!(refused.code(), Some(3), "{refused}");
    let report: Value = serde_json::from_slice(refused.stdout()).unwrap();
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(1), "{report}");
    assert!(report["targets"][0]["target"] == json!("app"), "{report}");
    let usage = host.without_override(["list", "--usage", "--json"]).run();
    assert!(usage.code() == Some(3) && usage.stderr.contains("'other' is not counted"), "{usage}");
    let usage: Value = serde_json::from_slice(usage.stdout()).unwrap();
    assert_eq!((&usage["targets"][0]["target"], &usage["ok"]), (&json!("app"), &json!(false)), "{usage}");
    assert_eq!(usage["unreadable_targets"][0]["target"], json!("other"), "{usage}");
    host.without_override(["list", "other", "--usage"]).run().failed(2);
}

#[test]
fn what_is_named_is_pruned_by_a_host_that_may_not_list_what_others_there_are() {
    let host = Host::initialised(BACKUP);
    save_on(&host, [500, 499, 1].into_iter());
    age(&host.repository());
    let mode = |mode| std::fs::set_permissions(host.repository(), PermissionsExt::from_mode(mode)).unwrap();
    mode(0o311);
    let pruned = host.without_override(["prune", "app", "--json"]).run();
    let usage = host.without_override(["list", "app", "--usage"]).run();
    mode(0o700);
    assert!(pruned.json()["removed"]["objects"].as_u64() > Some(1));
    assert!(usage.text().contains("app "), "{usage}");
}

#[test]
fn each_of_several_repositories_is_pruned_of_what_it_has() {
    let mut host = Host::new(BACKUP);
    let [a, b] = ["a", "b"].map(|name| host.path(name));
    let config = format!(
        "[repositories.a]\nurl = \"{}\"\n[repositories.b]\nurl = \"{}\"\nrequired = false\n",
        a.display(),
        b.display()
    );
    let config = host.write("backup.toml", config);
    host.set("BACKUP_CONFIG", config);
    host.unset("BACKUP_REPO");
    host.backup(["init"]).run().succeeded();
    save_on(&host, [500, 499, 1].into_iter());
    host.set("BACKUP_REPO", &a);
    for at in ["2020-01-01T02:00:00Z", "2020-01-02T02:00:00Z"] {
        host.backup(["save", "db"]).env("BACKUP_UNDER_TEST_NOW", at).stdin("only there").run().id();
    }
    host.unset("BACKUP_REPO");
    let left = |repository: &Path| {
        age(repository);
        files_below(repository).iter().filter(|name| name.ends_with("manifest.json")).count()
    };
    assert_eq!((left(&a), left(&b)), (5, 3));
    // What one of them does not have the other may, and in a dry run nothing goes.
    let dry = host.backup(["prune", "app", "db", "--dry-run", "--json"]).run().succeeded();
    let told = dry.saying("there is nothing of 'db' in ");
    let documents: Vec<Value> =
        serde_json::Deserializer::from_slice(told.stdout()).into_iter().collect::<Result<_, _>>().unwrap();
    let targets = |i: usize| documents[i]["targets"].as_array().unwrap().len();
    assert_eq!((documents.len(), targets(0), targets(1)), (2, 2, 1));
    let usage = host.backup(["list", "db", "--usage"]).run();
    assert!(usage.text().contains("db ") && !usage.stderr.contains("error"), "{usage}");
    host.backup(["key", "status", "db"]).run().succeeded();
    host.backup(["prune", "nobody"]).run().failed(10).saying("no repository has a target 'nobody'");
    assert_eq!((left(&a), left(&b)), (5, 3));
    host.backup(["prune", "app", "db"]).run().succeeded();
    assert_eq!((left(&a), left(&b)), (2, 1));
    // One that is away is told, though it is optional, and keeps no other from its turn.
    let old = a.join("app/backups/20200101T020000Z-aaaaaaaaaaaaaaaa");
    std::fs::create_dir(&old).unwrap();
    std::fs::write(old.join("data.00000.vol"), "of a run that died").unwrap();
    age(&a);
    std::fs::rename(&b, host.path("unmounted")).unwrap();
    host.backup(["prune"]).run().failed(10).saying("1 of 2 repositories failed: b");
    assert!(!old.exists());
}
