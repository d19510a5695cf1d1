//! A volume opened for reading: its ends read, its header, index and footer checked against each other and against the manifest.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetResultPayload, ObjectStoreExt};

use crate::encrypt::{COMMITMENT_LEN, DataKey, VolumeKey};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{
    FOOTER_LEN, Footer, FormatError, HEADER_LEN_MAX, Header, ObjectName, PREFIX_LEN, Place, Preamble, VolumeEntry,
    index_range, open_index,
};
use crate::pipeline::{Buffer, BufferPool};
use crate::repository::Repository;

/// Headers are about one kilobyte with two recipients; a longer one costs a second request.
const HEAD_GUESS: u64 = 8 * 1024;
/// Index and footer of a volume with up to 8,000 chunks.
const TAIL_GUESS: u64 = 64 * 1024;

/// An object in a repository, and what the manifest says of it.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) repository: Repository,
    pub(super) path: Path,
    pub(super) entry: VolumeEntry,
}

/// What a volume must turn out to be.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub(super) name: ObjectName,
    pub(super) stream_id: &'a str,
    pub(super) data_key_id: &'a str,
    pub(super) volume: u32,
    pub(super) last: bool,
    /// The header of the stream's first volume, when this is another.
    pub(super) first: Option<&'a Header>,
}

/// A volume whose ends are verified.
#[derive(Debug)]
pub(super) struct OpenVolume {
    pub(super) stored: Stored,
    pub(super) header: Header,
    pub(super) key: Arc<VolumeKey>,
    pub(super) places: Vec<Place>,
}

impl Stored {
    /// The object, as messages call it.
    pub(super) fn address(&self) -> String {
        self.repository.address(&self.path)
    }

    /// An error about the bytes at `offset` of this object.
    pub(super) fn damaged(&self, offset: u64, error: FormatError) -> Error {
        let hint = matches!(error, FormatError::Critical(_) | FormatError::Version(_));
        let damage = Error::integrity(format!("{} is damaged at offset {offset}", self.address())).at(Stage::Fetch);
        let damage = if hint { damage.with_hint("a newer release may read it") } else { damage };
        damage.with_source(error)
    }

    fn unreadable(&self, error: object_store::Error) -> Error {
        self.repository.error(error, "read", &self.path).at(Stage::Fetch)
    }

    /// Reads the preamble and the commitment.
    pub(super) async fn preamble(&self) -> Result<(Preamble, [u8; COMMITMENT_LEN])> {
        let mut head = self.read(0..HEAD_GUESS.min(self.entry.bytes)).await?;
        let at_start = |e| self.damaged(0, e);
        let prefix = head.first_chunk::<PREFIX_LEN>().ok_or(FormatError::Truncated).map_err(at_start)?;
        let len = PREFIX_LEN + crate::format::header_len(prefix).map_err(at_start)? + COMMITMENT_LEN;
        if len > head.len() {
            debug_assert!(len <= PREFIX_LEN + HEADER_LEN_MAX + COMMITMENT_LEN);
            head = self.read(0..(len as u64).min(self.entry.bytes)).await?;
        }
        let preamble = Preamble::decode(&head).map_err(at_start)?;
        let commitment = preamble.bytes().len();
        match head.get(commitment..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => Ok((preamble, *bytes)),
            None => Err(self.damaged(commitment as u64, FormatError::Truncated)),
        }
    }

    /// Opens the volume: afterwards every chunk's place and the stream's continuation are known and authentic.
    pub(super) async fn open(self, expected: &Expected<'_>, data_key: &DataKey) -> Result<OpenVolume> {
        let (preamble, commitment) = self.preamble().await?;
        let name = |reason| self.damaged(0, FormatError::Name(reason));
        let header = &preamble.header;
        if header.name != expected.name {
            return Err(name(format!("{:?}", header.name)));
        }
        if header.stream_id != expected.stream_id || header.data_key != expected.data_key_id {
            return Err(name("it is of another run".to_owned()));
        }
        if header.volume != expected.volume {
            return Err(name(format!("it is volume {} of its stream", header.volume)));
        }
        if expected.first.is_some_and(|first| !header.is_cut_like(first)) {
            return Err(name("it was cut or sealed otherwise than the first of its stream".to_owned()));
        }
        let key = preamble.open(data_key, &commitment).map_err(|e| self.damaged(preamble.bytes().len() as u64, e))?;
        let places = self.index(&preamble, &key, expected.last).await?;
        Ok(OpenVolume { stored: self, header: preamble.header, key: Arc::new(key), places })
    }

