//! `backup verify`: is what is stored what was written?

use std::collections::BTreeMap;
use std::sync::Arc;

use backup_core::format::ClusterEntry;
use backup_core::keys::Identity;
use backup_core::pipeline::Counters;
use backup_core::postgres::wal::WalFile;
use backup_core::repository::layout::{BackupPath, TargetName};
use backup_core::repository::verify::{self, Continuity, Finding, Gap, KeylessOptions, Verification};
use backup_core::repository::{Found, Listed, Repository};
use backup_core::wal_archive::{Inventory, clusters};
use backup_core::{Error, ErrorKind, Result, Stage};
use futures::TryStreamExt;
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::audit::Run;
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::{self, Shown};
use crate::report;
use crate::{App, keys};

use super::pruned::{Gaps, pruned_gaps};
use super::{limits, or_cancelled, resolve, to_look_at};

mod outcome;

use outcome::{Outcome, WalOutcome};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    deep: bool,
    backups: Vec<Outcome>,
    /// With `--all`, the log of each target that has some.
    wal: Vec<WalOutcome>,
    /// With `--all`, those whose backups cannot be told.
    unreadable_targets: Vec<UnreadableTarget>,
}

#[derive(Debug, Serialize)]
struct UnreadableTarget {
    target: String,
    error: String,
}

/// What is to be verified.
#[derive(Default)]
struct Work {
    backups: Vec<(BackupPath, Option<ClusterEntry>)>,
    stored_bytes: u64,
    /// Targets whose log is verified, too.
    archives: Vec<TargetName>,
    /// Backups whose manifest cannot be read, of which all is known already.
    outcomes: Vec<Outcome>,
    unreadable_targets: Vec<UnreadableTarget>,
    /// Whether newer ones are not trusted.
    passed_over: bool,
}

/// With what.
struct Means<'a> {
    app: &'a App,
    args: &'a VerifyArgs,
    repository: &'a Repository,
    identities: Vec<Arc<dyn Identity>>,
    options: KeylessOptions,
    counters: &'a Counters,
}

pub(crate) async fn run(app: &App, args: &VerifyArgs) -> Result<Exit> {
    let mut run = Run::new(app, "verify --deep");
    let result = verify(app, args, &mut run).await;
    run.end(app, &result).await;
    result
}

async fn verify(app: &App, args: &VerifyArgs, run: &mut Run) -> Result<Exit> {
    if args.all && args.age.not_older_than.is_some() {
        return Err(Error::config("--not-older-than is about one backup, and --all about every")
            .with_hint("name the target: that means its latest backup"));
    }
    let repository = or_cancelled(app, to_look_at(app)).await?;
    let mut work = or_cancelled(app, work(app, &repository, args)).await?;
    if args.deep {
        run.at(&repository);
        if let [(path, _)] = &work.backups[..] {
            run.record.target = Some(path.target.clone());
            run.record.backup = Some(path.id.clone());
        }
        run.begin(app).await;
    }
    let counters = Counters::default();
    let shown = || {
        let read = counters.snapshot().transferred_bytes;
        Shown::reading(read, format!("{} read", bytes(read)))
    };
    let total = Some(work.stored_bytes).filter(|_| work.archives.is_empty() && args.sample.is_none());
    let mut outcomes = std::mem::take(&mut work.outcomes);
    let verified = verify_all(app, args, &repository, &work, &counters, &mut outcomes);
    let wal = progress::during(&app.output, total, shown, verified).await?;
    for UnreadableTarget { target, error } in &work.unreadable_targets {
        app.output.warning(format!("'{target}' cannot be listed, so none of its backups was verified: {error}"));
    }
    let gaps = outcomes.iter().filter(|outcome| outcome.has_gaps()).count();
    if gaps > 0 {
        app.output.warning(format!(
            "log is missing behind {gaps} of {} backups: not every moment after them can be reached",
            outcomes.len()
        ));
    }
    let verdict = match verdict(&repository, args, &outcomes, &wal) {
        Ok(Exit::Done) if work.passed_over || !work.unreadable_targets.is_empty() || gaps > 0 => Ok(Exit::Warnings),
        verdict => verdict,
    };
    if args.json {
        app.output.json(&Document {
            repository: repository.name(),
            deep: args.deep,
            backups: outcomes,
            wal,
            unreadable_targets: work.unreadable_targets,
        })?;
    }
    verdict
}

