//! Aborting multipart uploads that nobody will complete.

use futures::TryStreamExt;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt};

use super::Prune;
use super::clocks::modified;
use super::remove::Remover;
use super::report::UploadsReport;
use crate::error::{ErrorKind, Result};
use crate::repository::layout::{BackupId, BackupPath, TargetName, parse_volume_name};
use crate::repository::storage_error;
use crate::repository::uploads::{Upload, Uploads};
use crate::wal_archive::kept::parse_object;

/// Aborts uploads that began before `old_before`; none beside the mark of a run that is younger. A store that refuses is told in the report, and no
/// problem: there are some that have no such request, and hosts that may not make it.
pub(super) async fn sweep(prune: &Prune, old_before: Timestamp, remover: &Remover<'_>) -> UploadsReport {
    let mut report = UploadsReport::default();
    let Some(uploads) = &prune.repository.uploads else { return report };
    match abort(prune, uploads, old_before, &mut report).await {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), ErrorKind::Config | ErrorKind::Storage | ErrorKind::NotFound) => {
            report.refused = Some(e.in_one_line());
        }
        Err(e) => remover.problem(prune.repository.to_string(), &e),
    }
    report
}

async fn abort(prune: &Prune, uploads: &Uploads, old_before: Timestamp, report: &mut UploadsReport) -> Result<()> {
    let repository = &prune.repository;
    let failed = |e| storage_error(e, format!("cannot list the unfinished uploads in {repository}"));
    let mut listing = uploads.list();
    while let Some(upload) = listing.try_next().await.map_err(failed)? {
        if upload.initiated > old_before || !is_nobodys(prune, &upload.path, old_before).await? {
            continue;
        }
        if !prune.dry_run {
            abort_one(prune, uploads, &upload).await?;
        }
        report.aborted += 1;
    }
    Ok(())
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
    let mark = run.running();
    match prune.repository.store().head(&mark).await {
        Ok(mark) => Ok(modified(&mark) <= old_before),
        Err(StoreError::NotFound { .. }) => Ok(true),
        Err(e) => Err(prune.repository.error(e, "read", &mark)),
    }
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
