//! Several repositories, of which some die, drag or are full, while a backup is made, archived or restored.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use backup_tests::data::Data;
use backup_tests::host::{Host, Outcome, assert_same_objects, files_below};
use backup_tests::s3::{ACCESS_KEY, BUCKET, Fault, Rule, S3, SECRET_KEY};
use backup_tests::wal::{DataDirectory, name};

use super::disk::mounted;
use crate::BACKUP;

/// Bytes of a backup: several parts of 8 MiB.
const BYTES: u64 = 40_000_000;
/// What a process may have resident beside the pipeline's own 64 MiB for parts of 8 MiB.
const MEMORY_MAX: u64 = 110 << 20;

/// A host that is configured for a directory and for two S3 servers.
struct World {
    host: Host,
    servers: [S3; 2],
}

impl World {
    /// `config` stands before the tables of the repositories, and `required` says who must have everything.
    fn new(config: &str, required: [bool; 3]) -> Self {
        let (mut host, servers) = (Host::new(BACKUP), [S3::start(), S3::start()]);
        host.unset("BACKUP_REPO");
        host.set("AWS_ACCESS_KEY_ID", ACCESS_KEY);
        host.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        host.set("AWS_EC2_METADATA_DISABLED", "true");
        let [here, near, far] = required;
        let (first, second) = (servers[0].endpoint(), servers[1].endpoint());
        let text = format!(
            "{config}\n[repositories.here]\nurl = \"{}\"\nrequired = {here}\n\
             [repositories.near]\nurl = \"s3://{BUCKET}/near\"\nrequired = {near}\n\
             [repositories.near.s3]\nendpoint = \"{first}\"\nregion = \"eu-1\"\n\
             [repositories.far]\nurl = \"s3://{BUCKET}/far\"\nrequired = {far}\n\
             [repositories.far.s3]\nendpoint = \"{second}\"\nregion = \"eu-1\"\n",
            host.repository().display()
        );
        let path = host.write("backup.toml", text);
        host.set("BACKUP_CONFIG", path);
        host.backup(["init"]).run().succeeded();
        Self { host, servers }
    }

    fn save(&self) -> Outcome {
        self.host.backup(["save", "app", "--json"]).stdin(Data::random(BYTES, "several")).run()
    }

    /// Where the objects of each repository are.
    fn places(&self) -> [PathBuf; 3] {
        [self.host.repository(), self.servers[0].path("near"), self.servers[1].path("far")]
    }

    /// The files of a repository that are part of a backup.
    fn of_backups(&self, i: usize) -> Vec<String> {
        files_below(&self.places()[i]).into_iter().filter(|name| name.starts_with("app/")).collect()
    }

    fn comes_back(&self, from: &str) {
        let restored = self.host.backup(["restore", "app", "--to-stdout", "--repo", from]).run().succeeded();
        assert!(*restored.digest() == Data::random(BYTES, "several").digest(), "{restored}");
    }
}

fn states(outcome: &Outcome) -> Vec<(String, String)> {
    let document: serde_json::Value = serde_json::from_str(outcome.text()).expect("JSON");
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let all = document["repositories"].as_array().expect("repositories").iter();
    all.map(|one| (word(&one["repository"]), word(&one["state"]))).collect()
}

fn state(name: &str, state: &str) -> (String, String) {
    (name.to_owned(), state.to_owned())
}

#[test]
fn one_pass_makes_three_repositories_that_are_the_same() {
    let world = World::new("", [true; 3]);
    let saved = world.save().succeeded();
    assert_eq!(states(&saved), [state("here", "stored"), state("near", "stored"), state("far", "stored")]);
    assert_same_objects(&world.places());
    assert!(saved.peak_bytes < MEMORY_MAX, "{} MiB", saved.peak_bytes >> 20);
    for from in ["here", "near", "far"] {
        world.comes_back(from);
        world.host.backup(["verify", "app", "--deep", "--repo", from]).run().succeeded();
    }
    let listed = world.host.backup(["list", "--json"]).run().json();
    assert_eq!(listed["backups"][0]["repositories"], serde_json::json!(["here", "near", "far"]));
}

