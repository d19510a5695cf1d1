//! One file for each command. What several of them need is here.

use std::future::Future;

use backup_core::pipeline::{Limits, Warnings};
use backup_core::postgres::conninfo::ConnInfo;
use backup_core::repository::{Found, Location, Repository, S3Options};
use backup_core::source::command::LineCallback;
use backup_core::source::{DirectoryWarning, WarningCallback};
use backup_core::{Error, ErrorKind, Result, Stage};

use crate::App;
use crate::args::{AgeFlag, AgeLimit, Command};
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{Output, ProgressStyle};
use crate::signing;

pub(crate) mod config;
mod describe;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod key;
pub(crate) mod list;
pub(crate) mod pin;
pub(crate) mod prune;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod show;
pub(crate) mod verify;
pub(crate) mod wal;

/// Runs `command` to its end.
pub(crate) async fn run(app: &App, command: &Command) -> Result<Exit> {
    match command {
        Command::Init(args) => or_cancelled(app, init::run(app, args)).await,
        Command::Save(args) => save::run(app, args).await,
        Command::Run(args) => run::run(app, args).await,
        Command::List(args) => or_cancelled(app, list::run(app, args)).await,
        Command::Show(args) => or_cancelled(app, show::run(app, args)).await,
        Command::Restore(args) => restore::run(app, args).await,
        Command::Verify(args) => verify::run(app, args).await,
        Command::Prune(args) => or_cancelled(app, prune::run(app, args)).await,
        Command::Pin(args) => or_cancelled(app, pin::pin(app, args)).await,
        Command::Unpin(args) => or_cancelled(app, pin::unpin(app, args)).await,
        Command::Wal(args) => wal::run(app, &args.action).await,
        Command::Key(args) => or_cancelled(app, key::run(app, &args.action)).await,
        Command::Config(args) => or_cancelled(app, config::run(app, &args.action)).await,
        // Needs no configuration, so it never comes here.
        Command::Generate(args) => generate::run(args, &app.output),
    }
}

/// For work that needs no cleaning up: it ends where it is.
async fn or_cancelled<T>(app: &App, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        () = app.cancel.cancelled() => Err(Error::cancelled(Stage::Setup)),
    }
}

/// Where the repository is, and who is believed there.
fn location(config: &Config) -> Result<Location> {
    let options = S3Options {
        endpoint: config.s3.endpoint.as_ref().map(|s| s.value.clone()),
        region: config.s3.region.as_ref().map(|s| s.value.clone()),
        path_style: config.s3.path_style.as_ref().map(|s| s.value),
    };
    let address = config.repository()?;
    if address == "memory:" {
        return Err(Error::config("a repository in memory would be gone with this command")
            .with_hint("use a path, file:// or s3://"));
    }
    Ok(address.parse::<Location>()?.with_s3_options(options).trusting(signing::trusted_signers(config)?))
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

/// What suits the repository, with what the user knows better.
fn limits(config: &Config, repository: &Repository) -> Result<Limits> {
    let mut limits = Limits::for_parts_of(repository.part_bytes());
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
