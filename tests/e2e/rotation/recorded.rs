//! What is done to keys is recorded, where there is a repository.

use serde_json::{Value, json};

use super::Office;

impl Office {
    /// The records of runs of `key …`, in their order: command, outcome and keys.
    fn key_runs(&self) -> Vec<Value> {
        let listed = self.backup(&["list", "--runs", "--json"]).run().json();
        let runs = listed["runs"].as_array().unwrap().iter();
        let runs = runs.filter(|run| run["command"].as_str().unwrap().starts_with("key "));
        let keys = |run: &Value| -> Vec<Value> {
            run["recipients"].as_array().into_iter().flatten().map(|key| key["recipient"].clone()).collect()
        };
        runs.map(|run| json!([run["command"], run["outcome"], keys(run)])).collect()
    }
}

#[test]
fn keys_that_are_made_brought_in_and_retired_leave_records() {
    let mut office = Office::new();
    let first =
        office.backup(&["key", "list", "--json"]).run().json()["keys"][0]["recipient"].as_str().unwrap().to_owned();
    assert_eq!(office.key_runs(), [] as [Value; 0], "there was no repository yet");
    office.now = "2026-12-01T00:00:00Z";
    let file = office.identity("2027").display().to_string();
    let made = office.backup(&["key", "generate", &file]).run().succeeded();
    let second = made.text().trim_end().to_owned();
    office.backup(&["key", "rotate", "2026", "-R", &second, "--print"]).run().succeeded();
    // Runs of one moment have no order.
    office.now = "2026-12-01T00:01:00Z";
    office.backup(&["key", "rotate", "2026", "-R", "age1x"]).run().failed(2);
    office.now = "2026-12-01T00:02:00Z";
    office.backup(&["key", "rotate", "2026", "-R", &second]).run().succeeded();
    office.now = "2026-12-05T00:00:00Z";
    let signer = office.host.path("signer").display().to_string();
    let made = office.backup(&["key", "generate", "--signing", &signer]).run().succeeded();
    let listed = office.backup(&["list", "--runs", "--json"]).run().json();
    let signers: Vec<&Value> = listed["runs"].as_array().unwrap().iter().filter_map(|run| run.get("signer")).collect();
    assert_eq!(signers, [&json!(made.text().trim_end())]);
    assert_eq!(
        office.key_runs(),
        [
            json!(["key generate", "done", [second]]),
            json!(["key rotate", "failed", []]),
            json!(["key rotate", "done", [second]]),
            json!(["key generate", "done", []]),
        ]
    );
    office.now = "2027-01-15T00:00:00Z";
    office.with("2027", &["key", "retire", "2026"]).run().succeeded();
    assert_eq!(office.key_runs(), [json!(["key retire", "done", [first]])]);
}

#[test]
fn a_repository_that_is_away_keeps_nobody_from_making_or_rotating_a_key() {
    let mut office = Office::new();
    office.host.set("BACKUP_REPO", "s3://backups/away");
    office.host.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    office.host.set("AWS_ACCESS_KEY_ID", "a");
    office.host.set("AWS_SECRET_ACCESS_KEY", "b");
    let file = office.identity("2027").display().to_string();
    let made = office.backup(&["key", "generate", &file]).run().succeeded().saying("this run is not recorded");
    let rotated = office.backup(&["key", "rotate", "2026", "-R", made.text().trim_end()]).run().succeeded();
    rotated.saying("'2027' replaces '2026'").saying("this run is not recorded");
}