    async fn index(&self, preamble: &Preamble, key: &VolumeKey, last: bool) -> Result<Vec<Place>> {
        let size = self.entry.bytes;
        let footer_offset = size.saturating_sub(FOOTER_LEN as u64);
        let wrong_footer = |e| self.damaged(footer_offset, e);
        let tail = self.read(size.saturating_sub(TAIL_GUESS)..size).await?;
        let footer = tail.last_chunk::<FOOTER_LEN>().ok_or(FormatError::Truncated);
        let footer = footer.and_then(|bytes| Footer::decode(bytes, size)).map_err(wrong_footer)?;
        if footer.chunks != self.entry.chunks || footer.digest != self.entry.digest {
            return Err(wrong_footer(FormatError::Footer("the manifest says otherwise")));
        }

        let range = index_range(preamble, &footer, size).map_err(wrong_footer)?;
        let tail_offset = size - tail.len() as u64;
        let mut record = if range.start >= tail_offset {
            let at = usize::try_from(range.start - tail_offset).expect("below 64 KiB");
            tail[at..tail.len() - FOOTER_LEN].to_vec()
        } else {
            self.read(range).await?.into()
        };
        open_index(preamble, key, &footer, &mut record, last).map_err(|e| self.damaged(footer.index_offset, e))
    }

    /// Reads a range of the object; an object of another size than the manifest says is damaged.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let result = self.get(range).await?;
        result.bytes().await.map_err(|e| self.unreadable(e))
    }

    async fn get(&self, range: Range<u64>) -> Result<object_store::GetResult> {
        if range.is_empty() {
            return Err(self.damaged(range.start, FormatError::Truncated));
        }
        let options = GetOptions::new().with_range(Some(range));
        let error = match self.repository.store().get_opts(&self.path, options).await {
            Ok(result) => return self.check_size(result.meta.size).map(|()| result),
            Err(error) => error,
        };
        if matches!(error, object_store::Error::NotFound { .. }) {
            return Err(Error::integrity(format!("{} is missing (offset 0)", self.address())).at(Stage::Fetch));
        }
        // A range that the object does not have is an error of its own kind in each store.
        if let Ok(meta) = self.repository.store().head(&self.path).await {
            self.check_size(meta.size)?;
        }
        Err(self.unreadable(error))
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size == self.entry.bytes {
            return Ok(());
        }
        let problem = format!("{} has {size} bytes and should have {}", self.address(), self.entry.bytes);
        let offset = size.min(self.entry.bytes);
        Err(Error::new(ErrorKind::Integrity, Stage::Fetch, format!("{problem} (offset {offset})")))
    }

    /// Reads consecutive records, each into a buffer of its own; straight from the file where the store is local.
    pub(super) async fn records(&self, places: &[Place], buffers: &BufferPool) -> Result<Vec<Buffer>> {
        let (Some(first), Some(last)) = (places.first(), places.last()) else { return Ok(Vec::new()) };
        let range = first.offset..last.offset + last.record_len() as u64;
        let start = range.start;
        let mut records: Vec<(Buffer, usize)> = places.iter().map(|p| (buffers.lease(), p.record_len())).collect();
        let result = self.get(range).await?;
        match result.payload {
            GetResultPayload::File(file, _) => {
                let read = tokio::task::spawn_blocking(move || read_file(&file, start, records)).await;
                let read = read.map_err(|e| Error::internal(Stage::Fetch, "a reading task panicked").with_source(e))?;
                let failed = |e| {
                    Error::new(ErrorKind::Storage, Stage::Fetch, format!("cannot read {}", self.address()))
                        .with_source(e)
                };
                return read.map_err(failed);
            }
            GetResultPayload::Stream(stream) => {
                read_stream(stream, &mut records).await.map_err(|e| self.unreadable(e))?;
            }
        }
        Ok(records.into_iter().map(|(buffer, _)| buffer).collect())
    }
}

fn read_file(file: &std::fs::File, start: u64, records: Vec<(Buffer, usize)>) -> std::io::Result<Vec<Buffer>> {
    use std::os::unix::fs::FileExt;
    let mut offset = start;
    let mut read = Vec::with_capacity(records.len());
    for (mut buffer, len) in records {
        file.read_exact_at(&mut buffer.slab_mut()[..len], offset)?;
        offset += len as u64;
        read.push(buffer);
    }
    Ok(read)
}

async fn read_stream(
    mut stream: futures::stream::BoxStream<'static, object_store::Result<Bytes>>,
    records: &mut [(Buffer, usize)],
) -> object_store::Result<()> {
    use futures::TryStreamExt;
    let mut data = Bytes::new();
    for (buffer, len) in records {
        let mut rest = &mut buffer.slab_mut()[..*len];
        while !rest.is_empty() {
            if data.is_empty() {
                let short = || object_store::Error::Generic { store: "repository", source: "the body is short".into() };
                data = stream.try_next().await?.ok_or_else(short)?;
            }
            let n = rest.len().min(data.len());
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&data.split_to(n));
            rest = later;
        }
    }
    Ok(())
}
