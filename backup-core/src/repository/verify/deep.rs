//! With a key: everything opens and decompresses, and is what it should be.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Finding, Verification};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Kind, StreamEntry};
use crate::keys::Identity;
use crate::pipeline::Limits;
use crate::repository::Repository;
use crate::repository::layout::BackupPath;
use crate::restore::inspect::{self, Inspected};
use crate::restore::{NullSink, OpenBackup};

/// The stream that is a tar archive in a backup of a directory.
const DATA: &str = "data";

/// Verifies a backup with a key: restores every stream to nowhere. Digests are not compared: every byte is authenticated instead. Tar archives are
/// read to their ends; all files of a base backup are compared with PostgreSQL's own manifest, as a restore does, and the log that is in it must be
/// all that it needs.
///
/// Finds every chunk that is damaged, and every file that is not as it should be. Errors mean that the verification could not be done: no identity
/// opens the backup, the store cannot be reached; `NotFound`, that it was removed meanwhile. Not cancel safe; cancel with `cancel`.
pub async fn deep(
    repository: &Repository,
    path: &BackupPath,
    identities: &[Arc<dyn Identity>],
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<Verification> {
    let mut found = Verification { objects: 1, ..Verification::default() };
    let backup = match OpenBackup::open(repository, path, identities).await {
        Ok(backup) => backup,
        Err(e) => {
            found.finding_or_error(path.prefix().to_string(), e)?;
            return found.unless_removed(repository, path).await;
        }
    };
    let mut known = Vec::new();
    if backup.manifest().kind == Kind::BaseBackup {
        let Inspected { streams, findings } = inspect::cluster(&backup, limits, cancel).await?;
        for (stream, result) in streams {
            let entry = backup.manifest().stream(&stream);
            if let Some(entry) = entry {
                found.stream(&backup, entry, result, limits, cancel).await?;
            }
            known.push(stream);
        }
        let of_cluster = |problem| Finding { object: path.prefix().to_string(), problem };
        found.findings.extend(findings.into_iter().map(of_cluster));
    }
    for stream in backup.manifest().streams.iter().filter(|stream| !known.contains(&stream.name)) {
        let restore = backup.restore(&stream.name)?.limits(limits).cancel_on(cancel);
        let result = match backup.manifest().kind {
            Kind::Directory if stream.name == DATA => restore.into(inspect::tar()?).wait().await,
            _ => restore.into(NullSink).wait().await,
        };
        found.stream(&backup, stream, result.map(drop), limits, cancel).await?;
    }
    found.unless_removed(repository, path).await
}

impl Verification {
    /// Takes account of a stream; if it is damaged, of all that is.
    async fn stream(
        &mut self,
        backup: &OpenBackup,
        stream: &StreamEntry,
        result: Result<()>,
        limits: Limits,
        cancel: &CancellationToken,
    ) -> Result<()> {
        self.objects += stream.volumes.len() as u64;
        let error: Error = match result {
            Ok(()) => {
                self.bytes += stream.volumes.iter().map(|volume| volume.bytes).fold(0, u64::saturating_add);
                return Ok(());
            }
            // Who takes the stream is one of ours: what it finds is wrong with the stream.
            Err(e) if matches!(e.kind(), ErrorKind::Integrity | ErrorKind::Sink) => e,
            Err(e) => return Err(e),
        };
        let damage = match error.kind() {
            ErrorKind::Integrity => backup.restore(&stream.name)?.limits(limits).cancel_on(cancel).damage().await?,
            _ => Vec::new(),
        };
        if damage.is_empty() {
            let object = format!("{}/{}", backup.path().prefix(), stream.name);
            self.findings.push(Finding { object, problem: error.in_one_line() });
        }
        self.findings
            .extend(damage.into_iter().map(|(object, problem)| Finding { object: object.to_string(), problem }));
        Ok(())
    }
}
