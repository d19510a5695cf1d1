//! Data keys that were wrapped again.

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use super::{Kind, OBJECTS, Run};
use crate::error::{ErrorKind, Result, Stage};
use crate::format::{FormatError, REWRAP_LEN_MAX, Rewrap};
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
        self.small_object(Kind::Rewrap, &object, bytes, REWRAP_LEN_MAX).await
    }
}
