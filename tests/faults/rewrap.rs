//! A rewrap of a thousand backups that is killed again and again, and two that run at once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use backup_core::clock::SystemClock;
use backup_core::encrypt::random;
use backup_core::keys::Identity;
use backup_core::keys::age::AgeIdentity;
use backup_core::repository::census::{Census, Looked};
use backup_core::repository::{Location, Repository};
use backup_core::restore::OpenBackup;
use backup_tests::embedder::{Embedder, target};
use backup_tests::host::{Host, files_below};
use backup_tests::s3::{ACCESS_KEY, BUCKET, S3, SECRET_KEY};
use backup_tests::wal::{DataDirectory, segment};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use rustix::process::Signal;

use crate::BACKUP;

const BACKUPS: usize = 1000;
const KILLS: usize = 10;
const SEGMENTS: u32 = 12;

/// A host with the old identity, the new one in a file, and what is kept.
struct World {
    host: Host,
    repository: Repository,
    new: AgeIdentity,
    data: DataDirectory,
    segments: Vec<String>,
}

impl World {
    fn new(runtime: &tokio::runtime::Runtime) -> Self {
        let host = Host::initialised(BACKUP);
        let old = AgeIdentity::load(&host.identity_file()).unwrap();
        let location = Location::directory(host.repository()).unwrap();
        let repository = runtime.block_on(Repository::open(&location)).unwrap();
        let mut embedder = Embedder::new(repository.clone());
        embedder.identity = std::sync::Arc::new(old);
        runtime.block_on(async {
            let saved =
                stream::iter(0..BACKUPS).map(|n| embedder.save_bytes(format!("backup {n}"))).buffer_unordered(8);
            assert_eq!(saved.try_fold(0, |count, _| async move { Ok(count + 1) }).await.unwrap(), BACKUPS);
        });
        let data = DataDirectory::create(host.path("data"));
        let segments: Vec<String> = (3..3 + SEGMENTS).map(|n| data.add(n, "rewrapped")).collect();
        for name in &segments {
            host.backup(["wal", "push", "--target", "app"]).args([data.pg_wal(name)]).run().succeeded();
        }
        let new = AgeIdentity::generate();
        new.create_file(&host.path("new.txt"), &SystemClock).unwrap();
        Self { host, repository, new, data, segments }
    }

    /// `key rewrap` for the new recipient, with both identities.
    fn rewrap(&self) -> backup_tests::host::Run {
        let recipient = self.new.recipients()[0].to_string();
        let files = [self.host.identity_file(), self.host.path("new.txt")];
        let mut run = self.host.backup(["key", "rewrap", "--recipient", &recipient]);
        for file in files {
            run = run.args(["--identity-file"]).args([file]);
        }
        run
    }

