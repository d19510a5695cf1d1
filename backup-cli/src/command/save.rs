//! `backup save`: one backup, of whatever the flags name.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::encrypt::signature::{Signer, SigningKey};
use backup_core::format::{Condition, Manifest};
use backup_core::pipeline::{Backup, Event, Findings, Observer, Outcome, OutcomeState};
use backup_core::repository::layout::TargetName;
use backup_core::repository::{LAG_DEFAULT, Repository};
use backup_core::{Error, Result};
use serde::Serialize;

use crate::args::SaveArgs;
use crate::audit::Run;
use crate::config::{Origin, RepositorySetting};
use crate::exit::Exit;
use crate::input::Input;
use crate::output::{Output, bytes, write_stdout};
use crate::progress::{self, Shown, rate};
use crate::{App, keys, report, signing};

use super::describe::{BackupDocument, data_bytes};
use super::list::usage;
use super::{limits, optional_lag, or_cancelled, to_write};

pub(crate) async fn run(app: &App, args: &SaveArgs) -> Result<Exit> {
    let target: TargetName = args.name.parse()?;
    let input = Input::of_flags(args);
    if matches!(input, Input::Stdin) && io::stdin().is_terminal() {
        return Err(Error::config("nothing to back up: standard input is a terminal").with_hint(
            "pipe data in, or use '-- COMMAND', --base-backup CONNINFO, --pg-dump CONNINFO or --directory PATH; see 'backup save --help'",
        ));
    }
    back_up(app, "save", &target, &input, args.json).await
}

/// Makes one backup for `command`, says what came of it, and leaves a record.
pub(super) async fn back_up(app: &App, command: &str, target: &TargetName, input: &Input, json: bool) -> Result<Exit> {
    let mut run = Run::new(app, command);
    run.record.target = Some(target.clone());
    let result = back_up_recorded(app, target, input, &mut run, json).await;
    run.end(app, &result).await;
    result
}

async fn back_up_recorded(app: &App, target: &TargetName, input: &Input, run: &mut Run, json: bool) -> Result<Exit> {
    // Before the repository is asked anything.
    input.check()?;
    let begun = Instant::now();
    let (backup, used) = or_cancelled(app, prepare(app, target, input, run)).await?;
    let keys_need_care = keys::tell(app);
    let handle = backup.start()?;
    let (counters, outcomes) = (handle.counters(), handle.outcomes());
    let saved = progress::during(&app.output, None, || Shown::saving(&counters.snapshot()), handle.wait()).await;
    let outcomes = outcomes.all();
    let manifest = saved.inspect_err(|_| tell_failed(&app.output, &outcomes))?;
    run.about(&manifest);
    run.record.recipients.clone_from(&manifest.recipients);
    run.record.bytes = Some(manifest.plain_bytes());
    for (repository, setting) in &used {
        tell_if_full(app, repository, setting);
    }
    let saved = Saved { manifest: &manifest, outcomes, json, signer: run.record.signer };
    match finish(&app.output, &saved, begun.elapsed())? {
        Exit::Done if keys_need_care => Ok(Exit::Warnings),
        exit => Ok(exit),
    }
}

/// The backup that is to be made, and the repositories that it goes to.
async fn prepare<'a>(
    app: &'a App,
    target: &TargetName,
    input: &Input,
    run: &mut Run,
) -> Result<(Backup, Vec<(Repository, &'a RepositorySetting)>)> {
    let recipients = keys::Recipients::load(&app.config).await?.at(app.clock.now())?;
    let signing_key = signing::signing_key(&app.config)?;
    let repositories = to_write(&app.config).await?;
    repositories.open().for_each(|repository| run.at(repository));
    let used = repositories.members().iter().zip(app.config.repositories()?);
    let used = used.filter_map(|(member, setting)| Some((member.repository()?.clone(), setting))).collect();
    run.record.signer = signing_key.as_ref().map(SigningKey::signer);
    let limits = limits(&app.config, repositories.part_bytes())?;
    for (member, error) in repositories.members().iter().filter_map(|member| Some((member, member.failure()?))) {
        app.output.warning(format!("going on without {member}, which is optional: {}", report::in_one_line(&error)));
    }
    let findings = Findings::default();
    let mut backup = Backup::new(repositories, target.clone())
        .recipients(recipients)
        .compression(app.config.encoding.compression())
        .suite(app.config.encoding.suite())
        .limits(limits)
        .findings(findings.clone())
        .optional_lag(optional_lag(&app.config).unwrap_or(LAG_DEFAULT))
        .observer(Arc::new(Told(app.output.clone())))
        .clock(Arc::clone(&app.clock))
        .cancel_on(&app.cancel);
    if let Some(key) = signing_key {
        backup = backup.sign_with(key);
    }
    Ok((input.add_to(app, target, backup, &findings).await?, used))
}

/// Tells at once what will be told again at the end, when somebody may still do something about it.
#[derive(Debug)]
struct Told(Output);

impl Observer for Told {
    fn event(&self, event: &Event) {
        if let Event::Dropped { repository, error } = event {
            self.0.warning(format!("going on without {repository}, which is optional: {error}"));
        }
    }
}

/// A backup that was made.
struct Saved<'a> {
    manifest: &'a Manifest,
    outcomes: Vec<Outcome>,
    json: bool,
    signer: Option<Signer>,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    backup: BackupDocument,
    repositories: &'a [Outcome],
}

