//! Several kinds of keys at once: each opens alone, and losing one loses nothing.

use std::path::Path;

use backup_core::keys::age::AgeIdentity;
use backup_core::keys::{EncryptionContext, Identity, Wrap};
use backup_tests::host::Host;
use backup_tests::kms::{Fault, Kms, SECRET_KEY, SESSION_TOKEN};
use backup_tests::softhsm::{PIN, Token};
use backup_tests::wal::DataDirectory;
use data_encoding::{BASE64, HEXLOWER};

use crate::BACKUP;

struct World {
    kms: Kms,
    token: Token,
    host: Host,
    /// Flags that name an identity, for each of the three kinds.
    identities: [[String; 2]; 3],
    recipients: [String; 3],
    age: AgeIdentity,
}

/// A host that has recipients of three kinds and can open nothing by itself.
fn world() -> World {
    let (kms, token, age) = (Kms::start(), Token::create(), AgeIdentity::generate());
    token.pair("dr", "01");
    let key = kms.key("eu-central-1");
    let mut host = Host::new(BACKUP);
    kms.serve(&mut host);
    let hsm = token.connect(&mut host, "dr");
    let made = host.backup(["init", "--json", "--identity", &hsm]).run().json();
    let on_token = made["recipients"][0].as_str().expect("a recipient").to_owned();
    let file = host.path("age.txt");
    age.create_file(&file, &backup_core::clock::SystemClock).unwrap();
    let recipients = [key.clone(), on_token, age.recipients()[0].to_string()];
    host.set("BACKUP_RECIPIENTS", recipients.join(","));
    let named = |flag: &str, value: String| [flag.to_owned(), value];
    let identities =
        [named("--identity", key), named("--identity", hsm), named("--identity-file", file.display().to_string())];
    World { kms, token, host, identities, recipients, age }
}

#[test]
fn each_of_kms_hsm_and_age_opens_the_backup_alone_and_none_is_12() {
    let World { host, identities, recipients, kms, token: _token, .. } = world();
    host.save("app", "for three");
    kms.asked();
    for identity in &identities {
        let restored = host.backup(["restore", "app", "--to-stdout"]).args(identity).run().succeeded();
        assert_eq!(restored.stdout(), b"for three", "{identity:?}");
        host.backup(["verify", "app", "--deep"]).args(identity).run().succeeded();
    }
    let asked: Vec<String> = kms.asked().into_iter().map(|asked| asked.action).collect();
    assert_eq!(asked, ["Decrypt", "Decrypt"], "only when the key of KMS was the one that was named");
    let refused = host.backup(["restore", "app", "--to-stdout"]).run().failed(12).saying("no identity");
    for recipient in &recipients {
        assert!(refused.stderr.contains(recipient), "{refused}");
    }
}

#[test]
fn losing_the_primary_kms_stops_no_restore_with_another_key() {
    let World { host, identities: [kms_key, hsm, age], kms, token: _token, .. } = world();
    host.save("app", "for three");
    kms.fail("Decrypt", Fault::HangUp, usize::MAX);
    kms.asked();
    host.backup(["restore", "app", "--to-stdout"]).args(&kms_key).run().failed(11);
    assert_eq!(kms.asked().len(), 4, "the attempts for one header, and not for the next one");
    for other in [&hsm, &age] {
        // Named after it, and used none the less.
        let restored = host.backup(["restore", "app", "--to-stdout"]).args(&kms_key).args(other).run();
        assert_eq!(restored.succeeded().stdout(), b"for three");
    }
    let with_a_file = host.backup(["restore", "app", "--to-stdout"]).args(&kms_key).args(&age);
    kms.asked();
    with_a_file.run().succeeded();
    assert!(kms.asked().is_empty(), "what needs no network is tried first");
}

