//! `backup verify`: is what is stored what was written?

use backup_core::pipeline::Counters;
use backup_core::repository::layout::BackupPath;
use backup_core::repository::verify::{self, Verification};
use backup_core::repository::{Found, Listed, Repository};
use backup_core::{Error, ErrorKind, Result, Stage};
use futures::TryStreamExt;
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::audit::Run;
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::{self, Shown};
use crate::report::{self, plain};
use crate::{App, keys};

use super::{limits, or_cancelled, resolve, to_look_at};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    deep: bool,
    backups: Vec<Outcome>,
    /// With `--all`, those whose backups cannot be told.
    unreadable_targets: Vec<UnreadableTarget>,
}

#[derive(Debug, Serialize)]
struct UnreadableTarget {
    target: String,
    error: String,
}

/// What became of one backup.
#[derive(Debug, Serialize)]
struct Outcome {
    target: String,
    id: String,
    ok: bool,
    outcome: Word,
    /// Why it could not be verified.
    error: Option<String>,
    #[serde(flatten)]
    verification: Verification,
    #[serde(skip)]
    error_kind: Option<ErrorKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Ok,
    Damaged,
    /// Neither: this key or this release cannot tell.
    Unverified,
}

/// What is to be verified.
#[derive(Default)]
struct Work {
    paths: Vec<BackupPath>,
    stored_bytes: u64,
    /// Backups whose manifest cannot be read, of which all is known already.
    outcomes: Vec<Outcome>,
    unreadable_targets: Vec<UnreadableTarget>,
    /// Whether newer ones are not trusted.
    passed_over: bool,
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
    let work = or_cancelled(app, work(app, &repository, args)).await?;
    if args.deep {
        run.at(&repository);
        if let [path] = &work.paths[..] {
            run.record.target = Some(path.target.clone());
            run.record.backup = Some(path.id.clone());
        }
        run.begin(app).await;
    }
    let mut outcomes = work.outcomes;
    let counters = Counters::default();
    let shown = || {
        let read = counters.snapshot().transferred_bytes;
        Shown::reading(read, format!("{} read", bytes(read)))
    };
    let verified = verify_all(app, args, &repository, work.paths, &counters, &mut outcomes);
    progress::during(&app.output, Some(work.stored_bytes), shown, verified).await?;
    for UnreadableTarget { target, error } in &work.unreadable_targets {
        app.output.warning(format!("'{target}' cannot be listed, so none of its backups was verified: {error}"));
    }
    let verdict = match verdict(&repository, args, &outcomes) {
        Ok(Exit::Done) if work.passed_over || !work.unreadable_targets.is_empty() => Ok(Exit::Warnings),
        verdict => verdict,
    };
    if args.json {
        app.output.json(&Document {
            repository: repository.name(),
            deep: args.deep,
            backups: outcomes,
            unreadable_targets: work.unreadable_targets,
        })?;
    }
    verdict
}

/// How it ends: by the worst that was found.
fn verdict(repository: &Repository, args: &VerifyArgs, outcomes: &[Outcome]) -> Result<Exit> {
    let all = outcomes.len();
    if all == 0 {
        return Err(Error::new(ErrorKind::NotFound, Stage::Catalog, format!("no backups in {repository}")));
    }
    let damaged = outcomes.iter().filter(|o| o.outcome == Word::Damaged).count();
    if damaged > 0 {
        let error = Error::integrity(format!("{damaged} of {all} backups damaged")).at(Stage::Fetch);
        return Err(if args.deep {
            error
        } else {
            error.with_hint("'backup verify --deep' tells where, given the key")
        });
    }
    let kinds: Vec<ErrorKind> = outcomes.iter().filter_map(|o| o.error_kind).collect();
    let Some(first) = kinds.first() else { return Ok(Exit::Done) };
    let kind = if kinds.contains(&ErrorKind::Key) { ErrorKind::Key } else { *first };
    Err(Error::new(kind, Stage::Fetch, format!("{} of {all} backups could not be verified", kinds.len())))
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
                let finding =
                    verify::Finding { object: path.manifest().to_string(), problem: report::in_one_line(&error) };
                let mut verification = Verification::default();
                verification.findings.push(finding);
                work.outcomes.push(Outcome::new(&path, verification));
            }
        }
    }
    Ok(work)
}

/// Verifies one backup after the other and tells about each at once: a repository can take hours.
async fn verify_all(
    app: &App,
    args: &VerifyArgs,
    repository: &Repository,
    paths: Vec<BackupPath>,
    counters: &Counters,
    outcomes: &mut Vec<Outcome>,
) -> Result<()> {
    let identities =
        if args.deep { or_cancelled(app, keys::identities_at_hand(&app.config)).await? } else { Vec::new() };
    let limits = limits(&app.config, repository.part_bytes())?;
    for outcome in &*outcomes {
        outcome.tell(app, args)?;
    }
    for path in paths {
        let verification = if args.deep {
            verify::deep(repository, &path, &identities, limits, &app.cancel).await
        } else {
            or_cancelled(app, verify::keyless(repository, &path, counters)).await
        };
        let outcome = match verification {
            Ok(verification) => Outcome::new(&path, verification),
            Err(e) if args.all && concerns_one_backup(e.kind()) => Outcome::unverified(&path, &e),
            Err(e) => return Err(e),
        };
        outcome.tell(app, args)?;
        outcomes.push(outcome);
    }
    Ok(())
}

/// Whether other backups may fare better: another key, a newer release, a backup that was removed meanwhile.
fn concerns_one_backup(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Key | ErrorKind::Config | ErrorKind::NotFound)
}

impl Work {
    fn add(&mut self, found: Found) {
        // Not proved: it must not overflow.
        self.stored_bytes = self.stored_bytes.saturating_add(found.manifest.stored_bytes());
        self.paths.push(found.path);
    }
}

impl Outcome {
    fn new(path: &BackupPath, verification: Verification) -> Self {
        let outcome = if verification.findings.is_empty() { Word::Ok } else { Word::Damaged };
        Self {
            target: path.target.to_string(),
            id: path.id.to_string(),
            ok: outcome == Word::Ok,
            outcome,
            error: None,
            verification,
            error_kind: None,
        }
    }

    fn unverified(path: &BackupPath, error: &Error) -> Self {
        Self {
            ok: false,
            outcome: Word::Unverified,
            error: Some(report::in_one_line(error)),
            error_kind: Some(error.kind()),
            ..Self::new(path, Verification::default())
        }
    }

    /// A line for the backup and one for each finding, unless JSON is wanted.
    fn tell(&self, app: &App, args: &VerifyArgs) -> Result<()> {
        if args.json {
            return Ok(());
        }
        let Self { target, id, verification: Verification { objects, bytes: read, findings, .. }, .. } = self;
        let checked = format!("{id}  {target}  ({objects} objects, {} checked)", bytes(*read));
        let mut text = match self.outcome {
            Word::Ok => format!("ok          {checked}\n"),
            Word::Damaged => format!("DAMAGED     {checked}\n"),
            Word::Unverified => format!("unverified  {id}  {target}\n"),
        };
        for finding in findings {
            text.push_str(&format!("            {}: {}\n", plain(&finding.object), plain(&finding.problem)));
        }
        if let Some(error) = &self.error {
            text.push_str(&format!("            could not be verified: {}\n", plain(error)));
        }
        app.output.data(&text)
    }
}