    /// What was there before any rewrap: contents, and whether they were written again.
    fn kept(&self) -> BTreeMap<String, (blake3::Hash, u64, i64, i64)> {
        let root = self.host.repository();
        let kept = files_below(&root).into_iter().filter(|name| !name.contains("/keys/") && !name.starts_with("runs/"));
        kept.map(|name| {
            let metadata = fs::metadata(root.join(&name)).unwrap();
            let hash = blake3::hash(&fs::read(root.join(&name)).unwrap());
            (name, (hash, metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        })
        .collect()
    }

    fn rewraps(&self) -> usize {
        // As written, not as being written.
        let name = |entry: &String| entry.ends_with(".json");
        files_below(&self.host.repository().join("app/keys")).iter().filter(|entry| name(entry)).count()
    }

    /// Everything opens with the new identity alone.
    fn is_complete(&self, runtime: &tokio::runtime::Runtime) {
        let identities: [std::sync::Arc<dyn Identity>; 1] = [std::sync::Arc::new(self.new.clone())];
        runtime.block_on(async {
            let census = Census::take(&self.repository, &[target()], &identities, 8, &Looked::default()).await.unwrap();
            assert_eq!((census.problem_count, census.all().backups), (0, BACKUPS as u64), "{:?}", census.problems);
            assert_eq!(census.all().wal_files, u64::from(SEGMENTS));
            for id in self.repository.backup_ids(&target()).await.unwrap().iter().step_by(100) {
                OpenBackup::open(&self.repository, &target().backup(id), &identities).await.unwrap();
            }
        });
        for (number, name) in (3..).zip(&self.segments).step_by(5) {
            let fetched = self.data.pg_wal("RECOVERYXLOG");
            let fetch = self.host.backup(["wal", "fetch", "--target", "app", name]).args([&fetched]);
            fetch
                .env("BACKUP_IDENTITY_FILE", self.host.path("new.txt"))
                .in_directory(self.data.path())
                .run()
                .succeeded();
            assert!(fs::read(&fetched).unwrap() == segment(number, "rewrapped"), "{name}");
        }
    }
}

/// From 0 to `below`, by chance.
fn chance(below: usize) -> usize {
    usize::from(u16::from_le_bytes(random::bytes())) % below.max(1)
}

#[test]
fn a_rewrap_of_a_thousand_backups_that_is_killed_ten_times_ends_complete_and_touches_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new(&runtime);
    let kept = world.kept();
    let mut killed = Vec::new();
    for _ in 0..KILLS {
        // After up to a tenth of the work more, wherever that finds it.
        let until = world.rewraps() + chance(BACKUPS / KILLS - 20);
        let mut running = world.rewrap().start();
        let begun = Instant::now();
        while world.rewraps() < until && running.is_running() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not get on");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(chance(10_000) as u64));
        // It may have come to its end, and then there is nobody to signal.
        if running.is_running() {
            running.signal(Signal::KILL);
        }
        let outcome = running.wait();
        assert!(outcome.signal() == Some(9) || outcome.code() == Some(0), "{outcome}");
        if outcome.signal() == Some(9) {
            killed.push(world.rewraps());
        }
    }
    // On a slow machine the last of them may come after all was done.
    assert!(killed.len() > KILLS / 2 && killed[0] < BACKUPS, "killed with so many done: {killed:?}");
    let before = world.rewraps();
    assert!(before > 0, "something was done before the last run");
    let outcome = world.rewrap().run().succeeded();
    world.is_complete(&runtime);
    assert!(world.kept() == kept, "backups, manifests and WAL are as they were");
    let done = world.rewraps();
    world.rewrap().run().succeeded().saying("wrapped again: 0 data keys");
    assert_eq!(world.rewraps(), done, "a run after the last finds nothing to do: {outcome}");
}

#[test]
fn two_rewraps_at_once_beside_a_running_backup_leave_everything_open() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = Host::initialised(BACKUP);
    for n in 0..30 {
        host.save("app", format!("backup {n}").into_bytes());
    }
    let identity = host.path("new.txt");
    let recipient = host.backup(["key", "generate"]).args([&identity]).run().succeeded().text().trim_end().to_owned();
    let rewrap = || host.backup(["key", "rewrap", "--recipient", &recipient]).start();
    let (first, second) = (rewrap(), rewrap());
    let meanwhile = host.backup(["save", "app"]).stdin("meanwhile").start();
    first.wait().succeeded();
    second.wait().succeeded();
    let id = meanwhile.wait().id();
    // It may have been too late for both.
    rewrap().wait().succeeded();
    let new: [std::sync::Arc<dyn Identity>; 1] = [std::sync::Arc::new(AgeIdentity::load(&identity).unwrap())];
    runtime.block_on(async {
        let repository = Repository::open(&Location::directory(host.repository()).unwrap()).await.unwrap();
        let census = Census::take(&repository, &[target()], &new, 4, &Looked::default()).await.unwrap();
        assert_eq!((census.problem_count, census.all().backups), (0, 31));
    });
    let restored =
        host.backup(["restore", &id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", &identity).run().succeeded();
    assert_eq!(restored.stdout(), b"meanwhile");
}

/// What S3 says of an object: its ETag, and when it was last written, to the millisecond.
type Version = (Option<String>, String);

/// The versions of all objects but rewraps and records.
fn versions(server: &S3, runtime: &tokio::runtime::Runtime) -> BTreeMap<String, Version> {
    // It is there already where this is not the first client.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = AmazonS3Builder::new().with_endpoint(server.endpoint()).with_allow_http(true).with_bucket_name(BUCKET);
    let store = store.with_access_key_id(ACCESS_KEY).with_secret_access_key(SECRET_KEY).with_region("eu-central-1");
    let store = store.build().unwrap();
    runtime.block_on(async {
        let mut versions = BTreeMap::new();
        let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
        for object in all {
            if object.location.parts().any(|part| matches!(part.as_ref(), "keys" | "runs")) {
                continue;
            }
            // This server's listings have no ETags.
            let e_tag = store.head(&object.location).await.unwrap().e_tag;
            versions.insert(object.location.to_string(), (e_tag, object.last_modified.to_rfc3339()));
        }
        versions
    })
}

#[test]
fn a_rewrap_on_s3_that_is_killed_writes_no_object_again_and_no_other() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    let ids: Vec<String> = (0..30).map(|n| host.save("app", format!("backup {n}").into_bytes())).collect();
    let data = DataDirectory::create(host.path("data"));
    for n in 3..6 {
        let name = data.add(n, "rewrapped");
        host.backup(["wal", "push", "--target", "app"]).args([data.pg_wal(&name)]).run().succeeded();
    }
    let before = versions(&server, &runtime);
    assert!(before.len() > 3 * ids.len() && before.values().all(|(e_tag, _)| e_tag.is_some()));
    server.take_requests();

    let identity = host.path("new.txt");
    let new = AgeIdentity::generate();
    new.create_file(&identity, &SystemClock).unwrap();
    let recipient = new.recipients()[0].to_string();
    let rewrap = || host.backup(["key", "rewrap", "--recipient", &recipient]);
    let rewraps = || server.objects().iter().filter(|object| object.contains("/keys/")).count();
    for _ in 0..4 {
        let until = rewraps() + 1 + chance(8);
        let mut running = rewrap().start();
        let begun = Instant::now();
        while rewraps() < until && running.is_running() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not get on");
            thread::sleep(Duration::from_millis(1));
        }
        if running.is_running() {
            running.signal(Signal::KILL);
        }
        let outcome = running.wait();
        assert!(outcome.signal() == Some(9) || outcome.code() == Some(0), "{outcome}");
    }
    assert!(rewraps() > 0);
    rewrap().run().succeeded();
    let after = versions(&server, &runtime);
    assert!(after == before, "an object was written again, removed, or is new");
    for request in server.take_requests().iter().filter(|request| !matches!(request.method.as_str(), "GET" | "HEAD")) {
        assert!(
            request.method == "PUT" && ["/keys/", "/runs/"].iter().any(|part| request.target.contains(part)),
            "{request:?}"
        );
    }
    for id in ids.iter().step_by(8) {
        let restore = host.backup(["restore", id, "--to-stdout"]).env("BACKUP_IDENTITY_FILE", &identity);
        restore.run().succeeded();
    }
}
