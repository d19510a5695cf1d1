//! Prunes that are stopped after any number of deletes, beside runs and other prunes, at stores that refuse.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::*;
use crate::encrypt::DataKey;
use crate::encrypt::random;
use crate::format::{ClusterEntry, Condition, Kind, Manifest, StreamEntry, VolumeEntry};
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, SystemIdentifier, Timeline, WalFile};
use crate::repository::Location;
use crate::repository::layout::{BackupId, BackupPath, TailPiece, WalPath};
use crate::repository::retention::wal::WalReason;
use crate::repository::retention::{Keep, Reason};
use crate::repository::runs::Who;

mod beside;
mod log;
mod store;
mod uploads;

use store::{Shared, TestStore};

const CLUSTER: SystemIdentifier = SystemIdentifier(7_412_345_678_901_234_567);
const SEGMENT: u64 = 1 << 20;

#[derive(Debug, Clone)]
struct Fixed(Timestamp);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// A repository with forty days of backups and log behind it.
struct World {
    store: Shared,
    repository: Repository,
    target: TargetName,
    now: Timestamp,
}

fn id_at(moment: Timestamp) -> BackupId {
    BackupId::generate(&Fixed(moment))
}

fn segment(number: u64) -> SegmentName {
    SegmentSize::new(1 << 20).unwrap().segment_at(Timeline::FIRST, Lsn(number * SEGMENT))
}

impl World {
    async fn empty() -> Self {
        let store = Shared::default();
        store.0.deletes_left.store(usize::MAX, Ordering::SeqCst);
        let location = Location::store(Arc::new(store.clone()), "test:", 5000);
        let (repository, _) = Repository::init(&location, &SystemClock).await.unwrap();
        Self { store, repository, target: "app".parse().unwrap(), now: SystemClock.now() }
    }

    async fn filled() -> Self {
        let world = Self::empty().await;
        for day in (0..40i64).rev() {
            let at = world.ago(24 * day + 2);
            // Four segments a day; the backup of each third day has no log of its own.
            let start = (40 - day.unsigned_abs()) * 4 + 4;
            for n in 0..4 {
                world.file(WalFile::Segment(segment(start + n)), at).await;
            }
            world
                .backup(at, |manifest| {
                    manifest.kind = Kind::BaseBackup;
                    manifest.cluster = Some(ClusterEntry {
                        system_identifier: CLUSTER,
                        server_version_num: 150_018,
                        wal_segment_bytes: SegmentSize::new(1 << 20).unwrap(),
                        timeline: Timeline::FIRST,
                        start_lsn: Lsn(start * SEGMENT + 100),
                        stop_lsn: Lsn((start + 1) * SEGMENT + 100),
                        stopped: at,
                        wal_included: day % 3 != 0,
                    });
                })
                .await;
        }
        world
    }

    /// The same once more.
    async fn copy(&self) -> Self {
        let store = TestStore {
            memory: self.store.0.memory.fork(),
            ages: Mutex::new(self.store.0.ages.lock().unwrap().clone()),
            deletes_left: AtomicUsize::new(usize::MAX),
            ..TestStore::default()
        };
        let store = Shared(Arc::new(store));
        let location = Location::store(Arc::new(store.clone()), "test:", 5000);
        let repository = Repository::open(&location).await.unwrap();
        Self { store, repository, target: self.target.clone(), now: self.now }
    }

    fn ago(&self, hours: i64) -> Timestamp {
        self.now - SignedDuration::from_hours(hours)
    }

    async fn put(&self, path: &Path, bytes: impl Into<PutPayload>, at: Timestamp) {
        self.repository.store().put(path, bytes.into()).await.unwrap();
        self.store.0.ages.lock().unwrap().insert(path.clone(), at);
    }

    fn archive(&self) -> WalPath {
        self.target.wal_of(CLUSTER)
    }

    async fn file(&self, file: WalFile, at: Timestamp) {
        self.put(&self.archive().file(file), "segment", at).await;
    }

