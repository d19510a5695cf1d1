//! The demands. Each begins with an empty repository.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backup_core::ErrorKind;
use backup_core::clock::{Clock, SystemClock};
use backup_core::compress::Compression;
use backup_core::format::Manifest;
use backup_core::jiff::{SignedDuration, Timestamp};
use backup_core::pipeline::{Buffer, Limits};
use backup_core::repository::copy::{CopyOptions, copy};
use backup_core::repository::layout::{BackupId, BackupPath, TargetName};
use backup_core::repository::prune::{Prune, Report};
use backup_core::repository::runs::Who;
use backup_core::repository::{Listed, Repository};
use backup_core::restore::MemorySink;
use backup_core::source::{BytesSource, Piece, Source};
use backup_core::{Error, Result, Stage};
use backup_tests::data::Data;
use backup_tests::embedder::{Embedder, target};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tokio_util::sync::CancellationToken;

use crate::stores::Store;

/// A stream that is longer than one part, and how it goes on after its data.
#[derive(Debug)]
struct Then(Option<BytesSource>, End);

#[derive(Debug, Clone, Copy)]
enum End {
    Fails,
    NeverComes,
}

impl Then {
    fn after(bytes: usize, end: End) -> Self {
        Self(Some(BytesSource::new(Data::random(bytes as u64, "then").to_vec())), end)
    }

    async fn pull(&mut self, buffer: Buffer) -> Result<Option<Piece>> {
        if let Some(source) = &mut self.0 {
            let piece = source.next(buffer).await?;
            if piece.is_some() {
                return Ok(piece);
            }
            self.0 = None;
        }
        match self.1 {
            End::Fails => Err(Error::new(ErrorKind::Source, Stage::Source, "failed on purpose")),
            End::NeverComes => std::future::pending().await,
        }
    }
}

impl Source for Then {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.pull(buffer).boxed()
    }
}

pub(crate) async fn making_a_repository_twice_changes_nothing(store: &Store) {
    let id = store.embedder.repository.id().to_owned();
    let (again, init) = Repository::init(&store.location, &SystemClock).await.unwrap();
    assert!(!init.created && init.warning.is_none(), "{init:?}");
    assert!(again.conditional_put());
    assert_eq!(again.id(), id);
    assert_eq!(Repository::open(&store.location).await.unwrap().id(), id);
}

pub(crate) async fn an_object_is_created_once_and_never_replaced(store: &Store) {
    let repository = &store.embedder.repository;
    let path = Path::from("app/backups/x");
    let put = |bytes: &'static str| repository.put_once(&path, PutPayload::from_static(bytes.as_bytes()));
    put("first").await.unwrap();
    // The same again is what a retry after a lost answer does.
    put("first").await.unwrap();
    for other in ["other", "", "first and more"] {
        let error = put(other).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{error:?}");
        let kept = repository.read_small(&path, 100).await.unwrap().unwrap();
        assert_eq!(kept, "first");
    }
}

