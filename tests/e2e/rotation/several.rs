//! Keys where there is more than one repository: what is said of all is true of each.

use std::time::Duration;

use backup_tests::s3::{Fault, Rule, S3};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::Office;

impl Office {
    /// With a second repository, and both in the file.
    fn with_two() -> Self {
        let mut office = Self::new();
        let (first, second) = (office.host.repository(), office.host.path("second"));
        let tables = format!(
            "\n[repositories.first]\nurl = \"{}\"\n[repositories.second]\nurl = \"{}\"\n",
            first.display(),
            second.display()
        );
        office.host.write("backup.toml", office.config() + &tables);
        office.host.unset("BACKUP_REPO");
        office.backup(&["init"]).run().succeeded();
        office
    }

    /// The newest run in a repository of these: command, outcome and whom it was about.
    fn last_run(&self, repository: &str) -> Value {
        let listed = self.backup(&["list", "--runs", "--json", "--repo", repository]).run().json();
        let runs = listed["runs"].as_array().unwrap();
        let run = runs.iter().max_by_key(|run| run["started"].as_str().unwrap().to_owned()).unwrap();
        let whom = run["recipients"].as_array().into_iter().flatten().map(|key| key["recipient"].clone());
        json!([run["command"], run["outcome"], whom.collect::<Vec<_>>()])
    }
}

#[test]
fn a_backup_in_the_second_repository_alone_keeps_a_key_from_being_retired() {
    let mut office = Office::with_two();
    office.save("in both");
    office.backup(&["save", "app", "--repo", "second"]).stdin("in one").run().succeeded();
    let (first, second) = (office.recipient("2026"), office.rotated());
    let both = office.identities(&["2026", "2027"]);
    office.backup(&["key", "rewrap", "--repo", "first"]).args(&both).run().succeeded();
    let before = office.config();
    let retire = |office: &Office| office.backup(&["key", "retire", "2026"]).args(&both).run();
    let refused = retire(&office).failed(12).saying("repository second:").saying("still needed by 2 backups");
    assert!(refused.stderr.contains("1 of 2 repositories failed: second"), "{refused}");
    assert_eq!(office.config(), before);
    office.now = "2026-12-02T00:01:00Z";
    office.backup(&["key", "rewrap"]).args(&both).run().succeeded();
    for repository in ["first", "second"] {
        assert_eq!(office.last_run(repository), json!(["key rewrap", "done", [second]]), "{repository}");
    }
    office.now = "2026-12-02T00:02:00Z";
    retire(&office).succeeded().saying("Every configured repository was looked at");
    for repository in ["first", "second"] {
        assert_eq!(office.last_run(repository), json!(["key retire", "done", [first]]), "{repository}");
    }
    assert_eq!(office.states(), "2026 retired, 2027 active");
}

#[test]
fn a_key_is_not_retired_by_the_word_of_some_of_the_repositories() {
    let mut office = Office::with_two();
    office.save("in both");
    office.rotated();
    let both = office.identities(&["2026", "2027"]);
    office.backup(&["key", "rewrap"]).args(&both).run().succeeded();
    let before = office.config();
    let retire = |rest: &[&str]| office.backup(&["key", "retire", "2026"]).args(&both).args(rest);
    retire(&[]).env("BACKUP_REPO", "first").run().failed(2).saying("what is in second").hinting("BACKUP_REPO");
    retire(&["--repo", "second"]).run().failed(2).saying("what is in first");
    let told = retire(&["--repo", "first", "--dry-run"]).run();
    assert_eq!(told.code(), Some(3), "{told}");
    told.saying("not asked: second");
    assert_eq!(office.config(), before);
    // By their addresses they are the same.
    let (first, second) = (office.host.repository(), office.host.path("second"));
    let addresses = ["--repo", first.to_str().unwrap(), "--repo", second.to_str().unwrap()];
    retire(&addresses).run().succeeded();
}

#[test]
fn whoever_knows_a_secret_is_asked_for_it_once_for_all_repositories() {
    let mut office = Office::with_two();
    office.save("in both");
    office.rotated();
    let both = office.identities(&["2026", "2027"]);
    office.backup(&["key", "rewrap"]).args(&both).run().succeeded();
    let asked = office.host.path("asked");
    let command = format!("echo >> '{}'; echo a-passphrase", asked.display());
    let retire = office.backup(&["key", "retire", "2026", "--passphrase-command", &command]).args(&both);
    retire.run().succeeded();
    assert_eq!(std::fs::read_to_string(asked).unwrap(), "\n");
}

#[test]
fn one_that_is_away_keeps_a_key_from_being_retired_and_the_others_from_nothing() {
    let mut office = Office::with_two();
    office.save("in both");
    let second = office.rotated();
    let both = office.identities(&["2026", "2027"]);
    let (here, away) = (office.host.path("second"), office.host.path("away"));
    std::fs::rename(&here, &away).unwrap();
    let rewrap = || office.backup(&["key", "rewrap"]).args(&both).run();
    rewrap().failed(10).saying("wrapped again: 1 data key").saying("1 of 2 repositories failed: second");
    assert_eq!(office.last_run("first"), json!(["key rewrap", "done", [second]]));
    let before = office.config();
    let retire = || office.backup(&["key", "retire", "2026"]).args(&both).run();
    retire().failed(10).saying("1 of 2 repositories failed: second");
    assert_eq!(office.config(), before);

    // It is told of both, and the record is left where that can be.
    let file = office.identity("other").display().to_string();
    office.backup(&["key", "generate", &file]).run().succeeded().saying("this run is not recorded");
    let told = office.backup(&["key", "status", "--json"]).run().failed(10);
    assert_eq!(documents(told.text()), 1, "{told}");
    std::fs::rename(&away, &here).unwrap();
    let told = office.backup(&["key", "status", "--json"]).run();
    assert_eq!(documents(told.text()), 2, "{told}");
    rewrap().succeeded();
    retire().succeeded();
}

#[test]
fn what_was_written_counts_though_it_cannot_be_recorded() {
    let mut office = Office::new();
    let recipient = office.generate("2027");
    office.now = "2026-11-01T00:00:00Z";
    office.host.set("BACKUP_REPO", "ftp://nowhere");
    let rotated = office.backup(&["key", "rotate", "2026", "--recipient", &recipient]).run().succeeded();
    rotated.saying("this run is not recorded");
    assert_eq!(office.states(), "2026 overlap, 2027 active");
}

#[test]
fn who_interrupts_a_rewrap_leaves_a_record_of_it() {
    let server = S3::start();
    let mut office = Office::new();
    server.serve(&mut office.host);
    office.backup(&["init"]).run().succeeded();
    office.save("over there");
    let second = office.rotated();
    let both = office.identities(&["2026", "2027"]);
    server.inject(Rule::new(Fault::Delay(Duration::from_secs(600)), "GET", "manifest.json"));
    let running = office.backup(&["key", "rewrap"]).args(&both).start();
    while !server.has_struck() {
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(Signal::INT);
    running.wait().failed(130);
    server.mend();
    let runs = office.host.runs();
    let rewrap = runs.iter().find(|run| run["command"] == json!("key rewrap")).unwrap();
    assert_eq!((&rewrap["outcome"], &rewrap["recipients"][0]["recipient"]), (&json!("interrupted"), &json!(second)));
}

/// How many documents of JSON these are.
fn documents(text: &str) -> usize {
    let documents: Vec<Value> = serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap).collect();
    documents.len()
}
