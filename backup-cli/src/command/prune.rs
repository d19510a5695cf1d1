//! `backup prune`: what the rules do not keep is removed, and every decision can be explained.

use std::sync::Arc;

use backup_core::Result;
use backup_core::repository::Repository;
use backup_core::repository::layout::{TargetName, run_record};
use backup_core::repository::prune::{Prune, Removed, Report};
use backup_core::repository::retention::Reason;

use crate::App;
use crate::args::PruneArgs;
use crate::audit::Run;
use crate::exit::Exit;
use crate::output::bytes;

use super::or_cancelled;
use super::targets::with_each_of;

mod document;
mod explain;

pub(crate) async fn run(app: &App, args: &PruneArgs) -> Result<Exit> {
    with_each_of(app, &args.targets, |repository, _, targets| of_one(app, args, repository, targets)).await
}

async fn of_one(app: &App, args: &PruneArgs, repository: Repository, targets: Vec<TargetName>) -> Result<Exit> {
    let prepared = prepare(app, args, &repository);
    if args.dry_run {
        return or_cancelled(app, prune(app, args, prepared, &targets, &repository)).await;
    }
    let mut run = Run::new(app, "prune");
    run.at(&repository);
    run.record.target = match &targets[..] {
        [target] => Some(target.clone()),
        _ => None,
    };
    let begun = run.record.clone();
    let work = async {
        // By this record's age the store's clock is known, and without that nothing is removed.
        repository.record(&begun).await?;
        prune(app, args, prepared.witness(run_record(&begun.id, false)), &targets, &repository).await
    };
    run.through(app, work).await
}

fn prepare(app: &App, args: &PruneArgs, repository: &Repository) -> Prune {
    let retention = &app.config.retention;
    let mut prune = Prune::new(repository.clone())
        .rules(retention.rules.clone())
        .grace(args.grace.map_or(retention.grace, |grace| grace.0))
        .dry_run(args.dry_run)
        .clock(Arc::clone(&app.clock));
    for (target, rules) in &retention.of_target {
        prune = prune.rules_of(target.clone(), rules.clone());
    }
    prune
}

async fn prune(
    app: &App,
    args: &PruneArgs,
    prune: Prune,
    targets: &[TargetName],
    repository: &Repository,
) -> Result<Exit> {
    let report = prune.run(targets).await?;
    if args.json {
        app.output.json(&document::of(repository, &report, args.dry_run))?;
    } else if args.explain {
        app.output.data(&explain::text(&report))?;
    }
    summarise(app, &report, args.dry_run);
    let mut exit = Exit::Done;
    for problem in &report.problems {
        app.output.warning(&problem.problem);
        exit = Exit::Warnings;
    }
    if report.problem_count > report.problems.len() as u64 {
        app.output.warning(format!("{} problems in all", report.problem_count));
    }
    for (target, backup) in report.targets.iter().flat_map(|t| t.backups.iter().map(move |b| (&t.target, b))) {
        let odd = |reason: &&Reason| matches!(reason, Reason::Unreadable | Reason::NewerFormat | Reason::Future);
        if let Some(reason) = backup.reasons.iter().find(odd) {
            app.output.warning(format!("{} of '{target}' is left alone: {reason}", backup.id));
            exit = Exit::Warnings;
        }
    }
    Ok(exit)
}

fn summarise(app: &App, report: &Report, dry_run: bool) {
    let would = if dry_run { "would be " } else { "" };
    for target in &report.targets {
        let gone = target.backups.iter().filter(|backup| backup.reasons.is_empty()).count();
        let (kept, gone_log) = (target.backups.len() - gone, target.removed_log());
        app.output.note(format!(
            "{}: {kept} backups kept, {gone} {would}removed; of the log, {} files ({}) {would}removed",
            target.target,
            gone_log.objects,
            bytes(gone_log.bytes)
        ));
    }
    let Removed { objects, bytes: freed } = report.removed;
    app.output.note(format!("{} in {objects} objects {would}freed", bytes(freed)));
    if report.uploads.aborted > 0 {
        app.output.note(format!(
            "{} unfinished uploads {would}aborted, of sizes that the store does not tell",
            report.uploads.aborted
        ));
    }
    if let Some(why) = &report.uploads.refused {
        app.output.note(format!("unfinished uploads are left alone: {why}"));
    }
}
