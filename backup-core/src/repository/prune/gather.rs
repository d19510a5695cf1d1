//! What a target holds, as far as a decision needs it. In memory are some hundred bytes for each backup.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt};

use super::clocks::{Clocks, modified};
use super::report::Removed;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Condition, FormatError, Kind};
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::repository::layout::{BackupPath, MANIFEST, RUNNING, TargetName};
use crate::repository::pins::Pin;
use crate::repository::retention::wal::{Archive, RunningBackup, RunningNeeds};
use crate::repository::retention::{Facts, Standing};
use crate::repository::running::{RUNNING_LEN_MAX, Running};
use crate::repository::{Found, Listed, Repository, is_untrusted};
use crate::wal_archive::kept::{ArchiveObject, parse_object};

/// What a target holds.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Complete backups, the oldest first.
    pub(super) facts: Vec<Facts>,
    /// The data key of each, by its place in `facts`; `None` where it cannot be told.
    pub(super) data_keys: Vec<Option<String>>,
    /// Runs that have not ended.
    pub(super) unfinished: Vec<Unfinished>,
    /// Its log.
    pub(super) archives: BTreeMap<SystemIdentifier, Archive>,
    /// Segments of which there are pieces, and which are there as a whole.
    pub(super) superseded: BTreeSet<(SystemIdentifier, SegmentName)>,
}

/// A folder without a manifest.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) path: BackupPath,
    pub(super) size: Removed,
    /// When the newest of it came.
    pub(super) newest: Timestamp,
    /// What it may need of the log.
    pub(super) needs: RunningNeeds,
}

impl Unfinished {
    pub(super) fn as_running(&self) -> RunningBackup {
        RunningBackup { id: self.path.id.clone(), needs: self.needs }
    }

    /// The same of one that was looked at again, and is alive: what it said before `old_before` it may have said of another attempt.
    pub(super) fn as_running_since(&self, old_before: Timestamp) -> RunningBackup {
        let needs = if self.newest > old_before { self.needs } else { RunningNeeds::Unknown };
        RunningBackup { needs, ..self.as_running() }
    }
}

impl Holdings {
    /// Lists a target: its backups, pins and log.
    pub(super) async fn gather(repository: &Repository, target: &TargetName, clocks: Clocks) -> Result<Self> {
        let pins = repository.pins(target).await?;
        let mut found = Self::default();
        let mut listing = repository.list(Some(target));
        while let Some(listed) = listing.try_next().await? {
            match listed {
                Listed::Backup(backup) => {
                    found.data_keys.push(Some(backup.manifest.data_key.clone()));
                    found.facts.push(facts_of(&backup));
                }
                Listed::Unreadable(path, error) => {
                    let standing = standing_of(error)?;
                    found.data_keys.push(None);
                    found.facts.push(without_manifest(&path, standing));
                }
                Listed::Unfinished(path) => found.unfinished.extend(unfinished(repository, path).await?),
                Listed::UnreadableTarget(_, error) => return Err(error),
            }
        }
        for facts in &mut found.facts {
            let pins: &[Pin] = pins.get(&facts.id).map_or(&[], Vec::as_slice);
            facts.pins = holding(pins, clocks);
        }
        found.look_at_log(repository, target).await?;
        Ok(found)
    }

    async fn look_at_log(&mut self, repository: &Repository, target: &TargetName) -> Result<()> {
        let prefix = target.wal();
        let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
        let mut in_pieces = BTreeSet::new();
        let mut listing = repository.store().list(Some(&prefix));
        while let Some(object) = listing.try_next().await.map_err(failed)? {
            let Some((cluster, what)) = parse_object(target, &object.location) else { continue };
            let archive = self.archives.entry(cluster).or_default();
            match what {
                ArchiveObject::File(WalFile::Segment(segment) | WalFile::Partial(segment)) => {
                    archive.add(segment, modified(&object));
                }
                ArchiveObject::Piece(segment) => {
                    archive.add(segment, modified(&object));
                    in_pieces.insert((cluster, segment));
                }
                ArchiveObject::File(WalFile::History(_) | WalFile::BackupLabel(..)) | ArchiveObject::Large(_) => {}
            }
        }
        for (cluster, segment) in in_pieces {
            let whole = target.wal_of(cluster).file(WalFile::Segment(segment));
            match repository.store().head(&whole).await {
                Ok(_) => drop(self.superseded.insert((cluster, segment))),
                Err(StoreError::NotFound { .. }) => {}
                Err(e) => return Err(repository.error(e, "read", &whole)),
            }
        }
        Ok(())
    }
}

