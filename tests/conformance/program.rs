//! What the program does on a store, from the first command to the last.

use backup_tests::data::Data;
use backup_tests::host::Host;
use backup_tests::wal::{self, DataDirectory};

/// The program.
pub(crate) const BACKUP: &str = env!("CARGO_BIN_EXE_backup-under-test");

/// Three parts, and a rest.
const BYTES: u64 = 26_000_000;

pub(crate) fn does_it_all(host: Host) {
    let made = host.backup(["init"]).run().succeeded();
    assert!(!made.stderr.contains("warning"), "{made}");
    host.backup(["init"]).run().succeeded();

    let data = Data::random(BYTES, "program");
    let id = host.save("app", data.clone());
    let small = host.save("other", "a few bytes");
    assert_eq!(host.listed(), [id.as_str(), &small]);
    host.backup(["show", &id]).run().succeeded();
    host.backup(["verify", "--all"]).run().succeeded();
    host.backup(["verify", "--all", "--deep"]).run().succeeded();
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    assert!(*restored.digest() == data.digest(), "{restored}");
    assert_eq!(host.backup(["restore", "other", "--to-stdout"]).run().succeeded().stdout(), b"a few bytes");
    host.backup(["restore", "nothing", "--to-stdout"]).run().failed(10);
    assert!(host.runs().iter().filter(|run| run["command"] == "restore").count() >= 2, "{:?}", host.runs());

    archives_and_brings_back(&host);
    runs_what_is_configured(&host);
    copies_to_a_directory(&host, &id);
    pins_prunes_and_counts(&host, &id);
}

fn runs_what_is_configured(host: &Host) {
    let configuration = host.write("backup.toml", "[targets.hello]\ncommand = [\"echo\", \"hello\"]\n");
    host.backup(["run", "--config"]).args([&configuration]).run().succeeded();
    assert_eq!(host.backup(["restore", "hello", "--to-stdout"]).run().succeeded().text(), "hello\n");
}

fn copies_to_a_directory(host: &Host, id: &str) {
    let here = host.path("copies");
    host.backup(["init", "--repo"]).args([&here]).run().succeeded();
    for _ in 0..2 {
        host.backup(["copy", "--to"]).args([&here]).run().succeeded();
    }
    let of_both = [host.backup(["list", "--json"]), host.backup(["list", "--json", "--repo"]).args([&here])];
    let [there, here_too] = of_both.map(|list| list.run().json()["backups"].clone());
    assert_eq!(there, here_too);
    host.backup(["verify", "--all", "--deep", "--repo"]).args([&here]).run().succeeded();
    let restored = host.backup(["restore", id, "--to-stdout", "--repo"]).args([&here]).run().succeeded();
    assert!(*restored.digest() == Data::random(BYTES, "program").digest(), "{restored}");
}

/// All is too young to be removed, by the store's clock: it is looked at and judged.
fn pins_prunes_and_counts(host: &Host, id: &str) {
    host.backup(["pin", id, "--reason", "audit"]).run().succeeded();
    let judged = host.backup(["prune", "--json"]).run().json();
    assert_eq!(judged["removed"]["objects"], 0, "{judged}");
    assert_eq!(judged["problem_count"], 0, "{judged}");
    let targets = judged["targets"].as_array().expect("targets");
    let app = targets.iter().find(|target| target["target"] == "app").expect("app is judged");
    let reasons = app["backups"][0]["reasons"].as_array().expect("reasons");
    assert!(reasons.iter().any(|reason| reason["reason"] == "pinned" && reason["text"] == "audit"), "{judged}");
    assert!(app["wal"].as_array().is_some_and(|log| !log.is_empty()), "{judged}");
    host.backup(["unpin", id]).run().succeeded();
    host.backup(["prune", "--dry-run", "--explain"]).run().succeeded();
    let usage = host.backup(["list", "--usage", "--json"]).run().json();
    assert!(usage["targets"].as_array().is_some_and(|targets| targets.len() == 3), "{usage}");
}

fn archives_and_brings_back(host: &Host) {
    let directory = DataDirectory::create(host.path("data"));
    let push = |name: &str| host.backup(["wal", "push", "--target", "app"]).args([directory.pg_wal(name)]).run();
    let to = host.path("fetched");
    let fetch = |name: &str| {
        let fetch = host.backup(["wal", "fetch", "--target", "app", name]).args([&to]);
        fetch.in_directory(directory.path()).run()
    };
    let first = directory.add(1, "wal");
    push(&first).succeeded();
    push(&first).succeeded();
    fetch(&first).succeeded();
    assert_eq!(std::fs::read(&to).expect("it was fetched"), wal::segment(1, "wal"));
    assert_eq!(fetch(&wal::name(2)).code(), Some(1), "the end is not found");
    push(&directory.add(3, "wal")).succeeded();
    assert_eq!(fetch(&wal::name(2)).code(), Some(200), "a hole is taken for the end");
    let second = directory.add(2, "wal");
    push(&second).succeeded();
    fetch(&second).succeeded();
    assert_eq!(std::fs::read(&to).expect("it was fetched"), wal::segment(2, "wal"));
    directory.add(1, "other");
    let refused = push(&first);
    assert!(refused.code().is_some_and(|code| (1..=125).contains(&code)), "a stored segment is replaced: {refused}");
    host.backup(["wal", "check", "--target", "app"]).run().succeeded();
}
