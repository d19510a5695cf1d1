//! Which backup a recovery begins with, and whether the archive leads from there to its target. No I/O.
//!
//! The backup is the newest good one that ends at or before the target, on a timeline that the target's descends from. What cannot be
//! reached is refused before anything is written: PostgreSQL would find out too, but at the end of the replay, or, without a
//! target, not at all.

use std::collections::BTreeMap;

use super::recovery::{RecoveryTarget, TargetTimeline};
use super::wal::{History, Lsn, SystemIdentifier, Timeline};
use crate::error::Result;
use crate::format::ClusterEntry;

mod inventory;
mod refusal;

pub use inventory::{ArchivedRange, Inventory};
use refusal::Misfit;

/// The archives of one target, one for each cluster that it ever was.
pub type Archives = BTreeMap<SystemIdentifier, Inventory>;

/// A backup that could be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Whether its source reported no damage.
    pub good: bool,
    /// Of which cluster, from where to where.
    pub cluster: ClusterEntry,
}

/// What the recovery is to reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Where to end; at the end of the archive unless set.
    pub target: Option<RecoveryTarget>,
    /// Along which timeline.
    pub timeline: TargetTimeline,
    /// Whether something else than the archive has what comes after it: a primary to stream from.
    pub streams: bool,
}

/// How a backup reaches what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// The timeline to recover along.
    pub timeline: Timeline,
    /// Whether that is the one that the backup was taken on.
    pub is_own_timeline: bool,
    /// How far the log leads from the backup without a gap.
    pub reach: Lsn,
    /// Whether there is an archive of the cluster. Without one the backup's own log is all there is.
    pub archive: bool,
}

/// The backup to begin with: the newest of `candidates` that fits.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound), naming the nearest that can be reached.
pub fn choose<'a>(candidates: &'a [Candidate], archives: &Archives, wanted: &Wanted) -> Result<(&'a Candidate, Fit)> {
    let mut newest_first: Vec<&Candidate> = candidates.iter().filter(|c| c.good).collect();
    newest_first.sort_by_key(|c| std::cmp::Reverse((c.cluster.stopped, c.cluster.stop_lsn)));
    if !matches!(wanted.target, Some(RecoveryTarget::Time(_)))
        && let Some(cluster) = newest_first.first().map(|c| c.cluster.system_identifier)
    {
        // Positions and transactions of a cluster mean nothing in another; of several, the present one is meant.
        newest_first.retain(|c| c.cluster.system_identifier == cluster);
    }
    let mut last = None;
    for &candidate in &newest_first {
        match fit_of(candidate, archives, wanted) {
            Ok(fit) => return Ok((candidate, fit)),
            // An older one may fit.
            Err(misfit @ (Misfit::EndsAfter | Misfit::OtherTimeline(_))) => last = Some((candidate, misfit)),
            // Where the log ends for this one it ends for all older ones too.
            Err(misfit) => return Err(refusal::of(candidate, &misfit, wanted)),
        }
    }
    Err(match last {
        Some((oldest, misfit)) => refusal::none_fits(oldest, &misfit, wanted),
        None => refusal::no_backup(),
    })
}

/// Whether `named`, and no other backup, leads to what is wanted.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound), naming which of `candidates` would, if one would.
pub fn check(named: &Candidate, candidates: &[Candidate], archives: &Archives, wanted: &Wanted) -> Result<Fit> {
    fit_of(named, archives, wanted).map_err(|misfit| {
        let other = choose(candidates, archives, wanted).ok().map(|(other, _)| other.id.as_str());
        refusal::of_named(named, &misfit, wanted, other)
    })
}

fn fit_of(candidate: &Candidate, archives: &Archives, wanted: &Wanted) -> Result<Fit, Misfit> {
    let cluster = &candidate.cluster;
    let none = Inventory::default();
    let archive = archives.get(&cluster.system_identifier).unwrap_or(&none);
    let ends_after = match &wanted.target {
        Some(RecoveryTarget::Lsn(lsn)) => cluster.stop_lsn > *lsn,
        Some(RecoveryTarget::Time(time)) => cluster.stopped > time.moment(),
        _ => false,
    };
    if ends_after {
        return Err(Misfit::EndsAfter);
    }
    let history = history_to(cluster, archive, wanted)?;
    // What the backup holds itself needs no archive.
    let from = if cluster.wal_included { cluster.stop_lsn } else { cluster.start_lsn };
    let (reach, archived) = archive.reach(&history, from);
    if reach < cluster.stop_lsn {
        return Err(Misfit::LogIsMissing { reach });
    }
    match &wanted.target {
        // PostgreSQL stops at the first record that begins there or later, and does not open when there is none. Of a backup's own end the
        // record that switches the segment follows.
        Some(RecoveryTarget::Lsn(lsn)) if *lsn > reach || *lsn == reach && reach != cluster.stop_lsn => {
            return Err(Misfit::EndsBeforeLsn { reach });
        }
        Some(RecoveryTarget::Time(time)) if archived.is_none_or(|newest| newest < time.moment()) => {
            return Err(Misfit::EndsBeforeTime { archived });
        }
        None if !wanted.streams => {
            if let Some(next) = archive.next_after(&history, reach) {
                return Err(Misfit::Gap { reach, next });
            }
        }
        // Whether there is such a name or transaction, and where, only PostgreSQL finds out.
        _ => {}
    }
    let timeline = history.timeline();
    Ok(Fit { timeline, is_own_timeline: timeline == cluster.timeline, reach, archive: !archive.is_empty() })
}

/// The history of the timeline to recover along, which the backup must be part of.
fn history_to(cluster: &ClusterEntry, archive: &Inventory, wanted: &Wanted) -> Result<History, Misfit> {
    let own = |timeline: Timeline| {
        // The history of the backup's own timeline may never have been archived; what came before the backup is not needed.
        archive.history(timeline).cloned().unwrap_or_else(|| History::of_first(timeline))
    };
    let number = match wanted.timeline {
        TargetTimeline::Current => cluster.timeline,
        TargetTimeline::Latest => {
            let newest = archive.newest_descendant(cluster.timeline, cluster.stop_lsn);
            // Without its history it cannot be told whether a newer one descends from this, and PostgreSQL would quietly leave it out.
            match archive.newest_without_history().filter(|orphan| *orphan > newest) {
                Some(orphan) if wanted.target != Some(RecoveryTarget::Immediate) => {
                    return Err(Misfit::WithoutHistory(orphan));
                }
                _ => newest,
            }
        }
        TargetTimeline::Number(number) => number,
    };
    if number == cluster.timeline {
        return Ok(own(number));
    }
    match archive.history(number) {
        Some(history) if history.contains(cluster.timeline, cluster.stop_lsn) => Ok(history.clone()),
        Some(_) => Err(Misfit::OtherTimeline(number)),
        None => Err(Misfit::NoHistory(number)),
    }
}

#[cfg(test)]
mod tests;
