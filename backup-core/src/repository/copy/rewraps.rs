//! Data keys that were wrapped again.

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use super::{Kind, OBJECTS, Run};
use crate::error::{ErrorKind, Result, Stage};
use crate::format::{FormatError, REWRAP_LEN_MAX, Rewrap};
use crate::repository::is_taken;
use crate::repository::layout::TargetName;

impl Run<'_> {
    /// All of a target's rewraps below `prefix`: its folder of keys, or that of one key.
    pub(super) async fn rewraps_below(&self, target: &TargetName, prefix: &Path) -> Result<()> {
        let failed = |e| self.from.error(e, "list", prefix).at(Stage::Catalog);
        let objects = self.from.store().list(Some(prefix)).map_err(failed);
        self.each(objects, OBJECTS, |object| self.rewrap(target, object.location)).await
    }

    async fn rewrap(&self, target: &TargetName, object: Path) -> Result<()> {
        let Some((key, _)) = target.parse_rewrap(&object) else {
            self.tally().leave_alone(&object);
            return Ok(());
        };
        let bytes = match self.from.read_small(&object, REWRAP_LEN_MAX).await {
            Ok(Some(bytes)) => bytes,
            // Removed meanwhile.
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Integrity => {
                self.problem(&object, e.in_one_line());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        match Rewrap::decode(&bytes) {
            Ok(rewrap) if rewrap.target == target.as_str() && rewrap.data_key == key.data_key() => {}
            Ok(_) => {
                self.problem(&object, "it is of another data key (offset 0)");
                return Ok(());
            }
            Err(FormatError::Version(_) | FormatError::Critical(_)) => {
                self.tally().leave_alone(&object);
                return Ok(());
            }
            Err(e) => {
                self.problem(&object, format!("damaged at offset 0: {e}"));
                return Ok(());
            }
        }
        match self.to.read_small(&object, REWRAP_LEN_MAX).await {
            Ok(Some(there)) if there == bytes => {
                self.tally().same(Kind::Rewrap);
                return Ok(());
            }
            Ok(None) => {}
            Ok(Some(_)) => return Err(self.differs(&object)),
            Err(e) if e.kind() == ErrorKind::Integrity => return Err(self.differs(&object)),
            Err(e) => return Err(e),
        }
        let len = bytes.len();
        if !self.options.dry_run {
            self.create(&object, bytes).await?;
            self.counters.add_transferred(len);
        }
        self.tally().copied(Kind::Rewrap, len as u64);
        Ok(())
    }

    /// Creates a small object, which may have come to be meanwhile.
    pub(super) async fn create(&self, object: &Path, bytes: bytes::Bytes) -> Result<()> {
        match self.to.put_once(object, bytes.into()).await {
            Err(e) if is_taken(&e) => Err(self.differs(object)),
            done => done,
        }
    }
}
