//! Removing what the [policy](super::retention) does not keep, and what nobody will ever want: parts of runs that died, of uploads that were
//! never completed, of the log that was received twice.
//!
//! It needs no key. It can be killed at any moment, and any number of prunes may run at once, beside backups: `docs/decisions/0009` says why. In
//! short: a backup's manifest goes first, so nothing half-removed is ever listed; the log goes when the backups are gone that needed it; what has
//! no manifest goes only when nothing of it was written for the length of the grace, by the clock of the store itself; and what is
//! decided follows from what is stored, so two prunes decide the same.

mod backups;
mod clocks;
mod gather;
mod keys;
mod log;
mod remove;
mod report;
#[cfg(test)]
mod tests;
mod uploads;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use object_store::path::Path;

use super::Repository;
use super::layout::{BackupPath, TargetName};
use super::retention::wal::{Plan, RunningBackup};
use super::retention::{self, Facts, Rules};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use clocks::Clocks;
use gather::{Holdings, Unfinished};
use remove::Remover;

pub use report::{
    BackupReport, Problem, Removed, Report, TargetReport, UnfinishedReport, UploadsReport, WalFate, WalReport,
};

/// Bytes of a run that has not ended.
pub(super) async fn unfinished_size(repository: &Repository, path: BackupPath) -> Result<u64> {
    Ok(gather::unfinished(repository, path).await?.map_or(0, |run| run.size.bytes))
}

/// For how long nothing is removed that has no manifest, and no backup that came just now, unless set.
pub const GRACE_DEFAULT: SignedDuration = SignedDuration::from_hours(24);
/// The least: a run says every thirty seconds that it is alive, if the store lets it.
pub const GRACE_LEAST: SignedDuration = SignedDuration::from_hours(1);

/// A prune to be made: say by which rules, then [`run`](Self::run).
#[derive(Debug)]
#[must_use]
pub struct Prune {
    repository: Repository,
    rules: Rules,
    of_target: BTreeMap<TargetName, Rules>,
    grace: SignedDuration,
    dry_run: bool,
    clock: Arc<dyn Clock>,
    witness: Option<Path>,
}

impl Prune {
    /// A prune of `repository` by the default rules.
    pub fn new(repository: Repository) -> Self {
        Self {
            repository,
            rules: Rules::default(),
            of_target: BTreeMap::new(),
            grace: GRACE_DEFAULT,
            dry_run: false,
            clock: Arc::new(SystemClock),
            witness: None,
        }
    }

    /// The rules for targets that have none of their own.
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// The rules for one target.
    pub fn rules_of(mut self, target: TargetName, rules: Rules) -> Self {
        self.of_target.insert(target, rules);
        self
    }

    /// How long what has no manifest is left alone, and a backup that has just come; [`GRACE_DEFAULT`] unless set.
    pub fn grace(mut self, grace: SignedDuration) -> Self {
        self.grace = grace;
        self
    }

    /// Removes nothing, and reports what would be removed.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The clock by which backups are old.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// An object that was written just now, by whose age the store's own clock is known: the record of this run, say. Without one the store's
    /// clock is taken to agree with ours.
    pub fn witness(mut self, object: Path) -> Self {
        self.witness = Some(object);
        self
    }

    /// Prunes these targets, one after the other. What the store refuses to delete is a [`Problem`] of the report, and the rest goes on.
    ///
    /// Cancel safe: what is left when the future is dropped, the next prune removes.
    ///
    /// # Errors
    /// `Config` when the grace is less than [`GRACE_LEAST`], and when our clock is ahead of the store's; and those of the store.
    pub async fn run(&self, targets: &[TargetName]) -> Result<Report> {
        if self.grace < GRACE_LEAST {
            return Err(Error::config("a grace of less than an hour is too short")
                .with_hint("a backup that is running now must be known to be alive"));
        }
        let clocks = Clocks::read(self).await?;
        let remover = Remover::new(&self.repository, self.dry_run);
        let mut report = Report::default();
        for target in targets {
            match self.prune_target(target, clocks, &remover).await {
                Ok(pruned) => report.targets.push(pruned),
                // That the store refuses one target to this host says nothing of others.
                Err(e) if matches!(e.kind(), ErrorKind::Config | ErrorKind::Storage | ErrorKind::Integrity) => {
                    remover.problem(target.to_string(), &e);
                }
                Err(e) => return Err(e),
            }
        }
        self.sweep_staging(clocks, &remover, &mut report).await;
        report.uploads = uploads::sweep(self, clocks.store_before(self.grace), &remover).await;
        (report.removed, report.problems, report.problem_count) = remover.into_totals();
        Ok(report)
    }

    /// What of the log of a target is kept, as things stand, and why. Removes nothing. Cancel safe.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn plan_log(&self, target: &TargetName) -> Result<Plan> {
        let clocks = Clocks::read(self).await?;
        let rules = self.of_target.get(target).unwrap_or(&self.rules);
        let holdings = Holdings::gather(&self.repository, target, clocks).await?;
        let verdicts = retention::decide(&holdings.facts, &holdings.archives, rules, clocks.now);
        let running: Vec<RunningBackup> = holdings.unfinished.iter().map(Unfinished::as_running).collect();
        Ok(Plan::new(&holdings.facts, &verdicts, &holdings.archives, &running, clocks.now))
    }

    /// Last, so whatever stops it, what the prune did is told.
    async fn sweep_staging(&self, clocks: Clocks, remover: &Remover<'_>, report: &mut Report) {
        match self.repository.sweep_staging(clocks.store_before(self.grace), self.dry_run).await {
            Ok((removed, problems)) => {
                report.staging = removed;
                remover.count(removed);
                problems.into_iter().for_each(|problem| remover.add_problem(problem));
            }
            Err(e) => remover.problem(self.repository.to_string(), &e),
        }
    }

    async fn prune_target(&self, target: &TargetName, clocks: Clocks, remover: &Remover<'_>) -> Result<TargetReport> {
        let rules = self.of_target.get(target).unwrap_or(&self.rules);
        let holdings = Holdings::gather(&self.repository, target, clocks).await?;
        let facts: &[Facts] = &holdings.facts;
        let mut verdicts = retention::decide(facts, &holdings.archives, rules, clocks.now);
        let old_before = clocks.store_before(self.grace);
        let sizes = backups::look_at_doomed(self, target, facts, &mut verdicts, old_before).await?;
        backups::remove(self, target, facts, &mut verdicts, &sizes, clocks, remover).await?;
        let unfinished = backups::sweep(self, &holdings.unfinished, old_before, remover).await?;
        // What was to go and is still there needs its log.
        let is_kept = |run: &&Unfinished| unfinished.iter().any(|report| report.kept && report.id == run.path.id);
        let kept = holdings.unfinished.iter().filter(is_kept);
        let running: Vec<RunningBackup> = kept.map(|run| run.as_running_since(old_before)).collect();
        let window = clocks.now.duration_since(rules.window_start(clocks.now));
        let young_since = clocks.store_before(window.max(self.grace));
        let plan = Plan::new(facts, &verdicts, &holdings.archives, &running, young_since);
        let wal = log::prune(self, target, &plan, &holdings, old_before, remover).await?;
        let rewraps = keys::sweep(self, target, &holdings, &verdicts, &unfinished, old_before, remover).await?;
        Ok(TargetReport {
            target: target.clone(),
            backups: facts.iter().zip(verdicts).map(|(f, verdict)| BackupReport::new(f, verdict, &sizes)).collect(),
            unfinished,
            wal,
            rewraps,
        })
    }
}
