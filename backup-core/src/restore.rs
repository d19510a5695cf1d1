//! The same way back: fetch → open → decompress → sink.
//!
//! [`OpenBackup::open`] reads a manifest and unwraps its data key; [`OpenBackup::restore`] then brings back any of its streams, whole or in
//! part. Objects are read in ranges, several at once and ahead of need; chunks are opened and decompressed on the compute pool; the sink
//! gets them in order, and is finished only when the end of the stream was verified.

pub mod cluster;
pub mod directory;
pub mod file;
pub(crate) mod inspect;
pub mod sink;
mod stream;
mod tree;
pub(crate) mod volume;
mod worker;
pub mod writer;

use std::ops::Range;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use cluster::{ClusterRestore, ClusterRestored, OnlyRestore, OnlyRestored, Owner, TablespaceMapping, archives};
pub use directory::DirectorySink;
pub use file::FileSink;
pub use sink::{MemorySink, NullSink, Sink};
pub use writer::WriterSink;

use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, Manifest, Purpose, VolumeEntry};
use crate::keys::{EncryptionContext, Identity, Wrap, unwrap_any};
use crate::pipeline::{ComputePool, Counters, DETAILS, Limits, Progress};
use crate::repository::layout::BackupPath;
use crate::repository::rewraps::{Wanted, open_rewrapped};
use crate::repository::{Repository, no_backup, unreadable};
use stream::{Context, StreamRestore};
use volume::Stored;

/// The longest `details` that are read.
const DETAILS_MAX: usize = 16 << 20;

/// How many headers are asked for the data key: more than can be damaged by accident, few enough for a slow passphrase.
const HEADERS_TRIED: usize = 8;

/// A backup whose manifest is authentic and whose data key is at hand.
#[derive(Debug, Clone)]
pub struct OpenBackup(Arc<Context>);

impl OpenBackup {
    /// Reads the manifest, finds an identity that opens the backup, and checks the manifest with it.
    ///
    /// Errors: `NotFound` when there is no such backup, `Key` when no identity opens it, `Integrity` when manifest or headers are damaged, or
    /// nobody [trusted](Repository::trusting) signed the manifest,
    /// `Config` when the manifest needs a newer release.
    /// Cancel safe.
    pub async fn open(repository: &Repository, path: &BackupPath, identities: &[Arc<dyn Identity>]) -> Result<Self> {
        let Some(bytes) = repository.read_manifest(path).await? else { return Err(no_backup(path)) };
        let opened = async {
            let claimed = Manifest::decode(&bytes)?;
            let data_key = match unlock(repository, path, &claimed, identities).await {
                Ok(key) => key,
                Err(error) => return Ok(Err(error)),
            };
            let manifest = Manifest::open(&bytes, &data_key)?;
            if manifest.id != path.id.as_str() || manifest.target != path.target.as_str() {
                return Err(FormatError::Name(format!("{} of '{}'", manifest.id, manifest.target)));
            }
            Ok(Ok((manifest, data_key)))
        };
        let (manifest, data_key) = match opened.await {
            Ok(opened) => opened?,
            Err(e) => return Err(unreadable(repository, path, e).await),
        };
        Ok(Self(Arc::new(Context { repository: repository.clone(), path: path.clone(), manifest, data_key })))
    }

    /// The manifest, authentic.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The key that encrypts it.
    pub(crate) fn data_key(&self) -> &DataKey {
        &self.0.data_key
    }

    /// The wraps of the first header that is authentic, to its last bit; none, when none of those that are asked is. Cancel safe.
    pub(crate) async fn authentic_wraps(&self) -> Result<Vec<Wrap>> {
        let Context { repository, path, manifest, data_key } = &*self.0;
        for volume in with_wraps(manifest) {
            let stored = Stored::listed(repository.clone(), path.named(&volume.path), volume.clone());
            match stored.preamble().await {
                Ok((preamble, commitment)) if preamble.open(data_key, &commitment).is_ok() => {
                    return Ok(preamble.header.wraps);
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Integrity | ErrorKind::NotFound) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Vec::new())
    }

    /// Where the backup is.
    pub fn path(&self) -> &BackupPath {
        &self.0.path
    }

    /// What the backup says of itself: the document of the stream `details`; `Null` when it has none, as another writer's may. Cancel safe.
    pub async fn details(&self) -> Result<serde_json::Value> {
        if self.0.manifest.stream(DETAILS).is_none() {
            return Ok(serde_json::Value::Null);
        }
        let sink = MemorySink::new(DETAILS_MAX);
        self.restore(DETAILS)?.into(sink.clone()).wait().await?;
        let bytes = sink.take().unwrap_or_default();
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::integrity("the backup's details cannot be read").at(Stage::Catalog).with_source(e))
    }

