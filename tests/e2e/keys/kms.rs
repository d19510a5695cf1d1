//! AWS KMS: what is asked of it, what it refuses, and what is said then.

use backup_tests::host::Host;
use backup_tests::kms::{ACCOUNT, Fault, Kms};
use backup_tests::wal::DataDirectory;
use serde_json::json;

use crate::BACKUP;

const REGION: &str = "eu-central-1";

/// A host that encrypts to a key, and names it as an identity, too.
fn world() -> (Kms, Host, String) {
    let kms = Kms::start();
    let key = kms.key(REGION);
    let mut host = Host::new(BACKUP);
    kms.serve(&mut host);
    host.set("BACKUP_RECIPIENTS", &key);
    host.set("BACKUP_IDENTITIES", &key);
    host.backup(["init"]).run().succeeded();
    assert!(!host.identity_file().exists(), "the key is elsewhere");
    (kms, host, key)
}

fn actions(kms: &Kms) -> Vec<String> {
    kms.asked().into_iter().map(|asked| asked.action).collect()
}

#[test]
fn the_writer_needs_encrypt_only_and_asks_once_for_a_backup_of_many_volumes() {
    let (kms, mut host, key) = world();
    // Any other request would fail.
    kms.fail("Decrypt", Fault::Refuse(400, "AccessDeniedException"), usize::MAX);
    host.unset("BACKUP_IDENTITIES");
    for name in ["a", "b", "c"] {
        host.write(format!("from/{name}"), name);
    }
    let id = host.backup(["save", "app", "--directory"]).args([host.path("from")]).run().id();
    assert!(host.stored().iter().filter(|name| name.ends_with(".vol")).count() >= 3);
    host.backup(["verify", &id]).run().succeeded();
    host.backup(["list"]).run().succeeded();
    let asked = kms.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((asked[0].action.as_str(), asked[0].region.as_str()), ("Encrypt", REGION));
    assert_eq!(asked[0].body["KeyId"], key.trim_start_matches("kms:"));
    assert_eq!(asked[0].body["EncryptionContext"], json!({ "target": "app", "purpose": "backup" }));

    // Here nothing opens it, and it is said who could.
    host.backup(["restore", "app", "--to-stdout"]).run().failed(12).hinting(&key);
    assert!(kms.asked().is_empty(), "nobody is asked for what was not named");
    let denied = host.backup(["restore", "app", "--to-stdout", "--identity", &key]).run().failed(12);
    denied.saying("denies").hinting("kms:Decrypt");

    kms.mend();
    kms.asked();
    host.backup(["restore", "app", "--to", "to", "--identity", &key]).run().succeeded();
    assert_eq!(std::fs::read(host.path("to/b")).unwrap(), b"b");
    let asked = kms.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].body["EncryptionContext"], json!({ "target": "app", "purpose": "backup" }));
    assert_eq!(asked[0].body["KeyId"], key.trim_start_matches("kms:"), "the key is named, not left to the ciphertext");
}

#[test]
fn segments_that_are_archived_together_share_a_data_key() {
    let (kms, mut host, _) = world();
    host.set("BACKUP_TARGET", "main");
    let data = DataDirectory::create(host.path("data"));
    let names: Vec<String> = (1..=6).map(|number| data.add(number, "kms")).collect();
    host.backup(["wal", "push", "--look-ahead", "5"]).args([data.pg_wal(&names[0])]).run().succeeded();
    let archived = host.stored().iter().filter(|name| name.ends_with(".vol")).count();
    assert_eq!(archived, 6);
    let asked = kms.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].body["EncryptionContext"], json!({ "target": "main", "purpose": "wal" }));

    let to = host.path("data/pg_wal/RECOVERYXLOG");
    host.backup(["wal", "fetch", &names[3]]).args([&to]).args(["--prefetch", "0"]).run().succeeded();
    assert_eq!(std::fs::read(to).unwrap(), std::fs::read(data.pg_wal(&names[3])).unwrap());
    assert_eq!(actions(&kms), ["Decrypt"]);
}

