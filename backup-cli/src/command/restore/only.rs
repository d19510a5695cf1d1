//! `backup restore --only PATH --to DIR`: single files out of a base backup.

use std::path::Path;
use std::time::Instant;

use backup_core::format::Condition;
use backup_core::repository::Repository;
use backup_core::restore::{OnlyRestore, OpenBackup};
use backup_core::{Error, Result};

use crate::args::RestoreArgs;
use crate::command::{limits, location, or_cancelled};
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::{self, Shown};
use crate::{App, keys};

pub(super) async fn run(app: &App, args: &RestoreArgs, directory: &Path, begun: Instant) -> Result<Exit> {
    if args.cluster.any() {
        return Err(Error::config("--only restores files, and no cluster that could recover")
            .with_hint("without --only the whole cluster is restored"));
    }
    let (restore, backup) = or_cancelled(app, prepare(app, args, directory)).await?;
    let handle = restore.cancel_on(&app.cancel).start()?;
    let counters = handle.counters();
    let restored =
        progress::during(&app.output, None, || Shown::restoring(&counters.snapshot()), handle.wait()).await?;
    let manifest = backup.manifest();
    app.output.note(format!(
        "restored {} files of {} of {} to {}: {} in {:.1} s",
        restored.files,
        manifest.id,
        manifest.target,
        directory.display(),
        bytes(restored.bytes),
        begun.elapsed().as_secs_f64(),
    ));
    app.output.note("  they are as they were read while the server ran, which no server starts from");
    if manifest.condition == Condition::Damaged {
        app.output.warning("the source of this backup was damaged: see 'backup show'");
        return Ok(Exit::Warnings);
    }
    Ok(Exit::Done)
}

async fn prepare(app: &App, args: &RestoreArgs, directory: &Path) -> Result<(OnlyRestore, OpenBackup)> {
    let identities = keys::identities(&app.config).await?;
    let repository = Repository::open(&location(&app.config)?).await?;
    let limits = limits(&app.config, &repository)?;
    let found = repository.resolve(&args.reference).await?;
    let backup = OpenBackup::open(&repository, &found.path, &identities).await?;
    Ok((backup.restore_only(args.only.iter().cloned(), directory).limits(limits), backup))
}