#[test]
fn a_host_that_only_writes_can_do_its_work_and_open_nothing() {
    let World { mut host, recipients, age, kms, token: _token, .. } = world();
    // What a policy for such hosts does.
    kms.fail("Decrypt", Fault::Refuse(400, "AccessDeniedException"), usize::MAX);
    host.unset("SOFTHSM2_CONF");
    std::fs::remove_file(host.path("age.txt")).unwrap();
    std::fs::remove_file(host.path("pin")).unwrap();
    let directory = host.path("data").display().to_string();
    host.write("backup.toml", format!("[targets.dir]\ndirectory = \"{directory}\"\n"));
    let data = DataDirectory::create(host.path("data"));
    let segment = data.add(1, "write-only");

    host.backup(["init"]).run().succeeded();
    host.save("app", "written and not read");
    host.backup(["run"]).run().succeeded();
    host.backup(["wal", "push", "--target", "app"]).args([data.pg_wal(&segment)]).run().succeeded();
    host.backup(["wal", "check", "--target", "app"]).run().succeeded();
    host.backup(["verify", "--all"]).run().succeeded();
    host.backup(["list"]).run().succeeded();
    host.backup(["show", "app"]).run().succeeded();
    host.backup(["config", "check"]).run().succeeded();

    for command in
        [&["restore", "app", "--to-stdout"][..], &["restore", "dir", "--to", "out"], &["verify", "app", "--deep"]]
    {
        let refused = host.backup(command).run().failed(12);
        assert!(recipients.iter().all(|recipient| refused.stderr.contains(recipient)), "{refused}");
        assert_eq!(refused.stdout(), b"");
    }
    let fetched = host.backup(["wal", "fetch", "--target", "app", &segment]).args([host.path("fetched")]).run();
    assert_eq!(fetched.code(), Some(200), "{fetched}");
    assert!(!host.path("fetched").exists() && !host.path("out").exists());

    // Even with all that lies on it: nothing on the host is a key, and the credentials may encrypt only.
    let files = backup_tests::host::files_below(&host.path(""));
    for file in files.iter().filter(|file| !file.starts_with("data/")) {
        let bytes = std::fs::read(host.path(file)).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("AGE-SECRET-KEY"), "{file}");
    }
    age.create_file(&host.path("elsewhere.txt"), &backup_core::clock::SystemClock).unwrap();
    let restored = host.backup(["restore", "app", "--to-stdout", "--identity-file", "elsewhere.txt"]).run();
    assert_eq!(restored.succeeded().stdout(), b"written and not read");
}

#[test]
fn no_secret_shows_in_logs_at_trace_level() {
    let World { mut host, identities, age, token, kms: _kms, .. } = world();
    host.set("BACKUP_LOG", "trace");
    let mut logs = host.backup(["save", "app"]).stdin("logged").run().succeeded().stderr;
    for identity in &identities {
        logs += &host.backup(["restore", "app", "--to-stdout"]).args(identity).run().succeeded().stderr;
    }
    logs += &host.backup(["restore", "app", "--to-stdout", "--identity", &token.uri("dr", "/nowhere")]).run().stderr;
    assert!(logs.contains("TRACE") && logs.contains("kms:Decrypt"), "it logs at that level, and of keys");

    let volume = host.objects().into_iter().find(|(name, _)| name.ends_with(".vol")).expect("a volume").1;
    let len = u32::from_le_bytes(volume[8..12].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&volume[12..12 + len]).unwrap();
    let wraps: Vec<Wrap> = serde_json::from_value(header["wraps"].clone()).unwrap();
    let context = EncryptionContext::of_backup(&"app".parse().unwrap());
    let wrap = wraps.iter().find(|wrap| wrap.kind == "age").expect("one for age");
    let key = futures::executor::block_on(age.unwrap(wrap, &context)).unwrap().expect("it is ours");
    let secrets = [
        BASE64.encode(key.expose()),
        HEXLOWER.encode(key.expose()),
        format!("{:?}", key.expose()),
        PIN.to_owned(),
        SECRET_KEY.to_owned(),
        SESSION_TOKEN.to_owned(),
        "AGE-SECRET-KEY".to_owned(),
    ];
    for secret in secrets {
        let line = logs.lines().find(|line| line.contains(&secret));
        assert!(line.is_none(), "a secret is logged: {}", line.unwrap_or_default());
    }
}

#[test]
fn what_the_page_about_keys_says_works() {
    let (kms, token) = (Kms::start(), Token::create());
    let mut host = Host::new(BACKUP);
    kms.serve(&mut host);
    let key = kms.key("eu-central-1");
    token.connect(&mut host, "dr");
    std::os::unix::fs::symlink(BACKUP, host.path("backup")).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    host.set("PATH", format!("{}:{path}", host.path("").display()));
    host.set("MODULE", Token::module());
    host.set("KMS", &key);
    let identity = format!(
        "pkcs11:token=backup;object=dr?module-path={}&pin-source={}",
        Token::module().display(),
        host.path("pin").display()
    );

    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/KEYS.md")).unwrap();
    let page = page.replace("kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", &key);
    let script = |section: &str| {
        let (_, rest) = page.split_once(&format!("\n## {section}\n")).expect("there is such a section");
        let section = rest.split("\n## ").next().unwrap_or_default();
        let blocks = section.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap_or_default());
        format!("set -e\n{}\n", blocks.collect::<Vec<_>>().join("\n"))
    };
    host.shell(&script("age")).run().succeeded();
    for (section, greetings) in [("AWS KMS", 1), ("A key on a token", 1), ("Several at once", 3)] {
        let said = host.shell(&script(section)).env("IDENTITY", &identity).run().succeeded();
        assert_eq!(said.text().matches("hello\n").count(), greetings, "{section}: {said}");
    }
}
