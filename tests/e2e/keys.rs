//! Who can read a backup, and what those are told who cannot.

mod hsm;
mod kms;
mod together;

use std::os::unix::fs::PermissionsExt;

use backup_core::keys::age::AgeIdentity;
use backup_tests::host::Host;

use crate::BACKUP;

#[test]
fn a_host_with_recipients_alone_can_write_and_verify_and_not_read() {
    let mut host = Host::new(BACKUP);
    let identity = AgeIdentity::generate();
    host.set("BACKUP_RECIPIENTS", identity.recipients()[0].to_string());
    host.backup(["init"]).run().succeeded();
    assert!(!host.identity_file().exists());

    let id = host.save("app", "for others");
    assert_eq!(host.listed(), std::slice::from_ref(&id));
    host.backup(["show", &id]).run().succeeded();
    host.backup(["verify", "app"]).run().succeeded();
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().failed(12).hinting("--identity-file");
    assert_eq!(restored.stdout(), b"");
    // It says who could.
    let recipient = identity.recipients()[0].to_string();
    restored.saying("no identity").hinting(&recipient);
    host.backup(["verify", "app", "--deep"]).run().failed(12).hinting(&recipient);

    let file = host.path("secret.txt");
    identity.create_file(&file, &backup_core::clock::SystemClock).unwrap();
    host.set("BACKUP_IDENTITY_FILE", &file);
    assert_eq!(host.backup(["restore", "app", "--to-stdout"]).run().succeeded().stdout(), b"for others");
}

#[test]
fn a_wrong_identity_is_told_with_a_hint_and_gives_nothing_away() {
    let host = Host::initialised(BACKUP);
    host.save("app", "for us");
    let other = host.path("other.txt");
    AgeIdentity::generate().create_file(&other, &backup_core::clock::SystemClock).unwrap();
    let other = other.display().to_string();
    let outcome = host.backup(["restore", "app", "--to-stdout", "--identity-file", &other]).run().failed(12);
    assert_eq!(outcome.hinting("").stdout(), b"");
    host.backup(["verify", "app", "--deep", "--identity-file", &other]).run().failed(12);
    host.backup(["restore", "app", "--to-stdout", "--identity-file", "/nowhere"]).run().failed(12);
}

#[test]
fn each_of_several_recipients_and_the_passphrase_opens_the_backup_alone() {
    let mut host = Host::new(BACKUP);
    let identities = [AgeIdentity::generate(), AgeIdentity::generate()];
    let recipients: Vec<String> = identities.iter().map(|i| i.recipients()[0].to_string()).collect();
    let passphrase = host.write("passphrase", "correct horse\n");
    std::fs::set_permissions(&passphrase, PermissionsExt::from_mode(0o600)).unwrap();
    let passphrase = passphrase.display().to_string();
    host.set("BACKUP_RECIPIENTS", recipients.join(","));
    host.backup(["init"]).run().succeeded();
    host.backup(["save", "app", "--passphrase-file", &passphrase]).stdin("shared").run().id();

    for (n, identity) in identities.iter().enumerate() {
        let file = host.path(format!("{n}.txt"));
        identity.create_file(&file, &backup_core::clock::SystemClock).unwrap();
        let file = file.display().to_string();
        let restored = host.backup(["restore", "app", "--to-stdout", "--identity-file", &file]).run().succeeded();
        assert_eq!(restored.stdout(), b"shared");
    }
    let with_passphrase = ["restore", "app", "--to-stdout", "--passphrase-file", &passphrase];
    assert_eq!(host.backup(with_passphrase).run().succeeded().stdout(), b"shared");
    let by_command = ["restore", "app", "--to-stdout", "--passphrase-command", "echo correct horse"];
    assert_eq!(host.backup(by_command).run().succeeded().stdout(), b"shared");
    host.backup(["restore", "app", "--to-stdout", "--passphrase-command", "echo wrong"]).run().failed(12);
}

#[test]
fn keys_made_by_age_itself_work() {
    let host = Host::new(BACKUP);
    let keygen = std::process::Command::new("age-keygen").arg("-o").arg(host.path("age.txt")).output();
    let keygen = keygen.expect("no age-keygen; run: scripts/install-deps test");
    let said = String::from_utf8(keygen.stderr).unwrap();
    let recipient = said.split_whitespace().find(|word| word.starts_with("age1")).expect("a public key");
    host.backup(["init", "--recipient", recipient]).run().succeeded();
    host.backup(["save", "app", "--recipient", recipient]).stdin("by age").run().id();
    let identity = host.path("age.txt").display().to_string();
    let restored = host.backup(["restore", "app", "--to-stdout", "--identity-file", &identity]).run().succeeded();
    assert_eq!(restored.stdout(), b"by age");
}

#[test]
fn a_key_that_cannot_be_made_leaves_no_repository() {
    let host = Host::new(BACKUP);
    host.write("in-the-way", "no directory");
    host.backup(["init"]).env("XDG_CONFIG_HOME", host.path("in-the-way")).run().failed(12);
    assert!(!host.repository().exists());

    // The other way round, the key stays, and that a copy should be kept is said now: the next time it is not new.
    let outcome = host.backup(["init", "--repo"]).args([host.path("in-the-way/repository")]).run();
    assert!(outcome.code() != Some(0) && outcome.stderr.contains("Keep a copy"), "{outcome}");
    assert!(host.identity_file().exists());
    host.backup(["init"]).run().succeeded().saying("using the key that is there already");
}
