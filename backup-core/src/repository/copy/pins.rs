//! Pins: without them, a prune of the destination would remove what somebody wants to be kept.

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use super::{Kind, OBJECTS, Run};
use crate::error::{ErrorKind, Result, Stage};
use crate::repository::layout::TargetName;
use crate::repository::pins::PIN_LEN_MAX;

impl Run<'_> {
    /// All of a target's pins below `prefix`: its folder of pins, or that of one backup. They are copied as they are: what cannot be read holds, too.
    pub(super) async fn pins_below(&self, target: &TargetName, prefix: &Path) -> Result<()> {
        let failed = |e| self.from.error(e, "list", prefix).at(Stage::Catalog);
        let objects = self.from.store().list(Some(prefix)).map_err(failed);
        self.each(objects, OBJECTS, |object| self.pin(target, object.location)).await
    }

    async fn pin(&self, target: &TargetName, object: Path) -> Result<()> {
        if target.parse_pin(&object).is_none() {
            self.tally().leave_alone(&object);
            return Ok(());
        }
        match self.from.read_small(&object, PIN_LEN_MAX).await {
            Ok(Some(bytes)) => self.small_object(Kind::Pin, &object, bytes, PIN_LEN_MAX).await,
            // Removed meanwhile.
            Ok(None) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Integrity => {
                self.problem(&object, e.in_one_line());
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}