    async fn backup(&self, at: Timestamp, change: impl Fn(&mut Manifest)) -> BackupPath {
        let path = self.target.backup(&id_at(at));
        let volumes = |name: &str| -> Vec<VolumeEntry> {
            let volume = |n| VolumeEntry { path: format!("{name}.{n:05}.vol"), bytes: 6, chunks: 1, digest: [0; 32] };
            (0..2).map(volume).collect()
        };
        let stream = |name: &str| StreamEntry {
            name: name.into(),
            stream_id: "11".repeat(16),
            bytes: 5,
            volumes: volumes(name),
        };
        let mut manifest = Manifest {
            format: 1,
            id: path.id.to_string(),
            target: path.target.to_string(),
            kind: Kind::PgDump,
            condition: Condition::Good,
            warnings: 0,
            started: at,
            finished: at,
            data_key: data_encoding::HEXLOWER.encode(&random::bytes::<16>()),
            recipients: vec![],
            streams: vec![stream("base"), stream("details")],
            cluster: None,
            requires: vec![],
            version: "0.1.0".into(),
            critical: vec![],
        };
        change(&mut manifest);
        for volume in manifest.streams.iter().flat_map(|s| &s.volumes) {
            self.put(&path.named(&volume.path), "volume", at).await;
        }
        self.put(&path.manifest(), manifest.encode(&DataKey::generate()).unwrap(), at).await;
        path
    }

    /// An old rewrap of a data key.
    async fn rewrap(&self, key: &str, purpose: &str) -> Path {
        let path = self.target.key(key).unwrap().rewrap(&crate::repository::layout::RewrapName::after(None));
        let document = format!(
            "{{\"format\":1,\"target\":\"app\",\"purpose\":\"{purpose}\",\"data_key\":\"{key}\",\"created\":\"2026-01-01T00:00:00Z\",\
             \"wraps\":[{{\"kind\":\"age\",\"recipient\":\"age1x\",\"wrap\":\"AAAA\"}}],\"version\":\"x\"}}\n{{\"mac\":\"{}\"}}\n",
            data_encoding::BASE64.encode(&[0; 32])
        );
        self.put(&path, document, self.ago(24 * 100)).await;
        path
    }

    fn prune(&self) -> Prune {
        Prune::new(self.repository.clone()).clock(Arc::new(Fixed(self.now)))
    }

    async fn pruned(&self) -> TargetReport {
        let report = self.prune().run(std::slice::from_ref(&self.target)).await.unwrap();
        assert_eq!(report.problems, []);
        report.targets.into_iter().next().unwrap()
    }

    async fn objects(&self) -> BTreeSet<String> {
        self.repository.store().list(None).map_ok(|o| o.location.to_string()).try_collect().await.unwrap()
    }

    async fn has(&self, path: &Path) -> bool {
        self.repository.store().head(path).await.is_ok()
    }

    /// Whatever is listed is whole, and what is kept has its log: its own, and what leads on from the window.
    async fn check(&self, kept: &TargetReport) {
        let mut listed = BTreeSet::new();
        let mut listing = self.repository.list(Some(&self.target));
        while let Some(item) = listing.try_next().await.unwrap() {
            let crate::repository::Listed::Backup(found) = item else { continue };
            for volume in found.manifest.streams.iter().flat_map(|s| &s.volumes) {
                assert!(self.has(&found.path.named(&volume.path)).await, "{} has lost {}", found.path, volume.path);
            }
            let _ = listed.insert(found.path.id.clone());
            let is_kept = kept.backups.iter().any(|b| b.id == found.path.id && !b.reasons.is_empty());
            if let Some(cluster) = found.manifest.cluster.filter(|cluster| is_kept && !cluster.wal_included) {
                for n in cluster.start_lsn.0 / SEGMENT..=cluster.stop_lsn.0 / SEGMENT {
                    let file = self.archive().file(WalFile::Segment(segment(n)));
                    assert!(self.has(&file).await, "{} has lost {file}", found.path);
                }
            }
        }
        for backup in kept.backups.iter().filter(|backup| !backup.reasons.is_empty()) {
            assert!(listed.contains(&backup.id), "{} was to be kept", backup.id);
        }
        for n in (40 - 7) * 4 + 4..=40 * 4 + 7 {
            assert!(self.has(&self.archive().file(WalFile::Segment(segment(n)))).await, "the window has lost {n}");
        }
    }
}

