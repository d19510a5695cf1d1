//! Pins: what somebody wants to be kept, why, and until when.
//!
//! A pin is an object of its own, created once under a name that nobody can guess, so two people who pin one backup make two pins, and the
//! backup is pinned while one of them holds. They lie in a folder of their own, and not beside the manifest: who may delete backups need not be
//! able to delete pins.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

use super::Repository;
use super::layout::{BackupId, BackupPath, TargetName};
use super::runs::Who;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::json;

/// The longest pin in bytes.
pub(super) const PIN_LEN_MAX: usize = 16 * 1024;
/// The longest reason in bytes.
const REASON_LEN_MAX: usize = 1000;
/// Pins on their way at once.
const FETCHES: usize = 8;

/// Why a backup is to be kept, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The format's major version: 1.
    pub format: u32,
    /// The target of the backup.
    pub target: TargetName,
    /// The backup.
    pub backup: BackupId,
    /// Why.
    pub reason: String,
    /// Until when; for ever if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// When it was pinned.
    pub created: Timestamp,
    /// Who did it, by the word of that host.
    pub who: Who,
}

impl Pin {
    /// Whether it holds at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// One that cannot be read holds for ever: it may say so.
    fn unreadable(path: &BackupPath) -> Self {
        Self {
            format: 1,
            target: path.target.clone(),
            backup: path.id.clone(),
            reason: "this pin cannot be read".to_owned(),
            until: None,
            created: path.id.timestamp(),
            who: Who { user: String::new(), host: String::new(), pid: 0, program: String::new() },
        }
    }

    fn decode(path: &BackupPath, bytes: &[u8]) -> Self {
        let of_it = |pin: &Self| pin.target == path.target && pin.backup == path.id;
        json::parse::<Self>("pin", bytes).ok().filter(of_it).unwrap_or_else(|| Self::unreadable(path))
    }
}

impl Repository {
    /// Pins a backup, until a moment or for ever.
    ///
    /// A backup that is removed while it is pinned is found to be gone, unless that happens within the one request by which it is removed: see
    /// `docs/RETENTION.md`. Cancel safety: the pin may or may not be there.
    ///
    /// # Errors
    /// `NotFound` when there is no such backup, `Config` when the reason is empty or has more than 1,000 bytes, and those of the store.
    pub async fn pin(
        &self,
        path: &BackupPath,
        reason: &str,
        until: Option<Timestamp>,
        who: Who,
        clock: &dyn Clock,
    ) -> Result<Pin> {
        let reason = reason.trim();
        if reason.is_empty() || reason.len() > REASON_LEN_MAX {
            return Err(Error::config(format!("the reason of a pin has 1 to {REASON_LEN_MAX} bytes")));
        }
        self.must_exist(path).await?;
        let pin = Pin {
            format: 1,
            target: path.target.clone(),
            backup: path.id.clone(),
            reason: reason.to_owned(),
            until,
            created: clock.now(),
            who,
        };
        let mut bytes = serde_json::to_vec(&pin)
            .map_err(|e| Error::internal(Stage::Commit, "a pin cannot be written").with_source(e))?;
        bytes.push(b'\n');
        let object = path.new_pin();
        self.put_once(&object, PutPayload::from(bytes)).await?;
        // A prune may have been faster. What it has not begun to remove yet, it finds pinned.
        if let Err(gone) = self.must_exist(path).await {
            if gone.kind() == ErrorKind::NotFound {
                let _ = self.store().delete(&object).await;
            }
            return Err(gone);
        }
        Ok(pin)
    }