#[test]
fn the_emulator_tells_contexts_and_keys_apart_so_these_tests_prove_something() {
    let kms = Kms::start();
    let (key, other) = (kms.key(REGION), kms.key(REGION));
    let id = |key: &str| key.trim_start_matches("kms:").to_owned();
    let context = json!({ "target": "app", "purpose": "backup" });
    let sealed = kms.call(
        REGION,
        "Encrypt",
        &json!({ "KeyId": id(&key), "Plaintext": "aHVzaA==", "EncryptionContext": context }),
    );
    let open = |key: &str, region: &str, context: &serde_json::Value| {
        let body =
            json!({ "KeyId": id(key), "CiphertextBlob": sealed["CiphertextBlob"], "EncryptionContext": context });
        kms.call(region, "Decrypt", &body)["Plaintext"].as_str().map(str::to_owned)
    };
    assert_eq!(open(&key, REGION, &context).as_deref(), Some("aHVzaA=="));
    assert_eq!(open(&other, REGION, &context), None);
    assert_eq!(open(&key, REGION, &json!({ "target": "other", "purpose": "backup" })), None);
    assert_eq!(open(&key, REGION, &json!({ "target": "app", "purpose": "wal" })), None);
    assert_eq!(open(&key, REGION, &json!({})), None);
    assert_eq!(open(&key, "us-west-2", &context), None);
}

#[test]
fn a_backup_that_was_moved_to_another_target_does_not_open() {
    let (kms, host, _) = world();
    host.save("app", "for app");
    std::fs::rename(host.repository().join("app"), host.repository().join("other")).unwrap();
    kms.asked();
    let outcome = host.backup(["restore", "other", "--to-stdout"]).run();
    assert!(matches!(outcome.code(), Some(12 | 13)), "{outcome}");
    assert_eq!(outcome.stdout(), b"");
    assert!(kms.asked().iter().all(|asked| asked.body["EncryptionContext"]["target"] == "other"));
}

#[test]
fn what_kms_refuses_is_told_with_its_exit_code_and_a_hint() {
    let (kms, host, key) = world();
    host.save("app", "saved before");
    for (code, exit, words, hint) in [
        ("AccessDeniedException", 12, "denies", "kms:Encrypt"),
        ("DisabledException", 12, "disabled", "enable it"),
        ("KMSInvalidStateException", 12, "state", "deletion"),
        ("NotFoundException", 12, "no such key", ""),
        ("InvalidKeyUsageException", 12, "not one that encrypts", "symmetric"),
        ("UnrecognizedClientException", 2, "credentials", "AWS_ACCESS_KEY_ID"),
        ("ExpiredTokenException", 2, "credentials", "AWS_SESSION_TOKEN"),
    ] {
        kms.fail("Encrypt", Fault::Refuse(400, code), usize::MAX);
        let outcome = host.backup(["save", "app"]).stdin("x").run().failed(exit).saying(words);
        assert!(outcome.stderr.contains(&key[4..]) && outcome.stderr.contains(hint), "{outcome}");
        kms.mend();
    }
    kms.fail("Decrypt", Fault::Refuse(400, "InvalidCiphertextException"), usize::MAX);
    host.backup(["restore", "app", "--to-stdout"]).run().failed(13);
    kms.mend();
    assert_eq!(host.listed().len(), 1, "nothing was left of those that failed");
}

#[test]
fn what_may_pass_is_tried_again_and_then_given_up() {
    let (kms, host, _) = world();
    for fault in [Fault::HangUp, Fault::Refuse(400, "ThrottlingException"), Fault::Refuse(500, "KMSInternalException")]
    {
        kms.fail("Encrypt", fault, 2);
        host.save("app", "third time lucky");
        assert_eq!(actions(&kms).len(), 3, "{fault:?}");
    }
    kms.fail("Encrypt", Fault::Refuse(500, "KMSInternalException"), usize::MAX);
    host.backup(["save", "app"]).stdin("x").run().failed(11);
    kms.fail("Encrypt", Fault::HangUp, usize::MAX);
    host.backup(["save", "app"]).stdin("x").run().failed(11);
}

