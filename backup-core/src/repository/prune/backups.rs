//! Removing backups, and what runs left that died.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use object_store::{ObjectMeta, ObjectStore};

use super::Prune;
use super::clocks::{Clocks, modified};
use super::gather::{Unfinished, holding};
use super::remove::Remover;
use super::report::{Removed, UnfinishedReport};
use crate::error::{Result, Stage};
use crate::repository::Repository;
use crate::repository::layout::{BackupId, BackupPath, MANIFEST, RUNNING, TargetName};
use crate::repository::retention::{Facts, Reason, Verdict, keep_required};

/// For so long what was seen of a folder is taken to be so.
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
        if is_young(&objects, old_before) {
            verdicts[i].reasons.push(Reason::Young);
        }
        sizes.insert(facts[i].id.clone(), size_of(&objects));
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
        let left = remove_one(prune, &target.backup(&verdicts[i].id), clocks, remover).await?;
        if !left.is_empty() {
            verdicts[i].reasons.extend(left);
            keep_required(facts, verdicts);
        }
    }
    Ok(())
}

/// Removes a backup: first its manifest, so that it is none any more, and when that is durable the rest. Returns why it still is one, if it is.
async fn remove_one(prune: &Prune, path: &BackupPath, clocks: Clocks, remover: &Remover<'_>) -> Result<Vec<Reason>> {
    let (look, manifest) = (Look::now(prune), path.manifest());
    let objects = list(&prune.repository, path).await?;
    // Somebody may bring what it lacked, or may have pinned it; pins last, since listing may take its time.
    if is_young(&objects, clocks.store_before(prune.grace)) {
        return Ok(vec![Reason::Young]);
    }
    let pins = holding(&prune.repository.pins_of(path).await?, clocks);
    if !pins.is_empty() {
        return Ok(pins.into_iter().map(|(text, until)| Reason::Pinned { text, until }).collect());
    }
    let bytes = objects.iter().find(|object| object.location == manifest).map_or(0, |object| object.size);
    if !look.is_still_so() || !remover.remove(&manifest, bytes).await? {
        return Ok(vec![Reason::NotDeleted]);
    }
    prune.repository.settle(&manifest).await?;
    remove_all(objects.into_iter().filter(|object| object.location != manifest), &look, remover).await?;
    Ok(Vec::new())
}

/// Removes what runs left of which nothing came since `old_before`.
pub(super) async fn sweep(
    prune: &Prune,
    runs: &[Unfinished],
    old_before: Timestamp,
    remover: &Remover<'_>,
) -> Result<Vec<UnfinishedReport>> {
    let mut reports = Vec::with_capacity(runs.len());
    for Unfinished { path, .. } in runs {
        // Again, since what was looked at may have gone on meanwhile. What goes is what this listing has, and nothing that came after it.
        let look = Look::now(prune);
        let objects = list(&prune.repository, path).await?;
        let Some(newest) = objects.iter().map(modified).max() else { continue };
        let size = size_of(&objects);
        let has_ended = objects.iter().any(|object| object.location.filename() == Some(MANIFEST));
        let kept = has_ended || is_young(&objects, old_before) || !look.is_still_so();
        if !kept {
            // The mark of the run last: while it is there it tells whose the rest is.
            let (mark, rest): (Vec<ObjectMeta>, Vec<ObjectMeta>) =
                objects.into_iter().partition(|object| object.location.filename() == Some(RUNNING));
            remove_all(rest.into_iter(), &look, remover).await?;
            remove_all(mark.into_iter(), &look, remover).await?;
        }
        reports.push(UnfinishedReport { id: path.id.clone(), newest, size, kept });
    }
    Ok(reports)
}

/// When something was looked at. Whoever was stopped since (a suspended machine) knows nothing of it any more, and leaves it to the next prune.
struct Look<'a> {
    prune: &'a Prune,
    at: Timestamp,
}

impl<'a> Look<'a> {
    fn now(prune: &'a Prune) -> Self {
        Self { prune, at: prune.clock.now() }
    }

    fn is_still_so(&self) -> bool {
        self.prune.clock.now().duration_since(self.at) <= STILL_SO
    }
}

/// All objects of a backup: some, or some thousand where it has petabytes.
pub(super) async fn list(repository: &Repository, path: &BackupPath) -> Result<Vec<ObjectMeta>> {
    let prefix = path.prefix();
    let listed = repository.store().list(Some(&prefix)).try_collect().await;
    listed.map_err(|e| repository.error(e, "list", &prefix).at(Stage::Catalog))
}

/// Whether anything of a folder came since `old_before`.
pub(super) fn is_young(objects: &[ObjectMeta], old_before: Timestamp) -> bool {
    objects.iter().any(|object| modified(object) > old_before)
}

fn size_of(objects: &[ObjectMeta]) -> Removed {
    let mut size = Removed::default();
    objects.iter().for_each(|object| size += Removed { objects: 1, bytes: object.size });
    size
}

/// Removes them, while what was seen of them is so.
async fn remove_all(
    objects: impl Iterator<Item = ObjectMeta> + Send,
    look: &Look<'_>,
    remover: &Remover<'_>,
) -> Result<()> {
    let objects: Vec<ObjectMeta> = objects.collect();
    let current = objects.into_iter().take_while(|_| look.is_still_so());
    let removed =
        futures::stream::iter(current).map(|object| async move { remover.remove(&object.location, object.size).await });
    removed.buffer_unordered(DELETES).try_for_each(|_| async { Ok(()) }).await
}
