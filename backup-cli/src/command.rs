//! One file for each command. What several of them need is here.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backup_core::pipeline::{Limits, Warnings};
use backup_core::postgres::conninfo::ConnInfo;
use backup_core::repository::{FallOver, Found, LAG_DEFAULT, Location, Repositories, Repository};
use backup_core::source::command::LineCallback;
use backup_core::source::{DirectoryWarning, WarningCallback};
use backup_core::{Error, ErrorKind, Result, Stage};

use crate::App;
use crate::args::{AgeFlag, AgeLimit, Command};
use crate::config::{Config, RepositorySetting};
use crate::exit::Exit;
use crate::output::{Output, ProgressStyle};
use crate::{report, signing, stores};

pub(crate) mod config;
pub(crate) mod copy;
mod describe;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod key;
pub(crate) mod list;
pub(crate) mod pin;
pub(crate) mod prune;
mod pruned;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod show;
mod targets;
pub(crate) mod verify;
pub(crate) mod wal;

/// Runs `command` to its end. What a repository lacks was told, and is a warning however well it went with another's help.
pub(crate) async fn run(app: &App, command: &Command) -> Result<Exit> {
    match run_alone(app, command).await {
        Ok(Exit::Done) if app.lacking.load(Ordering::Relaxed) => Ok(Exit::Warnings),
        result => result,
    }
}

async fn run_alone(app: &App, command: &Command) -> Result<Exit> {
    match command {
        Command::Init(args) => or_cancelled(app, init::run(app, args)).await,
        Command::Save(args) => save::run(app, args).await,
        Command::Run(args) => run::run(app, args).await,
        Command::List(args) => or_cancelled(app, list::run(app, args)).await,
        Command::Show(args) => or_cancelled(app, show::run(app, args)).await,
        Command::Restore(args) => restore::run(app, args).await,
        Command::Verify(args) => verify::run(app, args).await,
        Command::Copy(args) => copy::run(app, args).await,
        Command::Prune(args) => prune::run(app, args).await,
        Command::Pin(args) => pin::pin(app, args).await,
        Command::Unpin(args) => pin::unpin(app, args).await,
        Command::Wal(args) => wal::run(app, &args.action).await,
        Command::Key(args) => key::run(app, &args.action).await,
        Command::Config(args) => or_cancelled(app, config::run(app, &args.action)).await,
        // Needs no configuration, so it never comes here.
        Command::Generate(args) => generate::run(args, &app.output),
    }
}

/// For work that needs no cleaning up: it ends where it is.
pub(crate) async fn or_cancelled<T>(app: &App, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        () = app.cancel.cancelled() => Err(Error::cancelled(Stage::Setup)),
    }
}

/// How long an optional repository may keep the others waiting.
fn optional_lag(config: &Config) -> Option<Duration> {
    config.optional_lag.as_ref().map(|lag| Duration::from_secs(lag.value))
}

/// Opens the repository of this name or address, which `flag` gave.
async fn open_named(config: &Config, given: &str, flag: &'static str) -> Result<Repository> {
    Repository::open(&location(config, &config.repository_at(given, flag))?).await
}

/// Where a repository is, and who is believed there.
pub(crate) fn location(config: &Config, repository: &RepositorySetting) -> Result<Location> {
    let address = &repository.url.value;
    if address == "memory:" {
        return Err(Error::config("a repository in memory would be gone with this command")
            .with_hint("use a path, file://, s3://, az:// or gs://"));
    }
    let location = address.parse::<Location>()?.with_http_options(stores::http_options(config)?);
    Ok(location
        .with_s3_options(stores::s3_options(&repository.stores.s3)?)
        .with_azure_options(stores::azure_options(&repository.stores.azure))
        .with_gcs_options(stores::gcs_options(&repository.stores.gcs))
        .trusting(signing::trusted_signers(config)?))
}

/// All repositories, none of them open yet.
pub(crate) fn repositories(config: &Config) -> Result<Repositories> {
    let mut repositories = Repositories::default();
    for repository in config.repositories()? {
        let location = location(config, repository)?;
        let name = repository.name.clone().unwrap_or_else(|| location.to_string());
        repositories = repositories.at(name, location, repository.required);
    }
    Ok(repositories)
}

/// All repositories, open to be written.
pub(crate) async fn to_write(config: &Config) -> Result<Repositories> {
    let repositories = repositories(config)?;
    repositories.open_all(optional_lag(config).unwrap_or(LAG_DEFAULT)).await?;
    Ok(repositories)
}

/// A repository to read from: the first that answers, and when it fails the next one.
pub(crate) async fn to_read(app: &App) -> Result<Repository> {
    let (output, lacking) = (app.output.clone(), Arc::clone(&app.lacking));
    let told = move |event: &FallOver| {
        output.warning(event.to_string());
        if event.lacks.is_some() {
            lacking.store(true, Ordering::Relaxed);
        }
    };
    repositories(&app.config)?.to_read_from(Arc::new(told)).await
}

/// The first repository that answers, to look at that one alone.
pub(crate) async fn to_look_at(app: &App) -> Result<Repository> {
    let output = app.output.clone();
    let told = move |event: &FallOver| output.warning(event.to_string());
    repositories(&app.config)?.first(&told).await
}

