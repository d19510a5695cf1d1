//! The pipeline there and back, in memory.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, PutPayload};
use proptest::prelude::*;

use crate::compress::Compression;
use crate::encrypt::{Suite, random};
use crate::format::Condition;
use crate::keys::age::AgeIdentity;
use crate::keys::{Identity, Recipient};
use crate::pipeline::{Backup, BackupHandle, Buffer, Findings, Limits, Share};
use crate::repository::Repository;
use crate::repository::layout::{self, BackupPath};
use crate::restore::{MemorySink, OpenBackup};
use crate::source::{BytesSource, Lane, Named, Piece, Source};
use crate::{Error, ErrorKind, Result, Stage};

pub(crate) mod faulty;
mod several;

/// Gives the pieces it was made with, then ends as it was told.
#[derive(Debug)]
struct Pieces(std::vec::IntoIter<Bytes>, bool);

impl Source for Pieces {
    fn next(&mut self, mut buffer: Buffer) -> futures::future::BoxFuture<'_, Result<Option<Piece>>> {
        Box::pin(async move {
            match self.0.next() {
                Some(piece) if piece.len() <= buffer.capacity() && piece[0] % 2 == 0 => {
                    buffer.fill_from(&piece);
                    Ok(Some(Piece::Buffer(buffer)))
                }
                Some(piece) => Ok(Some(Piece::Bytes(piece))),
                None if self.1 => Ok(None),
                None => Err(Error::new(ErrorKind::Source, Stage::Source, "failed on purpose")),
            }
        })
    }
}

fn small_limits(part_bytes: usize) -> Limits {
    Limits {
        memory_bytes: Some(16 << 20),
        workers: NonZero::new(2).unwrap(),
        part_bytes,
        chunk_size: 4096,
        volume_chunks: 3,
    }
}

struct World {
    repository: Repository,
    identity: Arc<AgeIdentity>,
}

impl World {
    async fn new() -> Self {
        Self { repository: Repository::in_memory().await.unwrap(), identity: Arc::new(AgeIdentity::generate()) }
    }

    fn backup(&self) -> Backup {
        let recipient: Arc<dyn Recipient> = Arc::new(self.identity.recipients().remove(0));
        Backup::new(self.repository.clone(), "app".parse().unwrap()).recipient(recipient).limits(small_limits(5000))
    }

    async fn run(&self, handle: BackupHandle) -> Result<BackupPath> {
        let target: crate::repository::layout::TargetName = "app".parse()?;
        let path = target.backup(handle.id());
        handle.wait().await.map(|_| path)
    }

    async fn open(&self, path: &BackupPath) -> Result<OpenBackup> {
        let identities: [Arc<dyn Identity>; 1] = [Arc::clone(&self.identity) as _];
        OpenBackup::open(&self.repository, path, &identities).await
    }

    async fn read(&self, path: &BackupPath, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
        let sink = MemorySink::new(1 << 30);
        let restore = self.open(path).await?.restore("data")?.range(range).limits(small_limits(5000));
        restore.into(sink.clone()).wait().await?;
        Ok(sink.take().expect("a finished sink is complete"))
    }

    async fn objects(&self) -> Vec<object_store::path::Path> {
        self.repository.store().list(None).map_ok(|meta| meta.location).try_collect().await.unwrap()
    }
}

fn bytes(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 64);
    while out.len() < len {
        out.extend_from_slice(&random::bytes::<32>());
        out.extend_from_slice(&[b'x'; 32]);
    }
    out.truncate(len);
    out
}

#[tokio::test]
async fn streams_of_every_critical_length_come_back() {
    let world = World::new().await;
    // Chunks of 4096, volumes of 3: nothing, one byte, around a chunk, around a volume, several volumes.
    for len in [0, 1, 4095, 4096, 4097, 12_287, 12_288, 12_289, 24_576, 50_000] {
        for compression in [Compression::Zstd(3), Compression::None] {
            let data = bytes(len);
            let backup =
                world.backup().compression(compression).stream("data".parse().unwrap(), BytesSource::new(data.clone()));
            let path = world.run(backup.start().unwrap()).await.unwrap();
            let all = world.read(&path, 0..u64::MAX).await.unwrap();
            assert!(all == data, "{len} {compression:?}");
            let manifest = world.open(&path).await.unwrap().manifest().clone();
            assert_eq!(manifest.stream("data").unwrap().volumes.len(), len.div_ceil(12_288).max(1));
        }
    }
}

#[tokio::test]
async fn a_store_that_keeps_what_it_is_sent_does_not_starve_the_backup() {
    let world = World::new().await;
    let data = bytes(4 << 20);
    for (compression, memory_bytes) in [(Compression::None, 64 << 10), (Compression::Zstd(3), 4 << 20)] {
        let limits = Limits { memory_bytes: Some(memory_bytes), volume_chunks: 10_000, ..small_limits(5000) };
        let backup = world.backup().limits(limits).compression(compression);
        let handle = backup.stream("data".parse().unwrap(), BytesSource::new(data.clone())).start().unwrap();
        let path = tokio::time::timeout(Duration::from_secs(60), world.run(handle)).await.expect("it ends").unwrap();
        assert!(world.read(&path, 0..u64::MAX).await.unwrap() == data);
    }
}

