//! `backup list` of several repositories: what there is, and where.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::repository::layout::TargetName;
use backup_core::repository::pins::Pin;
use backup_core::repository::{Member, Repositories};
use backup_core::{ErrorKind, Result};
use futures::future::join_all;
use jiff::Timestamp;
use serde::Serialize;

use super::{Listing, Unreadable, UnreadableTarget, mark_pinned, read, row};
use crate::args::ListArgs;
use crate::command::describe::BackupDocument;
use crate::exit::Exit;
use crate::output;
use crate::{App, report};

#[derive(Debug, Serialize)]
struct Document<'a> {
    /// The same as the first of all.
    repository: &'a str,
    repositories: Vec<RepositoryDocument<'a>>,
    backups: Vec<Placed>,
    unreadable: Vec<InRepository<Unreadable>>,
    unreadable_targets: Vec<InRepository<UnreadableTarget>>,
    unfinished: Vec<InRepository<Name>>,
}

#[derive(Debug, Serialize)]
struct RepositoryDocument<'a> {
    name: &'a str,
    required: bool,
    /// Why it could not be listed.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Placed {
    #[serde(flatten)]
    backup: BackupDocument,
    /// The repositories that it is in, by their names.
    repositories: Vec<String>,
}

#[derive(Debug, Serialize)]
struct InRepository<T> {
    in_repository: String,
    #[serde(flatten)]
    what: T,
}

#[derive(Debug, Serialize)]
struct Name {
    target: String,
    id: String,
}

/// A backup, where it is, and its pins in all of these places.
struct Found {
    id: String,
    row: Vec<String>,
    document: BackupDocument,
    pins: Vec<Pin>,
    places: Vec<String>,
}

/// What one repository has; or why that is not known.
type Listed = Result<Listing<Found>>;

pub(super) async fn run(
    app: &App,
    args: &ListArgs,
    repositories: &Repositories,
    target: Option<&TargetName>,
) -> Result<Exit> {
    let now = app.clock.now();
    let listing = repositories.members().iter().map(|member| async move {
        let listed = async {
            read(member.open().await?, target, |found, pins| {
                let (manifest, pins) = (&found.manifest, pins.to_vec());
                let document = BackupDocument::new(manifest, found.signer);
                Found { id: manifest.id.clone(), row: row(manifest), document, pins, places: Vec::new() }
            })
            .await
        };
        (member, listed.await)
    });
    let mut listed: Vec<(&Member, Listed)> = join_all(listing).await;
    if listed.iter().all(|(_, listed)| listed.is_err())
        && let Some((_, Err(error))) = listed.pop()
    {
        return Err(error);
    }
    let documents: Vec<RepositoryDocument<'_>> =
        listed.iter().map(|(member, listed)| outcome(member, listed, target)).collect();
    let names: Vec<String> = listed.iter().map(|(member, _)| member.name().to_owned()).collect();
    let mut exit = Exit::Done;
    for RepositoryDocument { name, error, .. } in &documents {
        if let Some(error) = error {
            app.output.warning(format!("{name} cannot be listed: {error}"));
            exit = Exit::Warnings;
        }
    }
    let (mut backups, mut unfinished) = (BTreeMap::<(String, String), Found>::new(), Vec::new());
    let (mut unreadable, mut unreadable_targets) = (Vec::new(), Vec::new());
    for (member, listing) in listed.into_iter().filter_map(|(member, listed)| Some((member, listed.ok()?))) {
        let place = || member.name().to_owned();
        for found in listing.backups {
            let pins = found.pins.clone();
            let known = backups.entry((found.row[1].clone(), found.id.clone())).or_insert(found);
            known.places.push(place());
            // One that was made in all of them at once is one.
            known.pins.extend(pins.into_iter().filter(|pin| !known.pins.contains(pin)).collect::<Vec<_>>());
        }
        let of = |path: &backup_core::repository::layout::BackupPath| Name {
            target: path.target.to_string(),
            id: path.id.to_string(),
        };
        unfinished
            .extend(listing.unfinished.iter().map(|path| InRepository { in_repository: place(), what: of(path) }));
        unreadable.extend(listing.unreadable.into_iter().map(|what| InRepository { in_repository: place(), what }));
        let targets = listing.unreadable_targets.into_iter();
        unreadable_targets.extend(targets.map(|what| InRepository { in_repository: place(), what }));
    }
    if !unreadable.is_empty() || !unreadable_targets.is_empty() {
        exit = Exit::Warnings;
    }
    if args.json {
        app.output.json(&Document {
            repository: documents.first().map_or("", |first| first.name),
            repositories: documents,
            backups: backups
                .into_values()
                .map(|f| Placed { backup: f.document.with_pins(&f.pins, now), repositories: f.places })
                .collect(),
            unreadable,
            unreadable_targets,
            unfinished,
        })?;
        return Ok(exit);
    }
    table(app, &names, backups.into_values(), now)?;
    let runs: BTreeSet<_> = unfinished.iter().map(|run| (&run.what.target, &run.what.id)).collect();
    if !runs.is_empty() {
        app.output.note(format!("unfinished, so not listed: {} (running now, or interrupted)", runs.len()));
    }
    for InRepository { in_repository, what: Unreadable { target, id, error } } in &unreadable {
        app.output.warning(format!("{id} of {target} cannot be read in {in_repository}: {error}"));
    }
    for InRepository { in_repository, what: UnreadableTarget { target, error } } in &unreadable_targets {
        app.output.warning(format!("'{target}' cannot be listed in {in_repository}: {error}"));
    }
    Ok(exit)
}

fn outcome<'a>(member: &'a Member, listed: &Listed, target: Option<&TargetName>) -> RepositoryDocument<'a> {
    // That it has nothing of that target is no failure: the others may.
    let failed = listed.as_ref().err().filter(|error| error.kind() != ErrorKind::NotFound || target.is_none());
    RepositoryDocument { name: member.name(), required: member.is_required(), error: failed.map(report::in_one_line) }
}

fn table(app: &App, names: &[String], backups: impl Iterator<Item = Found>, now: Timestamp) -> Result<()> {
    let header = ["ID", "TARGET", "KIND", "FINISHED", "DATA", "STORED", "STATE", "IN"].map(str::to_owned).to_vec();
    let mut rows = vec![header];
    rows.extend(backups.map(|Found { mut row, pins, places, .. }| {
        mark_pinned(&mut row, &pins, now);
        row.push(if places.len() == names.len() { "all".to_owned() } else { places.join(", ") });
        row
    }));
    if rows.len() == 1 {
        app.output.note(format!("no backups in {}", names.join(", ")));
        return Ok(());
    }
    app.output.data(&output::table(&rows))
}