    /// Removes all pins of a backup; returns how many there were. The backup need not exist any more.
    ///
    /// # Errors
    /// Those of the store. Cancel safety: some may be removed, and others not yet.
    pub async fn unpin(&self, path: &BackupPath) -> Result<usize> {
        let folder = path.pins();
        let listing = self.store().list(Some(&folder)).map_ok(|object| object.location);
        let objects: Vec<Path> = listing.try_collect().await.map_err(|e| self.error(e, "list", &folder))?;
        for object in &objects {
            match self.store().delete(object).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(self.error(e, "remove", object)),
            }
        }
        Ok(objects.len())
    }

    /// All pins of a target's backups, those that do not hold any more too. One request for each thousand, and one for each pin.
    ///
    /// # Errors
    /// Those of the store. Cancel safe.
    pub async fn pins(&self, target: &TargetName) -> Result<BTreeMap<BackupId, Vec<Pin>>> {
        self.read_pins(target, target.pins()).await
    }

    /// The pins of one backup.
    ///
    /// # Errors
    /// Those of the store. Cancel safe.
    pub async fn pins_of(&self, path: &BackupPath) -> Result<Vec<Pin>> {
        Ok(self.read_pins(&path.target, path.pins()).await?.remove(&path.id).unwrap_or_default())
    }

    async fn read_pins(&self, target: &TargetName, folder: Path) -> Result<BTreeMap<BackupId, Vec<Pin>>> {
        let listing = self.store().list(Some(&folder)).map_err(|e| self.error(e, "list", &folder));
        let read = listing.map_ok(|object| async move {
            let Some(path) = target.parse_pin(&object.location) else { return Ok(None) };
            match self.read_small(&object.location, PIN_LEN_MAX).await {
                Ok(bytes) => Ok(bytes.map(|bytes| Pin::decode(&path, &bytes))),
                // Too long: it is there, and says nothing that can be read.
                Err(e) if e.kind() == ErrorKind::Integrity => Ok(Some(Pin::unreadable(&path))),
                Err(e) => Err(e),
            }
        });
        let mut pins: BTreeMap<BackupId, Vec<Pin>> = BTreeMap::new();
        let mut read = read.try_buffer_unordered(FETCHES).boxed();
        while let Some(pin) = read.try_next().await? {
            let Some(pin) = pin else { continue };
            pins.entry(pin.backup.clone()).or_default().push(pin);
        }
        for of_one in pins.values_mut() {
            of_one.sort_by(|a, b| (a.created, &a.reason).cmp(&(b.created, &b.reason)));
        }
        Ok(pins)
    }

    async fn must_exist(&self, path: &BackupPath) -> Result<()> {
        let manifest = path.manifest();
        match self.store().head(&manifest).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => Err(super::no_backup(path)),
            Err(e) => Err(self.error(e, "read", &manifest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn who() -> Who {
        Who { user: "dba".into(), host: "db1".into(), pid: 7, program: "backup 0.1.0".into() }
    }

    #[tokio::test]
    async fn two_pins_at_once_are_two_and_what_cannot_be_read_holds_for_ever() {
        let repository = Repository::in_memory().await.unwrap();
        let target: TargetName = "app".parse().unwrap();
        let path = target.backup(&BackupId::generate(&SystemClock));
        let missing = repository.pin(&path, "audit", None, who(), &SystemClock).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert_eq!(repository.pins(&target).await.unwrap().len(), 0, "nothing is left of a pin that failed");
        repository.store().put(&path.manifest(), "{}".into()).await.unwrap();
        for reason in ["", " \n", &"x".repeat(1001)] {
            let refused = repository.pin(&path, reason, None, who(), &SystemClock).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Config);
        }
        let until = SystemClock.now() + jiff::SignedDuration::from_hours(1);
        let first = repository.pin(&path, " audit ", None, who(), &SystemClock).await.unwrap();
        let second = repository.pin(&path, "court", Some(until), who(), &SystemClock).await.unwrap();
        let junk = path.new_pin();
        repository.store().put(&junk, "junk".into()).await.unwrap();
        let pins = repository.pins_of(&path).await.unwrap();
        assert_eq!(pins.len(), 3);
        assert!(pins.contains(&first) && pins.contains(&second), "{pins:?}");
        let holding = |now| pins.iter().filter(|pin| pin.holds(now)).count();
        assert_eq!((holding(SystemClock.now()), holding(until)), (3, 2));
        assert_eq!(first.reason, "audit");
        assert_eq!(repository.pins(&target).await.unwrap()[&path.id], pins);
        assert_eq!(repository.unpin(&path).await.unwrap(), 3);
        assert_eq!(repository.unpin(&path).await.unwrap(), 0);
        assert_eq!(repository.pins_of(&path).await.unwrap(), []);
    }
}
