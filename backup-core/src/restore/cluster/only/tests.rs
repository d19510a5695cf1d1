//! Files out of backups that are made by hand, in a store that is watched.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::path::Path as FilePath;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use tokio::sync::Notify;

use super::*;
use crate::clock::SystemClock;
use crate::compress::Compression;
use crate::error::ErrorKind;
use crate::keys::age::AgeIdentity;
use crate::keys::{Identity, Recipient};
use crate::pipeline::Backup;
use crate::repository::layout::TargetName;
use crate::repository::{Location, Repository};
use crate::source::BytesSource;

const MIB: usize = 1 << 20;
/// So much of a stream is in one volume.
const VOLUME_BYTES: usize = 8 * MIB;

/// A store that remembers what was read of which object, and reads some only in eternity.
#[derive(Debug, Default)]
struct Watched {
    memory: InMemory,
    reads: Mutex<Vec<(String, u64)>>,
    /// What is in the names of objects that are read up to their second MiB and no further.
    stuck: Mutex<Option<&'static str>>,
    is_stuck: Notify,
}

impl Watched {
    async fn get(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let (start, end) = match &options.range {
            Some(GetRange::Bounded(range)) => (range.start, range.end),
            _ => (0, u64::MAX),
        };
        let name = path.filename().unwrap_or_default().to_owned();
        // The end of a volume is read before its chunks, and can be.
        let size = self.memory.head(path).await?.size;
        let stuck = self.stuck.lock().unwrap().is_some_and(|stuck| name.contains(stuck));
        if stuck && start >= MIB as u64 && end < size {
            self.is_stuck.notify_one();
            std::future::pending::<()>().await;
        }
        self.reads.lock().unwrap().push((name, start));
        self.memory.get_opts(path, options).await
    }

    /// How often each object was opened since the last time: all begins with what stands at its beginning.
    fn opened(&self) -> HashMap<String, usize> {
        let mut opened = HashMap::new();
        for (name, start) in std::mem::take(&mut *self.reads.lock().unwrap()) {
            *opened.entry(name).or_default() += usize::from(start == 0);
        }
        opened
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("watched memory")
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.memory.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.memory.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.get(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.memory.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.memory.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

/// A byte of a stream, such that none is like those around it.
fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]
}

fn line(stream: &str, path: &str, offset: usize, size: usize) -> String {
    let entry = serde_json::json!({
        "path": path, "stream": stream, "type": "file", "offset": offset, "size": size, "mode": 384, "mtime_ns": 0,
    });
    format!("{entry}\n")
}

struct World {
    store: Arc<Watched>,
    backup: OpenBackup,
    temp: tempfile::TempDir,
}

impl World {
    /// A backup with these streams, by their lengths, and this index.
    async fn new(streams: &[(&str, usize)], index: &str) -> Self {
        let store = Arc::new(Watched::default());
        let location = Location::store(Arc::clone(&store) as _, "watched", MIB);
        let (repository, _) = Repository::init(&location, &SystemClock).await.unwrap();
        let identity = Arc::new(AgeIdentity::generate());
        let recipient: Arc<dyn Recipient> = Arc::new(identity.recipients().remove(0));
        let limits = Limits {
            memory_bytes: Some(16 * MIB),
            workers: NonZero::new(2).unwrap(),
            part_bytes: MIB,
            chunk_size: 64 << 10,
            volume_chunks: 128,
        };
        let target: TargetName = "app".parse().unwrap();
        let mut backup = Backup::new(repository.clone(), target.clone())
            .kind(Kind::BaseBackup)
            .compression(Compression::None)
            .recipient(recipient)
            .limits(limits)
            .stream("files".parse().unwrap(), BytesSource::new(index.to_owned()));
        for (name, bytes) in streams {
            let data: Vec<u8> = (0..*bytes).map(byte).collect();
            backup = backup.stream(name.parse().unwrap(), BytesSource::new(data));
        }
        let handle = backup.start().unwrap();
        let path = target.backup(handle.id());
        handle.wait().await.unwrap();
        let identities: [Arc<dyn Identity>; 1] = [identity];
        let backup = OpenBackup::open(&repository, &path, &identities).await.unwrap();
        store.reads.lock().unwrap().clear();
        Self { store, backup, temp: tempfile::tempdir().unwrap() }
    }

    fn to(&self) -> PathBuf {
        self.temp.path().join("new/dir")
    }

    fn start(&self, paths: &[&str]) -> RestoreHandle<OnlyRestored> {
        self.backup.restore_only(paths.iter().map(PathBuf::from), self.to()).start().unwrap()
    }

    fn leaves_nothing(&self) -> bool {
        std::fs::read_dir(self.temp.path()).unwrap().next().is_none()
    }

