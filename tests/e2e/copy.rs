//! `backup copy`: from a directory to S3 and back, by hosts that cannot read what they copy.

use std::path::{Path, PathBuf};

use backup_tests::data::Data;
use backup_tests::host::{Host, Run, files_below};
use backup_tests::s3::{BUCKET, Fault};
use backup_tests::s3::{Rule, S3};
use backup_tests::wal::{DataDirectory, segment};
use serde_json::json;

use crate::BACKUP;

/// A host with backups of two targets, WAL of which a part is still being received, and a data key that was wrapped again; and an empty S3 server.
struct World {
    server: S3,
    host: Host,
    directory: DataDirectory,
    ids: Vec<String>,
}

/// More than a part of S3's, so that it goes in several.
fn large() -> Data {
    Data::random(20_000_000, "large")
}

impl World {
    fn new() -> Self {
        let mut host = Host::initialised(BACKUP);
        let directory = DataDirectory::create(host.path("data"));
        let ids = vec![
            host.save("app", "small"),
            host.save("app", large()),
            host.backup(["save", "home", "--directory"]).args([host.path("data")]).run().id(),
        ];
        for number in 1..=3 {
            let name = directory.add(number, "copied");
            host.backup(["wal", "push", "--target", "app"]).args([directory.pg_wal(&name)]).run().succeeded();
        }
        let second = host.path("second.txt");
        let recipient = host.backup(["key", "generate"]).args([&second]).run().succeeded();
        host.backup(["key", "rewrap", "-R", recipient.text().trim()]).run().succeeded();
        let server = S3::start();
        let repository = host.repository();
        server.serve(&mut host);
        host.backup(["init", "--recipient", recipient.text().trim()]).run().succeeded();
        host.set("BACKUP_REPO", repository);
        Self { server, host, directory, ids }
    }

    fn s3() -> String {
        format!("s3://{BUCKET}/some/prefix")
    }

    fn copy(&self, from: &str, to: &str) -> Run {
        // Whoever copies has no key.
        self.host.backup(["copy", "--from", from, "--to", to]).env("BACKUP_IDENTITY_FILE", "/nonexistent")
    }

    fn local(&self) -> String {
        self.host.repository().display().to_string()
    }
}

/// What a repository holds, without what is of the place itself.
fn contents(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = files_below(root);
    names.retain(|name| name != "repository.json" && !name.starts_with("runs/"));
    names.into_iter().map(|name| (name.clone(), std::fs::read(root.join(name)).unwrap())).collect()
}

