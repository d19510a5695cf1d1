//! Files of write-ahead log, and pieces of those that are still being received.

mod needed;

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Held, Kind, OBJECTS, Run};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::VolumeEntry;
use crate::postgres::wal::WalFile;
use crate::repository::is_taken;
use crate::repository::layout::{TargetName, WalPath};
use crate::repository::verify::{VolumeCheck, Wanted, claimed, read_range};
use crate::upload::ObjectUpload;
use crate::wal_archive::kept::KeptName;
use crate::wal_archive::{REFERENCE_LEN_MAX, Reference};

/// A file or piece at the source.
struct Item<'a> {
    target: &'a TargetName,
    held: &'a Held,
    name: KeptName,
    /// Where its name is; its volume may lie elsewhere.
    object: Path,
    bytes: u64,
}

impl Run<'_> {
    /// The whole archive of a target.
    pub(super) async fn wal_of(&self, target: &TargetName) -> Result<()> {
        let prefix = target.wal();
        let held = &Held::list(self.to, &prefix).await?;
        let failed = |e| self.from.error(e, "list", &prefix).at(Stage::Catalog);
        let objects = self.from.store().list(Some(&prefix)).map_err(failed);
        self.each(objects, OBJECTS, |object| self.wal_object(target, held, object)).await
    }

    async fn wal_object(&self, target: &TargetName, held: &Held, object: ObjectMeta) -> Result<()> {
        let ObjectMeta { location: object, size: bytes, .. } = object;
        let Some(name) = KeptName::parse(target, &object) else {
            // What a reference leads to is copied with it, and what none leads to is nobody's.
            if object.filename().and_then(WalPath::parse_large_file).is_none() {
                self.tally().leave_alone(&object);
            }
            return Ok(());
        };
        let item = Item { target, held, name, object, bytes };
        if self.is_superseded(&item).await? {
            return Ok(());
        }
        if let Some(there) = held.size(&item.object) {
            return self.same_or_not(&item, Some(there)).await;
        }
        if bytes > REFERENCE_LEN_MAX as u64 {
            return self.volume(&item, None).await;
        }
        match self.read_whole(&item.object, bytes).await? {
            Ok(reference) if Reference::is_one(&reference) => self.referred_to(&item, reference).await,
            Ok(volume) => self.volume(&item, Some(volume)).await,
            Err(problem) => self.damaged_file(&item, &item.object, problem).await,
        }
    }

    /// Whether this is a piece of a segment that has come to be whole: it will be removed, and nobody reads it.
    async fn is_superseded(&self, item: &Item<'_>) -> Result<bool> {
        let Some(segment) = item.name.piece_of() else { return Ok(false) };
        let whole = item.name.archive(item.target).file(WalFile::Segment(segment));
        match self.from.store().head(&whole).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.from.error(e, "read", &whole).at(Stage::Fetch)),
        }
    }

    /// Compares an object with the one that the destination has under its name, which has so many bytes if that is known.
    async fn same_or_not(&self, item: &Item<'_>, there: Option<u64>) -> Result<()> {
        if there == Some(item.bytes) {
            let is_same = self.options.quick || {
                let (ours, theirs) = tokio::try_join!(
                    self.footer(self.from, &item.object, item.bytes),
                    self.footer(self.to, &item.object, item.bytes)
                )?;
                matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours == theirs)
            };
            if is_same {
                self.tally().same(Kind::Wal);
                return Ok(());
            }
        }
        self.same_file_or_not(item).await
    }

    /// The same, where one of them is a reference, or was sealed once more: two objects are of one file if it has the same BLAKE3 in both headers.
    async fn same_file_or_not(&self, item: &Item<'_>) -> Result<()> {
        let ours = match item.name.find(self.from, item.target).await {
            Ok(Some(ours)) => ours,
            // Removed meanwhile.
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Integrity => {
                return self.damaged_file(item, &item.object, e.in_one_line()).await;
            }
            Err(e) => return Err(e),
        };
        let theirs = match item.name.find(self.to, item.target).await {
            Ok(Some(theirs)) => theirs,
            Ok(None) => {
                let message = format!("{} was there, and is gone", self.to.address(&item.object));
                return Err(Error::new(ErrorKind::Unavailable, Stage::Upload, message).with_hint("try again"));
            }
            Err(e) if e.kind() == ErrorKind::Integrity => return Err(self.differs(&item.object).with_source(e)),
            Err(e) => return Err(e),
        };
        if ours.header().plaintext != theirs.header().plaintext || theirs.wrong().await?.is_some() {
            return Err(self.differs(&item.object));
        }
        self.tally().same(Kind::Wal);
        Ok(())
    }

    /// A file whose volume lies elsewhere: that first, then the reference to it, both as they are.
    async fn referred_to(&self, item: &Item<'_>, reference: Bytes) -> Result<()> {
        let Some(file) = item.name.file() else {
            self.problem(&item.object, "a piece is no reference (offset 0)");
            return Ok(());
        };
        let read = match Reference::decode(&reference, &file.to_string()) {
            Ok(read) => read,
            Err(e) => {
                self.problem(&item.object, format!("damaged at offset 0: {e}"));
                return Ok(());
            }
        };
        let archive = item.name.archive(item.target);
        let large = archive.timeline(file.timeline()).join(read.object.as_str());
        let entry = match self.footer(self.from, &large, read.bytes).await? {
            Ok(entry) => entry,
            Err(problem) => return self.damaged_file(item, &large, problem).await,
        };
        if !self.options.dry_run {
            if !self.large_volume(item, &large, &large, &entry).await? {
                return Ok(());
            }
            if !self.create_file(item, reference).await? {
                return Ok(());
            }
        }
        self.tally().copied(Kind::Wal, read.bytes + item.bytes);
        Ok(())
    }

    /// A file or piece that is a volume, `whole` if it was read already.
    async fn volume(&self, item: &Item<'_>, whole: Option<Bytes>) -> Result<()> {
        let stored = if self.options.dry_run {
            true
        } else if self.fits_one_piece(item.bytes) {
            self.small_volume(item, whole).await?
        } else {
            self.volume_in_parts(item).await?
        };
        if stored {
            self.tally().copied(Kind::Wal, item.bytes);
        }
        Ok(())
    }

    /// One that is read and stored with a request each. Whether it was stored.
    async fn small_volume(&self, item: &Item<'_>, whole: Option<Bytes>) -> Result<bool> {
        let _permit = self.budget.take(item.bytes).await?;
        let bytes = match whole {
            Some(whole) => Ok(whole),
            None => self.read_whole(&item.object, item.bytes).await?,
        };
        let wanted = Wanted::file(item.name.name(item.target));
        let proved = bytes.and_then(|bytes| {
            let entry = claimed("", &bytes, item.bytes)?;
            let mut check = VolumeCheck::new(&entry, Some(&wanted));
            check.add(&bytes)?;
            check.finish().map(|()| bytes)
        });
        match proved {
            Ok(bytes) => {
                let len = bytes.len();
                let stored = self.create_file(item, bytes).await?;
                self.counters.add_transferred(if stored { len } else { 0 });
                Ok(stored)
            }
            Err(problem) => {
                self.damaged_file(item, &item.object, problem).await?;
                Ok(false)
            }
        }
    }

    /// A larger one. Whether it was stored.
    async fn volume_in_parts(&self, item: &Item<'_>) -> Result<bool> {
        let entry = match self.footer(self.from, &item.object, item.bytes).await? {
            Ok(entry) => entry,
            Err(problem) => {
                self.damaged_file(item, &item.object, problem).await?;
                return Ok(false);
            }
        };
        let Some(file) = item.name.file().filter(|_| !self.to.publishes_once()) else {
            return self.large_volume(item, &item.object, &item.object, &entry).await;
        };
        // A store that would replace what others put there: so the object has a name of its own, always the same for the same bytes.
        let archive = item.name.archive(item.target);
        let name = entry.digest.first_chunk().map(|bytes| archive.large_file_of(file, bytes));
        let large = name.unwrap_or_else(|| archive.large_file(file));
        if !self.large_volume(item, &item.object, &large, &entry).await? {
            return Ok(false);
        }
        let object = large.filename().unwrap_or_default().to_owned();
        let reference = Reference { object, bytes: entry.bytes, critical: Vec::new() };
        self.create_file(item, reference.encode().into()).await
    }

    /// Sends the volume `source` to `object`, unless it is there already. Whether it is there then.
    async fn large_volume(&self, item: &Item<'_>, source: &Path, object: &Path, entry: &VolumeEntry) -> Result<bool> {
        if let Some(bytes) = item.held.size(object) {
            let theirs = self.footer(self.to, object, bytes).await?;
            let is_same = theirs.is_ok_and(|theirs| (theirs.digest, theirs.bytes) == (entry.digest, entry.bytes));
            return if is_same { Ok(true) } else { Err(self.differs(object)) };
        }
        let wanted = Wanted::file(item.name.name(item.target));
        let (to, counters) = (self.to.clone(), Arc::clone(&self.counters));
        let mut upload = match item.name.file() {
            // A name that others may use, in a store that never replaces.
            Some(_) if object == &item.object => ObjectUpload::contended(to, object.clone(), object.clone(), counters),
            _ => ObjectUpload::new(to, object.clone(), counters),
        };
        match self.transfer(source, entry, &wanted, &mut upload).await {
            Ok(None) => Ok(true),
            Ok(Some(problem)) => {
                self.damaged_file(item, source, problem).await?;
                Ok(false)
            }
            Err(e) if e.kind() != ErrorKind::Cancelled && object == &item.object => {
                // Another copy may have been faster.
                match item.name.find(self.to, item.target).await {
                    Ok(Some(_)) => self.same_file_or_not(item).await.map(|()| false),
                    _ => Err(e),
                }
            }
            Err(e) => Err(e),
        }
    }

    /// Creates the object that has the file's own name. Whether it was created now, and not by somebody else meanwhile.
    async fn create_file(&self, item: &Item<'_>, bytes: Bytes) -> Result<bool> {
        match self.to.put_once(&item.object, bytes.into()).await {
            Ok(()) => Ok(true),
            Err(e) if is_taken(&e) => self.same_file_or_not(item).await.map(|()| false),
            Err(e) => Err(e),
        }
    }

    /// Remembers what is wrong with a file, if it is there still.
    async fn damaged_file(&self, item: &Item<'_>, object: &Path, problem: String) -> Result<()> {
        if self.from.still_has(&item.object).await? {
            self.problem(object, problem);
        }
        Ok(())
    }

    async fn read_whole(&self, object: &Path, bytes: u64) -> Result<std::result::Result<Bytes, String>> {
        if bytes == 0 {
            return Ok(Ok(Bytes::new()));
        }
        read_range(self.from, object, 0..bytes, bytes, &self.budget).await
    }
}
