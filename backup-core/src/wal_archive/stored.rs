//! A WAL file in a repository: found by its name, whether it lies there or is only referred to.

use jiff::Timestamp;
use object_store::path::Path;

use super::reference::{REFERENCE_LEN_MAX, Reference};
use super::unseal::DataKeys;
use crate::encrypt::{COMMITMENT_LEN, DataKey};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, Header, ObjectName, Plaintext, Preamble, VolumeEntry};
use crate::pipeline::Counters;
use crate::postgres::wal::{SegmentName, WalFile};
use crate::repository::layout::{TailPiece, WalPath};
use crate::repository::{ByteBudget, Repository, verify};
use crate::restore::volume::{Expected, OpenVolume, Stored};

/// An object that says of itself that it is the file that was looked for.
#[derive(Debug)]
pub(super) struct StoredFile {
    pub(super) plaintext: Plaintext,
    stored: Stored,
    preamble: Preamble,
    commitment: [u8; COMMITMENT_LEN],
}

/// When a segment, or a piece of one, was first archived, by the clock of whoever did that: a copy keeps it, where the store's own clock begins anew.
/// `None` when it is gone.
///
/// # Errors
/// `Integrity` when the object is damaged or is another, and those of the store. Cancel safe.
pub(crate) async fn archived_at(
    repository: &Repository,
    archive: &WalPath,
    segment: SegmentName,
    piece: Option<&TailPiece>,
) -> Result<Option<Timestamp>> {
    let found = match piece {
        Some(piece) => StoredFile::find_piece(repository, archive, segment, piece).await?,
        None => StoredFile::find(repository, archive, WalFile::Segment(segment)).await?,
    };
    Ok(found.map(|found| found.header().created))
}

impl StoredFile {
    /// Finds `file`; `None` when the store says that there is no object of its name.
    ///
    /// # Errors
    /// `Integrity` when the object is damaged or is another, and those of
    /// [`storage_error`](crate::repository::storage_error). Cancel safe.
    pub(super) async fn find(repository: &Repository, archive: &WalPath, file: WalFile) -> Result<Option<Self>> {
        let path = archive.file(file);
        let Some((stored, head)) = Stored::find(repository, &path).await? else { return Ok(None) };
        let (stored, head) = if Reference::is_one(&head) {
            let reference = read_reference(&stored, &head, file)?;
            follow(repository, archive, file, &reference).await?
        } else {
            (stored, head)
        };
        Self::read(stored, head, &archive.name(file)).await.map(Some)
    }

    /// Finds the object of a piece of a segment; `None` when there is none.
    ///
    /// # Errors
    /// As [`find`](Self::find). Cancel safe.
    pub(super) async fn find_piece(
        repository: &Repository,
        archive: &WalPath,
        segment: SegmentName,
        piece: &TailPiece,
    ) -> Result<Option<Self>> {
        let path = archive.tail_piece(segment, piece);
        match Stored::find(repository, &path).await? {
            Some((stored, head)) => Self::read(stored, head, &archive.tail_piece_name(segment, piece)).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same for a file that was listed.
    ///
    /// # Errors
    /// As [`find`](Self::find), and `Unavailable` when it is gone. Cancel safe.
    pub(super) async fn find_listed(repository: &Repository, archive: &WalPath, file: WalFile) -> Result<Self> {
        Self::find(repository, archive, file).await?.ok_or_else(|| {
            let message = format!("{} was listed, and is gone", archive.file(file));
            Error::new(ErrorKind::Unavailable, Stage::Catalog, message)
        })
    }

    /// Refuses a file whose footer is not sound, or not signed by somebody who is trusted where there are such. Needs no key. Cancel safe.
    pub(super) async fn check_claim(&self) -> Result<()> {
        self.stored.claimed().await.map(drop)
    }

    async fn read(stored: Stored, head: bytes::Bytes, name: &ObjectName) -> Result<Self> {
        let (preamble, commitment) = stored.preamble_in(head).await?;
        if preamble.header.name != *name {
            let name = format!("{:?}", preamble.header.name);
            return Err(stored.damaged(0, FormatError::Name(name)));
        }
        let Some(plaintext) = preamble.header.plaintext else {
            let reason = "a WAL file without 'plaintext'".to_owned();
            return Err(stored.damaged(0, FormatError::Malformed { what: "header", reason }));
        };
        Ok(Self { plaintext, stored, preamble, commitment })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.stored.path
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.stored.bytes
    }

    /// What its header says, which nothing proves before it was opened.
    pub(super) fn header(&self) -> &Header {
        &self.preamble.header
    }

    /// Whether its header was written with this data key and not changed since.
    pub(super) fn check_header(&self, key: &DataKey) -> Result<(), FormatError> {
        self.preamble.open(key, &self.commitment).map(drop)
    }

    /// What its footer says of it, which nothing proves. Cancel safe.
    pub(super) async fn claimed(&self) -> Result<VolumeEntry> {
        self.stored.claimed().await
    }

    /// Whether its bytes are those that its footer has the digest of; says what is wrong otherwise. Needs no key. Cancel safe.
    pub(super) async fn wrong(&self, budget: &ByteBudget) -> Result<Option<String>> {
        let entry = match self.stored.claimed().await {
            Ok(entry) => entry,
            Err(e) if e.kind() == ErrorKind::Integrity => return Ok(Some(e.in_one_line())),
            Err(e) => return Err(e),
        };
        let (repository, path) = (&self.stored.repository, &self.stored.path);
        verify::check_volume(repository, path, &entry, None, budget, &Counters::default()).await
    }

    /// Opens it: afterwards every chunk's place is known and authentic. Cancel safe.
    pub(super) async fn open(self, keys: &DataKeys) -> Result<OpenVolume> {
        let Self { stored, preamble, commitment, .. } = self;
        let header = preamble.header.clone();
        let data_key = match keys.of(&stored.repository, &header).await {
            Err(e) if e.kind() == ErrorKind::Integrity => {
                return Err(Error::integrity(format!("{} is damaged at offset 0", stored.path)).with_source(e));
            }
            unwrapped => unwrapped?,
        };
        let expected = Expected {
            name: header.name,
            stream_id: &header.stream_id,
            data_key_id: &header.data_key,
            volume: 0,
            last: true,
            first: None,
        };
        stored.open_preamble((preamble, commitment), &expected, &data_key).await
    }
}

fn read_reference(stored: &Stored, head: &[u8], file: WalFile) -> Result<Reference> {
    if stored.bytes > REFERENCE_LEN_MAX as u64 {
        let error = FormatError::OutOfBounds { what: "reference length", value: stored.bytes };
        return Err(stored.damaged(0, error));
    }
    Reference::decode(head, &file.to_string()).map_err(|e| stored.damaged(0, e))
}

async fn follow(
    repository: &Repository,
    archive: &WalPath,
    file: WalFile,
    reference: &Reference,
) -> Result<(Stored, bytes::Bytes)> {
    let path = archive.timeline(file.timeline()).join(reference.object.as_str());
    let wrong = |problem: String| Error::integrity(format!("{path} {problem} (offset 0)")).at(Stage::Fetch);
    let Some((stored, head)) = Stored::find(repository, &path).await? else {
        return Err(wrong(format!("is missing, and {file} refers to it")));
    };
    if stored.bytes != reference.bytes {
        return Err(wrong(format!("has {} bytes and should have {}", stored.bytes, reference.bytes)));
    }
    Ok((stored, head))
}
