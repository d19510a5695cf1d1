//! One file, sealed into one volume.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use tokio::sync::Semaphore;

use super::epoch::Epoch;
use super::local_file::{Digested, LocalFile};
use super::{CHUNK_SIZE, Tools};
use crate::chunk::RECORD_HEAD;
use crate::compress::{Compression, Content};
use crate::encrypt::signature::SigningKey;
use crate::encrypt::{SALT_LEN, Suite, VolumeKey, random, seal_record};
use crate::error::{Error, Result, Stage};
use crate::format::{Flag, Header, ObjectName, Preamble};
use crate::pipeline::{Counters, VOLUME_CHUNKS_DEFAULT};
use crate::repository::Repository;
use crate::upload::{FanOut, ObjectUpload, PartBudget, Parts, Race, Racer, Record, SharedParts, VolumeWriter};

/// How long giving up an unfinished upload may take. PostgreSQL waits for us, at its shutdown too.
const ABORT_DEADLINE: Duration = Duration::from_secs(2);
/// What a segment of 16 MiB takes at most, so that it always goes in one create-only request.
const REMOTE_PART_BYTES: usize = 17 << 20;

/// How files are sealed.
#[derive(Debug, Clone)]
pub(super) struct Sealing {
    pub(super) tools: Tools,
    pub(super) compression: Compression,
    pub(super) suite: Suite,
    pub(super) created: jiff::Timestamp,
    pub(super) signing_key: Option<SigningKey>,
}

/// A file that is to become an object.
pub(super) struct Unsealed<'a> {
    pub(super) file: &'a LocalFile,
    pub(super) digested: &'a Digested,
    pub(super) name: ObjectName,
    pub(super) epoch: &'a Epoch,
}

/// Room for the parts of a file on its way.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) shared: SharedParts,
    part_bytes: usize,
}

impl Room {
    /// What suits all of these. A disk takes parts as fast as they are filled; over a network a large segment gains from a second part.
    pub(super) fn for_all<'a>(repositories: impl Iterator<Item = &'a Repository>) -> Self {
        let (mut part_bytes, mut parts_more) = (0, 0);
        for repository in repositories {
            let own = repository.part_bytes();
            match repository.publishes_once() {
                true => part_bytes = part_bytes.max(own),
                false => (part_bytes, parts_more) = (part_bytes.max(REMOTE_PART_BYTES.max(own)), 1),
            }
        }
        Self { shared: SharedParts::new(parts_more), part_bytes }
    }
}

/// An object that was written.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// Where: the name that was asked for, or that of a large object.
    pub(super) path: Path,
    pub(super) bytes: u64,
}

impl Sealing {
    /// Writes the object `path` into all repositories of the race that `lack` it; as it is said of [`ObjectUpload::contended`], a large one may go to
    /// `large` instead. Returns where it is; of the others, the race knows why not. On error nothing of it is left, as far as the stores can be
    /// reached.
    ///
    /// Not cancel safe; ends early with `Cancelled` when `stop` is done.
    pub(super) async fn write(
        &self,
        race: &Arc<Race>,
        lack: impl Fn(&Racer) -> bool,
        room: &Room,
        (path, large): (Path, Path),
        unsealed: &Unsealed<'_>,
        stop: impl Future<Output = ()>,
    ) -> Result<Vec<(Arc<Racer>, Written)>> {
        let preamble = Preamble::new(self.header(unsealed)).map_err(|e| {
            Error::config("the volume header cannot be written").with_source(e).with_hint("too many recipients?")
        })?;
        let key = Arc::new(preamble.key(&unsealed.epoch.data_key));
        let parts = Parts::of_copies(room.part_bytes, PartBudget::new(&room.shared));
        let upload = FanOut::begin(race, ABORT_DEADLINE, |racer| {
            let (repository, counters) = (racer.repository.clone(), Arc::new(Counters::default()));
            lack(racer).then(|| ObjectUpload::contended(repository, path.clone(), large.clone(), counters))
        });
        let name = unsealed.file.name.to_string();
        let volume = VolumeWriter::new(name, self.compression.codec(), Arc::clone(&key), upload, parts);
        let mut volume = volume.signed_with(self.signing_key.as_ref());
        let written = tokio::select! {
            biased;
            () = stop => Err(Error::cancelled(Stage::Upload)),
            written = self.fill(&mut volume, &preamble, key, unsealed) => written,
            () = race.watch() => Err(Error::internal(Stage::Upload, "the watch over an upload ended")),
        };
        match written {
            Ok(bytes) => {
                let written =
                    |(racer, path): &(Arc<Racer>, Path)| (Arc::clone(racer), Written { path: path.clone(), bytes });
                Ok(volume.stored().iter().map(written).collect())
            }
            Err(error) => Err(match volume.abort().await {
                Ok(()) => error,
                Err(cleanup) => error.with_cleanup(cleanup),
            }),
        }
    }

