//! Copies that are killed, that run at once, and what is damaged at either end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use backup_core::ErrorKind;
use backup_core::repository::copy::{Copied, CopyOptions, copy};
use backup_core::repository::{Location, Repository};
use backup_core::wal_archive::Reference;
use backup_tests::data::Data;
use backup_tests::host::{Host, Run, files_below};
use backup_tests::wal::{DataDirectory, segment};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::BACKUP;

/// A host with three backups and five files of WAL, and an empty second repository.
struct World {
    host: Host,
    ids: Vec<String>,
}

fn data(n: u64) -> Data {
    Data::random(9_000_000 + n, "copied")
}

impl World {
    fn new() -> Self {
        let host = Host::initialised(BACKUP);
        let ids = (0..3).map(|n| host.save("app", data(n))).collect();
        let directory = DataDirectory::create(host.path("data"));
        for number in 1..=5 {
            let name = directory.add(number, "copied");
            host.backup(["wal", "push", "--target", "app"]).args([directory.pg_wal(&name)]).run().succeeded();
        }
        host.backup(["init", "--repo"]).args([host.path("second")]).run().succeeded();
        Self { host, ids }
    }

    fn copy(&self) -> Run {
        self.host.backup(["copy", "--to"]).args([self.second("")])
    }

    fn second(&self, name: &str) -> PathBuf {
        self.host.path("second").join(name)
    }

    /// The volume of a backup's data, at the source.
    fn volume(&self, n: usize) -> String {
        format!("app/backups/{}/data.00000.vol", self.ids[n])
    }

    /// The object of a segment.
    fn segment(&self, number: u32) -> String {
        let name = backup_tests::wal::name(number);
        format!("app/wal/{}/00000001/{name}.vol", backup_tests::wal::SYSTEM_IDENTIFIER)
    }

