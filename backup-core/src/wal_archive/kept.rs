//! Every object of an archive, with the data key that seals it: for whoever looks after keys.

use std::fs::File;
use std::num::NonZero;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore};

use super::inventory::{parse, parse_tail};
use super::reference::{REFERENCE_LEN_MAX, Reference};
use super::stored::StoredFile;
use super::unseal::{DataKeys, READ_BYTES};
use super::{CHUNK_SIZE, Tools};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Header, ObjectName, VolumeEntry};
use crate::keys::Identity;
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::repository::layout::{TailPiece, TargetName, WalPath};
use crate::repository::{ByteBudget, Repository};

/// An object of an archive, by its path alone.
#[derive(Debug, Clone)]
pub(crate) struct KeptName {
    cluster: SystemIdentifier,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    File(WalFile),
    Piece(SegmentName, TailPiece),
}

/// An object of an archive, whose header was read.
#[derive(Debug)]
pub(crate) struct KeptFile(StoredFile);

/// Opens data keys of an archive.
pub(crate) struct ArchiveKeys(DataKeys);

/// What an object of an archive is, for whoever removes some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArchiveObject {
    /// A file, or what refers to it.
    File(WalFile),
    /// A large file, under a name that only a reference knows.
    Large(WalFile),
    /// A piece of a segment.
    Piece(SegmentName),
}

/// Which object of the archive of `target` this is, by its path alone; `None` when it is something else.
pub(crate) fn parse_object(target: &TargetName, object: &Path) -> Option<(SystemIdentifier, ArchiveObject)> {
    let prefix = target.wal();
    if let Some((cluster, _, segment, _)) = parse_tail(&prefix, object) {
        return Some((cluster, ArchiveObject::Piece(segment)));
    }
    if let Some((cluster, _, file)) = parse(&prefix, object) {
        return Some((cluster, ArchiveObject::File(file)));
    }
    let file = WalPath::parse_large_file(object.filename()?)?;
    let mut parts = object.prefix_match(&prefix)?;
    let (cluster, timeline) = (parts.next()?, parts.next()?);
    let here = timeline.as_ref() == file.timeline().hex() && parts.count() == 1;
    here.then(|| Some((cluster.as_ref().parse().ok()?, ArchiveObject::Large(file))))?
}

