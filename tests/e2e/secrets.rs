//! Where secrets must not be: in logs, in the list of processes, in what children are given, in a core.

use std::io::Write;
use std::process::{Command, Stdio};

use backup_tests::host::{Host, files_below};
use backup_tests::s3::S3;
use data_encoding::{BASE64, HEXLOWER};
use rustix::process::Signal;

use crate::BACKUP;

/// What no text may hold, by names that may be shown.
type Secrets = Vec<(&'static str, Vec<u8>)>;

const PASSPHRASE: &str = "xyzzy plugh plover";

/// A host with one of each: an identity, a passphrase, a signing key.
fn host() -> Host {
    let mut host = Host::initialised(BACKUP);
    let passphrase = host.write("passphrase", PASSPHRASE);
    std::fs::set_permissions(&passphrase, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    host.set("BACKUP_PASSPHRASE_FILE", passphrase);
    // A host with a passphrase encrypts to it alone, unless others are named.
    let recipient = std::fs::read_to_string(host.identity_file()).unwrap();
    let recipient = recipient.split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    host.set("BACKUP_RECIPIENTS", recipient);
    let key = host.path("sign.pem");
    host.backup(["key", "generate", "--signing"]).args([&key]).run().succeeded();
    host.set("BACKUP_SIGNING_KEY_FILE", key);
    host
}

fn secrets(host: &Host) -> Secrets {
    let identity = std::fs::read_to_string(host.identity_file()).unwrap();
    let identity = identity.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    let pem = std::fs::read_to_string(host.path("sign.pem")).unwrap();
    let base64 = pem.lines().find(|line| line.starts_with("MC4CAQ")).unwrap();
    let seed = BASE64.decode(base64.as_bytes()).unwrap()[16..].to_vec();
    vec![
        ("the identity", identity.as_bytes().to_vec()),
        ("the passphrase", PASSPHRASE.as_bytes().to_vec()),
        ("the signing key", base64.as_bytes()[24..].to_vec()),
        ("the signing key, in hex", HEXLOWER.encode(&seed).into_bytes()),
        ("the signing key itself", seed),
    ]
}

/// The data key in several forms, from the header of a volume, as anybody with `age` and the identity gets it.
fn data_key(host: &Host, volume: &[u8]) -> Secrets {
    let len = u32::from_le_bytes(volume[8..12].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&volume[12..12 + len]).unwrap();
    let wrap = header["wraps"].as_array().unwrap().iter().find(|wrap| wrap["kind"] == "age").expect("a wrap");
    let wrap = BASE64.decode(wrap["wrap"].as_str().unwrap().as_bytes()).unwrap();
    let mut age = Command::new("age")
        .arg("-d")
        .arg("-i")
        .arg(host.identity_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("no age; run: scripts/install-deps test");
    age.stdin.take().unwrap().write_all(&wrap).unwrap();
    let key = age.wait_with_output().unwrap().stdout;
    assert_eq!(key.len(), 32);
    let decimal = key.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    vec![
        ("the data key in hex", HEXLOWER.encode(&key).into_bytes()),
        ("the data key in base64", BASE64.encode(&key).into_bytes()),
        ("the data key as a list", decimal.into_bytes()),
        ("the data key itself", key),
    ]
}

fn holds_none(text: &[u8], secrets: &Secrets, place: &str) {
    for (name, secret) in secrets {
        assert!(!text.windows(secret.len()).any(|window| window == secret), "{name} stands in {place}");
    }
}

#[test]
fn logs_of_all_that_is_traced_hold_no_secret() {
    let server = S3::start();
    let mut host = host();
    server.serve(&mut host);
    host.set("BACKUP_LOG", "trace");
    host.backup(["init"]).run().succeeded();
    let saved = host.backup(["save", "app"]).stdin("some data").run().succeeded();
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    for run in [&saved, &restored] {
        assert!(run.stderr.contains("TRACE"), "there is a trace to look at: {run}");
    }
    let mut all = secrets(&host);
    let secret = host.environment().find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY").unwrap().1.as_bytes().to_vec();
    all.push(("the secret of S3", secret));
    host.set("BACKUP_REPO", host.repository());
    for text in [&saved.stderr, &restored.stderr] {
        holds_none(text.as_bytes(), &all, "the log");
    }
}

#[test]
fn logs_hold_no_data_key_and_objects_no_secret() {
    let host = host();
    let saved = host.backup(["save", "app", "-vvv"]).env("BACKUP_LOG", "trace").stdin("some data").run();
    let restored = host.backup(["restore", "app", "--to-stdout", "-vvv"]).run().succeeded();
    let objects = host.objects();
    let volume = &objects.iter().find(|(name, _)| name.ends_with("data.00000.vol")).expect("a volume").1;
    let mut all = data_key(&host, volume);
    all.extend(secrets(&host));
    holds_none(saved.stderr.as_bytes(), &all, "the log of save");
    holds_none(restored.stderr.as_bytes(), &all, "the log of restore");
    for (name, bytes) in &objects {
        holds_none(bytes, &all, name);
    }
}

#[test]
fn children_and_the_list_of_processes_are_shown_no_secret() {
    let host = host();
    let look = "cat /proc/self/environ /proc/self/cmdline /proc/$PPID/cmdline";
    host.backup(["save", "seen", "--", "sh", "-c", look]).run().id();
    let seen = host.backup(["restore", "seen", "--to-stdout"]).run().succeeded();
    assert!(seen.text().contains("BACKUP_REPO=") && seen.text().contains("save"), "{seen}");
    holds_none(seen.stdout(), &secrets(&host), "what a child sees");
}

#[test]
fn a_process_that_holds_keys_leaves_no_core() {
    let host = host();
    host.save("app", vec![7; 64 << 20]);
    let cores = |host: &Host| {
        let all = files_below(&host.path(""));
        all.into_iter().filter(|name| name.starts_with("core")).collect::<Vec<_>>()
    };
    let crash = |command: &str, begun: &dyn Fn() -> bool| {
        let mut running = host.shell(&format!("ulimit -c unlimited; exec {command}")).unread().start();
        while !begun() {
            assert!(running.is_running());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        running.signal(Signal::ABORT);
        assert_eq!(running.wait().signal(), Some(6));
    };
    // Nobody reads what it restores, so it waits in the middle, with its keys.
    let runs = host.repository().join("runs");
    let begun = || files_below(&runs).iter().any(|name| name.ends_with(".begun.json"));
    crash("\"$BACKUP\" restore app --to-stdout", &begun);
    assert_eq!(cores(&host), [] as [&str; 0]);
    // Another program does leave one here, where the system is set up for it.
    let waited = std::time::Instant::now();
    crash("sleep 60", &|| waited.elapsed() > std::time::Duration::from_millis(500));
    if std::fs::read_to_string("/proc/sys/kernel/core_pattern").is_ok_and(|pattern| pattern.trim() == "core") {
        assert_eq!(cores(&host).len(), 1);
    }
}