fn who() -> Who {
    Who { user: "dba".into(), host: "db1".into(), pid: 7, program: "backup 0.1.0".into() }
}

/// Rules by which most of it goes.
fn few() -> Rules {
    Rules {
        daily: Keep::Nothing,
        weekly: Keep::Within(jiff::ToSpan::days(30)),
        monthly: Keep::Nothing,
        ..Rules::default()
    }
}

#[tokio::test]
async fn a_prune_that_dies_at_any_delete_leaves_whole_backups_and_the_next_ends_as_if_nothing_had_been() {
    let filled = World::filled().await;
    let whole = filled.copy().await;
    let prune = async |world: &World| world.prune().rules(few()).run(std::slice::from_ref(&world.target)).await;
    let expected = prune(&whole).await.unwrap();
    assert_eq!(expected.problem_count, 0);
    let deletes = whole.store.0.deleted.lock().unwrap().len();
    assert!(deletes > 150, "{deletes}");
    let kept = &expected.targets[0];
    whole.check(kept).await;
    let left = whole.objects().await;
    for n in 0..deletes {
        let world = filled.copy().await;
        world.store.0.deletes_left.store(n, Ordering::SeqCst);
        prune(&world).await.unwrap_err();
        world.check(kept).await;
        world.store.0.deletes_left.store(usize::MAX, Ordering::SeqCst);
        assert_eq!(prune(&world).await.unwrap().problem_count, 0);
        world.check(kept).await;
        assert_eq!(world.objects().await, left, "stopped after {n} deletes");
    }
}

#[tokio::test]
async fn a_dry_run_removes_nothing_and_tells_what_a_prune_then_removes() {
    let world = World::filled().await;
    let before = world.objects().await;
    let prune = |dry_run| world.prune().rules(few()).dry_run(dry_run);
    let told = prune(true).run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!(world.objects().await, before);
    let done = prune(false).run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!(told.removed, done.removed);
    assert_eq!(before.len() - world.objects().await.len(), usize::try_from(done.removed.objects).unwrap());
    assert_eq!(told.targets[0].wal, done.targets[0].wal);
    let again = prune(false).run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!(again.removed, Removed::default());
}

#[tokio::test]
async fn manifests_go_before_volumes_and_backups_before_log() {
    let world = World::filled().await;
    world.prune().rules(few()).run(std::slice::from_ref(&world.target)).await.unwrap();
    let deleted = world.store.0.deleted.lock().unwrap().clone();
    let mut gone = BTreeSet::new();
    let mut log = false;
    for path in &deleted {
        let parts: Vec<&str> = path.as_ref().split('/').collect();
        match (parts[1], parts[3]) {
            ("backups", "manifest.json") => assert!(gone.insert(parts[2]) && !log),
            ("backups", _) => assert!(gone.contains(parts[2]) && !log, "{path}"),
            _ => log = true,
        }
    }
    assert!(log && gone.len() > 20);
}