    /// Flips a bit of a volume.
    async fn damage(&self, volume: &str, at: usize) {
        let path = self.backup.path().named(volume);
        let mut bytes = self.store.memory.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        bytes[at] ^= 1;
        self.store.memory.put(&path, bytes.into()).await.unwrap();
    }
}

fn is_part_of_stream(file: &FilePath, offset: usize, size: usize) -> bool {
    std::fs::read(file).unwrap().into_iter().eq((offset..offset + size).map(byte))
}

#[tokio::test]
async fn each_volume_is_opened_once_however_many_places_of_it_are_read() {
    // Two apart in the first volume, one across its end, none in the third, two apart in the fourth.
    let files = [
        ("base/1", 600, 1000),
        ("base/2", 6 * MIB, 70_000),
        ("base/3", VOLUME_BYTES + 4 * MIB - 10, 20),
        ("base/4", 3 * VOLUME_BYTES + 512, 0),
        ("base/5", 3 * VOLUME_BYTES + 6 * MIB, 8192),
    ];
    let index: String = files.iter().map(|(path, offset, size)| line("base", path, *offset, *size)).collect();
    let world = World::new(&[("base", 4 * VOLUME_BYTES)], &index).await;
    let restored = world.start(&["base"]).wait().await.unwrap();
    assert_eq!(restored, OnlyRestored { files: 5, bytes: 79_212 });
    for (path, offset, size) in files {
        assert!(is_part_of_stream(&world.to().join(path), offset, size), "{path}");
    }
    let opened = world.store.opened();
    let of = |volume: usize| opened.get(&format!("base.{volume:05}.vol")).copied();
    assert_eq!([of(0), of(1), of(2), of(3)], [Some(1), Some(1), None, Some(1)], "{opened:?}");
}

#[tokio::test]
async fn a_file_across_volumes_comes_out_whole() {
    let (offset, size) = (VOLUME_BYTES - 5000, VOLUME_BYTES + 10_000);
    let index = line("base", "base/1", offset, size);
    let world = World::new(&[("base", 3 * VOLUME_BYTES)], &index).await;
    world.start(&["base/1"]).wait().await.unwrap();
    assert!(is_part_of_stream(&world.to().join("base/1"), offset, size));
}

#[tokio::test]
async fn a_restore_that_fails_leaves_nothing_and_ends_the_others() {
    let index = line("base", "base/1", 0, 2 * MIB) + &line("base-01", "base/2", 0, 7 * MIB);
    let world = World::new(&[("base", 2 * MIB), ("base-01", 7 * MIB)], &index).await;
    world.damage("base.00000.vol", 3 * MIB / 2).await;
    *world.store.stuck.lock().unwrap() = Some("base-01.");
    let failed = tokio::time::timeout(Duration::from_secs(60), world.start(&["base"]).wait()).await.expect("it ends");
    let error = failed.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
    assert!(error.to_string().contains("base.00000.vol is damaged at offset") && error.cleanup().is_none(), "{error}");
    assert!(world.leaves_nothing());
}

#[tokio::test]
async fn a_restore_that_is_cancelled_leaves_nothing() {
    let index = line("base", "base/1", 0, 10_000) + &line("base", "base/2", MIB / 2, 6 * MIB);
    let world = World::new(&[("base", 7 * MIB)], &index).await;
    *world.store.stuck.lock().unwrap() = Some("base.");
    let handle = world.start(&["base"]);
    world.store.is_stuck.notified().await;
    // The first is written by a thread, as soon as its bytes have come.
    let first = world.to().join("base/1");
    let begun = std::time::Instant::now();
    while !std::fs::metadata(&first).is_ok_and(|file| file.len() == 10_000) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing comes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    handle.cancel();
    let error = tokio::time::timeout(Duration::from_secs(60), handle.wait()).await.expect("it ends").unwrap_err();
    assert_eq!((error.kind(), error.cleanup().is_none()), (ErrorKind::Cancelled, true), "{error}");
    assert!(world.leaves_nothing());
}

#[tokio::test]
async fn what_an_index_cannot_say_is_refused_before_anything_is_made() {
    for (index, why) in [
        (line("base", "base/../../x", 0, 10), "outside"),
        (line("base", "base/1", MIB - 5, 10), "beyond"),
        (line("base", "base/1", 0, 10) + &line("base", "base/2", 9, 10), "overlap"),
    ] {
        let world = World::new(&[("base", MIB)], &index).await;
        let error = world.start(&["base"]).wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{why}: {error}");
        let reason = std::error::Error::source(&error).expect("a reason").to_string();
        assert!(reason.contains(why) && world.leaves_nothing(), "{why}: {reason}");
    }
}

#[tokio::test]
async fn a_name_that_comes_twice_fails_and_leaves_nothing() {
    let index = line("base", "base/1", 0, 10) + &line("base", "base/1", 512, 10);
    let world = World::new(&[("base", MIB)], &index).await;
    let error = world.start(&["base"]).wait().await.unwrap_err();
    assert!(error.to_string().contains("cannot write base/1") && world.leaves_nothing(), "{error}");
}
