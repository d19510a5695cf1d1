//! What became of a copy.

use object_store::path::Path;
use serde::Serialize;

/// The most problems, and names of objects that were left alone, that are kept; all are counted.
const KEPT_MAX: usize = 100;

/// What a copy did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Copied {
    /// Backups.
    pub backups: Count,
    /// Files and pieces of write-ahead log.
    pub wal_files: Count,
    /// Data keys that were wrapped again.
    pub rewraps: Count,
    /// Pins.
    pub pins: Count,
    /// Backups without a manifest: going on at the source, or what is left of one that was interrupted.
    pub unfinished: u64,
    /// Objects of kinds that this release does not know, which were left alone.
    pub left_alone: u64,
    /// Some of these.
    pub left_alone_examples: Vec<String>,
    /// What is not as it should be at the source, and so was not copied; at most 100 of them.
    pub problems: Vec<CopyProblem>,
    /// How many there are.
    pub problem_count: u64,
}

/// Things of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Count {
    /// So many were copied; of a backup perhaps only what was missing of it.
    pub copied: u64,
    /// So many were there already.
    pub same: u64,
    /// Bytes that were stored.
    pub bytes: u64,
}

/// Something at the source that could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CopyProblem {
    /// The object, below the repository's root.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// Whether it is damaged or not trusted; otherwise it needs a newer release.
    pub damage: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Backup,
    Wal,
    Rewrap,
    Pin,
}

impl Copied {
    /// Bytes that were stored.
    pub fn bytes(&self) -> u64 {
        self.backups.bytes + self.wal_files.bytes + self.rewraps.bytes + self.pins.bytes
    }

    pub(super) fn copied(&mut self, kind: Kind, bytes: u64) {
        let count = self.count(kind);
        count.copied += 1;
        count.bytes += bytes;
    }

    pub(super) fn same(&mut self, kind: Kind) {
        self.count(kind).same += 1;
    }

    pub(super) fn add_problem(&mut self, problem: CopyProblem) {
        self.problem_count += 1;
        if self.problems.len() < KEPT_MAX {
            self.problems.push(problem);
        }
    }

    pub(super) fn leave_alone(&mut self, object: &Path) {
        self.left_alone += 1;
        if self.left_alone_examples.len() < KEPT_MAX {
            self.left_alone_examples.push(object.to_string());
        }
    }

    fn count(&mut self, kind: Kind) -> &mut Count {
        match kind {
            Kind::Backup => &mut self.backups,
            Kind::Wal => &mut self.wal_files,
            Kind::Rewrap => &mut self.rewraps,
            Kind::Pin => &mut self.pins,
        }
    }
}
