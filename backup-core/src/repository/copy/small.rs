//! Objects that are read and stored whole, and compared byte for byte.

use bytes::Bytes;
use object_store::path::Path;

use super::{Kind, Run};
use crate::error::{ErrorKind, Result};
use crate::repository::is_taken;

impl Run<'_> {
    /// Copies an object of `bytes`, of which there are at most `bytes_max`, unless the destination has it.
    pub(super) async fn small_object(&self, kind: Kind, object: &Path, bytes: Bytes, bytes_max: usize) -> Result<()> {
        if self.holds(object, &bytes, bytes_max).await? {
            self.tally().same(kind);
            return Ok(());
        }
        let len = bytes.len();
        if !self.options.dry_run {
            self.create(object, bytes).await?;
            self.counters.add_transferred(len);
        }
        self.tally().copied(kind, len as u64);
        Ok(())
    }

    /// Whether the destination has this object, byte for byte.
    pub(super) async fn holds(&self, object: &Path, bytes: &Bytes, bytes_max: usize) -> Result<bool> {
        match self.to.read_small(object, bytes_max).await {
            Ok(None) => Ok(false),
            Ok(Some(there)) if there == *bytes => Ok(true),
            Ok(Some(_)) => Err(self.differs(object)),
            Err(e) if e.kind() == ErrorKind::Integrity => Err(self.differs(object)),
            Err(e) => Err(e),
        }
    }

    /// Creates an object, which may have come to be meanwhile.
    pub(super) async fn create(&self, object: &Path, bytes: Bytes) -> Result<()> {
        match self.to.put_once(object, bytes.into()).await {
            Err(e) if is_taken(&e) => Err(self.differs(object)),
            done => done,
        }
    }
}