/// Pins that hold, as the policy wants them.
pub(super) fn holding(pins: &[Pin], clocks: Clocks) -> Vec<(String, Option<Timestamp>)> {
    pins.iter().filter(|pin| pin.holds(clocks.now)).map(|pin| (pin.reason.clone(), pin.until)).collect()
}

fn facts_of(found: &Found) -> Facts {
    let manifest = &found.manifest;
    let standing = match (&manifest.kind, manifest.condition) {
        (Kind::Other(kind), _) => Standing::UnknownKind(kind.clone()),
        (_, Condition::Good) => Standing::Good,
        (_, Condition::Damaged) => Standing::Damaged,
    };
    Facts {
        id: found.path.id.clone(),
        started: manifest.started,
        standing,
        requires: manifest.requires.clone(),
        cluster: manifest.cluster.clone(),
        pins: Vec::new(),
        stored_bytes: manifest.stored_bytes().saturating_add(found.raw.len() as u64),
    }
}

fn without_manifest(path: &BackupPath, standing: Standing) -> Facts {
    Facts {
        id: path.id.clone(),
        started: path.id.timestamp(),
        standing,
        requires: Vec::new(),
        cluster: None,
        pins: Vec::new(),
        stored_bytes: 0,
    }
}

/// What a manifest is that cannot be read. One that this host may not read could say anything: that is an error.
fn standing_of(error: Error) -> Result<Standing> {
    use std::error::Error as _;
    if is_untrusted(&error) {
        return Ok(Standing::Untrusted);
    }
    match error.source().and_then(|source| source.downcast_ref::<FormatError>()) {
        Some(FormatError::Version(_) | FormatError::Critical(_)) => Ok(Standing::Newer),
        _ if error.kind() == ErrorKind::Integrity => Ok(Standing::Unreadable),
        _ => Err(error),
    }
}

/// A folder without a manifest; `None` when it is gone.
pub(super) async fn unfinished(repository: &Repository, path: BackupPath) -> Result<Option<Unfinished>> {
    let (prefix, mut size, mut newest) = (path.prefix(), Removed::default(), None);
    let (mut has_manifest, mut is_running) = (false, false);
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let mut listing = repository.store().list(Some(&prefix));
    while let Some(object) = listing.try_next().await.map_err(failed)? {
        size += Removed { objects: 1, bytes: object.size };
        newest = newest.max(Some(modified(&object)));
        let name = object.location.filename();
        has_manifest |= name == Some(MANIFEST);
        is_running |= name == Some(RUNNING);
    }
    let Some(newest) = newest else { return Ok(None) };
    let needs = match (has_manifest, is_running) {
        // It has ended since it was looked at: nothing is known of it, and the next prune will know.
        (true, _) => return Ok(Some(Unfinished { path, size, newest: Timestamp::MAX, needs: RunningNeeds::Unknown })),
        (false, true) => needs_of(repository, &path).await?,
        (false, false) => RunningNeeds::Nothing,
    };
    Ok(Some(Unfinished { path, size, newest, needs }))
}

async fn needs_of(repository: &Repository, path: &BackupPath) -> Result<RunningNeeds> {
    match repository.read_small(&path.running(), RUNNING_LEN_MAX).await {
        Ok(Some(bytes)) => Ok(Running::decode(&bytes).map_or(RunningNeeds::Unknown, |running| running.needs())),
        // It has ended in this very moment, one way or the other.
        Ok(None) => Ok(RunningNeeds::Unknown),
        Err(e) if e.kind() == ErrorKind::Integrity => Ok(RunningNeeds::Unknown),
        Err(e) => Err(e),
    }
}
