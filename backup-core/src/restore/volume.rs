//! A volume opened for reading: its ends read, its header, index and footer checked against each other and against the manifest, if one
//! lists it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetResultPayload, ObjectStoreExt};

use crate::chunk::RECORD_HEAD;
use crate::encrypt::{COMMITMENT_LEN, DataKey, VolumeKey, open_record};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{
    Codec, FOOTER_LEN, Flag, Footer, FormatError, HEADER_LEN_MAX, Header, ObjectName, PREFIX_LEN, Place, Preamble,
    VolumeEntry, index_range, open_index,
};
use crate::pipeline::{Buffer, BufferPool, Workspace};
use crate::repository::Repository;

/// Headers are about one kilobyte with two recipients; a longer one costs a second request.
const HEAD_GUESS: u64 = 8 * 1024;
/// Index and footer of a volume with up to 8,000 chunks.
const TAIL_GUESS: u64 = 64 * 1024;

/// An object in a repository.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) repository: Repository,
    pub(crate) path: Path,
    /// Its size.
    pub(crate) bytes: u64,
    /// What the manifest says of it, if one does. Without, the size is what the store says, to be believed once the index has opened.
    pub(crate) listed: Option<VolumeEntry>,
}

/// What a volume must turn out to be.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) name: ObjectName,
    pub(crate) stream_id: &'a str,
    pub(crate) data_key_id: &'a str,
    pub(crate) volume: u32,
    pub(crate) last: bool,
    /// The header of the stream's first volume, when this is another.
    pub(crate) first: Option<&'a Header>,
}

/// A volume whose ends are verified.
#[derive(Debug)]
pub(crate) struct OpenVolume {
    pub(crate) stored: Stored,
    pub(crate) header: Header,
    pub(crate) key: Arc<VolumeKey>,
    pub(crate) places: Vec<Place>,
    /// What is still to be proved, of a volume whose signature matters.
    pub(crate) signed: Option<Signed>,
}

/// The digest that the trusted signer of a volume signed, and as much of the volume as was hashed to compare it with.
///
/// Anybody can put a signed footer behind other bytes: its signature says nothing of them before their digest is known to be the footer's.
#[derive(Debug)]
pub(crate) struct Signed {
    hasher: blake3::Hasher,
    index: Bytes,
    digest: [u8; 32],
}

impl Signed {
    /// Goes on with the records of `places`, which come next.
    pub(crate) fn add(&mut self, places: &[Place], records: &mut [Buffer]) {
        for (place, record) in places.iter().zip(records) {
            self.hasher.update(&record.slab_mut()[..place.record_len()]);
        }
    }

    /// Whether what was added, which is all of it, is what was signed.
    pub(crate) fn holds(mut self) -> bool {
        self.hasher.update(&self.index);
        *self.hasher.finalize().as_bytes() == self.digest
    }
}

impl OpenVolume {
    /// Opens and decompresses the record of `place`; with codec `none` it is opened where it lies.
    pub(crate) fn open_chunk(
        &self,
        place: Place,
        mut record: Buffer,
        buffers: &BufferPool,
        workspace: &mut Workspace,
    ) -> Result<Buffer> {
        let damaged = |e| self.stored.damaged(place.offset, e);
        let bytes = &mut record.slab_mut()[..place.record_len()];
        open_record(&self.key, place.counter, &[Flag::Data], bytes, place.content_len).map_err(damaged)?;
        match self.header.codec {
            Codec::None => {
                record.set_len(place.plain_len);
                Ok(record)
            }
            Codec::Zstd => {
                let frame = &record.slab_mut()[RECORD_HEAD..RECORD_HEAD + place.content_len];
                let mut plain = buffers.lease();
                let out = &mut plain.spare()[..place.plain_len];
                let bad = |_| damaged(FormatError::Frame { chunk: place.counter, expected: place.plain_len });
                workspace.decompressor().decompress(frame, out).map_err(bad)?;
                plain.advance(place.plain_len);
                Ok(plain)
            }
        }
    }
}

impl Stored {
    /// A volume that a manifest lists.
    pub(crate) fn listed(repository: Repository, path: Path, entry: VolumeEntry) -> Self {
        Self { repository, path, bytes: entry.bytes, listed: Some(entry) }
    }

