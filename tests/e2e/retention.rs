//! What `prune` removes and what it leaves: of dumps over forty days, of a cluster and its log, beside runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use backup_core::jiff::{SignedDuration, Timestamp};
use backup_tests::data::Data;
use backup_tests::host::{Host, Input, Run, files_below};
use backup_tests::postgres::{NewServer, Server};
use backup_tests::site::{Site, TARGET, archived, opened};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::BACKUP;
use crate::recovery::documented;

mod repositories;
mod uploads;

/// Makes all of a repository older than the grace.
fn age(repository: &Path) {
    touch(repository, SystemTime::now() - Duration::from_secs(3 * 86_400));
}

/// Makes all of a repository as old as that.
fn touch(repository: &Path, then: SystemTime) {
    for name in files_below(repository) {
        File::options().write(true).open(repository.join(name)).unwrap().set_modified(then).unwrap();
    }
}

fn now() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap()
}

/// A backup of every day at two o'clock, from so many days ago on; what each holds, by id.
fn save_daily(host: &Host, days: i64) -> BTreeMap<String, String> {
    save_on(host, (1..=days).rev())
}

/// The same of single days, each so many days ago.
fn save_on(host: &Host, days: impl Iterator<Item = i64>) -> BTreeMap<String, String> {
    let today: Timestamp = format!("{}T02:00:00Z", now().strftime("%Y-%m-%d")).parse().unwrap();
    let save = |day: i64| {
        let at = today - SignedDuration::from_hours(24 * day);
        let data = format!("as of {at}");
        let run = host.backup(["save", "app"]).env("BACKUP_UNDER_TEST_NOW", at.to_string());
        (run.stdin(data.as_str()).run().id(), data)
    };
    days.map(save).collect()
}

fn pruned(host: &Host, arguments: &[&str]) -> Value {
    host.backup(["prune", "--json"]).args(arguments).run().json()
}

#[test]
fn of_forty_days_those_stay_that_the_rules_name_and_each_of_them_is_whole() {
    let host = Host::initialised(BACKUP);
    let saved = save_daily(&host, 40);
    let before = host.stored();
    // They came just now, by the store's clock.
    let young = pruned(&host, &["--dry-run"]);
    assert_eq!(young["removed"]["objects"], json!(0));
    assert_eq!(young["targets"][0]["backups"][1]["reasons"], json!([{ "reason": "young" }]), "{young}");
    age(&host.repository());
    let explained = host.backup(["prune", "app", "--dry-run", "--explain"]).run().succeeded();
    for words in ["DECISION", "weekly, of ", "daily, of ", "the newest good one", "no rule keeps it"] {
        assert!(explained.text().contains(words), "{words}: {explained}");
    }
    let told = pruned(&host, &["--dry-run"]);
    assert_eq!(host.stored(), before, "a dry run removes nothing");
    assert!(!host.runs().iter().any(|run| run["command"] == json!("prune")), "and leaves no record");
    let done = pruned(&host, &["app"]);
    assert_eq!(told["removed"], done["removed"]);
    let kept: Vec<&Value> =
        done["targets"][0]["backups"].as_array().unwrap().iter().filter(|b| b["kept"] == json!(true)).collect();
    let listed = host.listed();
    assert_eq!(kept.iter().map(|b| b["id"].as_str().unwrap()).collect::<Vec<_>>(), listed);
    // Thirty days, and of the ten before at least one Monday.
    assert!((30..=33).contains(&listed.len()), "{listed:?}");
    host.backup(["verify", "--all", "--deep"]).run().succeeded();
    for id in &listed {
        let restored = host.backup(["restore", id, "--to-stdout"]).run().succeeded();
        assert_eq!(restored.text(), saved[id]);
    }
    assert!(
        host.stored().iter().all(|name| listed.iter().any(|id| name.contains(id.as_str()))),
        "nothing else is left"
    );
    let run = host.runs().into_iter().find(|run| run["command"] == json!("prune")).unwrap();
    assert_eq!((&run["outcome"], &run["target"]), (&json!("done"), &json!("app")));
    assert_eq!(pruned(&host, &[])["removed"]["objects"], json!(0));
}

