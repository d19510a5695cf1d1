//! Rewrapping in memory, and everything that somebody who can write to the repository may put beside it.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::*;
use crate::format::Purpose;
use crate::keys::EncryptionContext;
use crate::keys::age::AgeIdentity;
use crate::pipeline::{Backup, Limits};
use crate::repository::Listed;
use crate::repository::layout::{BackupPath, KeyPath};
use crate::restore::{MemorySink, OpenBackup};
use crate::source::BytesSource;

struct World {
    repository: Repository,
    old: AgeIdentity,
    new: AgeIdentity,
}

/// What all data keys here are for.
fn context() -> EncryptionContext {
    EncryptionContext::of_backup(&"app".parse().unwrap())
}

fn recipient(identity: &AgeIdentity) -> Arc<dyn Recipient> {
    Arc::new(identity.recipients().remove(0))
}

fn name(identity: &AgeIdentity) -> RecipientName {
    named(&*recipient(identity))
}

fn identities(identity: &AgeIdentity) -> Vec<Arc<dyn Identity>> {
    vec![Arc::new(identity.clone())]
}

impl World {
    async fn new() -> Self {
        let repository = Repository::in_memory().await.unwrap();
        Self { repository, old: AgeIdentity::generate(), new: AgeIdentity::generate() }
    }

    fn target(&self) -> TargetName {
        "app".parse().unwrap()
    }

    async fn save(&self, text: &'static str) -> BackupPath {
        self.save_for(text, &self.old).await
    }

    async fn save_for(&self, text: &'static str, identity: &AgeIdentity) -> BackupPath {
        let limits = Limits { chunk_size: 4096, volume_chunks: 3, ..Limits::for_parts_of(5000) };
        let backup = Backup::new(self.repository.clone(), self.target())
            .recipient(recipient(identity))
            .limits(limits)
            .stream("data".parse().unwrap(), BytesSource::new(text));
        let manifest = backup.start().unwrap().wait().await.unwrap();
        self.target().backup(&manifest.id.parse().unwrap())
    }

    async fn read(&self, path: &BackupPath, identity: &AgeIdentity) -> Result<Vec<u8>> {
        let backup = OpenBackup::open(&self.repository, path, &identities(identity)).await?;
        let sink = MemorySink::new(1 << 20);
        backup.restore("data")?.into(sink.clone()).wait().await?;
        Ok(sink.take().unwrap())
    }

    /// For the new recipient, with the old identity.
    fn options(&self) -> RewrapOptions {
        RewrapOptions::new(vec![recipient(&self.new)], identities(&self.old))
    }

    async fn rewrap(&self, options: &RewrapOptions) -> Result<Rewrapped> {
        rewrap(&self.repository, &[self.target()], options, &Looked::default()).await
    }

    async fn census(&self, identities: &[Arc<dyn Identity>]) -> Census {
        let targets = [self.target()];
        Census::take(&self.repository, &targets, identities, 4, &Looked::default()).await.unwrap()
    }

    async fn objects(&self) -> BTreeMap<Path, Bytes> {
        let mut objects = BTreeMap::new();
        let listed: Vec<_> = self.repository.store().list(None).try_collect().await.unwrap();
        for object in listed {
            let bytes = self.repository.store().get(&object.location).await.unwrap().bytes().await.unwrap();
            objects.insert(object.location, bytes);
        }
        objects
    }

    async fn key(&self, path: &BackupPath) -> (KeyPath, DataKey) {
        let backup = OpenBackup::open(&self.repository, path, &identities(&self.old)).await.unwrap();
        let key = backup.data_key().clone();
        (self.target().key(&key.id()).unwrap(), key)
    }

    async fn put(&self, path: &KeyPath, file: &str, bytes: impl Into<PutPayload>) {
        self.repository.store().put(&path.prefix().join(file), bytes.into()).await.unwrap();
    }

    /// A rewrap for the new recipient as it should be, to be changed.
    async fn sound(&self, key: &DataKey) -> Rewrap {
        Rewrap {
            format: 1,
            target: "app".into(),
            purpose: Purpose::Backup,
            data_key: key.id(),
            created: SystemClock.now(),
            wraps: wrap_for_all(key, &context(), &[recipient(&self.new)]).await.unwrap(),
            version: "test".into(),
            critical: vec![],
        }
    }
}

