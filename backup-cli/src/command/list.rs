//! `backup list`.

use std::collections::BTreeMap;

use backup_core::format::Manifest;
use backup_core::repository::layout::{BackupId, BackupPath, TargetName};
use backup_core::repository::pins::Pin;
use backup_core::repository::{Found, Listed, Repository};
use backup_core::{Error, ErrorKind, Result, Stage};
use futures::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;

use crate::App;
use crate::args::ListArgs;
use crate::exit::Exit;
use crate::output::{self, bytes};
use crate::report;

use super::describe::{BackupDocument, data_bytes, time, word};
use super::targets::with_each_of;
use super::{repositories, to_look_at};

mod runs;
mod several;
pub(super) mod usage;

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    backups: Vec<BackupDocument>,
    unreadable: Vec<Unreadable>,
    unreadable_targets: Vec<UnreadableTarget>,
    unfinished: Vec<Name<'a>>,
}

#[derive(Debug, Serialize)]
struct Name<'a> {
    target: &'a str,
    id: &'a str,
}

#[derive(Debug, Serialize)]
struct Unreadable {
    target: String,
    id: String,
    error: String,
}

#[derive(Debug, Serialize)]
struct UnreadableTarget {
    target: String,
    error: String,
}

impl UnreadableTarget {
    fn new(target: &TargetName, error: &Error) -> Self {
        Self { target: target.to_string(), error: report::in_one_line(error) }
    }
}

/// What there is; `T` is what is kept of a backup.
struct Listing<T> {
    backups: Vec<T>,
    unreadable: Vec<Unreadable>,
    unreadable_targets: Vec<UnreadableTarget>,
    unfinished: Vec<BackupPath>,
}

pub(crate) async fn run(app: &App, args: &ListArgs) -> Result<Exit> {
    let target: Option<TargetName> = args.target.as_deref().map(str::parse).transpose()?;
    if args.usage {
        let of_each = |repository, setting, targets| usage::run(app, args, repository, setting, targets);
        return with_each_of(app, args.target.as_slice(), of_each).await;
    }
    let all = repositories(&app.config)?;
    if all.members().len() > 1 && !args.runs {
        return several::run(app, args, &all, target.as_ref()).await;
    }
    let repository = to_look_at(app).await?;
    if args.runs {
        return runs::run(app, args, &repository, target.as_ref()).await;
    }
    let now = app.clock.now();
    let unreadable = if args.json {
        json(
            app,
            &repository,
            read(&repository, target.as_ref(), |found, pins| {
                BackupDocument::new(&found.manifest, found.signer).with_pins(pins, now)
            })
            .await?,
        )
    } else {
        let row = |found: &Found, pins: &[Pin]| {
            let mut row = row(&found.manifest);
            mark_pinned(&mut row, pins, now);
            row
        };
        table(app, &repository, read(&repository, target.as_ref(), row).await?)
    }?;
    Ok(if unreadable == 0 { Exit::Done } else { Exit::Warnings })
}

/// Prints JSON; returns how many backups and targets cannot be read.
fn json(app: &App, repository: &Repository, listing: Listing<BackupDocument>) -> Result<usize> {
    let Listing { backups, unreadable, unreadable_targets, unfinished } = listing;
    let count = unreadable.len() + unreadable_targets.len();
    let unfinished = unfinished.iter().map(|p| Name { target: p.target.as_str(), id: p.id.as_str() }).collect();
    app.output.json(&Document {
        repository: repository.name(),
        backups,
        unreadable,
        unreadable_targets,
        unfinished,
    })?;
    Ok(count)
}

/// Prints a table; returns how many backups and targets cannot be read.
fn table(app: &App, repository: &Repository, listing: Listing<Vec<String>>) -> Result<usize> {
    if listing.backups.is_empty() {
        app.output.note(format!("no backups in {repository}"));
    } else {
        let header = ["ID", "TARGET", "KIND", "FINISHED", "DATA", "STORED", "STATE"].map(str::to_owned).to_vec();
        let rows: Vec<Vec<String>> = std::iter::once(header).chain(listing.backups).collect();
        app.output.data(&output::table(&rows))?;
    }
    if !listing.unfinished.is_empty() {
        app.output
            .note(format!("unfinished, so not listed: {} (running now, or interrupted)", listing.unfinished.len()));
    }
    for unreadable in &listing.unreadable {
        app.output.warning(format!("{} of {} cannot be read: {}", unreadable.id, unreadable.target, unreadable.error));
    }
    for UnreadableTarget { target, error } in &listing.unreadable_targets {
        app.output.warning(format!("'{target}' cannot be listed: {error}"));
    }
    Ok(listing.unreadable.len() + listing.unreadable_targets.len())
}

/// Reads the manifests and keeps of each what `keep` makes of it: there may be thousands, and they can be long.
async fn read<T>(
    repository: &Repository,
    target: Option<&TargetName>,
    keep: impl Fn(&Found, &[Pin]) -> T,
) -> Result<Listing<T>> {
    let mut listing = Listing { backups: vec![], unreadable: vec![], unreadable_targets: vec![], unfinished: vec![] };
    let mut items = repository.list(target);
    // Of the target that is being listed.
    let mut pins: Option<(TargetName, BTreeMap<BackupId, Vec<Pin>>)> = None;
    while let Some(item) = items.try_next().await? {
        match item {
            Listed::Backup(found) => {
                let target = &found.path.target;
                let of_target = match pins.take().filter(|(of, _)| of == target) {
                    Some((_, known)) => known,
                    None => repository.pins(target).await?,
                };
                listing.backups.push(keep(&found, of_target.get(&found.path.id).map_or(&[], Vec::as_slice)));
                pins = Some((target.clone(), of_target));
            }
            Listed::Unfinished(path) => listing.unfinished.push(path),
            Listed::UnreadableTarget(target, error) => {
                listing.unreadable_targets.push(UnreadableTarget::new(&target, &error));
            }
            Listed::Unreadable(path, error) => listing.unreadable.push(Unreadable {
                target: path.target.to_string(),
                id: path.id.to_string(),
                error: report::in_one_line(&error),
            }),
        }
    }
    let empty = listing.backups.is_empty() && listing.unfinished.is_empty() && listing.unreadable.is_empty();
    match target {
        Some(target) if empty => {
            let message = format!("{repository} has no target '{target}'");
            Err(Error::new(ErrorKind::NotFound, Stage::Catalog, message).with_hint("'backup list' shows all targets"))
        }
        _ => Ok(listing),
    }
}

fn row(manifest: &Manifest) -> Vec<String> {
    vec![
        manifest.id.clone(),
        manifest.target.clone(),
        word(&manifest.kind),
        time(manifest.finished),
        bytes(data_bytes(manifest)),
        bytes(manifest.stored_bytes()),
        word(&manifest.condition),
    ]
}

/// Says in a row's last column, if that is so, that the backup is pinned.
fn mark_pinned(row: &mut [String], pins: &[Pin], now: Timestamp) {
    if let (Some(state), true) = (row.last_mut(), pins.iter().any(|pin| pin.holds(now))) {
        state.push_str(", pinned");
    }
}
