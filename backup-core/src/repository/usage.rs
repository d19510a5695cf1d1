//! How much a repository holds, by target and kind, and how much room there is.
//!
//! Of backups the manifests tell, one small request each; of the log a listing does, one request for each thousand files. Volumes are not
//! listed.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::ObjectStore;
use serde::Serialize;

use super::catalog::concerns_one_target;
use super::layout::TargetName;
use super::prune::unfinished_size;
use super::{Listed, Repository};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Kind;

/// What a repository holds.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Usage {
    /// By target.
    pub targets: Vec<TargetUsage>,
    /// Targets that the store does not let this host look at, and what it said. What they hold is not counted.
    pub refused: Vec<(TargetName, Error)>,
}

/// What one target holds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TargetUsage {
    /// The target.
    pub target: TargetName,
    /// Complete backups, by what they are of, as the manifest spells it.
    pub backups: BTreeMap<String, Amount>,
    /// Files of log.
    pub wal: Amount,
    /// What runs have written that have not ended, or died.
    pub unfinished: Amount,
    /// Backups whose manifests cannot be read, so nobody knows how large they are.
    pub unreadable: u64,
}

/// How many, and how large all of them are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Amount {
    /// How many backups, or files.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Capacity {
    /// What tells.
    pub of: CapacityOf,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are taken.
    pub used: u64,
}

/// What tells how much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CapacityOf {
    /// What somebody is willing to pay for.
    Budget,
    /// The file system of a local directory, with all that is on it.
    FileSystem,
}

impl Capacity {
    /// Room of so many bytes, for what `usage` says.
    pub fn of_budget(bytes: u64, usage: &Usage) -> Self {
        Self { of: CapacityOf::Budget, bytes, used: usage.bytes() }
    }

    /// How much of it is taken, in per cent, rounded up: more than nothing is not nothing, and more than all is more than 100.
    pub fn percent(&self) -> u64 {
        if self.bytes == 0 {
            return if self.used == 0 { 0 } else { u64::MAX };
        }
        let percent = (u128::from(self.used) * 100).div_ceil(u128::from(self.bytes));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }
}

impl TargetUsage {
    /// All bytes that are known of.
    pub fn bytes(&self) -> u64 {
        let all = self.backups.values().chain([&self.wal, &self.unfinished]);
        all.fold(0, |sum, amount| sum.saturating_add(amount.bytes))
    }
}

impl Usage {
    /// What `targets` hold. Cancel safe.
    ///
    /// # Errors
    /// When the store cannot be asked; that it refuses one target says nothing of others.
    pub async fn read(repository: &Repository, targets: &[TargetName]) -> Result<Self> {
        let mut usage = Self::default();
        for target in targets {
            match of_target(repository, target).await {
                Ok(of_target) => usage.targets.push(of_target),
                Err(e) if concerns_one_target(&e) => usage.refused.push((target.clone(), e)),
                Err(e) => return Err(e),
            }
        }
        Ok(usage)
    }

    /// All bytes that are known of.
    pub fn bytes(&self) -> u64 {
        self.targets.iter().fold(0, |sum, target| sum.saturating_add(target.bytes()))
    }
}

impl Repository {
    /// How much room there is on the file system of a local directory; `None` for other repositories. Asks the system, and lists nothing. Blocks
    /// for a moment.
    ///
    /// # Errors
    /// `Storage` when the system does not say.
    pub fn file_system(&self) -> Result<Option<Capacity>> {
        let Some(directory) = self.directory() else { return Ok(None) };
        let stat = rustix::fs::statvfs(directory).map_err(|e| {
            let message = format!("cannot ask how much room there is in {}", directory.display());
            Error::new(ErrorKind::Storage, Stage::Catalog, message).with_source(std::io::Error::from(e))
        })?;
        // What is kept for root is neither taken nor free; so does df.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(Some(Capacity { of: CapacityOf::FileSystem, bytes: used.saturating_add(free), used }))
    }
}

async fn of_target(repository: &Repository, target: &TargetName) -> Result<TargetUsage> {
    let mut usage = TargetUsage {
        target: target.clone(),
        backups: BTreeMap::new(),
        wal: Amount::default(),
        unfinished: Amount::default(),
        unreadable: 0,
    };
    let mut listing = repository.list(Some(target));
    while let Some(listed) = listing.try_next().await? {
        match listed {
            Listed::Backup(found) => {
                let bytes = found.manifest.stored_bytes().saturating_add(found.raw.len() as u64);
                usage.backups.entry(word(&found.manifest.kind)).or_default().add(bytes);
            }
            Listed::Unreadable(..) => usage.unreadable += 1,
            Listed::Unfinished(path) => usage.unfinished.add(unfinished_size(repository, path).await?),
            Listed::UnreadableTarget(_, error) => return Err(error),
        }
    }
    let prefix = target.wal();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let mut files = repository.store().list(Some(&prefix));
    while let Some(file) = files.try_next().await.map_err(failed)? {
        usage.wal.add(file.size);
    }
    Ok(usage)
}

/// As the manifest spells it.
fn word(kind: &Kind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;
    use crate::clock::SystemClock;
    use crate::repository::Location;
    use crate::repository::layout::BackupId;

    #[tokio::test]
    async fn what_lies_there_is_counted_by_what_it_is() {
        let repository = Repository::in_memory().await.unwrap();
        let target: TargetName = "app".parse().unwrap();
        let store = repository.store();
        let unfinished = target.backup(&BackupId::generate(&SystemClock));
        for (path, bytes) in [
            (unfinished.running(), "1234"),
            (unfinished.named("data.00000.vol"), "123456"),
            (target.wal().join("7").join("00000001").join("000000010000000000000001.vol"), "12345"),
        ] {
            store.put(&path, bytes.into()).await.unwrap();
        }
        let unreadable = target.backup(&BackupId::generate(&SystemClock));
        store.put(&unreadable.manifest(), "junk".into()).await.unwrap();
        let usage = Usage::read(&repository, &[target]).await.unwrap();
        let of = &usage.targets[0];
        assert_eq!((of.wal, of.unfinished), (Amount { count: 1, bytes: 5 }, Amount { count: 1, bytes: 10 }));
        assert_eq!((usage.bytes(), of.unreadable), (15, 1));
        assert_eq!(repository.file_system().unwrap(), None);
    }

    #[test]
    fn shares_are_rounded_up() {
        let percent = |used, bytes| Capacity { of: CapacityOf::Budget, bytes, used }.percent();
        assert_eq!([percent(0, 10), percent(1, 1000), percent(80, 100), percent(1001, 1000)], [0, 1, 80, 101]);
        assert_eq!([percent(0, 0), percent(1, 0), percent(u64::MAX, u64::MAX)], [0, u64::MAX, 100]);
    }

    #[tokio::test]
    async fn a_directory_has_the_room_of_its_file_system() {
        let temp = tempfile::tempdir().unwrap();
        let (repository, _) = Repository::init(&Location::directory(temp.path()).unwrap(), &SystemClock).await.unwrap();
        let capacity = repository.file_system().unwrap().unwrap();
        assert!(capacity.used <= capacity.bytes && capacity.bytes > 0, "{capacity:?}");
    }
}