/// How it ends: by the worst that was found.
fn verdict(repository: &Repository, args: &VerifyArgs, outcomes: &[Outcome], wal: &[WalOutcome]) -> Result<Exit> {
    let all = outcomes.len();
    if all == 0 && wal.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, Stage::Catalog, format!("no backups in {repository}")));
    }
    let damaged = outcomes.iter().filter(|outcome| outcome.is_damaged()).count();
    let damaged_files: usize = wal.iter().map(WalOutcome::damaged).sum();
    let what = match (damaged, damaged_files) {
        (0, 0) => None,
        (_, 0) => Some(format!("{damaged} of {all} backups damaged")),
        (0, _) => Some(format!("{damaged_files} files of WAL damaged")),
        _ => Some(format!("{damaged} of {all} backups and {damaged_files} files of WAL damaged")),
    };
    if let Some(what) = what {
        let error = Error::integrity(what).at(Stage::Fetch);
        return Err(if args.deep {
            error
        } else {
            error.with_hint("'backup verify --deep' tells where, given the key")
        });
    }
    let of_wal = wal.iter().filter_map(WalOutcome::error_kind);
    let kinds: Vec<ErrorKind> = outcomes.iter().filter_map(Outcome::error_kind).chain(of_wal).collect();
    let Some(first) = kinds.first() else { return Ok(Exit::Done) };
    let kind = if kinds.contains(&ErrorKind::Key) { ErrorKind::Key } else { *first };
    let backups = outcomes.iter().filter(|outcome| outcome.error_kind().is_some()).count();
    let message = match (backups, wal.iter().map(WalOutcome::unverified_files).sum::<u64>()) {
        (0, 0) => "WAL could not be verified".to_owned(),
        (0, files) => format!("{files} files of WAL could not be verified"),
        (n, 0) => format!("{n} of {all} backups could not be verified"),
        (n, files) => format!("{n} of {all} backups and {files} files of WAL could not be verified"),
    };
    Err(Error::new(kind, Stage::Fetch, message))
}

async fn work(app: &App, repository: &Repository, args: &VerifyArgs) -> Result<Work> {
    let mut work = Work::default();
    if !args.all {
        let (found, passed_over) = resolve(app, repository, &args.reference, &args.age).await?;
        work.add(found);
        work.passed_over = passed_over;
        return Ok(work);
    }
    let mut items = repository.list(None);
    while let Some(item) = items.try_next().await? {
        match item {
            Listed::Backup(found) => work.add(*found),
            Listed::Unfinished(_) => {}
            Listed::UnreadableTarget(target, error) => work
                .unreadable_targets
                .push(UnreadableTarget { target: target.to_string(), error: report::in_one_line(&error) }),
            Listed::Unreadable(path, error) if error.kind() != ErrorKind::Integrity => {
                work.outcomes.push(Outcome::unverified(&path, &error));
            }
            Listed::Unreadable(path, error) => {
                let finding = Finding { object: path.manifest().to_string(), problem: report::in_one_line(&error) };
                let mut verification = Verification::default();
                verification.findings.push(finding);
                work.outcomes.push(Outcome::new(&path, verification));
            }
        }
    }
    let unreadable = |target: &TargetName| work.unreadable_targets.iter().any(|u| u.target == target.as_str());
    for target in repository.targets().await?.into_iter().filter(|target| !unreadable(target)).collect::<Vec<_>>() {
        if !clusters(repository, &target).await?.is_empty() {
            work.archives.push(target);
        }
    }
    Ok(work)
}

/// Verifies one backup after the other and tells about each at once: a repository can take hours.
async fn verify_all(
    app: &App,
    args: &VerifyArgs,
    repository: &Repository,
    work: &Work,
    counters: &Counters,
    outcomes: &mut Vec<Outcome>,
) -> Result<Vec<WalOutcome>> {
    let identities =
        if args.deep { or_cancelled(app, keys::identities_at_hand(&app.config)).await? } else { Vec::new() };
    let mut options = KeylessOptions::new(repository);
    options.limits = limits(&app.config, repository.part_bytes())?;
    options.sample = args.sample;
    options.one_at_least = !args.all;
    let means = Means { app, args, repository, identities, options, counters };
    if !args.json {
        outcomes.iter().try_for_each(|outcome| outcome.tell(app))?;
    }
    let mut inventories = BTreeMap::new();
    for (path, cluster) in &work.backups {
        let outcome = means.backup(path, cluster.as_ref(), &mut inventories).await?;
        if !args.json {
            outcome.tell(app)?;
        }
        outcomes.push(outcome);
    }
    let mut wal = Vec::new();
    for target in &work.archives {
        let outcome = means.archive(target).await?;
        if !args.json {
            outcome.tell(app)?;
        }
        wal.push(outcome);
    }
    Ok(wal)
}