#[test]
fn a_host_that_holds_no_identity_prunes_and_verifies_and_restores_nothing() {
    let host = Host::initialised(BACKUP);
    save_on(&host, [500, 499, 1].into_iter());
    age(&host.repository());
    std::fs::remove_file(host.identity_file()).unwrap();
    assert!(pruned(&host, &[])["removed"]["objects"].as_u64().unwrap() > 0);
    host.backup(["verify", "--all"]).run().succeeded();
    host.backup(["restore", "app", "--to-stdout"]).run().failed(12).saying("age1");
}

#[test]
fn rules_of_a_target_are_its_own() {
    let host = Host::initialised(BACKUP);
    save_daily(&host, 4);
    host.save("other", "x");
    host.save("other", "y");
    age(&host.repository());
    let config = host.write(
        "backup.toml",
        "[retention]\ndaily = \"none\"\nweekly = \"none\"\nmonthly = \"none\"\n[targets.app.retention]\nlast = 3\n",
    );
    let config = config.display().to_string();
    host.backup(["prune", "--config", &config]).run().succeeded().saying("freed");
    let listed = host.backup(["list", "--json"]).run().json();
    let of =
        |target: &str| listed["backups"].as_array().unwrap().iter().filter(|b| b["target"] == json!(target)).count();
    assert_eq!((of("app"), of("other")), (3, 1));
    let shown = host.backup(["config", "show", "--config", &config]).run().succeeded();
    assert!(shown.text().contains("targets.app.retention") && shown.text().contains("last 3"), "{shown}");
    host.backup(["prune", "nobody"]).run().failed(10).saying("no target 'nobody'");
    host.backup(["prune", "--grace", "5m"]).run().failed(2).saying("one hour");
    // One that only has rules is nothing to back up.
    host.backup(["run", "--config", &config]).run().failed(2).saying("no target is configured");
}

#[test]
fn a_pinned_backup_stays_until_it_is_unpinned_and_both_are_recorded() {
    let host = Host::initialised(BACKUP);
    let saved = save_on(&host, [400, 3, 2, 1].into_iter());
    let oldest = saved.keys().next().unwrap();
    host.backup(["pin", oldest, "--reason", "for the auditors", "--until", "2999-01-01"]).run().succeeded();
    host.backup(["pin", oldest, "--reason", "in court"]).run().succeeded();
    host.backup(["pin", oldest, "--reason", "x", "--until", "2020-01-01"]).run().failed(2).saying("over already");
    host.backup(["pin", "nothing", "--reason", "x"]).run().failed(10);
    age(&host.repository());
    host.backup(["prune"]).run().succeeded();
    let listed = host.backup(["list", "--json"]).run().json();
    assert_eq!(listed["backups"][0]["id"], json!(oldest));
    let pins = listed["backups"][0]["pins"].as_array().unwrap();
    assert_eq!(
        (pins.len(), &pins[0]["reason"], &pins[1]["until"]),
        (2, &json!("for the auditors"), &Value::Null),
        "{pins:?}"
    );
    assert!(host.backup(["list"]).run().succeeded().text().contains("good, pinned"));
    assert!(
        host.backup(["show", oldest])
            .run()
            .succeeded()
            .text()
            .contains("for the auditors: until 2999-01-01T00:00:00Z, by ")
    );
    host.backup(["unpin", oldest]).run().succeeded().saying("not pinned any more (2 removed)");
    host.backup(["unpin", oldest]).run().succeeded().saying("was not pinned");
    host.backup(["prune"]).run().succeeded();
    assert!(!host.listed().contains(oldest));
    let commands: Vec<Value> =
        host.runs().iter().filter(|run| run["backup"] == json!(oldest)).map(|run| run["command"].clone()).collect();
    for command in ["pin", "unpin"] {
        assert!(commands.contains(&json!(command)), "{commands:?}");
    }
}