    async fn fill(
        &self,
        volume: &mut VolumeWriter,
        preamble: &Preamble,
        key: Arc<VolumeKey>,
        unsealed: &Unsealed<'_>,
    ) -> Result<u64> {
        volume.begin(preamble).await?;
        let window = self.tools.window;
        // One more: the record that is being written holds its permit, too.
        let slots = Arc::new(Semaphore::new(window + 1));
        let mut records = stream::iter(0..unsealed.file.cut.chunks())
            .map(|index| self.seal_chunk(index, &slots, &key, unsealed))
            .buffered(window);
        while let Some(record) = records.try_next().await? {
            volume.append(record).await?;
        }
        Ok(volume.finish(Flag::IndexEnd).await?.bytes)
    }

    async fn seal_chunk(
        &self,
        index: u64,
        slots: &Arc<Semaphore>,
        key: &Arc<VolumeKey>,
        unsealed: &Unsealed<'_>,
    ) -> Result<Record> {
        let closed = |_| Error::internal(Stage::Compress, "the slots were closed");
        let permit = Arc::clone(slots).acquire_owned().await.map_err(closed)?;
        let (file, chunks) = (unsealed.file.clone(), Arc::clone(&unsealed.digested.chunks));
        let (key, compression, buffers) = (Arc::clone(key), self.compression, self.tools.buffers.clone());
        let job = self.tools.pool.run(move |workspace| {
            let mut plain = buffers.lease();
            file.read_chunk(index, &mut plain)?;
            let digest = file.cut.digest_of_chunk(index, plain.filled());
            if usize::try_from(index).ok().and_then(|i| chunks.get(i)) != Some(&digest) {
                return Err(file.changed());
            }
            let plain_len = plain.len();
            let (mut buffer, content_len) = match compression {
                Compression::Zstd(level) => {
                    let mut out = buffers.lease();
                    let n = workspace
                        .compressor(level, Content::Any)
                        .compress(plain.filled(), &mut out.slab_mut()[RECORD_HEAD..]);
                    (out, n)
                }
                Compression::None => (plain, plain_len),
            };
            let record_len = seal_record(&key, index, Flag::Data, buffer.slab_mut(), content_len);
            buffer.set_len(record_len - RECORD_HEAD);
            let short = |len: usize| u32::try_from(len).expect("a frame is at most its chunk and 64 bytes");
            Ok(Record { buffer, plain_len: short(plain_len), content_len: short(content_len), permit })
        });
        job.wait().await?
    }

    fn header(&self, unsealed: &Unsealed<'_>) -> Header {
        Header {
            name: unsealed.name.clone(),
            stream_id: data_encoding::HEXLOWER.encode(&random::bytes::<16>()),
            volume: 0,
            created: self.created,
            suite: self.suite,
            codec: self.compression.codec(),
            chunk_size: CHUNK_SIZE,
            volume_chunks: VOLUME_CHUNKS_DEFAULT,
            salt: random::bytes::<SALT_LEN>(),
            data_key: unsealed.epoch.data_key.id(),
            wraps: unsealed.epoch.wraps.clone(),
            plaintext: Some(unsealed.digested.plaintext),
            critical: Vec::new(),
        }
    }
}