mod hidden;

const NEWEST: &str = "00000009-aaaaaaaaaaaaaaaa.json";

#[tokio::test]
async fn what_is_kept_opens_with_the_new_identity_and_nothing_that_was_there_changes() {
    let world = World::new().await;
    let paths = [world.save("one").await, world.save("two").await, world.save_for("for the new", &world.new).await];
    let before = world.objects().await;
    assert_eq!(world.read(&paths[0], &world.new).await.unwrap_err().kind(), ErrorKind::Key);

    let dry = world.rewrap(&RewrapOptions { dry_run: true, ..world.options() }).await.unwrap();
    assert_eq!((dry.data_keys, dry.proved, world.objects().await), (2, 0, before.clone()));

    let both = [identities(&world.old), identities(&world.new)].concat();
    let done = world.rewrap(&RewrapOptions { identities: both, ..world.options() }).await.unwrap();
    assert_eq!((done.data_keys, done.proved, done.unchanged), (2, 2, 1));
    assert_eq!(done.problems(), []);
    for (path, text) in paths.iter().zip(["one", "two", "for the new"]) {
        assert_eq!(world.read(path, &world.new).await.unwrap(), text.as_bytes());
    }
    assert_eq!(world.read(&paths[0], &world.old).await.unwrap(), b"one", "rewrapping takes nothing away");
    let mut after = world.objects().await;
    let added: Vec<Path> = after.keys().filter(|path| !before.contains_key(path)).cloned().collect();
    assert_eq!(added.len(), 2);
    for path in added {
        let (_, name) = world.target().parse_rewrap(&path).expect("a rewrap");
        assert!(name.to_string().starts_with("00000001-"));
        after.remove(&path);
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_second_run_writes_nothing_and_one_for_a_third_key_goes_on_from_there() {
    let world = World::new().await;
    let path = world.save("one").await;
    assert_eq!(world.rewrap(&world.options()).await.unwrap().data_keys, 1);
    let once = world.objects().await;
    let again = world.rewrap(&world.options()).await.unwrap();
    assert_eq!((again.data_keys, again.unchanged, world.objects().await), (0, 1, once));

    let third = AgeIdentity::generate();
    let next = RewrapOptions::new(vec![recipient(&third)], identities(&world.new));
    let done = world.rewrap(&next).await.unwrap();
    assert_eq!((done.data_keys, done.proved), (1, 0), "read back, and not opened: nobody here has that identity");
    let (key, _) = world.key(&path).await;
    let names = world.repository.rewraps(&key).await.unwrap();
    assert!(names.len() == 2 && names[0].to_string().starts_with("00000002-"), "{names:?}");
    for identity in [&world.old, &world.new, &third] {
        assert_eq!(world.read(&path, identity).await.unwrap(), b"one");
    }
}

#[tokio::test]
async fn two_at_once_leave_everything_open() {
    let world = World::new().await;
    let mut paths = Vec::new();
    for _ in 0..20 {
        paths.push(world.save("same").await);
    }
    let options = world.options();
    let (a, b) = tokio::join!(world.rewrap(&options), world.rewrap(&options));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.data_keys + b.data_keys >= 20 && a.problems().is_empty() && b.problems().is_empty());
    for path in &paths {
        assert_eq!(world.read(path, &world.new).await.unwrap(), b"same");
        let (key, _) = world.key(path).await;
        assert!(world.repository.rewraps(&key).await.unwrap().len() <= 2);
    }
    assert_eq!(world.rewrap(&options).await.unwrap().unchanged, 20);
}

#[tokio::test]
async fn forged_rewraps_neither_open_nor_count_nor_hide_the_sound_one() {
    let world = World::new().await;
    let (path, other) = (world.save("one").await, world.save("two").await);
    let ((folder, key), (_, other_key)) = (world.key(&path).await, world.key(&other).await);
    let sound = world.sound(&key).await;
    let stranger = AgeIdentity::generate();
    let forged =
        Rewrap { wraps: wrap_for_all(&other_key, &context(), &[recipient(&stranger)]).await.unwrap(), ..sound.clone() };
    let long = format!("{}\n", " ".repeat(crate::format::REWRAP_LEN_MAX));
    let forgeries: [(&str, Vec<u8>); 7] = [
        ("no rewrap", b"{}\n{}\n".to_vec()),
        ("too long", long.into_bytes()),
        ("of another key, for a stranger", forged.encode(&other_key).unwrap()),
        ("another key's MAC", sound.encode(&other_key).unwrap()),
        ("another target's", Rewrap { target: "other".into(), ..sound.clone() }.encode(&key).unwrap()),
        ("that of WAL", Rewrap { purpose: Purpose::Wal, ..sound.clone() }.encode(&key).unwrap()),
        ("another key's name", Rewrap { data_key: other_key.id(), ..sound.clone() }.encode(&key).unwrap()),
    ];
    for (what, bytes) in forgeries {
        world.put(&folder, NEWEST, bytes).await;
        let error = world.read(&path, &world.new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Key, "{what}: {error}");
        // One that is for others is none of our business.
        assert!(error.in_one_line().contains(NEWEST) || what.contains("stranger"), "{what}: {error}");
        assert_eq!(world.read(&path, &world.old).await.unwrap(), b"one", "{what}");
        let proved = world.census(&identities(&world.old)).await;
        assert!(proved.opened_by(&name(&world.new)).is_empty(), "{what} is believed");
        assert!(proved.opened_by(&name(&stranger)).is_empty(), "{what} is believed");

        // It does not keep the key from being wrapped, and is passed over afterwards.
        let before = world.objects().await;
        assert_eq!(world.rewrap(&world.options()).await.unwrap().data_keys, 2, "{what}");
        assert_eq!(world.read(&path, &world.new).await.unwrap(), b"one", "{what}");
        for written in world.objects().await.keys().filter(|object| !before.contains_key(object)) {
            world.repository.store().delete(written).await.unwrap();
        }
    }
    // An older, sound one is found behind the forged one.
    world.put(&folder, NEWEST, "junk").await;
    world.put(&folder, "00000001-aaaaaaaaaaaaaaaa.json", sound.encode(&key).unwrap()).await;
    assert_eq!(world.read(&path, &world.new).await.unwrap(), b"one");
}

#[tokio::test]
async fn who_cannot_open_a_backup_is_told_who_could_by_now() {
    let world = World::new().await;
    let path = world.save("one").await;
    world.rewrap(&world.options()).await.unwrap();
    for strangers in [identities(&AgeIdentity::generate()), vec![]] {
        let error = OpenBackup::open(&world.repository, &path, &strangers).await.unwrap_err();
        let hint = error.hint().unwrap().to_owned();
        let [old, new] = [&world.old, &world.new].map(|identity| name(identity).recipient);
        assert!(error.kind() == ErrorKind::Key && hint.contains(&old) && hint.contains(&new), "{hint}");
    }
}

#[tokio::test]
async fn a_header_whose_wraps_are_damaged_does_not_close_a_backup_that_was_rewrapped() {
    let world = World::new().await;
    let path = world.save("one").await;
    world.rewrap(&world.options()).await.unwrap();
    let recipient = name(&world.old).recipient;
    for (object, bytes) in world.objects().await {
        if object.as_ref().ends_with(".vol") {
            let mut bytes = bytes.to_vec();
            let at = bytes.windows(recipient.len()).position(|w| w == recipient.as_bytes()).unwrap();
            // The last letter of the name of the wrapped key's recipient: the header is authenticated as a whole.
            bytes[at + recipient.len() + 40] ^= 1;
            world.repository.store().put(&object, bytes.into()).await.unwrap();
        }
    }
    // The key comes from the rewrap; what the header's damage is, the commitment tells.
    let backup = OpenBackup::open(&world.repository, &path, &identities(&world.new)).await.unwrap();
    let error = backup.restore("data").unwrap().into(MemorySink::new(100)).wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity);
}

