//! What a prune did, or would do.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use jiff::Timestamp;

use crate::postgres::wal::{SystemIdentifier, Timeline};
use crate::repository::layout::{BackupId, TargetName};
use crate::repository::retention::wal::WalReason;
use crate::repository::retention::{Facts, Reason, Standing, Verdict};

/// How much was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// Objects.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl AddAssign for Removed {
    fn add_assign(&mut self, other: Self) {
        self.objects = self.objects.saturating_add(other.objects);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What a prune did; or would do, when it was a dry run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// By target.
    pub targets: Vec<TargetReport>,
    /// Files of uploads into a local directory that were never completed.
    pub staging: Removed,
    /// Multipart uploads into a bucket that were never completed.
    pub uploads: UploadsReport,
    /// All that was removed.
    pub removed: Removed,
    /// What could not be done: at most 100.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problem_count: u64,
}

/// Multipart uploads that nobody will complete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct UploadsReport {
    /// How many were aborted. How much they took no store says.
    pub aborted: u64,
    /// Why the others are left, when the store refuses to list or to abort them.
    pub refused: Option<String>,
}

/// What could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object, or the target.
    pub object: String,
    /// Why not.
    pub problem: String,
}

/// The same for one target.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TargetReport {
    /// The target.
    pub target: TargetName,
    /// Its backups, the oldest first.
    pub backups: Vec<BackupReport>,
    /// Runs that have not ended.
    pub unfinished: Vec<UnfinishedReport>,
    /// Its log: files of one timeline that have one fate.
    pub wal: Vec<WalReport>,
    /// Data keys that were wrapped again, and that nothing has any more.
    pub rewraps: Removed,
}

/// A backup, and what became of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackupReport {
    /// Its id.
    pub id: BackupId,
    /// When it began.
    pub started: Timestamp,
    /// What it is worth.
    pub standing: Standing,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Why it is kept. It goes when there is no reason.
    pub reasons: Vec<Reason>,
}

/// A run that has not ended, and what became of what it left.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnfinishedReport {
    /// Its id.
    pub id: BackupId,
    /// When the newest of its objects came, by the store's clock.
    pub newest: Timestamp,
    /// Objects and bytes.
    pub size: Removed,
    /// Whether it was left alone: it is younger than the grace.
    pub kept: bool,
}

/// Files of the log that have one fate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalReport {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The timeline.
    pub timeline: Timeline,
    /// What becomes of them.
    pub fate: WalFate,
    /// The name that sorts first.
    pub first: String,
    /// The name that sorts last.
    pub last: String,
    /// Objects and bytes.
    pub size: Removed,
}

/// What becomes of a file of the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WalFate {
    /// It goes: nothing needs it.
    Expired,
    /// It goes: a piece of a segment that is there as a whole.
    Superseded,
    /// It goes: a large object that nothing refers to.
    Orphaned,
    /// It stays.
    Kept(WalReason),
}

impl TargetReport {
    /// What of the log goes.
    pub fn removed_log(&self) -> Removed {
        let mut removed = Removed::default();
        for wal in self.wal.iter().filter(|wal| !matches!(wal.fate, WalFate::Kept(_))) {
            removed += wal.size;
        }
        removed
    }
}

impl BackupReport {
    pub(super) fn new(facts: &Facts, verdict: Verdict, sizes: &BTreeMap<BackupId, Removed>) -> Self {
        Self {
            id: verdict.id.clone(),
            started: facts.started,
            standing: facts.standing.clone(),
            bytes: sizes.get(&verdict.id).map_or(facts.stored_bytes, |size| size.bytes),
            reasons: verdict.reasons,
        }
    }
}