    fn listed_there(&self) -> Vec<String> {
        let listing = self.host.backup(["list", "--json", "--repo"]).args([self.second("")]).run().json();
        assert_eq!(listing["unreadable"], serde_json::json!([]));
        listing["backups"].as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn contents(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = files_below(root);
    names.retain(|name| name != "repository.json" && !name.starts_with("runs/"));
    names.into_iter().map(|name| (name.clone(), std::fs::read(root.join(name)).unwrap())).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_copy_that_is_killed_at_any_moment_goes_on_where_it_was() {
    const KILLS: u32 = 10;
    let world = World::new();
    let mut killed = 0;
    let mut whole = world.copy().run().succeeded().elapsed;
    for round in 0.. {
        assert!(round < 20 * KILLS, "only {killed} were killed before their end");
        if killed == KILLS {
            break;
        }
        // Goes on for three rounds, then begins anew.
        if round % 3 == 0 {
            std::fs::remove_dir_all(world.second("app")).unwrap();
        }
        let running = world.copy().start();
        thread::sleep(whole * ((round * 7) % 20) / 20);
        running.signal(Signal::KILL);
        let outcome = running.wait();
        assert!(outcome.code() == Some(0) || outcome.signal() == Some(9), "{outcome}");
        match outcome.signal() {
            Some(_) => killed += 1,
            None => whole = whole.min(outcome.elapsed),
        }
        std::fs::create_dir_all(world.second("app")).unwrap();
        // Whatever is listed is whole.
        for id in world.listed_there() {
            world.host.backup(["verify", &id, "--repo"]).args([world.second("")]).run().succeeded();
        }
    }
    world.copy().run().succeeded();
    // A local store keeps what was being written, under names that nobody sees.
    let mut there = contents(&world.second(""));
    there.retain(|(name, _)| !name.contains('#'));
    let here = contents(&world.host.repository());
    let names = |objects: &[(String, Vec<u8>)]| objects.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&there), names(&here));
    assert!(there == here);
    for (n, id) in (0..).zip(&world.ids) {
        let restored = world.host.backup(["restore", id, "--to-stdout", "--repo"]).args([world.second("")]).run();
        assert!(*restored.succeeded().digest() == data(n).digest());
    }
}

#[test]
fn two_copies_at_once_do_each_other_no_harm() {
    let world = World::new();
    for _ in 0..4 {
        let _ = std::fs::remove_dir_all(world.second("app"));
        let running: Vec<_> = (0..2).map(|_| world.copy().start()).collect();
        for one in running {
            one.wait().succeeded();
        }
        assert!(contents(&world.second("")) == contents(&world.host.repository()));
    }
}

#[test]
fn a_damaged_backup_is_not_copied_and_keeps_no_other_from_it() {
    let world = World::new();
    let damaged = world.host.repository().join(world.volume(1));
    flip(&damaged, 5_000_000);
    flip(&world.host.repository().join(world.segment(2)), 70_000);
    let copied = world.copy().run().failed(13).saying(&world.volume(1)).saying(&world.segment(2));
    copied.saying("2 things could not be copied");
    let mut expected = vec![world.ids[0].clone(), world.ids[2].clone()];
    expected.sort();
    assert_eq!(world.listed_there(), expected);
    assert!(!world.second(&world.volume(1)).exists() && !world.second(&world.segment(2)).exists());
    assert!(world.second(&world.segment(3)).exists());
    // It was mended, from wherever.
    flip(&damaged, 5_000_000);
    flip(&world.host.repository().join(world.segment(2)), 70_000);
    world.copy().run().succeeded();
    assert!(contents(&world.second("")) == contents(&world.host.repository()));
    // Truncated, missing, a header of another: no less.
    let whole = std::fs::read(&damaged).unwrap();
    let other = std::fs::read(world.host.repository().join(world.volume(0))).unwrap();
    for bad in [Some(&whole[..whole.len() - 1]), Some(&whole[..100]), Some(&other[..]), None] {
        std::fs::remove_dir_all(world.second("app")).unwrap();
        match bad {
            Some(bad) => std::fs::write(&damaged, bad).unwrap(),
            None => std::fs::remove_file(&damaged).unwrap(),
        }
        world.copy().run().failed(13).saying(&world.volume(1));
        assert_eq!(world.listed_there(), expected);
    }
}

#[test]
fn another_object_at_the_destination_stops_the_copy_and_is_left_as_it_is() {
    let world = World::new();
    world.copy().run().succeeded();
    let manifest = format!("app/backups/{}/manifest.json", world.ids[0]);
    for (object, at_end) in [(world.volume(2), 120), (world.segment(4), 120), (manifest, 100)] {
        let path = world.second(&object);
        let good = std::fs::read(&path).unwrap();
        flip(&path, good.len() - at_end);
        let bad = std::fs::read(&path).unwrap();
        world.copy().run().failed(13).saying(&object).hinting("verify --all");
        assert!(std::fs::read(&path).unwrap() == bad, "nothing is replaced");
        // Another length shows in the listing.
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        world.copy().args(["--quick"]).run().failed(13).saying(&object);
        std::fs::write(&path, good).unwrap();
    }
    world.copy().run().succeeded();
    world.copy().args(["--quick"]).run().succeeded();
}

#[test]
fn a_volume_that_was_lost_at_the_destination_is_brought_back() {
    let world = World::new();
    world.copy().run().succeeded();
    std::fs::remove_file(world.second(&world.volume(0))).unwrap();
    std::fs::remove_file(world.second(&world.segment(1))).unwrap();
    let copied = world.copy().args(["--json"]).run().json();
    assert_eq!((&copied["backups"]["copied"], &copied["wal_files"]["copied"]), (&1.into(), &1.into()), "{copied}");
    assert!(contents(&world.second("")) == contents(&world.host.repository()));
}

#[test]
fn a_segment_that_was_pushed_to_both_is_the_same_though_it_was_sealed_twice() {
    let world = World::new();
    let push = |number: u32, seed: &str| {
        let path = world.host.path("data/pg_wal").join(backup_tests::wal::name(number));
        std::fs::write(&path, segment(number, seed)).unwrap();
        let second = world.second("").display().to_string();
        world.host.backup(["wal", "push", "--target", "app", "--repo", &second]).args([path]).run().succeeded();
    };
    push(1, "copied");
    world.copy().run().succeeded();
    assert_ne!(
        std::fs::read(world.second(&world.segment(1))).unwrap(),
        std::fs::read(world.host.repository().join(world.segment(1))).unwrap()
    );
    std::fs::remove_file(world.second(&world.segment(2))).unwrap();
    push(2, "another");
    world.copy().run().failed(13).saying(&world.segment(2));
}

/// No release writes such yet, and every one honours them.
#[test]
fn a_backup_comes_after_those_that_it_requires_and_not_without_them() {
    let world = World::new();
    // Who has no key does not see that this is not authentic.
    let require = |n: usize, id: &str| {
        let manifest = world.host.repository().join(format!("app/backups/{}/manifest.json", world.ids[n]));
        let text = std::fs::read_to_string(&manifest).unwrap();
        assert!(text.contains("\"requires\":[]"), "{text}");
        std::fs::write(manifest, text.replace("\"requires\":[]", &format!("\"requires\":[\"{id}\"]"))).unwrap();
    };
    require(0, &world.ids[1]);
    require(1, &world.ids[2]);
    world.host.backup(["pin", &world.ids[2], "--reason", "others need it"]).run().succeeded();
    let copied = world.copy().args([&world.ids[0], "--json"]).run().json();
    assert_eq!(copied["pins"]["copied"], 1, "{copied}");
    assert_eq!((&copied["backups"]["copied"], &copied["wal_files"]["copied"]), (&3.into(), &0.into()), "{copied}");
    assert_eq!(world.copy().args(["--json"]).run().json()["backups"]["same"], 3);
    // One that is damaged keeps those that need it from being there.
    std::fs::remove_dir_all(world.second("app")).unwrap();
    flip(&world.host.repository().join(world.volume(2)), 5_000_000);
    let copied = world.copy().run().failed(13).saying(&world.volume(2));
    copied
        .saying(&format!("it requires the backup {}", world.ids[2]))
        .saying(&format!("it requires the backup {}", world.ids[1]));
    assert_eq!(world.listed_there(), [] as [&str; 0]);
}

/// Whoever writes to the source can claim any size.
#[test]
fn sizes_that_a_manifest_makes_up_cost_no_memory() {
    let world = World::new();
    let manifest = world.host.repository().join(format!("app/backups/{}/manifest.json", world.ids[1]));
    let text = std::fs::read_to_string(&manifest).unwrap();
    let bytes = std::fs::metadata(world.host.repository().join(world.volume(1))).unwrap().len();
    assert!(text.contains(&format!("\"bytes\":{bytes},")), "{text}");
    for claimed in [u64::MAX, 1 << 50, 0] {
        let claim = format!("\"bytes\":{claimed},");
        std::fs::write(&manifest, text.replace(&format!("\"bytes\":{bytes},"), &claim)).unwrap();
        let copied = world.copy().run().failed(13).saying(&world.volume(1));
        assert!(copied.peak_bytes < 80 << 20, "{copied}");
        assert_eq!(world.listed_there().len(), 2);
    }
}

async fn copied(from: &Repository, to: &Repository) -> backup_core::Result<Copied> {
    copy(from, to, &CopyOptions::new(to), &Arc::default(), &CancellationToken::new()).await
}

/// A segment of 1 MiB is more than one part of theirs.
#[tokio::test]
async fn large_files_lie_behind_references_where_a_store_would_replace_them() {
    let world = World::new();
    let from = Repository::open(&Location::directory(world.host.repository()).unwrap()).await.unwrap();
    let store = Location::store(Arc::new(InMemory::new()), "memory:parts", 256 << 10);
    let (to, _) = Repository::init(&store, &backup_core::clock::SystemClock).await.unwrap();
    let first = copied(&from, &to).await.unwrap();
    assert_eq!((first.wal_files.copied, first.backups.copied, first.problem_count), (5, 3, 0), "{first:?}");
    let names: Vec<String> =
        to.store().list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
    assert_eq!(names.iter().filter(|name| name.contains("/wal/")).count(), 10, "{names:?}");
    let reference = to.read_small(&world.segment(3).into(), 4096).await.unwrap().unwrap();
    let read = Reference::decode(&reference, &backup_tests::wal::name(3)).unwrap();
    // The same again, and once more when a run was killed before it could refer to what it had sent.
    assert_eq!(copied(&from, &to).await.unwrap().wal_files.same, 5);
    to.store().delete(&world.segment(3).into()).await.unwrap();
    let again = copied(&from, &to).await.unwrap();
    assert_eq!((again.wal_files.copied, again.wal_files.same), (1, 4));
    assert_eq!(to.read_small(&world.segment(3).into(), 4096).await.unwrap().unwrap(), reference);

    // From there back into a directory.
    let back = Repository::open(&Location::directory(world.second("")).unwrap()).await.unwrap();
    copied(&to, &back).await.unwrap();
    assert!(world.second(&world.segment(3)).with_file_name(&read.object).exists());
    let fetched = world.host.path("fetched");
    let cluster = backup_tests::wal::SYSTEM_IDENTIFIER.to_string();
    let fetch = ["wal", "fetch", "--target", "app", "--system-identifier", &cluster, "--repo"];
    let name = backup_tests::wal::name(3);
    world.host.backup(fetch).args([world.second("")]).args([&name]).args([&fetched]).run().succeeded();
    assert!(std::fs::read(fetched).unwrap() == segment(3, "copied"));
    assert_eq!(copied(&from, &back).await.unwrap().wal_files.same, 5, "a file behind a reference is the same file");

    // A reference to something else.
    let large = world.second(&world.segment(3)).with_file_name(&read.object);
    let footer = usize::try_from(std::fs::metadata(&large).unwrap().len()).unwrap() - 100;
    flip(&large, footer);
    let error = copied(&from, &back).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
}

#[tokio::test]
async fn a_copy_that_is_cancelled_leaves_no_unfinished_backup_listed_and_ends_soon() {
    let world = World::new();
    let from = Repository::open(&Location::directory(world.host.repository()).unwrap()).await.unwrap();
    let to = Repository::open(&Location::directory(world.second("")).unwrap()).await.unwrap();
    let mut cancelled = 0;
    for round in 0..12u32 {
        let _ = std::fs::remove_dir_all(world.second("app"));
        let (cancel, options) = (CancellationToken::new(), CopyOptions::new(&to));
        let counters = Arc::default();
        let run = copy(&from, &to, &options, &counters, &cancel);
        let stop = async {
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 8)).await;
            cancel.cancel();
        };
        match tokio::join!(run, stop).0 {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
                assert!(error.cleanup().is_none());
                cancelled += 1;
            }
        }
        let left: Vec<String> = files_below(&world.second("")).into_iter().filter(|name| name.contains('#')).collect();
        assert_eq!(left, [] as [&str; 0], "what was being written is given up");
        assert!(!files_below(&world.second("")).iter().any(|name| name.ends_with("running.json")));
    }
    assert!(cancelled > 0);
    copied(&from, &to).await.unwrap();
    assert!(contents(&world.second("")) == contents(&world.host.repository()));
}