pub(crate) async fn of_creators_at_the_same_time_one_wins(store: &Store) {
    let repository = &store.embedder.repository;
    for round in 0..5 {
        let path = Path::from(format!("app/backups/{round}"));
        let put = |n: u8| repository.put_once(&path, PutPayload::from(vec![n; 1000]));
        let done = futures::future::join_all((0..8).map(put)).await;
        let winners: Vec<usize> = (0..8).filter(|n| done[*n].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{done:?}");
        let kept = repository.read_small(&path, 2000).await.unwrap().unwrap();
        assert_eq!(kept, vec![u8::try_from(winners[0]).unwrap(); 1000]);
    }
}

pub(crate) async fn streams_of_critical_lengths_come_back(store: &Store) {
    // Chunks of 4096 bytes, volumes of three: nothing, one byte, around a chunk, around a volume, several volumes.
    for len in [0, 1, 4095, 4096, 4097, 12_287, 12_288, 12_289, 50_000] {
        for compression in [Compression::Zstd(3), Compression::None] {
            let data = Data::random(len, "lengths").to_vec();
            let stream = ("data".parse().unwrap(), BytesSource::new(data.clone()));
            let backup = store.embedder.backup().compression(compression).stream(stream.0, stream.1).start().unwrap();
            let path = target().backup(backup.id());
            let manifest = backup.wait().await.unwrap();
            assert_eq!(manifest.stream("data").unwrap().bytes, len);
            assert!(store.embedder.restore(&path, 0..u64::MAX).await.unwrap() == data, "{len} {compression:?}");
        }
    }
}

pub(crate) async fn a_long_stream_is_sent_in_parts_of_one_size(store: &Store) {
    let mut embedder = store.embedder.clone();
    embedder.limits.part_bytes = 5 << 20;
    embedder.limits.chunk_size = 1 << 20;
    embedder.limits.volume_chunks = 14;
    embedder.limits.memory_bytes = Some(64 << 20);
    // Two volumes: of 14 MiB in three parts, and of 3 MiB in one request.
    let data = Data::random(17 << 20, "parts").to_vec();
    let (path, manifest) = embedder.save_bytes(data.clone()).await.unwrap();
    let volumes = &manifest.stream("data").unwrap().volumes;
    assert_eq!(volumes.len(), 2);
    if let Some(parts) = store.parts() {
        assert_eq!(parts, [5 << 20, 5 << 20, volumes[0].bytes - (10 << 20)]);
    }
    assert!(embedder.restore(&path, 0..u64::MAX).await.unwrap() == data);
}

pub(crate) async fn any_range_can_be_read_alone(store: &Store) {
    let data = Data::random(50_000, "ranges").to_vec();
    let (path, _) = store.embedder.save_bytes(data.clone()).await.unwrap();
    for range in [0..0, 0..1, 4095..4097, 12_287..12_289, 30_000..50_000, 49_999..50_000, 50_000..60_000] {
        let wanted = &data[range.start..range.end.min(data.len())];
        let read = store.embedder.restore(&path, range.start as u64..range.end as u64).await.unwrap();
        assert!(read == wanted, "{range:?}");
    }
}

pub(crate) async fn listings_begin_behind_their_offset(store: &Store) {
    // Whether the log goes on behind a segment is asked so, and a wrong answer ends a recovery early.
    let repository = &store.embedder.repository;
    for name in ["a", "b/1", "b/2", "b/3", "c"] {
        repository.put_once(&Path::from(format!("app/wal/{name}")), PutPayload::from_static(b"x")).await.unwrap();
    }
    let folder = Path::from("app/wal/b");
    for (offset, expected) in [("1", &["2", "3"][..]), ("2", &["3"]), ("2x", &["3"]), ("9", &[])] {
        let listing = repository.store().list_with_offset(Some(&folder), &folder.clone().join(offset));
        let listed: Vec<_> = listing.try_collect().await.unwrap();
        let mut names: Vec<String> = listed.iter().map(|meta| meta.location.to_string()).collect();
        // Nothing is promised about their order: a directory has none.
        names.sort();
        let expected: Vec<String> = expected.iter().map(|name| format!("{folder}/{name}")).collect();
        assert_eq!(names, expected, "behind {offset}");
    }
}

pub(crate) async fn several_streams_of_several_volumes_come_back(store: &Store) {
    let streams = ["one", "two", "three"].map(|name| (name, Data::random(40_000, name).to_vec()));
    let mut backup = store.embedder.backup().details(serde_json::json!({ "who": "we" }));
    for (name, data) in &streams {
        backup = backup.stream(name.parse().unwrap(), BytesSource::new(data.clone()));
    }
    let handle = backup.start().unwrap();
    let path = target().backup(handle.id());
    let manifest = handle.wait().await.unwrap();
    let opened = store.embedder.open(&path).await.unwrap();
    assert_eq!(opened.manifest(), &manifest);
    assert_eq!(opened.details().await.unwrap()["source"]["who"], "we");
    for (name, data) in &streams {
        assert_eq!(manifest.stream(name).unwrap().volumes.len(), 4);
        let sink = MemorySink::new(1 << 20);
        opened.restore(name).unwrap().into(sink.clone()).wait().await.unwrap();
        assert!(sink.take().unwrap() == *data, "{name}");
    }
    for found in [store.embedder.verify_keyless(&path).await.unwrap(), store.embedder.verify_deep(&path).await.unwrap()]
    {
        assert_eq!((found.objects, found.findings.as_slice()), (14, &[][..]));
    }
}

pub(crate) async fn listings_show_what_is_complete_in_order(store: &Store) {
    let mut made = Vec::new();
    for n in 0..3 {
        made.push(store.embedder.save_bytes(vec![n; 100]).await.unwrap().0);
    }
    let latest = made[2].clone();
    // Ids sort by the second in which they begin; within it, in any order. The latest is the latest all the same.
    made.sort();
    let repository = &store.embedder.repository;
    let listed: Vec<Listed> = repository.list(None).try_collect().await.unwrap();
    let path = |listed: &Listed| match listed {
        Listed::Backup(found) => found.path.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(listed.iter().map(path).collect::<Vec<_>>(), made);
    assert_eq!(repository.targets().await.unwrap(), [target()]);
    assert_eq!(repository.resolve("app").await.unwrap().path, latest);
    let other: TargetName = "application".parse().unwrap();
    let of_other: Vec<Listed> = repository.list(Some(&other)).try_collect().await.unwrap();
    assert!(of_other.is_empty(), "a name that begins alike is another");
}

pub(crate) async fn a_running_backup_is_unfinished_and_cannot_be_restored(store: &Store) {
    let source = Then::after(30_000, End::NeverComes);
    let handle = store.embedder.backup().stream("data".parse().unwrap(), source).start().unwrap();
    let path = target().backup(handle.id());
    // Two of its volumes are complete, as there are more than 24,576 bytes.
    until_stored(store, &path.volume(&"data".parse().unwrap(), 1)).await;
    let listed: Vec<Listed> = store.embedder.repository.list(None).try_collect().await.unwrap();
    assert!(matches!(&listed[..], [Listed::Unfinished(unfinished)] if *unfinished == path), "{listed:?}");
    assert_eq!(store.embedder.open(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.embedder.repository.resolve("app").await.unwrap_err().kind(), ErrorKind::NotFound);
    handle.cancel();
    handle.wait().await.unwrap_err();
}

pub(crate) async fn only_manifest_and_volumes_stay(store: &Store) {
    let (path, manifest) = store.embedder.save_bytes(vec![7; 30_000]).await.unwrap();
    let mut expected = vec![path.manifest()];
    expected.extend(volumes(&path, &manifest));
    let mut expected: Vec<String> = expected.iter().map(Path::to_string).collect();
    expected.sort();
    assert_eq!(store.stored().await, expected);
}

pub(crate) async fn a_source_that_fails_leaves_nothing(store: &Store) {
    // Before the first part, within a volume, and after complete volumes and unfinished multipart uploads.
    for bytes in [0, 3000, 11_000, 30_000] {
        let error = store.embedder.save(Then::after(bytes, End::Fails)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source, "{error:?}");
        assert_eq!(error.to_string(), "failed on purpose");
        assert!(error.cleanup().is_none(), "{error:?}");
        assert_eq!(store.stored().await, [] as [&str; 0], "after {bytes} bytes");
    }
    let mut embedder = store.embedder.clone();
    embedder.limits.part_bytes = 5 << 20;
    embedder.limits.volume_chunks = 10_000;
    embedder.save(Then::after(12 << 20, End::Fails)).await.unwrap_err();
    assert!(store.parts().is_none_or(|parts| parts.contains(&(5 << 20))), "no upload of several parts was begun");
    assert_eq!(store.stored().await, [] as [&str; 0], "an unfinished upload was left");
}

pub(crate) async fn a_cancelled_backup_leaves_nothing(store: &Store) {
    let source = Then::after(30_000, End::NeverComes);
    let handle = store.embedder.backup().stream("data".parse().unwrap(), source).start().unwrap();
    until_stored(store, &target().backup(handle.id()).volume(&"data".parse().unwrap(), 0)).await;
    handle.cancel();
    let error = handle.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
    assert!(error.cleanup().is_none(), "{error:?}");
    assert_eq!(store.stored().await, [] as [&str; 0]);
}

pub(crate) async fn a_backup_cancelled_at_any_moment_leaves_nothing(store: &Store) {
    for round in 0..60 {
        let source = BytesSource::new(Data::random(40_000, "cancelled").to_vec());
        let handle = store.embedder.backup().stream("data".parse().unwrap(), source).start().unwrap();
        tokio::time::sleep(Duration::from_micros(200 * round)).await;
        handle.cancel();
        match handle.wait().await {
            // It was faster.
            Ok(manifest) => {
                let path = target().backup(&manifest.id.parse().unwrap());
                store.embedder.restore(&path, 0..u64::MAX).await.unwrap();
                for object in [vec![path.manifest()], volumes(&path, &manifest)].concat() {
                    store.embedder.repository.store().delete(&object).await.unwrap();
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
                assert!(error.cleanup().is_none(), "{error:?}");
                // What was on its way would come now.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(store.stored().await, [] as [&str; 0], "cancelled after {} us", 200 * round);
    }
}

pub(crate) async fn a_dropped_handle_leaves_nothing(store: &Store) {
    let source = Then::after(30_000, End::NeverComes);
    let handle = store.embedder.backup().stream("data".parse().unwrap(), source).start().unwrap();
    until_stored(store, &target().backup(handle.id()).volume(&"data".parse().unwrap(), 0)).await;
    drop(handle);
    // Its task cleans up by itself.
    for _ in 0..500 {
        if store.stored().await.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?} stays", store.stored().await);
}

/// A clock that is years ahead; asked alone, so it is the store's clock, too.
#[derive(Debug)]
struct YearsAhead(i64);

impl Clock for YearsAhead {
    fn now(&self) -> Timestamp {
        SystemClock.now() + SignedDuration::from_hours(24 * 365 * self.0)
    }
}

pub(crate) async fn a_prune_leaves_the_newest_and_nothing_of_what_is_too_old(store: &Store) {
    let repository = &store.embedder.repository;
    let data = Data::random(50_000, "kept").to_vec();
    let (old, _) = store.embedder.save_bytes(Data::random(50_000, "old").to_vec()).await.unwrap();
    let (pinned, _) = store.embedder.save_bytes("pinned").await.unwrap();
    let (newest, _) = store.embedder.save_bytes(data.clone()).await.unwrap();
    let who = Who { user: "dba".into(), host: "db1".into(), pid: 7, program: "tests".into() };
    let until = YearsAhead(4).now();
    repository.pin(&pinned, "until then", Some(until), who, &SystemClock).await.unwrap();
    // What a run left that died.
    let dead = target().backup(&BackupId::generate(&SystemClock));
    repository.store().put(&dead.named("data.00000.vol"), "x".into()).await.unwrap();
    let prune = |years: i64| Prune::new(repository.clone()).clock(Arc::new(YearsAhead(years)));
    let report = prune(0).run(&[target()]).await.unwrap();
    assert_eq!(report.removed.objects, 0, "all of it is young");
    let kept = |report: &Report| {
        report.targets[0].backups.iter().filter(|b| !b.reasons.is_empty()).map(|b| b.id.clone()).collect::<Vec<_>>()
    };
    let told = prune(3).dry_run(true).run(&[target()]).await.unwrap();
    let done = prune(3).run(&[target()]).await.unwrap();
    assert_eq!((done.problem_count, told.removed), (0, done.removed));
    assert!(kept(&done).contains(&pinned.id) && kept(&done).contains(&newest.id) && !kept(&done).contains(&old.id));
    let left: Vec<String> =
        repository.store().list(None).map_ok(|o| o.location.to_string()).try_collect().await.unwrap();
    for gone in [&old, &dead] {
        assert!(!left.iter().any(|name| name.contains(gone.id.as_str())), "{left:?}");
    }
    assert!(store.embedder.restore(&newest, 0..u64::MAX).await.unwrap() == data);
    assert_eq!(kept(&prune(5).run(&[target()]).await.unwrap()), std::slice::from_ref(&newest.id), "the pin is over");
    assert_eq!(repository.unpin(&pinned).await.unwrap(), 1);
}

pub(crate) async fn a_missing_volume_is_found(store: &Store) {
    let (path, manifest) = store.embedder.save_bytes(Data::random(30_000, "missing").to_vec()).await.unwrap();
    for volume in volumes(&path, &manifest) {
        let bytes = store.embedder.repository.read_small(&volume, 1 << 20).await.unwrap().unwrap();
        store.embedder.repository.store().delete(&volume).await.unwrap();
        let keyless = store.embedder.verify_keyless(&path).await.unwrap();
        let deep = store.embedder.verify_deep(&path).await.unwrap();
        for found in [keyless, deep] {
            let [finding] = &found.findings[..] else { panic!("{volume}: {found:?}") };
            let told = format!("{} {}", finding.object, finding.problem);
            assert!(told.contains(volume.as_ref()) && told.contains("missing"), "{told}");
        }
        store.embedder.repository.store().put(&volume, bytes.into()).await.unwrap();
    }
}

pub(crate) async fn a_volume_cannot_be_put_in_the_place_of_another(store: &Store) {
    let (first, manifest) = store.embedder.save_bytes(Data::random(30_000, "first").to_vec()).await.unwrap();
    let (second, _) = store.embedder.save_bytes(Data::random(30_000, "second").to_vec()).await.unwrap();
    let repository = &store.embedder.repository;
    let of = |path: &BackupPath| volumes(path, &manifest).swap_remove(1);
    let bytes = repository.read_small(&of(&second), 1 << 20).await.unwrap().unwrap();
    repository.store().put(&of(&first), bytes.into()).await.unwrap();
    let error = store.embedder.restore(&first, 0..u64::MAX).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
    assert!(error.to_string().contains(of(&first).as_ref()), "{error}");
    assert!(!store.embedder.verify_keyless(&first).await.unwrap().findings.is_empty());
}

pub(crate) async fn a_copy_here_and_back_is_the_same_byte_for_byte(store: &Store) {
    let source = Embedder::new(Repository::in_memory().await.unwrap());
    let here = &store.embedder.repository;
    let mut paths = Vec::new();
    for len in [0, 5000, 50_000] {
        paths.push(source.save_bytes(Data::random(len, "copied").to_vec()).await.unwrap().0);
    }
    // Of several parts, of the size that the store likes.
    let mut large = source.clone();
    large.limits = Limits { memory_bytes: Some(64 << 20), volume_chunks: 100_000, ..large.limits };
    paths.push(large.save_bytes(Data::random(12 << 20, "large").to_vec()).await.unwrap().0);
    store.parts();
    let (cancel, counters) = (CancellationToken::new(), Arc::default());
    let copied = copy(&source.repository, here, &CopyOptions::new(here), &counters, &cancel).await.unwrap();
    assert_eq!((copied.backups.copied, copied.backups.same, copied.problem_count), (4, 0, 0), "{copied:?}");
    if let Some(parts) = store.parts() {
        assert!(parts.len() == 3 && parts[0] == parts[1] && parts[2] < parts[1], "{parts:?}");
    }
    let again = copy(&source.repository, here, &CopyOptions::new(here), &counters, &cancel).await.unwrap();
    assert_eq!((again.backups.copied, again.backups.same, again.bytes()), (0, 4, 0), "{again:?}");

    let back = Repository::in_memory().await.unwrap();
    // The same name as the source has, and another store.
    let options = CopyOptions::new(&back);
    copy(here, &back, &options, &counters, &cancel).await.unwrap();
    let all = |repository: &Repository| {
        let repository = repository.clone();
        async move {
            let names: Vec<Path> =
                repository.store().list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
            let mut objects = BTreeMap::new();
            for name in names.into_iter().filter(|name| name.as_ref() != "repository.json") {
                let bytes = repository.store().get(&name).await.unwrap().bytes().await.unwrap();
                objects.insert(name, bytes);
            }
            objects
        }
    };
    let (was, is) = (all(&source.repository).await, all(&back).await);
    assert!(was == is && was.len() > 8, "{:?} {:?}", was.keys(), is.keys());
    let mut reader = store.embedder.clone();
    reader.identity = Arc::clone(&source.identity);
    assert!(reader.restore(&paths[2], 0..u64::MAX).await.unwrap() == Data::random(50_000, "copied").to_vec());
}

pub(crate) async fn what_does_not_exist_is_not_found(store: &Store) {
    let path = target().backup(&"20261122T020000Z-abcdefghijklmnop".parse().unwrap());
    assert_eq!(store.embedder.open(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.embedder.verify_keyless(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.embedder.verify_deep(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.embedder.repository.read_small(&path.manifest(), 100).await.unwrap().is_none());
    let listed: Vec<Listed> = store.embedder.repository.list(None).try_collect().await.unwrap();
    assert!(listed.is_empty() && store.embedder.repository.targets().await.unwrap().is_empty());
}

fn volumes(path: &BackupPath, manifest: &Manifest) -> Vec<Path> {
    manifest.streams.iter().flat_map(|s| &s.volumes).map(|volume| path.named(&volume.path)).collect()
}

async fn until_stored(store: &Store, object: &Path) {
    for _ in 0..1000 {
        if store.embedder.repository.store().head(object).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{object} does not come");
}