/// What archives hold, by target, and which of their gaps retention has left; why that cannot be told, of a damaged one.
type Inventories = BTreeMap<TargetName, Result<(Inventory, Gaps), String>>;

impl Means<'_> {
    async fn backup(
        &self,
        path: &BackupPath,
        cluster: Option<&ClusterEntry>,
        inventories: &mut Inventories,
    ) -> Result<Outcome> {
        let Self { app, args, repository, identities, options, counters } = self;
        let unjudged = |e: Error| match args.all && concerns_one_backup(e.kind()) {
            true => Ok(Outcome::unverified(path, &e)),
            false => Err(e),
        };
        let verification = if args.deep {
            verify::deep(repository, path, identities, options.limits, &app.cancel).await
        } else {
            or_cancelled(app, verify::keyless(repository, path, options, counters)).await
        };
        let mut verification = match verification {
            Ok(verification) => verification,
            Err(e) => return unjudged(e),
        };
        let (finding, continuity) = match cluster {
            Some(cluster) => self.log_behind(path, cluster, inventories).await?,
            None => (None, None),
        };
        if let Some(finding) = finding {
            verification.findings.push(finding);
            // The log of a backup goes after it.
            verification = match or_cancelled(app, verification.unless_removed(repository, path)).await {
                Ok(verification) => verification,
                Err(e) => return unjudged(e),
            };
        }
        let outcome = Outcome::new(path, verification);
        Ok(match continuity {
            Some(continuity) => outcome.with_continuity(continuity),
            None => outcome,
        })
    }

    /// What the archive has of the log behind a base backup; a finding, when that is too little.
    async fn log_behind(
        &self,
        path: &BackupPath,
        cluster: &ClusterEntry,
        inventories: &mut Inventories,
    ) -> Result<(Option<Finding>, Option<Continuity>)> {
        let Self { app, repository, .. } = self;
        if !inventories.contains_key(&path.target) {
            let read = async {
                let inventory = Inventory::read(repository, &path.target).await?;
                let pruned = pruned_gaps(app, repository, &path.target, &inventory).await?;
                Ok((inventory, pruned))
            };
            let read = or_cancelled(app, read).await;
            let read = match read {
                Err(e) if e.kind() == ErrorKind::Integrity => Err(report::in_one_line(&e)),
                read => Ok(read?),
            };
            inventories.insert(path.target.clone(), read);
        }
        Ok(match inventories.get(&path.target) {
            Some(Ok((inventory, pruned))) => {
                let mut continuity = verify::continuity(inventory, cluster);
                let is_pruned = |gap: &Gap| {
                    let Ok(WalFile::Segment(last)) = gap.last.parse() else { return false };
                    pruned.contains(&(cluster.system_identifier, last))
                };
                continuity.gaps.retain(|gap| !is_pruned(gap));
                (continuity.finding(&path.target, cluster), Some(continuity))
            }
            Some(Err(problem)) => {
                let object = path.target.wal_of(cluster.system_identifier).prefix().to_string();
                (Some(Finding { object, problem: problem.clone() }), None)
            }
            None => (None, None),
        })
    }

    async fn archive(&self, target: &TargetName) -> Result<WalOutcome> {
        let Self { app, args, repository, identities, options, counters } = self;
        let identities = args.deep.then_some(&identities[..]);
        match or_cancelled(app, verify::wal(repository, target, identities, options, counters)).await {
            Ok(verification) => Ok(WalOutcome::new(verification)),
            Err(e) if concerns_one_backup(e.kind()) => Ok(WalOutcome::unverified(target, &e)),
            Err(e) => Err(e),
        }
    }
}

/// Whether other backups may fare better: another key, a newer release, a backup that was removed meanwhile.
fn concerns_one_backup(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Key | ErrorKind::Config | ErrorKind::NotFound)
}

impl Work {
    fn add(&mut self, found: Found) {
        // Not proved: it must not overflow.
        self.stored_bytes = self.stored_bytes.saturating_add(found.manifest.stored_bytes());
        self.backups.push((found.path, found.manifest.cluster));
    }
}
