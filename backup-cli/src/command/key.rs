//! `backup key`: who can read what, until when, and what comes next.

use backup_core::keys::policy::Key;
use backup_core::repository::census::{Census, Held, Looked, Problem};
use backup_core::repository::runs::RunRecord;
use backup_core::{Error, ErrorKind, Result, Stage};

use crate::App;
use crate::args::KeyAction;
use crate::audit::{Run, not_recorded};
use crate::config::{Config, edit};
use crate::exit::Exit;
use crate::output::Output;
use crate::progress::Shown;
use crate::report::{self, plain};

use super::targets::with_each_of;
use super::{location, or_cancelled, repositories, with_each};

mod generate;
mod list;
mod retire;
mod rewrap;
mod rotate;
mod status;

/// Data keys that are worked on at once.
const CONCURRENCY: usize = 16;

pub(crate) async fn run(app: &App, action: &KeyAction) -> Result<Exit> {
    match action {
        KeyAction::Generate(args) => {
            recorded_where_possible(app, "key generate", |record| generate::run(app, args, record)).await
        }
        KeyAction::List(args) => list::run(app, args),
        KeyAction::Status(args) => or_cancelled(app, status::run(app, args)).await,
        KeyAction::Rotate(args) if args.print => rotate::run(app, args, &mut Run::new(app, "key rotate").record),
        KeyAction::Rotate(args) => {
            recorded_where_possible(app, "key rotate", |record| rotate::run(app, args, record)).await
        }
        KeyAction::Rewrap(args) => rewrap::run(app, args).await,
        KeyAction::Retire(args) => retire::run(app, args).await,
    }
}

/// Does `work`, which needs no repository, and leaves a record of it where there is one. Whatever keeps it from that, the work is done.
async fn recorded_where_possible(
    app: &App,
    command: &str,
    work: impl FnOnce(&mut RunRecord) -> Result<Exit>,
) -> Result<Exit> {
    let mut run = Run::new(app, command);
    let result = work(&mut run.record);
    if app.config.repositories.all.is_empty() {
        return result;
    }
    let record = async {
        if run.look_for(app, &repositories(&app.config)?).await {
            run.end(app, &result).await;
        }
        Ok(())
    };
    if let Err(e) = or_cancelled(app, record).await {
        not_recorded(app, &report::in_one_line(&e));
    }
    result
}

/// One at a time where each takes 128 MiB.
fn concurrency(config: &Config) -> usize {
    if config.passphrase.is_some() { 1 } else { CONCURRENCY }
}

/// The configuration as it is while its file is locked.
fn reread(app: &App) -> Result<Config> {
    let config = app.sources.config()?;
    if config.file == app.config.file { Ok(config) } else { Err(edit::meanwhile()) }
}

/// How far a walk over all that is kept has come.
fn shown(looked: &Looked) -> Shown {
    let (backups, files, keys) = (looked.backups(), looked.wal_files(), looked.data_keys());
    Shown::counting(
        backups + files,
        format!("{}, {}, {}", count(backups, "backup"), count(files, "WAL file"), count(keys, "data key")),
    )
}

/// The configured key of that name.
fn configured<'a>(config: &'a Config, name: &str) -> Result<&'a Key> {
    let policy = &config.keys.policy;
    policy.key(name).ok_or_else(|| {
        let known: Vec<&str> = policy.keys().iter().map(|key| key.name.as_str()).collect();
        let hint = if known.is_empty() {
            "a key is a table of the configuration file: [keys.NAME] with recipient = \"age1…\" and created = 2026-11-22".to_owned()
        } else {
            format!("configured are: {}", known.join(", "))
        };
        Error::config(format!("no key '{}' is configured", name.escape_debug())).with_hint(hint)
    })
}

/// `1 backup`, `12 backups`.
pub(super) fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// `12 backups and 300 WAL files`.
fn words(held: &Held) -> String {
    match (held.backups, held.wal_files) {
        (backups, 0) => count(backups, "backup"),
        (0, files) => count(files, "WAL file"),
        (backups, files) => format!("{} and {}", count(backups, "backup"), count(files, "WAL file")),
    }
}

/// The same, and a few of their names.
fn words_and_names(held: &Held) -> String {
    let more = if held.backups + held.wal_files > held.examples.len() as u64 { ", …" } else { "" };
    format!("{}: {}{more}", words(held), held.examples.join(", "))
}

/// Says what could not be looked at, and how many that were.
fn tell_problems(output: &Output, census: &Census) {
    for Problem { object, problem, .. } in &census.problems {
        output.warning(format!("{}: {}", plain(object), plain(problem)));
    }
    let told = census.problems.len() as u64;
    if census.problem_count > told {
        output.warning(format!("and {} more", census.problem_count - told));
    }
}

/// Says how many runs are not counted.
fn tell_unfinished(output: &Output, census: &Census) {
    if !census.unfinished.is_empty() {
        let runs = count(census.unfinished.len() as u64, "run");
        output.note(format!("unfinished, or going on: {runs}; what they wrote is not counted"));
    }
}

/// The error of what could not be looked at; `done` is what it was not.
fn problems(census: &Census, done: &str) -> Option<Error> {
    let first = census.problems.first()?;
    let kind = if census.problems.iter().any(|problem| problem.no_key) { ErrorKind::Key } else { ErrorKind::Integrity };
    let message = format!("{} could not be {done}, such as {}", count(census.problem_count, "thing"), first.object);
    let hint = match kind {
        ErrorKind::Key => "give an identity that opens them with --identity-file",
        _ => "'backup verify --all' tells more about backups; what is damaged beyond use has to be removed first",
    };
    Some(Error::new(kind, Stage::Keys, message).with_hint(hint))
}
