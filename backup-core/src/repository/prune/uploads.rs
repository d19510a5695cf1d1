//! Aborting multipart uploads that nobody will complete.

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::Error as StoreError;
use object_store::path::Path;

use super::Prune;
use super::backups::{is_young, list};
use super::remove::Remover;
use super::report::UploadsReport;
use crate::error::{ErrorKind, Result};
use crate::repository::layout::{BackupId, BackupPath, TargetName, parse_volume_name};
use crate::repository::storage_error;
use crate::repository::uploads::{Upload, Uploads};
use crate::wal_archive::kept::parse_object;

/// Aborts uploads that began before `old_before`; none of a run that wrote anything since. A store that refuses is told in the report, and no
/// problem: there are some that have no such request, and hosts that may not make it.
pub(super) async fn sweep(prune: &Prune, old_before: Timestamp, remover: &Remover<'_>) -> UploadsReport {
    let mut report = UploadsReport::default();
    let Some(uploads) = &prune.repository.uploads else { return report };
    let failed = |e| storage_error(e, format!("cannot list the unfinished uploads in {}", prune.repository));
    let mut listing = uploads.list();
    loop {
        let (step, is_listing) = match listing.try_next().await {
            Ok(Some(upload)) => (abort(prune, uploads, &upload, old_before).await, false),
            Ok(None) => return report,
            Err(e) => (Err(failed(e)), true),
        };
        match step {
            Ok(aborted) => report.aborted += u64::from(aborted),
            Err(e) => {
                let refused = matches!(e.kind(), ErrorKind::Config | ErrorKind::Storage | ErrorKind::NotFound);
                match refused {
                    true => _ = report.refused.get_or_insert_with(|| e.in_one_line()),
                    false => remover.problem(prune.repository.to_string(), &e),
                }
                // What may not be done to one target's may be to another's; a store that is away is away for all.
                if is_listing || !refused {
                    return report;
                }
            }
        }
    }
}

/// Whether it was one to be aborted, and is.
async fn abort(prune: &Prune, uploads: &Uploads, upload: &Upload, old_before: Timestamp) -> Result<bool> {
    if upload.initiated > old_before || !is_nobodys(prune, &upload.path, old_before).await? {
        return Ok(false);
    }
    if !prune.dry_run {
        abort_one(prune, uploads, upload).await?;
    }
    Ok(true)
}

async fn abort_one(prune: &Prune, uploads: &Uploads, upload: &Upload) -> Result<()> {
    match uploads.abort(upload).await {
        // It has ended, or somebody else prunes, too.
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(e) => Err(prune.repository.error(e, "abort an upload of", &upload.path)),
    }
}

/// Whether it would be an object of ours, and no run is alive that would make it: its volumes may wait for data for longer than anything. What this
/// release does not know stays.
async fn is_nobodys(prune: &Prune, object: &Path, old_before: Timestamp) -> Result<bool> {
    let Some(made_by) = maker(object) else { return Ok(false) };
    let Maker::Run(run) = made_by else { return Ok(true) };
    // As for the rest of what runs leave: where marks cannot be replaced, what a run writes tells that it is alive.
    Ok(!is_young(&list(&prune.repository, &run).await?, old_before))
}

/// Who makes an object.
enum Maker {
    /// A run that says that it is alive.
    Run(BackupPath),
    /// Who archives, and takes minutes.
    Archiver,
}

/// `None` when it is no object that is sent in parts.
fn maker(object: &Path) -> Option<Maker> {
    let parts: Vec<_> = object.parts().collect();
    let target: TargetName = parts.first()?.as_ref().parse().ok()?;
    if parse_object(&target, object).is_some() {
        return Some(Maker::Archiver);
    }
    let [_, _, id, name] = &parts[..] else { return None };
    let run = target.backup(&id.as_ref().parse::<BackupId>().ok()?);
    let is_volume = parse_volume_name(name.as_ref()).is_some() && *object == run.named(name.as_ref());
    is_volume.then_some(Maker::Run(run))
}