#[tokio::test]
async fn a_run_keeps_what_it_wrote_and_its_log_however_long_it_takes() {
    let world = World::filled().await;
    let running = world.target.backup(&id_at(world.ago(24 * 35)));
    // It began long ago, and its last sign of life is from now.
    let text = |cluster: &str| {
        format!(
            "{{\"format\":1,\"id\":\"{}\",\"target\":\"app\",\"started\":\"{}\",\"heartbeat\":\"{}\",\"version\":\"x\",\"kind\":\"base_backup\"{cluster}}}",
            running.id,
            world.ago(24 * 35),
            world.now
        )
    };
    world.put(&running.named("base.00000.vol"), "old", world.ago(24 * 35)).await;
    world.put(&running.running(), text(""), world.now).await;
    let before = world.objects().await;
    let report = world.pruned().await;
    assert!(report.unfinished[0].kept);
    assert!(
        report.wal.iter().all(|wal| matches!(wal.fate, WalFate::Kept(WalReason::Running { .. }))),
        "{:?}",
        report.wal
    );
    let count = |objects: &BTreeSet<String>| objects.iter().filter(|name| name.contains("/wal/")).count();
    assert_eq!(count(&world.objects().await), count(&before), "where it will begin is not known yet");
    // Then it says so.
    let start = (40 - 20) * 4 + 4;
    let cluster = format!(
        ",\"cluster\":{{\"system_identifier\":\"{CLUSTER}\",\"timeline\":1,\"start_lsn\":\"{}\"}}",
        Lsn(start * SEGMENT + 5)
    );
    world.put(&running.running(), text(&cluster), world.now).await;
    world.pruned().await;
    assert!(world.has(&running.named("base.00000.vol")).await);
    for n in start..=40 * 4 + 7 {
        assert!(world.has(&world.archive().file(WalFile::Segment(segment(n)))).await);
    }
    assert!(!world.has(&world.archive().file(WalFile::Segment(segment(start - 1)))).await);
    // And then it says nothing any more.
    world.put(&running.running(), text(&cluster), world.ago(25)).await;
    let report = world.pruned().await;
    assert!(!report.unfinished[0].kept);
    assert!(!world.objects().await.iter().any(|name| name.contains(running.id.as_str())));
}

#[tokio::test]
async fn what_the_store_does_not_delete_is_told_and_keeps_its_log_and_the_rest_goes_on() {
    let world = World::filled().await;
    *world.store.0.locked.lock().unwrap() = Some("manifest.json");
    let report = world.prune().rules(few()).run(std::slice::from_ref(&world.target)).await.unwrap();
    let pruned = &report.targets[0];
    let stuck = pruned.backups.iter().filter(|b| b.reasons == [Reason::NotDeleted]).count();
    assert!(stuck > 20, "{stuck}");
    assert_eq!(report.problem_count, stuck as u64);
    assert!(report.problems[0].problem.contains("lacks the permission"), "{:?}", report.problems[0]);
    // None has lost a volume or its own log, and log that nobody needs went all the same.
    world.check(pruned).await;
    assert!(pruned.wal.iter().any(|wal| wal.fate == WalFate::Expired), "{:?}", pruned.wal);
}

#[tokio::test]
async fn two_prunes_at_once_leave_what_one_would() {
    let world = World::filled().await;
    let prune = || async { world.prune().rules(few()).run(std::slice::from_ref(&world.target)).await.unwrap() };
    let kept = world.prune().rules(few()).dry_run(true).run(std::slice::from_ref(&world.target)).await.unwrap();
    let (first, second) = tokio::join!(prune(), prune());
    assert_eq!((first.problem_count, second.problem_count), (0, 0));
    assert_eq!(first.removed.objects + second.removed.objects, kept.removed.objects);
    world.check(&kept.targets[0]).await;
    assert_eq!(prune().await.removed, Removed::default());
}

#[tokio::test]
async fn pins_young_ones_and_what_others_need_stay() {
    let world = World::empty().await;
    let pinned = world.backup(world.ago(24 * 500), |_| {}).await;
    let needed = world.backup(world.ago(24 * 499), |_| {}).await;
    let over = world.backup(world.ago(24 * 498), |_| {}).await;
    let young = world.backup(world.ago(24 * 497), |_| {}).await;
    world.store.0.ages.lock().unwrap().remove(&young.manifest());
    world.backup(world.ago(24), |manifest| manifest.requires = vec![needed.id.to_string()]).await;
    let until = world.now + SignedDuration::from_hours(1);
    world.repository.pin(&pinned, "audit", Some(until), who(), &Fixed(world.now)).await.unwrap();
    world.repository.pin(&over, "audit", Some(world.ago(1)), who(), &Fixed(world.now)).await.unwrap();
    let report = world.pruned().await;
    let reasons: Vec<String> =
        report.backups.iter().map(|b| b.reasons.first().map(ToString::to_string).unwrap_or_default()).collect();
    assert!(reasons[0].starts_with("pinned until") && reasons[1].starts_with("needed by"), "{reasons:?}");
    assert_eq!((reasons[2].as_str(), reasons[3].as_str()), ("", "younger than the grace"));
    assert_eq!(world.repository.backup_ids(&world.target).await.unwrap().len(), 4);
}