/// The object of `file`, if it refers to the one called `name` beside it. In doubt it does. Cancel safe.
///
/// # Errors
/// Those of the store.
pub(crate) async fn reference_to(
    repository: &Repository,
    archive: &WalPath,
    file: WalFile,
    name: &str,
) -> Result<Option<ObjectMeta>> {
    let path = archive.file(file);
    let failed = |e| repository.error(e, "read", &path).at(Stage::Catalog);
    let range = Some(GetRange::Bounded(0..REFERENCE_LEN_MAX as u64));
    let found = match repository.store().get_opts(&path, GetOptions { range, ..GetOptions::default() }).await {
        Ok(found) => found,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let meta = found.meta.clone();
    let head = found.bytes().await.map_err(failed)?;
    let refers = if Reference::is_one(&head) {
        Reference::decode(&head, &file.to_string()).map_or(true, |reference| reference.object == name)
    } else {
        // The file itself; but an empty object is nothing.
        head.is_empty()
    };
    Ok(refers.then_some(meta))
}

impl KeptName {
    /// Which file or piece an object of the archive of `target` holds; `None` when it is something else.
    pub(crate) fn parse(target: &TargetName, object: &Path) -> Option<Self> {
        let prefix = target.wal();
        if let Some((cluster, _, segment, piece)) = parse_tail(&prefix, object) {
            return Some(Self { cluster, what: What::Piece(segment, piece) });
        }
        parse(&prefix, object).map(|(cluster, _, file)| Self { cluster, what: What::File(file) })
    }

    /// The archive that it belongs to.
    pub(crate) fn archive(&self, target: &TargetName) -> WalPath {
        target.wal_of(self.cluster)
    }

    /// The file; `None` when this is a piece.
    pub(crate) fn file(&self) -> Option<WalFile> {
        match &self.what {
            What::File(file) => Some(*file),
            What::Piece(..) => None,
        }
    }

    /// The segment that this is, or is a piece of; `None` when it is another file.
    pub(crate) fn segment(&self) -> Option<SegmentName> {
        match &self.what {
            What::File(WalFile::Segment(segment)) | What::Piece(segment, _) => Some(*segment),
            What::File(_) => None,
        }
    }

    /// The segment that this is a piece of; `None` when it is a file.
    pub(crate) fn piece_of(&self) -> Option<SegmentName> {
        match &self.what {
            What::File(_) => None,
            What::Piece(segment, _) => Some(*segment),
        }
    }

    /// The name that its object answers to.
    pub(crate) fn name(&self, target: &TargetName) -> ObjectName {
        match &self.what {
            What::File(file) => self.archive(target).name(*file),
            What::Piece(segment, piece) => self.archive(target).tail_piece_name(*segment, piece),
        }
    }

    /// Reads its header with one request, or two where it is a reference; `None` when it is gone.
    ///
    /// # Errors
    /// As those of reading a file of WAL. Cancel safe.
    pub(crate) async fn find(&self, repository: &Repository, target: &TargetName) -> Result<Option<KeptFile>> {
        let archive = target.wal_of(self.cluster);
        let found = match &self.what {
            What::File(file) => StoredFile::find(repository, &archive, *file).await?,
            What::Piece(segment, piece) => StoredFile::find_piece(repository, &archive, *segment, piece).await?,
        };
        Ok(found.map(KeptFile))
    }
}

impl KeptFile {
    /// What its header says, which nothing proves before a data key was [opened](ArchiveKeys::open) with it.
    pub(crate) fn header(&self) -> &Header {
        self.0.header()
    }

    /// Where its volume is, which is not where its name is when that is a reference.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Size of its volume in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Memory that opening it takes, in bytes: two reads, and what comes out of them.
    pub(crate) fn memory(&self) -> u64 {
        self.bytes().min(4 * READ_BYTES) + self.0.plaintext.bytes.min(2 * READ_BYTES)
    }

    /// What its footer says of it, which nothing proves. Cancel safe.
    pub(crate) async fn claimed(&self) -> Result<VolumeEntry> {
        self.0.claimed().await
    }

    /// Whether its bytes are those that its footer has the digest of; what is wrong otherwise. Cancel safe.
    pub(crate) async fn wrong(&self, budget: &ByteBudget) -> Result<Option<String>> {
        self.0.wrong(budget).await
    }
}

/// Opens files of an archive, to find out whether they could be restored.
pub(crate) struct ArchiveReader {
    keys: DataKeys,
    tools: Tools,
    nowhere: Arc<File>,
}

impl ArchiveReader {
    pub(crate) fn new(identities: Vec<Arc<dyn Identity>>, workers: NonZero<usize>) -> Result<Self> {
        let nowhere = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(|e| Error::new(ErrorKind::Sink, Stage::Sink, "cannot open /dev/null").with_source(e))?;
        let tools = Tools::new(workers, CHUNK_SIZE)?;
        Ok(Self { keys: DataKeys::new(identities), tools, nowhere: Arc::new(nowhere) })
    }

    /// Opens and decompresses all of a file, and compares it with the BLAKE3 in its header.
    ///
    /// # Errors
    /// `Integrity` and `Key`, and those of the store. Cancel safe.
    pub(crate) async fn check(&self, file: KeptFile) -> Result<()> {
        file.0.write_to(&self.keys, &self.tools, &self.nowhere).await
    }
}

impl ArchiveKeys {
    pub(crate) fn new(identities: Vec<Arc<dyn Identity>>) -> Self {
        Self(DataKeys::new(identities))
    }

    /// The data key of a file, whose header is authentic when this succeeds.
    ///
    /// # Errors
    /// `Key` when nobody here can open it, `Integrity` when the header is not that of the key. Cancel safe.
    pub(crate) async fn open(&self, repository: &Repository, file: &KeptFile) -> Result<DataKey> {
        let key = self.0.unwrap(repository, file.header()).await?;
        file.0
            .check_header(&key)
            .map_err(|e| Error::integrity(format!("{} is damaged at offset 0", file.0.path())).with_source(e))?;
        Ok(key)
    }
}