/// Does `work` with each repository and what is configured of it, one after the other. That one fails does not keep the others from their turn; the
/// end is the [worst](Exit::or_worse) that any of them came to.
pub(crate) async fn with_each<'a, F>(
    app: &'a App,
    work: impl Fn(Repository, &'a RepositorySetting) -> F + Send + Sync,
) -> Result<Exit>
where
    F: Future<Output = Result<Exit>> + Send,
{
    let (repositories, settings) = (repositories(&app.config)?, app.config.repositories()?);
    let several = settings.len() > 1;
    let (mut exit, mut failures) = (Exit::Done, Vec::new());
    for (member, setting) in repositories.members().iter().zip(settings) {
        if several {
            app.output.note(format!("repository {member}:"));
        }
        let done = async { work(or_cancelled(app, member.open()).await?.clone(), setting).await };
        match done.await {
            Ok(of_one) => exit = exit.or_worse(of_one),
            Err(error) if several && error.kind() != ErrorKind::Cancelled => {
                report::error(&error);
                failures.push((member.name().to_owned(), error));
            }
            Err(error) => return Err(error),
        }
    }
    let Some(failed) = all_failures(settings.len(), failures) else { return Ok(exit) };
    if exit.or_worse(failed.kind().into()) == exit {
        app.output.note(failed.to_string());
        return Ok(exit);
    }
    Err(failed)
}

/// The failures of some of `all` repositories in one, of the kind of the worst.
fn all_failures(all: usize, failures: Vec<(String, Error)>) -> Option<Error> {
    let names: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
    let message = format!("{} of {all} repositories failed: {}", names.len(), names.join(", "));
    let errors = failures.into_iter().map(|(_, error)| error);
    let worst = errors.reduce(|worst, error| {
        let (known, new) = (Exit::from(worst.kind()), Exit::from(error.kind()));
        if known.or_worse(new) == known { worst } else { error }
    })?;
    Some(Error::new(worst.kind(), worst.stage(), message))
}

/// The backup that a person means, if it is not too old, and whether others had to be passed over for it, which is told.
pub(crate) async fn resolve(
    app: &App,
    repository: &Repository,
    reference: &str,
    age: &AgeFlag,
) -> Result<(Found, bool)> {
    let found = repository.resolve(reference).await?;
    check_age(app, &found, age)?;
    for why in &found.passed_over {
        app.output.warning(format!("passed over: {why}"));
    }
    let passed_over = !found.passed_over.is_empty();
    Ok((found, passed_over))
}

/// Refuses a backup that is older than somebody remembers a newer one to be.
fn check_age(app: &App, found: &Found, age: &AgeFlag) -> Result<()> {
    let Some(earliest) = age.not_older_than.map(|limit: AgeLimit| limit.earliest(app.clock.now())) else {
        return Ok(());
    };
    if found.manifest.started >= earliest {
        return Ok(());
    }
    let (began, earliest) = (describe::time(found.manifest.started), describe::time(earliest));
    let message = format!("{} began at {began}, and nothing older than {earliest} is wanted", found.path);
    Err(Error::new(ErrorKind::NotFound, Stage::Catalog, message)
        .with_hint("was no newer backup made, or is it hidden? Compare 'backup list' with what you know"))
}

/// The database that `flag` names. To libpq an empty text is the default database; here it was most likely an unset variable.
pub(crate) fn conninfo(flag: &str, text: &str) -> Result<ConnInfo> {
    let refused = |why: &str| {
        Err(Error::config(format!("the connection string of {flag} {why}"))
            .with_hint("name the database, such as dbname=app; was a variable not set?"))
    };
    if text.trim().is_empty() {
        return refused("is empty");
    }
    let conninfo = ConnInfo::parse(text)?;
    if conninfo.get("dbname") == Some("") { refused("has an empty dbname") } else { Ok(conninfo) }
}

/// What suits parts of this size, with what the user knows better.
fn limits(config: &Config, part_bytes: usize) -> Result<Limits> {
    let mut limits = Limits::for_parts_of(part_bytes);
    if let Some(memory) = &config.memory {
        limits.memory_bytes = Some(usize::try_from(memory.value.as_u64()).unwrap_or(usize::MAX));
    }
    if let Some(workers) = &config.workers {
        limits.workers = workers.value;
    }
    limits.check()?;
    Ok(limits)
}

/// A child writes to our standard error by itself, unless a progress bar must step aside for it.
pub(crate) fn stderr_lines(output: &Output) -> Option<LineCallback> {
    if output.progress != ProgressStyle::Bar {
        return None;
    }
    let output = output.clone();
    Some(Box::new(move |line| output.line_of_child(line)))
}

/// Tells warnings about single files of a directory as they come, and collects them.
pub(crate) fn told(output: &Output, warnings: &Warnings) -> WarningCallback {
    let (output, warnings) = (output.clone(), warnings.clone());
    Box::new(move |DirectoryWarning { path, what, .. }| {
        let text = format!("{}: {what}", path.display());
        output.warning(&text);
        warnings.push(text);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_failures_the_worst_is_told_with_the_names_of_all() {
        let kinds = [("a", ErrorKind::NotFound), ("b", ErrorKind::Integrity), ("c", ErrorKind::Unavailable)];
        let failures =
            kinds.map(|(name, kind)| (name.to_owned(), Error::new(kind, Stage::Catalog, "something happened")));
        let told = all_failures(4, failures.into()).unwrap();
        assert_eq!(
            (told.kind(), told.to_string().as_str()),
            (ErrorKind::Integrity, "3 of 4 repositories failed: a, b, c")
        );
        assert!(all_failures(4, Vec::new()).is_none());
    }
}