    /// An object that no manifest lists, and its first bytes; `None` when the store says that it does not exist.
    pub(crate) async fn find(repository: &Repository, path: &Path) -> Result<Option<(Self, Bytes)>> {
        let options = GetOptions::new().with_range(Some(0..HEAD_GUESS));
        let failed = |e| repository.error(e, "read", path).at(Stage::Fetch);
        let found = match repository.store().get_opts(path, options).await {
            Ok(found) => found,
            Err(e @ object_store::Error::NotFound { .. }) => {
                let error = failed(e);
                // A missing bucket says "not found" too.
                return if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) };
            }
            Err(e) => {
                // No range of it can be had when it is empty: an error of its own kind in each store.
                return match repository.store().head(path).await {
                    Ok(meta) if meta.size == 0 => {
                        let empty = Self { repository: repository.clone(), path: path.clone(), bytes: 0, listed: None };
                        Ok(Some((empty, Bytes::new())))
                    }
                    _ => Err(failed(e)),
                };
            }
        };
        let bytes = found.meta.size;
        let head = found.bytes().await.map_err(failed)?;
        Ok(Some((Self { repository: repository.clone(), path: path.clone(), bytes, listed: None }, head)))
    }

    /// The object, as messages call it.
    pub(super) fn address(&self) -> String {
        self.repository.address(&self.path)
    }

    /// An error about the bytes at `offset` of this object.
    pub(crate) fn damaged(&self, offset: u64, error: FormatError) -> Error {
        let hint = matches!(error, FormatError::Critical(_) | FormatError::Version(_));
        let damage = Error::integrity(format!("{} is damaged at offset {offset}", self.address())).at(Stage::Fetch);
        let damage = if hint { damage.with_hint("a newer release may read it") } else { damage };
        damage.with_source(error)
    }

    fn unreadable(&self, error: object_store::Error) -> Error {
        self.repository.error(error, "read", &self.path).at(Stage::Fetch)
    }

    /// Reads the preamble and the commitment.
    pub(crate) async fn preamble(&self) -> Result<(Preamble, [u8; COMMITMENT_LEN])> {
        let head = self.read(0..HEAD_GUESS.min(self.bytes)).await?;
        self.preamble_in(head).await
    }

    /// Reads the preamble and the commitment, of which `head` is the beginning.
    pub(crate) async fn preamble_in(&self, mut head: Bytes) -> Result<(Preamble, [u8; COMMITMENT_LEN])> {
        let at_start = |e| self.damaged(0, e);
        let prefix = head.first_chunk::<PREFIX_LEN>().ok_or(FormatError::Truncated).map_err(at_start)?;
        let len = PREFIX_LEN + crate::format::header_len(prefix).map_err(at_start)? + COMMITMENT_LEN;
        if len > head.len() {
            debug_assert!(len <= PREFIX_LEN + HEADER_LEN_MAX + COMMITMENT_LEN);
            head = self.read(0..(len as u64).min(self.bytes)).await?;
        }
        let preamble = Preamble::decode(&head).map_err(at_start)?;
        let commitment = preamble.bytes().len();
        match head.get(commitment..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => Ok((preamble, *bytes)),
            None => Err(self.damaged(commitment as u64, FormatError::Truncated)),
        }
    }

    /// Opens the volume: afterwards every chunk's place and the stream's continuation are known and authentic.
    pub(crate) async fn open(self, expected: &Expected<'_>, data_key: &DataKey) -> Result<OpenVolume> {
        let opened = self.preamble().await?;
        self.open_preamble(opened, expected, data_key).await
    }

    /// The same, with the preamble and the commitment read before.
    pub(crate) async fn open_preamble(
        self,
        (preamble, commitment): (Preamble, [u8; COMMITMENT_LEN]),
        expected: &Expected<'_>,
        data_key: &DataKey,
    ) -> Result<OpenVolume> {
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
        let (places, index, digest) = self.index(&preamble, &key, expected.last).await?;
        // What a manifest lists, the manifest vouches for: nobody but its signer had the data key.
        let signed = (self.listed.is_none() && !self.repository.trusted().is_empty()).then(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(preamble.bytes()).update(&commitment);
            Signed { hasher, index, digest }
        });
        Ok(OpenVolume { stored: self, header: preamble.header, key: Arc::new(key), places, signed })
    }

    /// Reads the footer, and the bytes before it. Where no manifest lists the volume, it must be signed by somebody who is trusted.
    async fn tail(&self) -> Result<(Footer, Bytes)> {
        let size = self.bytes;
        let wrong_footer = |e| self.damaged(size.saturating_sub(FOOTER_LEN as u64), e);
        let tail = self.read(size.saturating_sub(TAIL_GUESS)..size).await?;
        let footer = tail.last_chunk::<FOOTER_LEN>().ok_or(FormatError::Truncated);
        let footer = footer.and_then(|bytes| Footer::decode(bytes, size)).map_err(wrong_footer)?;
        if self.listed.is_none() {
            self.repository.check_signer(&self.path, footer.signed_by())?;
        }
        Ok((footer, tail))
    }

    /// What its footer says of it, which nothing proves.
    pub(crate) async fn claimed(&self) -> Result<VolumeEntry> {
        let (footer, _) = self.tail().await?;
        let path = self.path.filename().unwrap_or_default().to_owned();
        Ok(VolumeEntry { path, bytes: self.bytes, chunks: footer.chunks, digest: footer.digest })
    }

    /// The chunks' places, and the index chunk as it is stored, and the digest in the footer.
    async fn index(&self, preamble: &Preamble, key: &VolumeKey, last: bool) -> Result<(Vec<Place>, Bytes, [u8; 32])> {
        let size = self.bytes;
        let wrong_footer = |e| self.damaged(size.saturating_sub(FOOTER_LEN as u64), e);
        let (footer, tail) = self.tail().await?;
        if self.listed.as_ref().is_some_and(|entry| footer.chunks != entry.chunks || footer.digest != entry.digest) {
            return Err(wrong_footer(FormatError::Footer("the manifest says otherwise")));
        }

        let range = index_range(preamble, &footer, size).map_err(wrong_footer)?;
        let tail_offset = size - tail.len() as u64;
        let index = if range.start >= tail_offset {
            let at = usize::try_from(range.start - tail_offset).expect("below 64 KiB");
            tail.slice(at..tail.len() - FOOTER_LEN)
        } else {
            self.read(range).await?
        };
        let opened = open_index(preamble, key, &footer, &mut index.to_vec(), last);
        Ok((opened.map_err(|e| self.damaged(footer.index_offset, e))?, index, footer.digest))
    }

    /// Reads a range of the object; an object of another size than it should have is damaged.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes> {
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
        if size == self.bytes {
            return Ok(());
        }
        let problem = format!("{} has {size} bytes and should have {}", self.address(), self.bytes);
        let offset = size.min(self.bytes);
        Err(Error::new(ErrorKind::Integrity, Stage::Fetch, format!("{problem} (offset {offset})")))
    }

    /// Reads consecutive records, each into a buffer of its own; straight from the file where the store is local.
    pub(crate) async fn records(&self, places: &[Place], buffers: &BufferPool) -> Result<Vec<Buffer>> {
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
