//! `backup copy`: another repository, brought up to date.

use std::sync::Arc;

use backup_core::pipeline::Counters;
use backup_core::repository::Repository;
use backup_core::repository::copy::{Copied, CopyOptions, Selection, copy};
use backup_core::{Error, Result, Stage};
use serde::Serialize;

use crate::App;
use crate::args::CopyArgs;
use crate::audit::Run;
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::{self, Shown};
use crate::report::plain;

use super::key::count;
use super::targets::all_of;
use super::{limits, open_named, or_cancelled, to_look_at};

/// Objects of unknown kinds that are named; all are counted.
const NAMED_MAX: usize = 3;

#[derive(Debug, Serialize)]
struct Document<'a> {
    from: &'a str,
    to: &'a str,
    dry_run: bool,
    /// Whether all that could be copied is there, and nothing was wrong at the source.
    ok: bool,
    bytes: u64,
    #[serde(flatten)]
    copied: &'a Copied,
}

pub(crate) async fn run(app: &App, args: &CopyArgs) -> Result<Exit> {
    let mut run = Run::new(app, "copy");
    let result = copy_all(app, args, &mut run).await;
    run.end(app, &result).await;
    result
}

async fn copy_all(app: &App, args: &CopyArgs, run: &mut Run) -> Result<Exit> {
    let open = async {
        let from = match &args.from {
            Some(from) => open_named(&app.config, from, "--from").await?,
            None => to_look_at(app).await?,
        };
        Ok((from, open_named(&app.config, &args.to, "--to").await?))
    };
    let (from, to) = or_cancelled(app, open).await?;
    let mut options = CopyOptions::new(&to);
    options.limits = limits(&app.config, to.part_bytes())?;
    options.selection = or_cancelled(app, selection(&from, args)).await?;
    options.quick = args.quick;
    options.dry_run = args.dry_run;
    options.clock = Arc::clone(&app.clock);

    let counters = Arc::new(Counters::default());
    let shown = || {
        let sent = counters.snapshot().transferred_bytes;
        Shown::reading(sent, format!("{} copied", bytes(sent)))
    };
    let work = copy(&from, &to, &options, &counters, &app.cancel);
    let copied = progress::during(&app.output, None, shown, work).await;
    if !args.dry_run && counters.snapshot().transferred_bytes > 0 {
        // There is something new to account for; nothing is said of a copy that found all as it should be.
        run.at(&to);
    }
    let copied = copied?;
    tell(app, args, &from, &to, &copied);
    if args.json {
        app.output.json(&Document {
            from: from.name(),
            to: to.name(),
            dry_run: args.dry_run,
            ok: copied.problem_count == 0,
            bytes: copied.bytes(),
            copied: &copied,
        })?;
    }
    verdict(&copied)
}

async fn selection(from: &Repository, args: &CopyArgs) -> Result<Selection> {
    if !args.target.is_empty() {
        return Ok(Selection::Targets(all_of(from, &args.target).await?));
    }
    if args.references.is_empty() {
        return Ok(Selection::Everything);
    }
    let mut paths = Vec::new();
    for reference in &args.references {
        let path = from.resolve(reference).await?.path;
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(Selection::Backups(paths))
}

fn tell(app: &App, args: &CopyArgs, from: &Repository, to: &Repository, copied: &Copied) {
    let Copied { backups, wal_files, rewraps, pins, .. } = copied;
    let done = if args.dry_run { "to be copied" } else { "copied" };
    app.output.note(format!(
        "{done} from {from} to {to}: {}, {}, {}, {}, {}",
        count(backups.copied, "backup"),
        count(wal_files.copied, "WAL file"),
        count(rewraps.copied, "rewrap"),
        count(pins.copied, "pin"),
        bytes(copied.bytes()),
    ));
    app.output.note(format!(
        "there already: {}, {}, {}, {}",
        count(backups.same, "backup"),
        count(wal_files.same, "WAL file"),
        count(rewraps.same, "rewrap"),
        count(pins.same, "pin"),
    ));
    if copied.unfinished > 0 {
        let runs = count(copied.unfinished, "run");
        app.output.note(format!("unfinished, or going on: {runs}; what they wrote is not copied"));
    }
    if copied.left_alone > 0 {
        let names: Vec<_> = copied.left_alone_examples.iter().take(NAMED_MAX).map(|name| plain(name)).collect();
        let more = if copied.left_alone > names.len() as u64 { ", …" } else { "" };
        let objects = count(copied.left_alone, "object");
        app.output.note(format!(
            "left alone, of kinds that this release does not know: {objects}: {}{more}",
            names.join(", ")
        ));
    }
    for problem in &copied.problems {
        app.output.warning(format!("{}: {}", plain(&problem.object), plain(&problem.problem)));
    }
    let told = copied.problems.len() as u64;
    if copied.problem_count > told {
        app.output.warning(format!("and {} more", copied.problem_count - told));
    }
}

fn verdict(copied: &Copied) -> Result<Exit> {
    let damaged = copied.problems.iter().find(|problem| problem.damage);
    match damaged {
        Some(first) => {
            let things = count(copied.problem_count, "thing");
            let message = format!("{things} could not be copied, such as {}", first.object);
            Err(Error::integrity(message)
                .at(Stage::Fetch)
                .with_hint("all else was; 'backup verify --all' of the source tells more"))
        }
        None if copied.problem_count > 0 => Ok(Exit::Warnings),
        None => Ok(Exit::Done),
    }
}