#[test]
fn optional_repositories_that_die_and_drag_are_left_behind_and_told() {
    let world = World::new("optional_lag_seconds = 3", [true, false, false]);
    // The one dies with its second part, the other takes 1 MB a second.
    world.servers[0].inject(Rule::new(Fault::Reset, "PUT", "partNumber=").after(1));
    world.servers[0].inject(Rule::new(Fault::Reset, "POST", ""));
    world.servers[1].inject(Rule::new(Fault::Throttle(1_000_000), "PUT", ""));
    let begun = Instant::now();
    let saved = world.save();
    assert_eq!(saved.code(), Some(3), "{saved}");
    assert_eq!(states(&saved), [state("here", "stored"), state("near", "dropped"), state("far", "dropped")]);
    assert!(saved.stderr.contains("going on without near, which is optional"), "{saved}");
    assert!(saved.stderr.contains("far kept the others waiting for 3 s"), "{saved}");
    assert!(saved.peak_bytes < MEMORY_MAX, "{} MiB", saved.peak_bytes >> 20);
    // At 1 MB a second it would have taken longer than that.
    assert!(begun.elapsed() < Duration::from_secs(38), "{:?}", begun.elapsed());
    world.comes_back("here");
    assert!(!world.of_backups(2).iter().any(|name| name.ends_with("manifest.json")));
    world.servers.iter().for_each(S3::mend);
    let listed = world.host.backup(["list", "--json"]).run().json();
    assert_eq!(listed["backups"][0]["repositories"], serde_json::json!(["here"]));

    for to in ["near", "far"] {
        world.host.backup(["copy", "--from", "here", "--to", to]).run().succeeded();
    }
    assert_same_objects(&world.places());
    world.comes_back("far");
    // What is said of a backup holds in all of them.
    world.host.backup(["pin", "app", "--reason", "kept for the test"]).run().succeeded();
    for i in 0..3 {
        assert_eq!(world.of_backups(i).iter().filter(|name| name.contains("/pins/")).count(), 1, "{i}");
    }
    world.host.backup(["prune"]).run().succeeded().saying("repository near").saying("repository far");
    world.host.backup(["copy", "--from", "here", "--to", "nowhere"]).run().failed(10).saying("nowhere");
}

#[test]
fn a_required_repository_that_drags_is_waited_for_and_one_that_dies_fails_the_backup_everywhere() {
    let world = World::new("optional_lag_seconds = 1", [true; 3]);
    // One part takes longer than the lag.
    world.servers[1].inject(Rule::new(Fault::Throttle(2_000_000), "PUT", ""));
    world.save().succeeded();
    assert_same_objects(&world.places());
    world.servers[1].heal();

    let before = [0, 1, 2].map(|i| world.of_backups(i));
    world.servers[0].inject(Rule::new(Fault::Status(403), "PUT", "partNumber=2"));
    let failed = world.save();
    assert_eq!(failed.code(), Some(2), "{failed}");
    assert!(failed.stderr.contains("near (required) failed"), "{failed}");
    assert_eq!([0, 1, 2].map(|i| world.of_backups(i)), before, "nothing of it is left anywhere");
    assert_eq!(world.servers[0].unfinished(), [] as [&str; 0]);
    assert_eq!(world.servers[1].unfinished(), [] as [&str; 0]);
}

#[test]
fn a_full_disk_is_left_behind_where_it_is_optional_and_fails_the_backup_where_it_is_required() {
    let host = Host::new(BACKUP);
    let flags = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    let script = "mkdir small && mount -t tmpfs -o size=8m tmpfs small || exit 99; unset BACKUP_REPO; \
                  for required in false true; do \
                      printf '[repositories.a]\nurl = \"a\"\n[repositories.b]\nurl = \"small/b\"\nrequired = '$required'\n' > backup.toml; \
                      \"$BACKUP\" init -q; head -c 30000000 /dev/urandom > data; \
                      \"$BACKUP\" save app < data > id; echo $?; find small -name '*.vol' -o -name 'manifest.json'; \
                      ls a/app/backups | wc -l; \
                  done; \"$BACKUP\" restore app --repo a --to-stdout | wc -c";
    let run = host.command("unshare").args([flags, "sh", "-c", script]).env("BACKUP", host.program());
    let outcome = mounted(run.run()).succeeded().saying("no space is left");
    assert_eq!(outcome.text(), "3\n1\n11\n1\n30000000\n", "{outcome}");
}

