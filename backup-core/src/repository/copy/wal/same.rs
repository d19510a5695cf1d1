//! Whether the destination has a file already: what a listing says of it, or the ends of both, or their headers.

use object_store::path::Path;

use super::Item;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::repository::Repository;
use crate::repository::copy::{Kind, Run};
use crate::wal_archive::{REFERENCE_LEN_MAX, Reference};

impl Run<'_> {
    /// Compares an object with the one of `there` bytes that the destination has under its name.
    pub(super) async fn same_or_not(&self, item: &Item<'_>, there: u64) -> Result<()> {
        let is_same = match self.options.quick {
            true => self.has_same_size(item, there).await?,
            false => self.has_same_footer(item, there).await?,
        };
        if is_same {
            self.tally().same(Kind::Wal);
            return Ok(());
        }
        self.same_file_or_not(item).await
    }

    /// Whether both are of one size, each perhaps behind a reference: the listing of the destination tells.
    async fn has_same_size(&self, item: &Item<'_>, there: u64) -> Result<bool> {
        let may_refer = |bytes: u64| bytes <= REFERENCE_LEN_MAX as u64;
        let is_there = |bytes: u64| bytes == there || (may_refer(there) && item.held.has_large(&item.object, bytes));
        if is_there(item.bytes) {
            return Ok(true);
        }
        if !may_refer(item.bytes) {
            return Ok(false);
        }
        let ours = self.volume_of(self.from, item, item.bytes).await?;
        Ok(ours.is_ok_and(|(_, bytes)| is_there(bytes)))
    }

    /// Whether the footers of both are the same, wherever their volumes lie.
    async fn has_same_footer(&self, item: &Item<'_>, there: u64) -> Result<bool> {
        let (ours, theirs) =
            tokio::try_join!(self.volume_of(self.from, item, item.bytes), self.volume_of(self.to, item, there))?;
        let (Ok((ours, bytes)), Ok((theirs, bytes_there))) = (ours, theirs) else { return Ok(false) };
        if bytes != bytes_there {
            return Ok(false);
        }
        let (ours, theirs) =
            tokio::try_join!(self.footer(self.from, &ours, bytes), self.footer(self.to, &theirs, bytes))?;
        let (Ok(ours), Ok(theirs)) = (ours, theirs) else { return Ok(false) };
        Ok((ours.entry.digest, ours.entry.chunks, ours.signer)
            == (theirs.entry.digest, theirs.entry.chunks, theirs.signer))
    }

    /// Where the volume lies of which an object of `bytes` bytes has the name, and its size; what is wrong otherwise.
    async fn volume_of(
        &self,
        repository: &Repository,
        item: &Item<'_>,
        bytes: u64,
    ) -> Result<std::result::Result<(Path, u64), String>> {
        let itself = Ok((item.object.clone(), bytes));
        let Some(file) = item.name.file().filter(|_| bytes <= REFERENCE_LEN_MAX as u64) else { return Ok(itself) };
        let read = self.read_whole(repository, &item.object, bytes).await?;
        Ok(read.and_then(|head| {
            if !Reference::is_one(&head) {
                return itself;
            }
            let reference =
                Reference::decode(&head, &file.to_string()).map_err(|e| format!("damaged at offset 0: {e}"))?;
            let folder = item.name.archive(item.target).timeline(file.timeline());
            Ok((folder.join(reference.object.as_str()), reference.bytes))
        }))
    }

    /// The same, where one of them was sealed once more: two objects are of one file if it has the same BLAKE3 in both headers.
    pub(super) async fn same_file_or_not(&self, item: &Item<'_>) -> Result<()> {
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
        if ours.header().plaintext != theirs.header().plaintext {
            return match ours.claimed().await {
                // Not believed, or damaged: then it says nothing against what is there.
                Err(e) if e.kind() == ErrorKind::Integrity => {
                    self.damaged_file(item, ours.path(), e.in_one_line()).await
                }
                Err(e) => Err(e),
                Ok(_) => Err(self.differs(&item.object)),
            };
        }
        // Nothing else compares one seal with another, so what is there must be sound in itself.
        let wrong = match self.options.quick {
            true => match theirs.claimed().await {
                Err(e) if e.kind() == ErrorKind::Integrity => Some(e.in_one_line()),
                Err(e) => return Err(e),
                Ok(_) => None,
            },
            false => theirs.wrong(&self.budget).await?,
        };
        if wrong.is_some() {
            return Err(self.differs(&item.object));
        }
        self.tally().same(Kind::Wal);
        Ok(())
    }
}