/// Which repositories were the reason that there is no backup in any of several.
fn tell_failed(output: &Output, outcomes: &[Outcome]) {
    for Outcome { repository, required, error, .. } in outcomes.iter().filter(|_| outcomes.len() > 1) {
        if let Some(error) = error {
            let role = if *required { "required" } else { "optional" };
            output.note(format!("{repository} ({role}) failed: {error}"));
        }
    }
}

/// Where the backup is, of several repositories; whether it is in all.
fn tell_outcomes(output: &Output, outcomes: &[Outcome]) -> bool {
    for Outcome { repository, state, error, .. } in outcomes.iter().filter(|_| outcomes.len() > 1) {
        let why = error.as_deref().unwrap_or("the reason is not known");
        match state {
            OutcomeState::Stored => output.note(format!("stored in {repository}")),
            OutcomeState::Unknown => output.warning(format!("it is not known whether it is in {repository}: {why}")),
            _ => output.warning(format!("not in {repository}: {why}")),
        }
    }
    outcomes.iter().all(|outcome| outcome.state == OutcomeState::Stored)
}

/// Says when a local repository's disk is nearly full, where somebody has said when that is: what was saved is saved, but the next may not be. Of a
/// budget only a listing would tell.
fn tell_if_full(app: &App, repository: &Repository, setting: &RepositorySetting) {
    let warning = &setting.capacity_warning;
    if warning.origin == Origin::Default {
        return;
    }
    match repository.file_system() {
        Ok(Some(capacity)) if capacity.percent() >= u64::from(warning.value) => {
            app.output.warning(usage::describe(repository, &capacity));
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "not known how full the repository is"),
    }
}

fn finish(output: &Output, saved: &Saved<'_>, elapsed: Duration) -> Result<Exit> {
    let manifest = saved.manifest;
    let (plain, stored) = (data_bytes(manifest), manifest.stored_bytes());
    output.note(format!(
        "saved {}: {} of data in {:.1} s ({}), stored in {} ({:.2} to 1)",
        manifest.target,
        bytes(plain),
        elapsed.as_secs_f64(),
        rate(plain, elapsed),
        bytes(stored),
        plain as f64 / stored.max(1) as f64,
    ));
    let mut exit = if tell_outcomes(output, &saved.outcomes) { Exit::Done } else { Exit::Warnings };
    if let Some(cluster) = &manifest.cluster {
        let with = if cluster.wal_included { "with its WAL" } else { "without its WAL" };
        let (timeline, start, stop) = (cluster.timeline, cluster.start_lsn, cluster.stop_lsn);
        output.note(format!("timeline {timeline}, from {start} to {stop}, {with}"));
    }
    if plain == 0 {
        // What a command that fails at once leaves in a pipe: we cannot see that it failed. An empty stream is a stream, though.
        output.note("the stream was empty; had a command before the pipe failed, it would look like this");
    }
    if manifest.warnings > 0 {
        output.warning(format!("the source gave {} warnings", manifest.warnings));
        exit = Exit::Warnings;
    }
    if manifest.condition == Condition::Damaged {
        output.warning(format!(
            "the source itself is damaged: {} is kept, and will not be chosen as the latest of '{}'",
            manifest.id, manifest.target
        ));
        exit = Exit::Warnings;
    }
    if saved.json {
        let backup = BackupDocument::new(manifest, saved.signer);
        output.json(&Document { backup, repositories: &saved.outcomes })?;
    } else if let Err(e) = write_stdout(&format!("{}\n", manifest.id)) {
        output.warning(format!("the backup {} is complete, but its id could not be printed: {e}", manifest.id));
        exit = Exit::Warnings;
    }
    Ok(exit)
}
