//! `backup restore --only PATH --to DIR`: single files out of a base backup.

use std::path::Path;
use std::time::Instant;

use backup_core::format::Condition;
use backup_core::restore::{OnlyRestore, OpenBackup};
use backup_core::{Error, Result};

use crate::args::RestoreArgs;
use crate::audit::Run;
use crate::command::{limits, or_cancelled, resolve, to_read};
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::{self, Shown};
use crate::{App, keys};

pub(super) async fn run(
    app: &App,
    args: &RestoreArgs,
    directory: &Path,
    begun: Instant,
    run: &mut Run,
) -> Result<Exit> {
    if args.cluster.any() {
        return Err(Error::config("--only restores files, and no cluster that could recover")
            .with_hint("without --only the whole cluster is restored"));
    }
    let Prepared { restore, backup, passed_over } = or_cancelled(app, prepare(app, args, directory, run)).await?;
    run.begin(app).await;
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
    Ok(if passed_over { Exit::Warnings } else { Exit::Done })
}

struct Prepared {
    restore: OnlyRestore,
    backup: OpenBackup,
    passed_over: bool,
}

async fn prepare(app: &App, args: &RestoreArgs, directory: &Path, run: &mut Run) -> Result<Prepared> {
    let identities = keys::identities_at_hand(&app.config).await?;
    let repository = to_read(app).await?;
    run.at(&repository);
    let limits = limits(&app.config, repository.part_bytes())?;
    let (found, passed_over) = resolve(app, &repository, &args.reference, &args.age).await?;
    run.about(&found.manifest);
    let backup = OpenBackup::open(&repository, &found.path, &identities).await?;
    let restore = backup.restore_only(args.only.iter().cloned(), directory).limits(limits);
    Ok(Prepared { restore, backup, passed_over })
}