#[tokio::test]
async fn what_is_not_trusted_or_not_understood_stays_and_what_is_newer_holds_all() {
    let world = World::empty().await;
    let old = world.backup(world.ago(24 * 500), |_| {}).await;
    let damaged = world.backup(world.ago(24 * 499), |_| {}).await;
    world.put(&damaged.manifest(), "junk", world.ago(24 * 499)).await;
    world.backup(world.ago(24 * 450), |manifest| manifest.kind = Kind::Other("neo4j".into())).await;
    world.backup(world.ago(24), |_| {}).await;
    // Beside volumes of this release.
    let newer = world.backup(world.ago(24 * 400), |_| {}).await;
    let text = world.repository.read_small(&newer.manifest(), 1 << 20).await.unwrap().unwrap();
    let sound = String::from_utf8(text.to_vec()).unwrap();
    let later = sound.replacen("{\"format\":1", "{\"critical\":[\"x\"],\"x\":1,\"format\":1", 1);
    world.put(&newer.manifest(), later, world.ago(24 * 400)).await;
    let report = world.pruned().await;
    assert!(matches!(report.backups[0].reasons[..], [Reason::Held { .. }]));
    world.put(&newer.manifest(), sound, world.ago(24 * 400)).await;
    let report = world.pruned().await;
    let kept: Vec<&Reason> = report.backups.iter().filter_map(|b| b.reasons.first()).collect();
    assert!(matches!(kept[..], [Reason::Unreadable, Reason::UnknownKind { .. }, ..]), "{kept:?}");
    assert!(!world.has(&old.manifest()).await && !world.has(&newer.manifest()).await);
    // Of another's repository, where nothing is signed by whom we trust, nothing goes.
    let world = World::filled().await;
    let key = crate::encrypt::signature::SigningKey::generate();
    let trusting = world.repository.clone().trusting([key.signer()]);
    let before = world.objects().await;
    let report = Prune::new(trusting).rules(few()).run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!(world.objects().await, before);
    assert!(report.targets[0].backups.iter().all(|b| b.reasons == [Reason::Untrusted]));
}

#[tokio::test]
async fn a_clock_that_is_ahead_and_a_grace_that_is_short_are_refused() {
    let world = World::filled().await;
    let witness = Path::from("runs/witness");
    world.put(&witness, "x", world.ago(2)).await;
    let before = world.objects().await;
    let target = [world.target.clone()];
    let refused = world.prune().witness(witness.clone()).run(&target).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.hint().unwrap().contains("clock"), "{refused}");
    let refused = world.prune().grace(SignedDuration::from_mins(59)).run(&target).await.unwrap_err();
    assert!(refused.to_string().contains("grace"), "{refused}");
    assert_eq!(world.objects().await, before);
    world.put(&witness, "x", world.now).await;
    assert!(world.prune().witness(witness).run(&target).await.unwrap().removed.objects > 0);
}

#[tokio::test]
async fn rewraps_go_with_the_last_backup_that_has_their_data_key() {
    let world = World::empty().await;
    let mut keys = Vec::new();
    for (days, purpose) in [(500, "backup"), (1, "backup"), (400, "wal")] {
        let key = data_encoding::HEXLOWER.encode(&random::bytes::<16>());
        if purpose == "backup" {
            world.backup(world.ago(24 * days), |manifest| manifest.data_key.clone_from(&key)).await;
        }
        keys.push(world.rewrap(&key, purpose).await);
    }
    let report = world.pruned().await;
    assert_eq!(report.rewraps.objects, 1);
    assert!(!world.has(&keys[0]).await && world.has(&keys[1]).await && world.has(&keys[2]).await);
}
