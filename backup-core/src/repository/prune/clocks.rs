//! What time it is: here, by which backups are old; and at the store, whose times objects have.

use jiff::{SignedDuration, Timestamp};
use object_store::{ObjectMeta, ObjectStoreExt};

use super::Prune;
use crate::error::{Error, Result, Stage};

/// A clock that is ahead would find everything too old.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Two clocks, read at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) now: Timestamp,
    store: Timestamp,
}

impl Clocks {
    pub(super) async fn read(prune: &Prune) -> Result<Self> {
        let now = prune.clock.now();
        let Some(witness) = &prune.witness else { return Ok(Self { now, store: now }) };
        let repository = &prune.repository;
        let meta = repository.store().head(witness).await.map_err(|e| repository.error(e, "read", witness))?;
        let store = modified(&meta);
        if now.duration_since(store) > AHEAD_MAX && !prune.dry_run {
            let message = format!("this host's clock says {now}, and that of {repository} {store}");
            return Err(Error::config(message)
                .at(Stage::Setup)
                .with_hint("by a clock that is ahead everything is too old; set it and try again"));
        }
        Ok(Self { now, store })
    }

    /// A moment so long ago, by the store's clock.
    pub(super) fn store_before(self, age: SignedDuration) -> Timestamp {
        self.store.checked_sub(age).unwrap_or(Timestamp::MIN)
    }
}

/// When an object came, by the store's clock.
pub(super) fn modified(meta: &ObjectMeta) -> Timestamp {
    let nanoseconds = i32::try_from(meta.last_modified.timestamp_subsec_nanos()).unwrap_or(0);
    // One that cannot be told is not old.
    Timestamp::new(meta.last_modified.timestamp(), nanoseconds).unwrap_or(Timestamp::MAX)
}
