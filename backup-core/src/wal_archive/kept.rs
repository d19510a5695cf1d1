//! Every object of an archive, with the data key that seals it: for whoever looks after keys.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectStore};

use super::inventory::{parse, parse_tail};
use super::reference::{REFERENCE_LEN_MAX, Reference};
use super::stored::StoredFile;
use super::unseal::DataKeys;
use crate::encrypt::DataKey;
use crate::error::{Error, Result, Stage};
use crate::format::Header;
use crate::keys::Identity;
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::repository::Repository;
use crate::repository::layout::{TailPiece, TargetName, WalPath};

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

/// Whether the object of `file` refers to the one called `name` beside it. In doubt it does. Cancel safe.
///
/// # Errors
/// Those of the store.
pub(crate) async fn refers_to(repository: &Repository, archive: &WalPath, file: WalFile, name: &str) -> Result<bool> {
    let path = archive.file(file);
    let failed = |e| repository.error(e, "read", &path).at(Stage::Catalog);
    let range = Some(GetRange::Bounded(0..REFERENCE_LEN_MAX as u64));
    let head = match repository.store().get_opts(&path, GetOptions { range, ..GetOptions::default() }).await {
        Ok(head) => head.bytes().await.map_err(failed)?,
        Err(StoreError::NotFound { .. }) => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    if !Reference::is_one(&head) {
        // The file itself; but an empty object is nothing.
        return Ok(head.is_empty());
    }
    Ok(Reference::decode(&head, &file.to_string()).map_or(true, |reference| reference.object == name))
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