#[test]
fn a_key_is_recorded_by_its_own_name_so_an_alias_can_move_on() {
    let (kms, mut host, key) = world();
    let alias = kms.alias(REGION, "backup", &key);
    host.set("BACKUP_RECIPIENTS", &alias);
    let id = host.save("app", "by alias");
    assert_eq!(host.backup(["show", &id, "--json"]).run().json()["backup"]["recipients"][0]["recipient"], key.as_str());
    assert_eq!(kms.alias(REGION, "backup", &kms.key(REGION)), alias);
    host.save("later", "by what it points to now");
    for identity in [&key, &alias] {
        let restored = host.backup(["restore", "app", "--to-stdout"]).env("BACKUP_IDENTITIES", identity).run();
        assert_eq!(restored.succeeded().stdout(), b"by alias");
    }
    host.backup(["restore", "later", "--to-stdout"]).env("BACKUP_IDENTITIES", &key).run().failed(12);
    host.backup(["restore", "later", "--to-stdout"]).env("BACKUP_IDENTITIES", &alias).run().succeeded();
}

#[test]
fn keys_of_two_regions_work_side_by_side_and_a_replica_is_asked_for_what_its_primary_wrapped() {
    let (kms, mut host, _) = world();
    let (near, far) = (kms.key(REGION), kms.key("us-west-2"));
    host.set("BACKUP_RECIPIENTS", format!("{near},{far}"));
    host.save("app", "twice");
    let asked = kms.asked();
    let mut regions: Vec<&str> = asked.iter().map(|asked| asked.region.as_str()).collect();
    regions.sort_unstable();
    assert_eq!(regions, [REGION, "us-west-2"]);
    for identity in [&near, &far] {
        host.backup(["restore", "app", "--to-stdout"]).env("BACKUP_IDENTITIES", identity).run().succeeded();
    }

    let [primary, replica] = kms.multi_region_key([REGION, "eu-west-1"]);
    assert!(primary.contains("key/mrk-") && replica.contains("eu-west-1"), "{primary} {replica}");
    host.set("BACKUP_RECIPIENTS", &primary);
    host.save("app", "replicated");
    kms.asked();
    // The emulator cuts the ids of such keys, and then finds none that it has; what counts is whom we ask, and for what.
    host.backup(["restore", "app", "--to-stdout"]).env("BACKUP_IDENTITIES", &replica).run().failed(12);
    let asked = kms.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|asked| asked.region == "eu-west-1"),
        "the primary's region may be gone"
    );
    assert!(asked.iter().all(|asked| asked.body["KeyId"] == replica.trim_start_matches("kms:")), "{asked:?}");
}

#[test]
fn a_name_that_is_no_key_is_a_wrong_configuration() {
    let host = Host::initialised(BACKUP);
    for (key, words) in [
        ("kms:1234abcd-12ab-34cd-56ef-1234567890ab", "not an ARN"),
        ("kms:arn:aws:s3:eu-central-1:123456789012:key/x", "not an ARN of KMS"),
        ("kms:arn:aws:kms:eu-central-1:123456789012:key/x?endpoint=http://kms.example", "no TLS"),
    ] {
        host.backup(["save", "app", "--recipient", key]).stdin("x").run().failed(2).saying(words).saying("--recipient");
        host.backup(["list", "--identity", key]).run().succeeded();
        host.backup(["config", "check", "--identity", key]).run().failed(2).saying(words);
    }
    host.backup(["restore", "app", "--to-stdout", "--identity", "age1xyz"]).run().failed(2).hinting("--identity-file");
    // Nobody listens there.
    let key = format!("kms:arn:aws:kms:{REGION}:{ACCOUNT}:key/x?endpoint=http://127.0.0.1:9");
    let run = host
        .backup(["save", "app", "--recipient", &key])
        .env("AWS_ACCESS_KEY_ID", "a")
        .env("AWS_SECRET_ACCESS_KEY", "b");
    run.stdin("x").run().failed(11).saying("could not be reached");
    let run = host.backup(["save", "app", "--recipient", &key]).env("AWS_EC2_METADATA_DISABLED", "true");
    run.stdin("x").run().failed(2).saying("credentials");
}
