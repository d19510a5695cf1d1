//! One volume, opened into one file.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Mutex;

use super::digest::Cut;
use super::stored::StoredFile;
use super::{CHUNK_SIZE, FILE_LEN_MAX, Tools};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Header;
use crate::format::Place;
use crate::keys::{Identity, unwrap_any};
use crate::repository::Repository;
use crate::repository::rewraps::{Wanted, open_rewrapped};
use crate::restore::volume::OpenVolume;

/// More keys than are needed at once; then they are unwrapped again.
const KEYS_KNOWN_MAX: usize = 64;
/// Chunks that are read with one request.
const SPAN_CHUNKS: usize = 8;
/// Bytes of plaintext that a request brings, with the size of chunks that we write.
pub(super) const READ_BYTES: u64 = SPAN_CHUNKS as u64 * CHUNK_SIZE as u64;
/// Requests on their way at once.
const READS: usize = 2;

/// Unwraps data keys, each of them once: files that were archived together share one, and a passphrase takes its time.
pub(super) struct DataKeys {
    identities: Vec<Arc<dyn Identity>>,
    known: Mutex<HashMap<String, DataKey>>,
}

impl DataKeys {
    pub(super) fn new(identities: Vec<Arc<dyn Identity>>) -> Self {
        Self { identities, known: Mutex::default() }
    }

    /// The data key of a volume with this header: from its own wraps, or else from what was wrapped again since.
    pub(super) async fn of(&self, repository: &Repository, header: &Header) -> Result<DataKey> {
        let mut known = self.known.lock().await;
        if let Some(key) = known.get(&header.data_key) {
            return Ok(key.clone());
        }
        let key = self.unwrap(repository, header).await?;
        if known.len() >= KEYS_KNOWN_MAX {
            known.clear();
        }
        known.insert(header.data_key.clone(), key.clone());
        Ok(key)
    }

    /// The same, unwrapped anew: for whoever asks once for each of many keys, at the same time.
    pub(super) async fn unwrap(&self, repository: &Repository, header: &Header) -> Result<DataKey> {
        let (target, purpose) = header.name.target_and_purpose();
        let wanted = Wanted { target, purpose, data_key: &header.data_key };
        match unwrap_any(&header.data_key, &header.wraps, &wanted.context(), &self.identities).await {
            Ok(key) => Ok(key),
            Err(failure) => open_rewrapped(repository, wanted, &header.wraps, &self.identities, failure).await,
        }
    }
}

impl StoredFile {
    /// Writes the plaintext to `file`, which is empty, and proves it: every chunk, the end of the stream, length and digest.
    ///
    /// # Errors
    /// `Integrity`, `Key`, `Sink` when the file cannot be written, and those of the store. The file then holds some of it, in any order.
    /// Cancel safe, in that sense.
    pub(super) async fn write_to(self, keys: &DataKeys, tools: &Tools, file: &Arc<File>) -> Result<()> {
        self.write_at(keys, tools, file, 0).await
    }

    /// The same, from the offset `start` on, whatever is there.
    pub(super) async fn write_at(self, keys: &DataKeys, tools: &Tools, file: &Arc<File>, start: u64) -> Result<()> {
        let plaintext = self.plaintext;
        let mut volume = self.open(keys).await?;
        let mut signed = volume.signed.take();
        let volume = Arc::new(volume);
        let damaged =
            |problem: String| Error::integrity(format!("{} {problem} (offset 0)", volume.stored.path)).at(Stage::Fetch);
        let len: u64 = volume.places.iter().map(|place| place.plain_len as u64).sum();
        if len != plaintext.bytes || len > FILE_LEN_MAX {
            return Err(damaged(format!("holds {len} bytes of its file and should hold {}", plaintext.bytes)));
        }
        let chunk_size = volume.header.chunk_size;
        let tools = tools.with_chunks_of(chunk_size);
        // Chunks whose size is no power of two are no subtrees: somebody else's writer may have made such.
        let tree = chunk_size.is_power_of_two().then_some(Cut { len, chunk_size });
        // Owned, so that the future can be sent to another thread whoever asks.
        let spans: Vec<Vec<Place>> = volume.places.chunks(SPAN_CHUNKS).map(<[Place]>::to_vec).collect();
        let mut spans = stream::iter(spans)
            .map(|places| {
                let (volume, buffers) = (Arc::clone(&volume), tools.buffers.clone());
                async move {
                    let records = volume.stored.records(&places, &buffers).await?;
                    Ok::<_, Error>((places, records))
                }
            })
            .buffered(READS);
        let mut digests = Vec::with_capacity(volume.places.len());
        while let Some((places, mut records)) = spans.try_next().await? {
            if let Some(signed) = &mut signed {
                signed.add(&places, &mut records);
            }
            let jobs: Vec<_> = places
                .iter()
                .zip(records)
                .map(|(place, record)| {
                    let (volume, file, buffers, place) =
                        (Arc::clone(&volume), Arc::clone(file), tools.buffers.clone(), *place);
                    tools.pool.run(move |workspace| {
                        let plain = volume.open_chunk(place, record, &buffers, workspace)?;
                        file.write_all_at(plain.filled(), start + offset_of(&volume, place)).map_err(write_failed)?;
                        Ok::<_, Error>(tree.map(|cut| cut.digest_of_chunk(place.counter, plain.filled())))
                    })
                })
                .collect();
            for job in jobs {
                digests.extend(job.wait().await??);
            }
        }
        if signed.is_some_and(|signed| !signed.holds()) {
            return Err(damaged("is not what its signature was made for".to_owned()));
        }
        let digest = match tree {
            Some(_) => Cut::digest(&digests),
            None => digest_of_file(file, start..start + len).await?,
        };
        if digest == plaintext.blake3 {
            Ok(())
        } else {
            Err(damaged("holds other bytes than its header says".to_owned()))
        }
    }
}

fn offset_of(volume: &OpenVolume, place: Place) -> u64 {
    place.counter * u64::from(volume.header.chunk_size)
}

async fn digest_of_file(file: &Arc<File>, range: Range<u64>) -> Result<[u8; 32]> {
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || digest_of_range(&file, range)).await;
    read.map_err(|e| Error::internal(Stage::Sink, "a reading task panicked").with_source(e))?
        .map_err(|e| Error::new(ErrorKind::Sink, Stage::Sink, "cannot read what was written").with_source(e))
}

/// The BLAKE3 of a whole file. Blocks.
pub(super) fn digest_of(file: &File) -> std::io::Result<[u8; 32]> {
    digest_of_range(file, 0..u64::MAX)
}

/// The BLAKE3 of these bytes of a file, as far as it has them. Blocks.
fn digest_of_range(file: &File, range: Range<u64>) -> std::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = range.start;
    loop {
        let room = usize::try_from(range.end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = file.read_at(&mut buffer[..room], at)?;
        if n == 0 {
            return Ok(*hasher.finalize().as_bytes());
        }
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
}

fn write_failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Sink, Stage::Sink, "cannot write the file").with_source(error)
}
