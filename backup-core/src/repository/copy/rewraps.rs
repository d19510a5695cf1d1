//! Data keys that were wrapped again.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use super::{Kind, OBJECTS, Run, folder};
use crate::error::{ErrorKind, Result, Stage};
use crate::format::{FormatError, REWRAP_LEN_MAX, Rewrap};
use crate::repository::layout::TargetName;

/// Why a rewrap is not copied.
enum Unfit {
    /// It was removed meanwhile.
    Gone,
    /// This release does not know what it is.
    Unknown,
    /// What is wrong with it.
    Damaged(String),
}

impl Run<'_> {
    /// All of a target's rewraps below `prefix`: its folder of keys, or that of one key.
    pub(super) async fn rewraps_below(&self, target: &TargetName, prefix: &Path) -> Result<()> {
        let failed = |e| self.from.error(e, "list", prefix).at(Stage::Catalog);
        let objects = self.from.store().list(Some(prefix)).map_err(failed);
        self.each(objects, OBJECTS, |object| self.rewrap(target, object.location)).await
    }

    /// What the destination lacks of a data key's rewraps, once more. They came long before the manifest of their backup, so a prune there may have
    /// taken them for those of one that is gone; what is wrong with any was told then.
    pub(super) async fn rewraps_again(&self, target: &TargetName, data_key: &str) -> Result<()> {
        let Some(key) = target.key(data_key) else { return Ok(()) };
        let prefix = key.prefix();
        let held = folder(self.to, &prefix).await?;
        for name in folder(self.from, &prefix).await?.into_keys().filter(|name| !held.contains_key(name)) {
            let object = prefix.clone().join(name);
            if let Ok(bytes) = self.sound_rewrap(target, &object).await? {
                self.small_object(Kind::Rewrap, &object, bytes, REWRAP_LEN_MAX).await?;
            }
        }
        Ok(())
    }

    async fn rewrap(&self, target: &TargetName, object: Path) -> Result<()> {
        let bytes = match self.sound_rewrap(target, &object).await? {
            Ok(bytes) => bytes,
            Err(Unfit::Gone) => return Ok(()),
            Err(Unfit::Unknown) => {
                self.tally().leave_alone(&object);
                return Ok(());
            }
            Err(Unfit::Damaged(problem)) => {
                self.problem(&object, problem);
                return Ok(());
            }
        };
        self.small_object(Kind::Rewrap, &object, bytes, REWRAP_LEN_MAX).await
    }

    /// A rewrap at the source; why it is not to be copied.
    async fn sound_rewrap(&self, target: &TargetName, object: &Path) -> Result<std::result::Result<Bytes, Unfit>> {
        let Some((key, _)) = target.parse_rewrap(object) else { return Ok(Err(Unfit::Unknown)) };
        let bytes = match self.from.read_small(object, REWRAP_LEN_MAX).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Err(Unfit::Gone)),
            Err(e) if e.kind() == ErrorKind::Integrity => return Ok(Err(Unfit::Damaged(e.in_one_line()))),
            Err(e) => return Err(e),
        };
        Ok(match Rewrap::decode(&bytes) {
            Ok(rewrap) if rewrap.target == target.as_str() && rewrap.data_key == key.data_key() => Ok(bytes),
            Ok(_) => Err(Unfit::Damaged("it is of another data key (offset 0)".to_owned())),
            Err(FormatError::Version(_) | FormatError::Critical(_)) => Err(Unfit::Unknown),
            Err(e) => Err(Unfit::Damaged(format!("damaged at offset 0: {e}"))),
        })
    }
}