#[tokio::test]
async fn any_byte_range_can_be_read_alone() {
    let world = World::new().await;
    let data = bytes(50_000);
    let backup = world.backup().stream("data".parse().unwrap(), BytesSource::new(data.clone()));
    let path = world.run(backup.start().unwrap()).await.unwrap();
    for range in [0..0, 0..1, 4095..4097, 12_287..12_289, 30_000..50_000, 49_999..50_000, 50_000..60_000] {
        let wanted = &data[range.start..range.end.min(data.len())];
        let read = world.read(&path, range.start as u64..range.end as u64).await.unwrap();
        assert!(read == wanted, "{range:?}");
    }
}

#[tokio::test]
async fn a_source_that_fails_leaves_no_object() {
    let world = World::new().await;
    let before = world.objects().await;
    for pieces in [0, 1, 100] {
        let pieces = vec![Bytes::from(bytes(4000)); pieces].into_iter();
        let backup = world.backup().stream("data".parse().unwrap(), Pieces(pieces, false));
        let error = world.run(backup.start().unwrap()).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Source, "failed on purpose"));
        assert_eq!(world.objects().await, before);
    }
}

#[tokio::test]
async fn one_failing_stream_stops_the_others() {
    #[derive(Debug)]
    struct Silent;
    impl Source for Silent {
        fn next(&mut self, _: Buffer) -> futures::future::BoxFuture<'_, Result<Option<Piece>>> {
            Box::pin(std::future::pending())
        }
    }
    let world = World::new().await;
    let backup = world
        .backup()
        .stream("silent".parse().unwrap(), Silent)
        .stream("data".parse().unwrap(), Pieces(vec![].into_iter(), false));
    assert_eq!(world.run(backup.start().unwrap()).await.unwrap_err().to_string(), "failed on purpose");

    let handle = world.backup().stream("silent".parse().unwrap(), Silent).start().unwrap();
    handle.cancel();
    assert_eq!(handle.wait().await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(world.objects().await.len(), 1);
}