#[test]
fn what_a_killed_run_left_goes_after_the_grace_and_a_running_one_is_not_touched() {
    let host = Host::initialised(BACKUP);
    let begun = |count: usize| {
        let is_volume = |name: &&String| name.contains("data.00000.vol");
        while host.stored().iter().filter(is_volume).count() < count {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let killed = host.backup(["save", "app"]).stdin(Input::Endless(Data::random(30_000_000, "killed"))).start();
    begun(1);
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(host.stored().iter().any(|name| name.ends_with('1') && name.contains('#')), "{:?}", host.stored());
    host.backup(["prune"]).run().succeeded();
    assert_eq!(host.stored().len(), 2, "it may be running");
    age(&host.repository());
    let data = Data::random(40_000_000, "running");
    let running = host.backup(["save", "app"]).stdin(Input::Endless(data)).start();
    begun(2);
    for _ in 0..3 {
        host.backup(["prune"]).run().succeeded();
    }
    let stored = host.stored();
    assert_eq!(stored.len(), 2, "of the running one all is there, and of the killed one nothing: {stored:?}");
    running.signal(Signal::TERM);
    running.wait();
    assert_eq!(host.stored(), [] as [&str; 0]);
}

#[test]
fn every_command_of_the_page_on_retention_works() {
    let host = Host::initialised(BACKUP);
    let saved = save_daily(&host, 3);
    let (oldest, yesterday) = (saved.keys().next().unwrap(), now() - SignedDuration::from_hours(24));
    age(&host.repository());
    let sections = documented("RETENTION.md");
    assert!(sections.len() >= 2, "{sections:?}");
    for (heading, commands) in sections {
        let commands = commands.join("\n");
        let day = yesterday.strftime("%Y-%m-%d").to_string();
        let commands = commands.replace("20261122T020000Z-q5zd2ycgzgxmukqi", oldest).replace("2026-09-30", &day);
        let outcome = host.shell(&format!("set -e; backup() {{ \"$BACKUP\" \"$@\"; }}\n{commands}")).run();
        assert_eq!(outcome.code(), Some(0), "{heading}: {outcome}");
    }
    let rules = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/RETENTION.md")).unwrap();
    let (rules, _) = rules.split_once("```toml\n").unwrap().1.split_once("```").unwrap();
    let config = host.write("backup.toml", rules).display().to_string();
    host.backup(["prune", "--config", &config]).run().succeeded();
}

#[test]
fn what_is_stored_is_told_and_a_budget_that_is_used_up_is_a_warning() {
    let host = Host::initialised(BACKUP);
    host.save("app", Data::random(300_000, "usage"));
    host.save("other", "x");
    let with = |capacity: &str| {
        let config =
            host.write("backup.toml", format!("[repository]\ncapacity = \"{capacity}\"\ncapacity_warning = 99\n"));
        host.backup(["list", "--usage", "--config"]).args([config]).run()
    };
    let usage = host.backup(["list", "--usage", "--json"]).run();
    let usage: Value = serde_json::from_slice(usage.stdout()).unwrap();
    let stored: u64 = files_below(&host.repository())
        .iter()
        .filter(|name| !name.starts_with("runs/") && *name != "repository.json")
        .map(|name| std::fs::metadata(host.repository().join(name)).unwrap().len())
        .sum();
    assert_eq!(usage["bytes"], json!(stored), "{usage}");
    assert_eq!(
        (&usage["targets"][0]["backups"][0]["kind"], &usage["capacity"][0]["of"]),
        (&json!("stream"), &json!("file_system"))
    );
    let full = with("100KB").saying("the budget of");
    assert_eq!(full.code(), Some(3), "{full}");
    assert!(full.text().contains("stream") && full.text().contains("other"), "{full}");
    let config = host.write("backup.toml", "[repository]\ncapacity = \"1TB\"\ncapacity_warning = 100\n");
    host.backup(["list", "--usage", "--config"]).args([config]).run().succeeded().saying("is used to 1 %");
    host.backup(["list", "nobody", "--usage"]).run().failed(10);
    // Where it is configured, a save tells, too, and is none the worse.
    let config = host.write("backup.toml", "[repository]\ncapacity_warning = 1\n");
    let saved = host.backup(["save", "app", "--config"]).args([config]).stdin("x").run().succeeded();
    assert!(saved.stderr.contains("warning: the file system of"), "{saved}");
}

#[tokio::test]
async fn a_base_backup_that_is_running_says_from_where_on_it_needs_the_log_and_a_prune_leaves_that() {
    let site = Site::new(BACKUP);
    let server = site.archiving(NewServer::of_major(15).initdb("--wal-segsize=1")).start();
    server.sql("CREATE TABLE t (n int)").await;
    site.back_up(&server);
    archived(&server).await;
    archived(&server).await;
    let host = site.host();
    // Slow enough to be there whatever else this machine does.
    let running = site.saving(&server).args(["--method", "stream", "--no-wal", "--max-rate", "100KiB"]).start();
    let mark = || {
        let name = host.stored().into_iter().find(|name| name.ends_with("running.json"))?;
        let text = std::fs::read(host.repository().join(name)).ok()?;
        serde_json::from_slice::<Value>(&text).ok().filter(|mark| mark["cluster"] != Value::Null)
    };
    let begun = std::time::Instant::now();
    let said = loop {
        if let Some(said) = mark() {
            break said;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not say so: {:?}", host.stored());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((&said["kind"], &said["cluster"]["timeline"]), (&json!("base_backup"), &json!(1)), "{said}");
    let identifier = server.value("SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(said["cluster"]["system_identifier"], json!(identifier));
    let start = said["cluster"]["start_lsn"].as_str().unwrap();
    let first = server.value(&format!("SELECT pg_walfile_name('{start}')")).await;
    archived(&server).await;
    // All but its mark is years old, and all else is to go.
    let mark = |name: &String| name.ends_with("running.json");
    let then = SystemTime::now() - Duration::from_secs(3 * 86_400);
    for name in host.stored().iter().filter(|name| !mark(name)) {
        File::options().write(true).open(host.repository().join(name)).unwrap().set_modified(then).unwrap();
    }
    host.write("backup.toml", "[retention]\nwal = \"1 hour\"\n");
    site.give(&site.path("backup.toml"));
    let report =
        host.backup(["prune", "--json", "--grace", "1h", "--config"]).args([site.path("backup.toml")]).run().json();
    let target = &report["targets"][0];
    assert_eq!(target["unfinished"][0]["kept"], json!(true), "{report}");
    let stored = host.stored();
    assert!(stored.iter().any(mark) && stored.iter().any(|name| name.contains(&first)), "{first}: {stored:?}");
    running.signal(Signal::TERM);
    running.wait();
}

/// Rows of the table `t`.
async fn rows(server: &Server) -> String {
    server.value("SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '') FROM t").await
}

#[tokio::test]
async fn of_a_cluster_every_kept_backup_and_the_oldest_moment_of_the_window_come_back() {
    let site = Site::new(BACKUP);
    let server = site.archiving(NewServer::of_major(15).initdb("--wal-segsize=1").setting("autovacuum", "off")).start();
    let insert = |n: u32| format!("INSERT INTO t VALUES ({n})");
    server.sql("CREATE TABLE t (n int)").await;
    let gone = site.back_up(&server);
    archived(&server).await;
    server.sql(&insert(1)).await;
    let pinned = site.saving(&server).args(["--no-wal"]).run().id();
    let old = site.back_up(&server);
    archived(&server).await;
    server.sql(&insert(2)).await;
    archived(&server).await;
    let anchor = site.back_up(&server);
    server.sql(&insert(3)).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let window: Timestamp = server
        .value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
        .await
        .parse()
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.sql(&insert(4)).await;
    archived(&server).await;
    let within = site.back_up(&server);
    server.sql(&insert(5)).await;
    archived(&server).await;

    let host = site.host();
    host.backup(["pin", &pinned, "--reason", "no log of its own"]).run().succeeded();
    host.backup(["pin", &old, "--reason", "with its own"]).run().succeeded();
    age(&host.repository());
    let none = "daily = \"none\"\nweekly = \"none\"\nmonthly = \"none\"\n";
    host.write("backup.toml", format!("[retention]\n{none}wal = \"30 minutes\"\n"));
    let config = site.path("backup.toml");
    site.give(&config);
    let at = (window + SignedDuration::from_mins(30)).to_string();
    let prune = || -> Run {
        let run = host.backup(["prune", "--json", "--grace", "1h", "--config"]).args([&config]);
        run.env("BACKUP_UNDER_TEST_NOW", &at)
    };
    let segments = || files_below(&host.repository().join(TARGET).join("wal")).len();
    let before = segments();
    let report = prune().run().json();
    let target = &report["targets"][0];
    let reasons: BTreeMap<&str, String> = target["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["id"].as_str().unwrap(), b["reasons"].to_string()))
        .collect();
    assert_eq!(reasons[gone.as_str()], "[]", "{report}");
    assert!(reasons[pinned.as_str()].contains("no log of its own"));
    assert!(
        reasons[anchor.as_str()].contains("window_start") && reasons[within.as_str()].contains("window"),
        "{reasons:?}"
    );
    let wal: Vec<String> = target["wal"].as_array().unwrap().iter().map(|w| w["reason"].to_string()).collect();
    for reason in ["expired", "needed_by", "from"] {
        assert!(wal.contains(&format!("\"{reason}\"")), "{report}");
    }
    assert!(segments() < before);
    assert_eq!(prune().run().json()["removed"]["objects"], json!(0));
    // What the prune left has gaps, and lacks nothing that is to be kept.
    let verify = |config: &Path| host.backup(["verify", "--all", "--deep", "--config"]).args([config]);
    verify(&config).env("BACKUP_UNDER_TEST_NOW", &at).run().succeeded();
    let check = |config: &Path| {
        let run = host.backup(["wal", "check", "--json", "--config"]).args([config]);
        run.env("BACKUP_UNDER_TEST_NOW", &at).run()
    };
    let checked: Value = serde_json::from_slice(check(&config).succeeded().stdout()).unwrap();
    assert!(
        checked["clusters"][0]["timelines"][0]["gaps"].as_array().is_some_and(|gaps| !gaps.is_empty()),
        "{checked}"
    );

    // By these times a restore judges how far the log reaches.
    touch(&host.repository(), SystemTime::now());
    for (id, target, expected) in [
        (&anchor, vec!["--target-time".to_owned(), window.to_string()], "1 2 3"),
        (&within, vec!["--target".to_owned(), "immediate".to_owned()], "1 2 3 4"),
        (&pinned, vec!["--target".to_owned(), "immediate".to_owned()], "1"),
        (&old, vec!["--target".to_owned(), "immediate".to_owned()], "1"),
        (&within, vec![], "1 2 3 4 5"),
    ] {
        server.stop();
        std::fs::remove_dir_all(server.data()).unwrap();
        let restore = host.backup(["restore", id, "--archive-mode", "off", "--to"]).args([server.data()]).args(&target);
        let action: &[&str] = if target.is_empty() { &[] } else { &["--target-action", "promote"] };
        restore.args(action).run().succeeded();
        server.start();
        opened(&server).await;
        assert_eq!(rows(&server).await, expected, "{target:?}: {}", server.log());
    }
    // Without a target the moment is looked for by itself.
    server.stop();
    std::fs::remove_dir_all(server.data()).unwrap();
    let restore = host.backup(["restore", TARGET, "--archive-mode", "off", "--to"]).args([server.data()]);
    let restore = restore.args(["--target-time", &window.to_string(), "--target-action", "promote"]);
    restore.run().succeeded();
    server.start();
    opened(&server).await;
    assert_eq!(rows(&server).await, "1 2 3");
}
