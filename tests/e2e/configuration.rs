//! A configuration file in daily use.

use backup_core::keys::age::AgeIdentity;
use backup_tests::host::Host;

use crate::BACKUP;

#[test]
fn a_file_in_the_current_directory_is_all_that_is_needed() {
    let mut host = Host::new(BACKUP);
    host.unset("BACKUP_REPO");
    let identity = AgeIdentity::generate();
    identity.create_file(&host.path("work/keys/a.txt"), &backup_core::clock::SystemClock).unwrap();
    let recipient = identity.recipients()[0].to_string();
    let file = format!(
        "recipients = [\"{recipient}\"]\nidentity_files = [\"keys/a.txt\"]\ncodec = \"none\"\n[repository]\nurl = \"stored\"\n"
    );
    host.write("work/backup.toml", file);
    let backup = |arguments: &[&str]| host.backup(arguments).in_directory(host.path("work"));
    backup(&["config", "check"]).run().succeeded();
    backup(&["init"]).run().succeeded();
    let id = backup(&["save", "app"]).stdin("configured").run().id();
    assert_eq!(backup(&["restore", &id, "--to-stdout"]).run().succeeded().stdout(), b"configured");
    assert!(host.path("work/stored/repository.json").exists(), "relative to the file");
    assert!(!host.identity_file().exists(), "no key is made where one is configured");

    // The same from elsewhere; and what is nearer to the user wins.
    let config = host.path("work/backup.toml").display().to_string();
    host.backup(["list", "--config", &config]).run().succeeded();
    let other = host.path("other").display().to_string();
    host.backup(["list", "--config", &config]).env("BACKUP_REPO", &other).run().failed(10);
    let stored = host.path("work/stored").display().to_string();
    host.backup(["list", "--config", &config, "--repo", &stored]).env("BACKUP_REPO", &other).run().succeeded();
}

#[test]
fn a_wrong_configuration_is_found_before_anything_is_touched() {
    let host = Host::initialised(BACKUP);
    for (file, words) in [
        ("levl = 3\n", "levl"),
        ("level = 99\n", "99"),
        ("level = \"high\"\n", "backup.toml:1: "),
        ("recipients = [\"age1nonsense\"]\n[repository]\nurl = \"x\"\n", "age recipient"),
        ("[repository]\nurl = \"gcs://bucket\"\n", "gs://"),
        ("not toml", "backup.toml"),
    ] {
        host.write("backup.toml", file);
        let outcome = host.backup(["config", "check"]).env("BACKUP_REPO", "").run();
        outcome.failed(2).saying(words);
        host.backup(["save", "app", "--", "touch", "ran"]).env("BACKUP_REPO", "").run().failed(2).saying(words);
    }
    assert!(!host.path("ran").exists() && host.stored().is_empty());
}
