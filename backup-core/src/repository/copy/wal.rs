//! Files of write-ahead log, and pieces of those that are still being received.

mod needed;
mod same;

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::{Held, Kind, OBJECTS, Run};
use crate::error::{ErrorKind, Result, Stage};
use crate::format::VolumeEntry;
use crate::postgres::wal::WalFile;
use crate::repository::layout::{TargetName, WalPath};
use crate::repository::verify::{Claim, VolumeCheck, Wanted, claimed, read_range};
use crate::repository::{Repository, is_taken};
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
            return self.same_or_not(&item, there).await;
        }
        if bytes > REFERENCE_LEN_MAX as u64 {
            return self.volume(&item, None).await;
        }
        match self.read_whole(self.from, &item.object, bytes).await? {
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
        let entry = match self.believed_footer(&large, read.bytes).await? {
            Ok(entry) => entry,
            Err(problem) => return self.damaged_file(item, &large, problem).await,
        };
        if !self.options.dry_run {
            if !self.large_volume(item, &large, &large, &entry).await? {
                return Ok(());
            }
            if !self.create_file(item, reference).await? {
                return self.same_file_or_not(item).await;
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
        let permit = self.budget.take(item.bytes).await?;
        let bytes = match whole {
            Some(whole) => Ok(whole),
            None => self.read_whole(self.from, &item.object, item.bytes).await?,
        };
        let wanted = Wanted::file(item.name.name(item.target));
        let proved = bytes.and_then(|bytes| {
            let entry = self.believed(&item.object, claimed("", &bytes, item.bytes)?)?;
            let mut check = VolumeCheck::new(&entry, Some(&wanted));
            check.add(&bytes)?;
            check.finish().map(|()| bytes)
        });
        let bytes = match proved {
            Ok(bytes) => bytes,
            Err(problem) => {
                self.damaged_file(item, &item.object, problem).await?;
                return Ok(false);
            }
        };
        let len = bytes.len();
        let stored = self.create_file(item, bytes).await?;
        // To compare what is there takes memory, too.
        drop(permit);
        if !stored {
            self.same_file_or_not(item).await?;
            return Ok(false);
        }
        self.counters.add_transferred(len);
        Ok(true)
    }

    /// A larger one. Whether it was stored.
    async fn volume_in_parts(&self, item: &Item<'_>) -> Result<bool> {
        let entry = match self.believed_footer(&item.object, item.bytes).await? {
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
        if !self.create_file(item, reference.encode().into()).await? {
            self.same_file_or_not(item).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Sends the volume `source` to `object`, unless it is there already. Whether it is there then.
    async fn large_volume(&self, item: &Item<'_>, source: &Path, object: &Path, entry: &VolumeEntry) -> Result<bool> {
        if let Some(bytes) = item.held.size(object) {
            let theirs = self.footer(self.to, object, bytes).await?;
            let is_same =
                theirs.is_ok_and(|theirs| (theirs.entry.digest, theirs.entry.bytes) == (entry.digest, entry.bytes));
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
            Err(e) if is_taken(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What the footer of a volume at the source says of it, if it can be believed.
    async fn believed_footer(&self, object: &Path, bytes: u64) -> Result<std::result::Result<VolumeEntry, String>> {
        Ok(self.footer(self.from, object, bytes).await?.and_then(|claim| self.believed(object, claim)))
    }

    /// What a volume at the source says of itself, if somebody who is trusted has signed it. No manifest vouches for a file of log, and what is stored
    /// once under its name keeps the genuine one away for ever.
    fn believed(&self, object: &Path, claim: Claim) -> std::result::Result<VolumeEntry, String> {
        match self.from.check_signer(object, claim.signer) {
            Ok(()) => Ok(claim.entry),
            Err(e) => Err(e.in_one_line()),
        }
    }

    /// Remembers what is wrong with a file, if it is there still.
    async fn damaged_file(&self, item: &Item<'_>, object: &Path, problem: String) -> Result<()> {
        if self.from.still_has(&item.object).await? {
            self.problem(object, problem);
        }
        Ok(())
    }

    async fn read_whole(
        &self,
        repository: &Repository,
        object: &Path,
        bytes: u64,
    ) -> Result<std::result::Result<Bytes, String>> {
        if bytes == 0 {
            return Ok(Ok(Bytes::new()));
        }
        read_range(repository, object, 0..bytes, bytes, &self.budget).await
    }
}
