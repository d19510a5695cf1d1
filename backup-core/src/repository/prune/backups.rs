//! Removing backups, and what runs left that died.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use object_store::{ObjectMeta, ObjectStore};

use super::Prune;
use super::clocks::{Clocks, modified};
use super::gather::{Unfinished, holding, unfinished};
use super::remove::Remover;
use super::report::{Removed, UnfinishedReport};
use crate::error::{Result, Stage};
use crate::repository::Repository;
use crate::repository::layout::{BackupId, BackupPath, MANIFEST, RUNNING, TargetName};
use crate::repository::retention::{Facts, Reason, Verdict, keep_required};

/// For so long what was seen of a run is taken to be so.
const STILL_SO: SignedDuration = SignedDuration::from_mins(10);
/// Backups that are looked at at once.
const LOOKS: usize = 8;
/// Objects of one backup that are deleted at once.
const DELETES: usize = 8;

/// Looks once more at what is to go: it may have come just now. Returns how large each is.
pub(super) async fn look_at_doomed(
    prune: &Prune,
    target: &TargetName,
    facts: &[Facts],
    verdicts: &mut [Verdict],
    old_before: Timestamp,
) -> Result<BTreeMap<BackupId, Removed>> {
    let mut sizes = BTreeMap::new();
    let doomed: Vec<usize> = (0..facts.len()).filter(|&i| !verdicts[i].is_kept()).collect();
    let look = |i: usize| async move {
        let path = target.backup(&facts[i].id);
        list(&prune.repository, &path).await.map(|objects| (i, objects))
    };
    let mut looked = futures::stream::iter(doomed).map(look).buffer_unordered(LOOKS);
    while let Some((i, objects)) = looked.try_next().await? {
        let mut size = Removed::default();
        for object in objects {
            size += Removed { objects: 1, bytes: object.size };
            if object.location.filename() == Some(MANIFEST) && modified(&object) > old_before {
                verdicts[i].reasons.push(Reason::Young);
            }
        }
        sizes.insert(facts[i].id.clone(), size);
    }
    drop(looked);
    keep_required(facts, verdicts);
    Ok(sizes)
}

/// Removes the backups that are kept for no reason, the newest first: what others need goes after them. A backup that does not go is kept from
/// here on, and with it what it needs.
pub(super) async fn remove(
    prune: &Prune,
    target: &TargetName,
    facts: &[Facts],
    verdicts: &mut [Verdict],
    sizes: &BTreeMap<BackupId, Removed>,
    clocks: Clocks,
    remover: &Remover<'_>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..facts.len()).filter(|&i| !verdicts[i].is_kept()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse((facts[i].started, &facts[i].id)));
    for i in order {
        let Some(size) = sizes.get(&verdicts[i].id).filter(|_| !verdicts[i].is_kept()) else { continue };
        if prune.dry_run {
            remover.count(*size);
            continue;
        }
        // Somebody may have pinned it since.
        let path = target.backup(&verdicts[i].id);
        let pins = holding(&prune.repository.pins_of(&path).await?, clocks);
        if !pins.is_empty() {
            verdicts[i].reasons.extend(pins.into_iter().map(|(text, until)| Reason::Pinned { text, until }));
            keep_required(facts, verdicts);
            continue;
        }
        if !remove_one(&prune.repository, &path, remover).await? {
            verdicts[i].reasons.push(Reason::NotDeleted);
            keep_required(facts, verdicts);
        }
    }
    Ok(())
}

/// Removes a backup: first its manifest, so that it is none any more, and when that is durable the rest. Returns whether it is none any more.
async fn remove_one(repository: &Repository, path: &BackupPath, remover: &Remover<'_>) -> Result<bool> {
    let objects = list(repository, path).await?;
    let manifest = path.manifest();
    let bytes = objects.iter().find(|object| object.location == manifest).map_or(0, |object| object.size);
    if !remover.remove(&manifest, bytes).await? {
        return Ok(false);
    }
    repository.settle(&manifest).await?;
    remove_all(objects.into_iter().filter(|object| object.location != manifest), remover).await?;
    Ok(true)
}

/// Removes what runs left of which nothing came since `old_before`.
pub(super) async fn sweep(
    prune: &Prune,
    runs: &[Unfinished],
    old_before: Timestamp,
    remover: &Remover<'_>,
) -> Result<Vec<UnfinishedReport>> {
    let mut reports = Vec::with_capacity(runs.len());
    for run in runs {
        // Again, since what was looked at may have gone on meanwhile.
        let looked = prune.clock.now();
        let Some(run) = unfinished(&prune.repository, run.path.clone()).await? else { continue };
        let mut kept = run.newest > old_before;
        if !kept {
            // The mark of the run last: while it is there it tells whose the rest is.
            let (mark, rest): (Vec<ObjectMeta>, Vec<ObjectMeta>) = list(&prune.repository, &run.path)
                .await?
                .into_iter()
                .partition(|object| object.location.filename() == Some(RUNNING));
            // Whoever was stopped in between (a suspended machine) knows nothing of it any more.
            kept = prune.clock.now().duration_since(looked) > STILL_SO;
            if !kept {
                remove_all(rest.into_iter(), remover).await?;
                remove_all(mark.into_iter(), remover).await?;
            }
        }
        reports.push(UnfinishedReport { id: run.path.id.clone(), newest: run.newest, size: run.size, kept });
    }
    Ok(reports)
}

/// All objects of a backup: some, or some thousand where it has petabytes.
async fn list(repository: &Repository, path: &BackupPath) -> Result<Vec<ObjectMeta>> {
    let prefix = path.prefix();
    let listed = repository.store().list(Some(&prefix)).try_collect().await;
    listed.map_err(|e| repository.error(e, "list", &prefix).at(Stage::Catalog))
}

async fn remove_all(objects: impl Iterator<Item = ObjectMeta> + Send, remover: &Remover<'_>) -> Result<()> {
    let objects: Vec<ObjectMeta> = objects.collect();
    let removed =
        futures::stream::iter(objects).map(|object| async move { remover.remove(&object.location, object.size).await });
    removed.buffer_unordered(DELETES).try_for_each(|_| async { Ok(()) }).await
}