fn names(contents: &[(String, Vec<u8>)]) -> Vec<&str> {
    contents.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_copy_to_s3_and_back_can_be_restored_and_fetched_from_with_the_source_gone() {
    let world = World::new();
    let copied = world.copy(&world.local(), &World::s3()).args(["--json"]).run().json();
    assert_eq!(copied["backups"], json!({"copied": 3, "same": 0, "bytes": copied["backups"]["bytes"]}));
    assert_eq!((&copied["wal_files"]["copied"], &copied["ok"]), (&json!(3), &json!(true)));
    assert_ne!(copied["rewraps"]["copied"], 0);
    assert_eq!(world.server.unfinished(), [] as [&str; 0]);
    let source = contents(&world.host.repository());
    let there = contents(&world.server.path("some/prefix"));
    assert!(source == there, "{:?}\n{:?}", names(&source), names(&there));
    // A record of it is where it was written, and nowhere else.
    let runs = world.host.backup(["list", "--runs"]).env("BACKUP_REPO", World::s3()).run().succeeded();
    assert!(runs.text().contains("copy"), "{runs}");

    let again = world.copy(&world.local(), &World::s3()).args(["--json"]).run().json();
    assert_eq!(
        (&again["bytes"], &again["backups"]["same"], &again["wal_files"]["same"]),
        (&json!(0), &json!(3), &json!(3))
    );

    // The source is lost.
    std::fs::remove_dir_all(world.host.repository()).unwrap();
    let back = world.host.path("back");
    world.host.backup(["init", "--repo"]).args([&back]).run().succeeded();
    world.copy(&World::s3(), back.to_str().unwrap()).run().succeeded();
    assert!(contents(&back) == source);
    for (repository, fetched) in [(World::s3(), "fetched-s3"), (back.display().to_string(), "fetched-back")] {
        let run = |arguments: &[&str]| world.host.backup(arguments).env("BACKUP_REPO", &repository).run();
        run(&["verify", "--all", "--deep"]).succeeded();
        let restored = run(&["restore", &world.ids[1], "--to-stdout"]).succeeded();
        assert!(*restored.digest() == large().digest());
        for number in 1..=3 {
            let to = world.host.path(format!("{fetched}-{number}"));
            let name = backup_tests::wal::name(number);
            let cluster = backup_tests::wal::SYSTEM_IDENTIFIER.to_string();
            let to_text = to.to_str().unwrap();
            run(&["wal", "fetch", "--target", "app", "--system-identifier", &cluster, &name, to_text]).succeeded();
            assert!(std::fs::read(to).unwrap() == segment(number, "copied"));
        }
    }
    // What was wrapped again came along.
    let second = world.host.path("second.txt").display().to_string();
    let by_second = world.host.backup(["verify", &world.ids[0], "--deep", "-r", &World::s3(), "-i", &second]).run();
    by_second.succeeded();
    assert!(world.directory.path().exists());
}

#[test]
fn only_what_was_asked_for_is_copied() {
    let world = World::new();
    let count = |prefix: &str| world.server.objects().iter().filter(|name| name.contains(prefix)).count();
    let tried = world.copy(&world.local(), &World::s3()).args(["--dry-run", "--json"]).run().json();
    assert_eq!((&tried["dry_run"], &tried["backups"]["copied"]), (&json!(true), &json!(3)));
    assert_eq!(world.server.objects().len(), 1, "a dry run writes nothing");

    let one = world.copy(&world.local(), &World::s3()).args([&world.ids[0], "--json"]).run().json();
    assert_eq!(
        (&one["backups"]["copied"], &one["wal_files"]["copied"], &one["rewraps"]["copied"]),
        (&json!(1), &json!(0), &json!(1))
    );
    assert_eq!((count("/backups/"), count("/home/")), (3, 0));
    let target = world.copy(&world.local(), &World::s3()).args(["--target", "app", "--json"]).run().json();
    assert_eq!((&target["backups"]["copied"], &target["backups"]["same"]), (&json!(1), &json!(1)));
    assert_eq!(count("/home/"), 0);
    world.copy(&world.local(), &World::s3()).args(["--target", "nobody"]).run().failed(10);
    world.copy(&world.local(), &World::s3()).args(["nothing"]).run().failed(10);
    world.copy(&world.local(), &world.local()).run().failed(2).saying("copied to itself");
    world
        .copy(&world.local(), &world.host.path("nowhere").display().to_string())
        .run()
        .failed(10)
        .hinting("backup init");
}

#[test]
fn what_a_later_release_wrote_is_left_alone_and_counted() {
    let world = World::new();
    let other = world.host.path("other");
    world.host.backup(["init", "--repo"]).args([&other]).run().succeeded();
    let write = |name: &str, bytes: &str| world.host.write(format!("repository/app/{name}"), bytes);
    write("drills/1.json", "{}");
    write(&format!("backups/{}/note.json", world.ids[0]), "{}");
    write("wal/7/strange", "x");
    write("keys/0123456789abcdef0123456789abcdef/00000001-aaaaaaaaaaaaaaaa.json", "{\"format\":2}\n{\"mac\":\"\"}\n");
    write("backups/20991122T020000Z-aaaaaaaaaaaaaaaa/manifest.json", "{\"format\":2}\n{\"mac\":\"\"}\n");
    let copied = world.copy(&world.local(), other.to_str().unwrap()).args(["--json"]).run();
    assert_eq!(copied.code(), Some(3), "{copied}");
    let document: serde_json::Value = serde_json::from_str(copied.text()).unwrap();
    assert_eq!((&document["left_alone"], &document["backups"]["copied"]), (&json!(4), &json!(3)), "{document}");
    assert_eq!((&document["problem_count"], &document["problems"][0]["damage"]), (&json!(1), &json!(false)));
    copied.saying("left alone").saying("newer release");
    let there: Vec<PathBuf> = ["drills", "wal/7"].map(|name| other.join("app").join(name)).to_vec();
    assert!(there.iter().all(|path| !path.exists()));
}

#[test]
fn a_store_that_fails_now_and_then_gets_all_of_it_and_one_that_is_away_is_told() {
    let world = World::new();
    world.server.inject(Rule::new(Fault::Status(503), "PUT", "").one_in(4));
    world.server.inject(Rule::new(Fault::Reset, "GET", "").one_in(9));
    let unsteady = world.copy(&world.local(), &World::s3()).run();
    assert_eq!(unsteady.code(), Some(0), "{unsteady}");
    world.server.mend();
    assert!(contents(&world.host.repository()) == contents(&world.server.path("some/prefix")));
    let refused = world.copy(&world.local(), &World::s3()).env("AWS_SECRET_ACCESS_KEY", "wrong").run();
    refused.failed(2);
}

#[test]
fn memory_stays_bounded_however_large_the_volumes_are() {
    let mut host = Host::initialised(BACKUP);
    host.save("app", Data::random(200_000_000, "much"));
    let server = S3::start();
    let repository = host.repository();
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    let copied =
        host.backup(["copy", "--to", &World::s3(), "--memory", "32MiB", "--from"]).args([repository]).run().succeeded();
    assert!(copied.peak_bytes < 80 << 20, "{} MiB", copied.peak_bytes >> 20);
    host.backup(["copy", "--to", &World::s3(), "--memory", "8MiB", "--from"])
        .args([host.repository()])
        .run()
        .failed(2)
        .hinting("the least that would do is 16 MiB");
}