/// Streams with the given names and contents, one after the other; a name that is empty fails.
#[derive(Debug)]
struct Queue(std::collections::VecDeque<(&'static str, Vec<u8>)>);

impl Queue {
    fn of(streams: &[(&'static str, Vec<u8>)]) -> Self {
        Self(streams.iter().cloned().collect())
    }
}

impl Lane for Queue {
    fn next(&mut self) -> futures::future::BoxFuture<'_, Result<Option<Named>>> {
        let next = self
            .0
            .pop_front()
            .map(|(name, data)| Ok((name.parse()?, Box::new(BytesSource::new(data)) as Box<dyn Source>)));
        Box::pin(async { next.transpose() })
    }
}

#[tokio::test]
async fn a_lane_has_any_number_of_streams_and_they_stand_in_the_order_of_the_lanes() {
    let world = World::new().await;
    let many: Vec<(&'static str, Vec<u8>)> =
        ["base", "t1", "t2", "t3"].iter().zip([20_000, 0, 1, 50_000]).map(|(name, len)| (*name, bytes(len))).collect();
    for compression in [Compression::Zstd(3), Compression::None] {
        // Memory for one stream of each lane: four at once would be refused.
        let limits = Limits { memory_bytes: Some(4 << 20), ..small_limits(5000) };
        let backup = world.backup().limits(limits).compression(compression).lane(Share::Full, Queue::of(&many));
        let backup =
            backup.thin_stream("wal".parse().unwrap(), BytesSource::new("log")).lane(Share::Thin, Queue::of(&[]));
        let path = world.run(backup.start().unwrap()).await.unwrap();
        let opened = world.open(&path).await.unwrap();
        let names: Vec<&str> = opened.manifest().streams.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["base", "t1", "t2", "t3", "wal", "details"]);
        for (name, data) in &many {
            let sink = MemorySink::new(1 << 20);
            opened.restore(name).unwrap().into(sink.clone()).wait().await.unwrap();
            assert!(sink.take().unwrap() == *data, "{name}");
        }
    }
}

#[tokio::test]
async fn a_name_that_stands_twice_fails_the_backup_and_leaves_nothing() {
    let world = World::new().await;
    for names in [["t", "t"], ["t", "data"], ["t", "details"], ["t", ""]] {
        let streams = names.map(|name| (name, bytes(10_000)));
        let backup = world.backup().lane(Share::Full, Queue::of(&streams));
        let backup = backup.stream("data".parse().unwrap(), BytesSource::new(bytes(50_000)));
        let error = world.run(backup.start().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{names:?}: {error}");
        assert_eq!(world.objects().await, [layout::repository()], "{names:?}");
    }
}

#[tokio::test]
async fn what_sources_find_out_is_in_the_manifest_and_the_details() {
    let world = World::new().await;
    let findings = Findings::default();
    let backup = world.backup().findings(findings.clone()).details(serde_json::json!({ "known": 1, "guess": 2 }));
    let handle = backup.stream("data".parse().unwrap(), BytesSource::new("x")).start().unwrap();
    // As a source would that has just read its last byte: nothing has been polled yet.
    findings.damaged();
    findings.warnings().push("page 7 is torn");
    findings.set_detail("guess", 3.into());
    let path = world.run(handle).await.unwrap();
    let opened = world.open(&path).await.unwrap();
    assert_eq!((opened.manifest().condition, opened.manifest().warnings), (Condition::Damaged, 1));
    let expected =
        serde_json::json!({ "format": 1, "source": { "known": 1, "guess": 3 }, "warnings": ["page 7 is torn"] });
    assert_eq!(opened.details().await.unwrap(), expected);
    assert_eq!(world.repository.resolve("app").await.unwrap_err().kind(), ErrorKind::NotFound, "it is not good");
}

#[tokio::test]
async fn every_flipped_byte_of_every_object_is_found() {
    let world = World::new().await;
    let data = bytes(14_000);
    let backup = world.backup().stream("data".parse().unwrap(), BytesSource::new(data));
    let path = world.run(backup.start().unwrap()).await.unwrap();
    let store = world.repository.store();
    for object in world.objects().await.into_iter().filter(|o| o.as_ref() != "repository.json") {
        let good = store.get(&object).await.unwrap().bytes().await.unwrap();
        for at in (0..good.len()).step_by(7) {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << (at % 8);
            store.put(&object, PutPayload::from(bad)).await.unwrap();
            let restored = async {
                world.open(&path).await?.details().await?;
                world.read(&path, 0..u64::MAX).await
            };
            let error = restored.await.expect_err(&format!("{object} at {at}"));
            assert_eq!(error.kind(), ErrorKind::Integrity, "{object} at {at}: {error:?}");
            assert!(error.to_string().contains(object.as_ref()), "{object} at {at}: {error:?}");
            assert!(error.to_string().contains("offset"), "{object} at {at}: {error:?}");
        }
        store.put(&object, PutPayload::from(good)).await.unwrap();
    }
}

#[test]
fn options_that_cannot_be_right_are_refused_before_anything_is_touched() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let world = World::new().await;
        let stream = || BytesSource::new("x");
        let name = |name: &str| name.parse().unwrap();
        let refused = [
            world.backup(),
            world.backup().stream(name("details"), stream()),
            world.backup().stream(name("a"), stream()).stream(name("a"), stream()),
            world.backup().stream(name("a"), stream()).compression(Compression::Zstd(20)),
            Backup::new(world.repository.clone(), "app".parse().unwrap()).stream(name("a"), stream()),
        ];
        for backup in refused {
            backup.start().unwrap_err();
        }
        assert_eq!(world.objects().await.len(), 1);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn bytes_come_back_however_they_are_cut(
        lens in proptest::collection::vec(1usize..9000, 0..12),
        part_bytes in 100usize..30_000,
        chacha in any::<bool>(),
        level in prop::option::of(-7i32..5),
    ) {
        let pieces: Vec<Bytes> = lens.iter().map(|len| bytes(*len).into()).collect();
        let all = pieces.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let restored = runtime.block_on(async {
            let world = World::new().await;
            let backup = world
                .backup()
                .limits(small_limits(part_bytes))
                .suite(if chacha { Suite::ChaCha20Poly1305 } else { Suite::Aes256Gcm })
                .compression(level.map_or(Compression::None, Compression::Zstd))
                .stream("data".parse().unwrap(), Pieces(pieces.into_iter(), true));
            let path = world.run(backup.start().unwrap()).await.unwrap();
            world.read(&path, 0..u64::MAX).await.unwrap()
        });
        prop_assert!(restored == all);
    }
}

#[tokio::test]
async fn a_run_whose_name_is_taken_touches_nothing_of_the_other() {
    let world = World::new().await;
    let handle = world.backup().stream("data".parse().unwrap(), BytesSource::new("ours")).start().unwrap();
    let target: crate::repository::layout::TargetName = "app".parse().unwrap();
    let path = target.backup(handle.id());
    // Before the run's task is polled for the first time.
    for object in [path.running(), path.manifest()] {
        let put = world.repository.store().put(&object, "another's".into());
        futures::FutureExt::now_or_never(put).expect("memory answers at once").unwrap();
    }
    let error = handle.wait().await.unwrap_err();
    assert!(error.to_string().contains("running.json: it exists already"), "{error}");
    for object in [path.running(), path.manifest()] {
        let kept = world.repository.read_small(&object, 100).await.unwrap();
        assert_eq!(kept.as_deref(), Some(&b"another's"[..]), "{object}");
    }
}
