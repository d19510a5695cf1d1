//! Why no backup leads to a target, in words that say what can be reached instead.

use jiff::Timestamp;

use super::{Candidate, Wanted};
use crate::error::{Error, ErrorKind, Stage};
use crate::format::ClusterEntry;
use crate::postgres::recovery::RecoveryTarget;
use crate::postgres::wal::{Lsn, Timeline, WalFile};

/// Why one backup does not lead to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It ends after the target.
    EndsAfter,
    /// The wanted timeline branched off before the backup ended, or elsewhere.
    OtherTimeline(Timeline),
    /// The archive does not know the wanted timeline.
    NoHistory(Timeline),
    /// The newest was wanted, and of one that is newer than all others the archive has log and no history.
    WithoutHistory(Timeline),
    /// The log that the backup itself needs is not there.
    LogIsMissing { reach: Lsn },
    /// The log ends before the wanted position, or there.
    EndsBeforeLsn { reach: Lsn },
    /// The log ends before the wanted moment, as far as the times tell at which it was archived.
    EndsBeforeTime { archived: Option<Timestamp> },
    /// Everything was wanted, and in the middle something is missing.
    Gap { reach: Lsn, next: Lsn },
}

/// `candidate` would be the one, and does not lead there.
pub(super) fn of(candidate: &Candidate, misfit: &Misfit, wanted: &Wanted) -> Error {
    let (message, hint) = explain(candidate, misfit, wanted);
    not_found(message).with_hint(hint)
}

/// `named` was asked for by its id, and does not lead there; `other` would.
pub(super) fn of_named(named: &Candidate, misfit: &Misfit, wanted: &Wanted, other: Option<&str>) -> Error {
    let (message, hint) = explain(named, misfit, wanted);
    not_found(message).with_hint(match other {
        Some(other) => format!("backup {other} leads there"),
        None => hint,
    })
}

/// No backup is early enough, or on the way to the timeline; `oldest` comes nearest.
pub(super) fn none_fits(oldest: &Candidate, misfit: &Misfit, wanted: &Wanted) -> Error {
    let cluster = &oldest.cluster;
    let earliest = format!("the earliest that can be reached is {}, LSN {}", cluster.stopped, cluster.stop_lsn);
    match misfit {
        Misfit::OtherTimeline(number) => {
            not_found(format!("no backup was taken on timeline {number} or before it branched off")).with_hint(earliest)
        }
        _ => not_found(format!("no backup ended before {}", describe(wanted))).with_hint(earliest),
    }
}

/// There is nothing to choose from.
pub(super) fn no_backup() -> Error {
    not_found("there is no good base backup".to_owned()).with_hint("'backup list' shows what there is")
}

fn explain(candidate: &Candidate, misfit: &Misfit, wanted: &Wanted) -> (String, String) {
    let (id, cluster) = (&candidate.id, &candidate.cluster);
    let target = describe(wanted);
    match misfit {
        Misfit::EndsAfter => (
            format!("backup {id} ended after {target}"),
            format!("the earliest that can be reached from it is {}, LSN {}", cluster.stopped, cluster.stop_lsn),
        ),
        Misfit::OtherTimeline(number) => (
            format!("timeline {number} branched off before backup {id} ended on timeline {}", cluster.timeline),
            "name another timeline with --target-timeline, or an earlier backup".to_owned(),
        ),
        Misfit::NoHistory(number) => (
            format!("the archive has no history of timeline {number}"),
            format!("backup {id} was taken on timeline {}", cluster.timeline),
        ),
        Misfit::WithoutHistory(number) => (
            format!(
                "the archive has log of timeline {number} and not its history, so whether backup {id} leads there cannot be told"
            ),
            format!(
                "archive {} from pg_wal of a server on it with 'backup wal push', or name another with --target-timeline",
                WalFile::History(*number)
            ),
        ),
        Misfit::LogIsMissing { reach } => (
            format!("backup {id} needs the log up to {}, and the archive lacks it from {reach} on", cluster.stop_lsn),
            "archive the missing segments, or choose a backup that holds its own log".to_owned(),
        ),
        Misfit::EndsBeforeLsn { reach } => (
            match wanted.target == Some(RecoveryTarget::Lsn(*reach)) {
                true => {
                    format!("the log from backup {id} ends at {target}, and PostgreSQL stops only where more follows")
                }
                false => format!("the log from backup {id} ends at {reach}, before {target}"),
            },
            "leave out the target to recover all there is".to_owned(),
        ),
        Misfit::EndsBeforeTime { archived: Some(newest) } => (
            format!("the newest log that follows backup {id} was archived at {newest}, before {target}"),
            "leave out the target to recover all there is".to_owned(),
        ),
        Misfit::EndsBeforeTime { archived: None } => (
            format!("there is no log that follows backup {id}, which ended at {}", cluster.stopped),
            "leave out the target to restore the backup as it is".to_owned(),
        ),
        Misfit::Gap { reach, next } => (
            format!("the archive has a gap: it ends at {reach} and goes on at {next}"),
            match before_gap(cluster, *reach) {
                Some(lsn) => {
                    format!("'--target-lsn {lsn}' stops before the gap, '--target immediate' at the backup's end")
                }
                None => "'--target immediate' recovers the backup alone".to_owned(),
            },
        ),
    }
}

/// A position in the last segment before a gap at `reach`, behind which a record is certain to begin; if that is not the backup's own.
fn before_gap(cluster: &ClusterEntry, reach: Lsn) -> Option<Lsn> {
    let start = cluster.wal_segment_bytes.start_of(Lsn(reach.0.checked_sub(1)?));
    (start > cluster.stop_lsn).then_some(start)
}

fn describe(wanted: &Wanted) -> String {
    match &wanted.target {
        Some(RecoveryTarget::Time(time)) => time.to_string(),
        Some(RecoveryTarget::Lsn(lsn)) => format!("LSN {lsn}"),
        _ => "the target".to_owned(),
    }
}

fn not_found(message: String) -> Error {
    Error::new(ErrorKind::NotFound, Stage::Catalog, message)
}