#[test]
fn archiving_goes_on_without_an_optional_repository_and_not_without_a_required_one() {
    for required in [false, true] {
        let world = World::new("optional_lag_seconds = 1", [true, true, required]);
        let mut host = world.host;
        host.set("BACKUP_TARGET", "app");
        let data = DataDirectory::create(host.path("data"));
        let push = |segment: &str| {
            let path = format!("pg_wal/{segment}");
            host.backup(["wal", "push", &path, "--timeout", "10"]).in_directory(data.path()).run()
        };
        let first = data.add(3, "several");
        push(&first).succeeded();
        world.servers[1].stop();
        let second = data.add(4, "several");
        let pushed = push(&second);
        if required {
            assert_ne!(pushed.code(), Some(0), "{pushed}");
            world.servers[1].resume();
            push(&second).succeeded();
            continue;
        }
        let pushed = pushed.succeeded();
        assert!(pushed.stderr.contains("is not in far, which is optional"), "{pushed}");
        assert!(pushed.elapsed < Duration::from_secs(9), "{pushed}");
        // What is there comes back; but the repository that is away may have more.
        let fetch = |segment: &str| {
            let flags = ["--prefetch=0", "--patience=0"];
            let run = host.backup(["wal", "fetch", segment, "pg_wal/RECOVERYXLOG"]).args(flags);
            run.in_directory(data.path()).within(Duration::from_secs(120)).run()
        };
        fetch(&second).succeeded();
        std::fs::remove_file(data.pg_wal("RECOVERYXLOG")).unwrap();
        fetch(&name(5)).failed(200);
        world.servers[1].resume();
        assert_eq!(fetch(&name(5)).code(), Some(1));
    }
}

#[test]
fn an_optional_repository_that_hangs_leaves_time_to_archive_whatever_the_lag() {
    let world = World::new("optional_lag_seconds = 30", [true, true, false]);
    for method in ["GET", "HEAD", "PUT"] {
        world.servers[1].inject(Rule::new(Fault::Delay(Duration::from_secs(60)), method, ""));
    }
    let mut host = world.host;
    host.set("BACKUP_TARGET", "app");
    let data = DataDirectory::create(host.path("data"));
    let path = format!("pg_wal/{}", data.add(3, "several"));
    let pushed = host.backup(["wal", "push", &path, "--timeout", "10"]).in_directory(data.path()).run().succeeded();
    assert!(pushed.stderr.contains("is not in far, which is optional"), "{pushed}");
    assert!(pushed.elapsed < Duration::from_secs(6), "{pushed}");
}

#[test]
fn a_restore_goes_on_when_the_first_repository_is_away_and_when_it_dies_in_the_middle() {
    let world = World::new("", [false, true, true]);
    world.save().succeeded();
    std::fs::rename(world.host.repository(), world.host.path("unmounted")).unwrap();
    let restored = |world: &World| {
        let run = world.host.backup(["restore", "app", "--to-stdout"]).within(Duration::from_secs(200)).run();
        let restored = run.succeeded();
        assert!(*restored.digest() == Data::random(BYTES, "several").digest(), "{restored}");
        restored
    };
    // In the middle, and then from the beginning.
    world.servers[0].inject(Rule::new(Fault::Reset, "GET", "data.00000.vol").after(4));
    let outcome = restored(&world);
    assert!(outcome.stderr.contains("near cannot be read") && outcome.stderr.contains("reading from far"), "{outcome}");
    assert!(world.servers[0].has_struck());
    world.servers[0].stop();
    let outcome = restored(&world);
    assert!(outcome.stderr.contains("near cannot be read"), "{outcome}");
    let listed = world.host.backup(["list"]).within(Duration::from_secs(200)).run();
    assert_eq!(listed.code(), Some(3), "{listed}");
    assert!(listed.text().contains("far") && listed.stderr.contains("near cannot be listed"), "{listed}");
}

#[test]
fn a_restore_that_another_repository_helped_out_tells_what_the_first_has_lost() {
    let world = World::new("", [true, true, true]);
    world.save().succeeded();
    world.comes_back("here");
    let lost = world.of_backups(0).into_iter().find(|name| name.ends_with("data.00000.vol")).unwrap();
    std::fs::remove_file(world.host.repository().join(&lost)).unwrap();
    let restored = world.host.backup(["restore", "app", "--to-stdout"]).run();
    assert_eq!(restored.code(), Some(3), "{restored}");
    assert!(*restored.digest() == Data::random(BYTES, "several").digest(), "{restored}");
    restored.saying(&format!("here lacks {lost}")).saying("reading it from near");
}