    /// The restore of the stream `name`.
    pub fn restore(&self, name: &str) -> Result<Restore> {
        let entry = self.0.manifest.stream(name).ok_or_else(|| {
            let names: Vec<&str> = self.0.manifest.streams.iter().map(|s| s.name.as_str()).collect();
            Error::new(ErrorKind::NotFound, Stage::Setup, format!("{} has no stream '{name}'", self.0.path))
                .with_hint(format!("it has: {}", names.join(", ")))
        })?;
        let limits = Limits::for_parts_of(self.0.repository.part_bytes());
        let (cancel, counters) = (CancellationToken::new(), Arc::default());
        let run = StreamRestore {
            context: Arc::clone(&self.0),
            ranges: std::iter::once(0..entry.bytes).collect(),
            entry: entry.clone(),
            limits,
            pool: None,
            counters,
            cancel,
            share: None,
        };
        Ok(Restore(run))
    }
}

/// The data key, from the first header that gives it, or else from what was wrapped again since.
async fn unlock(
    repository: &Repository,
    path: &BackupPath,
    manifest: &Manifest,
    identities: &[Arc<dyn Identity>],
) -> Result<DataKey> {
    let (failure, tried) = match unlock_by_headers(repository, path, manifest, identities).await {
        Ok(key) => return Ok(key),
        // Headers could not be read: the store would not say more about other objects.
        Err((failure, _)) if failure.stage() == Stage::Fetch && failure.kind() != ErrorKind::Integrity => {
            return Err(failure);
        }
        Err(failed) => failed,
    };
    let wanted = Wanted { target: path.target.as_str(), purpose: Purpose::Backup, data_key: &manifest.data_key };
    open_rewrapped(repository, wanted, &tried, identities, failure).await
}

/// The data key, from the first header that gives it; else the reason, and the wraps that do not open. Every volume has all wraps, so a damaged
/// one neither stops a restore of the others nor passes for a missing key: that is believed when two headers agree about whom they were wrapped
/// for.
async fn unlock_by_headers(
    repository: &Repository,
    path: &BackupPath,
    manifest: &Manifest,
    identities: &[Arc<dyn Identity>],
) -> Result<DataKey, (Error, Vec<Wrap>)> {
    let context = EncryptionContext::of_backup(&path.target);
    let mut first_failure = None;
    let mut refused: Option<Vec<Wrap>> = None;
    for volume in with_wraps(manifest) {
        let stored = Stored::listed(repository.clone(), path.named(&volume.path), volume.clone());
        let failure = match wraps_of(&stored, path, manifest).await {
            Ok(wraps) => match unwrap_any(&manifest.data_key, &wraps, &context, identities).await {
                Ok(key) => return Ok(key),
                Err(error) if error.kind() == ErrorKind::Integrity => {
                    Error::integrity(format!("{} is damaged at offset 0", stored.address())).with_source(error)
                }
                // A key service that is away is away for the next header, too.
                Err(error) if error.kind() != ErrorKind::Key || refused.as_ref() == Some(&wraps) => {
                    return Err((error, wraps));
                }
                Err(error) => {
                    refused = Some(wraps);
                    error
                }
            },
            Err(error) => error,
        };
        first_failure.get_or_insert(failure);
    }
    let no_volume = || Error::integrity(format!("{} has no volume", repository.address(&path.manifest())));
    Err((first_failure.unwrap_or_else(no_volume), refused.unwrap_or_default()))
}

/// The volumes whose headers are asked for wraps, in their order.
fn with_wraps(manifest: &Manifest) -> impl Iterator<Item = &VolumeEntry> {
    let firsts = manifest.streams.iter().filter_map(|stream| stream.volumes.first());
    let others = manifest.streams.iter().flat_map(|stream| stream.volumes.iter().skip(1));
    firsts.chain(others).take(HEADERS_TRIED)
}