#[tokio::test]
async fn a_wrap_that_is_damaged_counts_for_nobody_and_is_made_again() {
    let world = World::new().await;
    let limits = Limits { chunk_size: 4096, volume_chunks: 3, ..Limits::for_parts_of(5000) };
    let backup = Backup::new(world.repository.clone(), world.target())
        .recipients([recipient(&world.old), recipient(&world.new)])
        .limits(limits)
        .stream("data".parse().unwrap(), BytesSource::new("for both"));
    let manifest = backup.start().unwrap().wait().await.unwrap();
    let path = world.target().backup(&manifest.id.parse().unwrap());
    assert_eq!(world.rewrap(&world.options()).await.unwrap().unchanged, 1);

    // A bit of the new recipient's wrap flips on the disk, in every header. The manifest still names it, and is authentic.
    let needle = format!("{}\",\"wrap\":\"", name(&world.new).recipient);
    for (object, bytes) in world.objects().await.into_iter().filter(|(object, _)| object.as_ref().ends_with(".vol")) {
        let mut bytes = bytes.to_vec();
        let at = bytes.windows(needle.len()).position(|w| w == needle.as_bytes()).unwrap() + needle.len() + 200;
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        world.repository.store().put(&object, bytes.into()).await.unwrap();
    }
    assert!(world.census(&[]).await.lacking(&Recipients::from([name(&world.new)])).is_empty(), "unproved, it counts");
    let census = world.census(&identities(&world.old)).await;
    assert_eq!(census.lacking(&Recipients::from([name(&world.new)])).backups, 1);
    assert_eq!(world.rewrap(&world.options()).await.unwrap().data_keys, 1);
    OpenBackup::open(&world.repository, &path, &identities(&world.new)).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_and_the_rest_is_done() {
    let world = World::new().await;
    let stranger = AgeIdentity::generate();
    let (ours, theirs) = (world.save("ours").await, world.save_for("theirs", &stranger).await);
    let done = world.rewrap(&world.options()).await.unwrap();
    assert_eq!((done.data_keys, done.census.problem_count), (1, 1));
    let problem = &done.problems()[0];
    assert!(problem.no_key && problem.object.contains(theirs.id.as_str()), "{problem:?}");
    assert_eq!(world.read(&ours, &world.new).await.unwrap(), b"ours");
    let census = world.census(&identities(&world.new)).await;
    assert_eq!((census.problem_count, census.all().backups), (1, 1));

    let nobody = RewrapOptions { recipients: vec![], ..world.options() };
    assert_eq!(world.rewrap(&nobody).await.unwrap_err().kind(), ErrorKind::Key);
}

#[tokio::test]
async fn the_census_tells_who_opens_what_and_what_would_be_lost() {
    let world = World::new().await;
    world.save("one").await;
    world.save("two").await;
    world.save_for("new", &world.new).await;
    let (old, new) = (name(&world.old), name(&world.new));
    let only = |recipient: &RecipientName| Recipients::from([recipient.clone()]);
    for with in [identities(&world.old), vec![]] {
        let census = world.census(&with).await;
        let problems = if with.is_empty() { 0 } else { 1 };
        assert_eq!(census.problem_count, problems);
        assert_eq!(census.opened_by(&old).backups, 2);
        assert_eq!(census.needing(&old, &only(&new)).backups, 2);
        assert_eq!(census.needing(&old, &only(&old)).backups, 2, "it does not stand in for itself");
        assert_eq!(census.closed_to(&only(&new)).backups, 2);
        assert_eq!(census.lacking(&only(&new)).examples.len(), 2);
    }
    world.rewrap(&world.options()).await.unwrap();
    for with in [identities(&world.new), vec![]] {
        let census = world.census(&with).await;
        assert_eq!((census.problem_count, census.all().backups), (0, 3));
        assert_eq!((census.opened_by(&old).backups, census.opened_by(&new).backups), (2, 3));
        assert!(census.needing(&old, &only(&new)).is_empty() && census.lacking(&only(&new)).is_empty());
        assert_eq!(census.recipients(), Recipients::from([old.clone(), new.clone()]));
    }
}

#[tokio::test]
async fn a_backup_that_is_removed_meanwhile_stops_nothing() {
    let world = World::new().await;
    let (gone, stays) = (world.save("gone").await, world.save("stays").await);
    let mut listed: Vec<Listed> = world.repository.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 2);
    listed.clear();
    let objects: Vec<Path> = world.objects().await.into_keys().collect();
    for object in objects.iter().filter(|object| object.prefix_matches(&gone.prefix())) {
        // As prune does: the manifest first.
        world.repository.store().delete(object).await.unwrap();
    }
    let done = world.rewrap(&world.options()).await.unwrap();
    assert_eq!((done.data_keys, done.census.problem_count), (1, 0));
    assert_eq!(world.read(&stays, &world.new).await.unwrap(), b"stays");
}