async fn wraps_of(stored: &Stored, path: &BackupPath, manifest: &Manifest) -> Result<Vec<Wrap>> {
    let (preamble, _) = stored.preamble().await?;
    if preamble.header.data_key == manifest.data_key {
        return Ok(preamble.header.wraps);
    }
    let error = FormatError::Name(format!("{} has another data key", stored.address()));
    let manifest = stored.repository.address(&path.manifest());
    Err(Error::integrity(format!("{manifest} is damaged at offset 0")).with_source(error))
}

/// The restore of one stream: say how, then give it a sink with [`into`](Self::into).
#[must_use]
pub struct Restore(StreamRestore);

impl Restore {
    /// Only these bytes of the stream; only the chunks that hold them are read. Clipped to the stream's length.
    pub fn range(self, range: Range<u64>) -> Self {
        self.ranges(std::iter::once(range))
    }

    /// Only these bytes, one range behind the other. They are in the stream's order, and do not overlap.
    fn ranges(mut self, ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let bytes = self.0.entry.bytes;
        let clipped = ranges.into_iter().map(|range| {
            let end = range.end.min(bytes);
            range.start.min(end)..end
        });
        self.0.ranges = clipped.filter(|range| !range.is_empty()).collect();
        debug_assert!(self.0.ranges.is_sorted_by(|one, next| one.end <= next.start), "a byte is delivered once");
        self
    }

    /// Memory and threads; of the sizes only those of the backup itself count.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.0.limits = limits;
        self
    }

    /// All that is damaged of the stream, by object: every chunk, not only the first. Not cancel safe.
    pub(crate) async fn damage(self) -> Result<Vec<(object_store::path::Path, String)>> {
        self.0.damage().await
    }

    /// Threads to compute on, shared with others; a pool of its own unless set.
    pub fn compute_pool(mut self, pool: ComputePool) -> Self {
        self.0.pool = Some(pool);
        self
    }

    /// Cancels the restore when it is cancelled.
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.0.cancel = token.child_token();
        self
    }

    /// Shares memory, threads and counters with other restores of the same backup.
    fn sharing(mut self, share: &Arc<stream::Share>, counters: &Arc<Counters>) -> Self {
        self.0.share = Some(Arc::clone(share));
        self.0.counters = Arc::clone(counters);
        self
    }

    /// Starts restoring into `sink` on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn into(self, sink: impl Sink + 'static) -> RestoreHandle {
        self.into_boxed(Box::new(sink))
    }

    /// Like [`into`](Self::into), for a sink that is boxed already.
    pub fn into_boxed(self, sink: Box<dyn Sink>) -> RestoreHandle {
        let (counters, cancel) = (Arc::clone(&self.0.counters), self.0.cancel.clone());
        RestoreHandle { counters, cancel, task: tokio::spawn(self.0.run(sink)) }
    }
}

impl std::fmt::Debug for Restore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restore")
            .field("stream", &self.0.entry.name)
            .field("ranges", &self.0.ranges)
            .finish_non_exhaustive()
    }
}

/// A restore that is running: of one stream, which tells how many bytes the sink was given, or of a cluster. Dropping the handle cancels it; its
/// task then aborts the sink, or removes what was restored, as far as the runtime lives on for it to do so.
#[derive(Debug)]
pub struct RestoreHandle<T = u64> {
    counters: Arc<Counters>,
    cancel: CancellationToken,
    task: JoinHandle<Result<T>>,
}

impl<T> RestoreHandle<T> {
    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.counters.snapshot()
    }

    /// The counters, to be read while [`wait`](Self::wait) has the handle.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Asks the restore to stop; [`wait`](Self::wait) then tells when the sink was aborted, or what was restored removed.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits for the end. The sink was finished, or the cluster is whole, if and only if this is `Ok`.
    ///
    /// Not cancel safe: dropping the future drops the handle, which cancels the restore.
    pub async fn wait(mut self) -> Result<T> {
        (&mut self.task)
            .await
            .unwrap_or_else(|e| Err(Error::internal(Stage::Sink, "the restore's task panicked").with_source(e)))
    }
}

impl<T> Drop for RestoreHandle<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
