//! `backup restore`: one stream of one backup, to where the flags say.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Instant;

use backup_core::format::{Kind, Manifest};
use backup_core::pipeline::Warnings;
use backup_core::postgres::conninfo::ConnInfo;
use backup_core::postgres::load::{LoadOptions, LoadSink};
use backup_core::restore::{DirectorySink, FileSink, OpenBackup, Restore, Sink, WriterSink};
use backup_core::{Error, ErrorKind, Result};

use crate::args::RestoreArgs;
use crate::audit::Run;
use crate::exit::Exit;
use crate::output::bytes;
use crate::progress::{self, Shown, rate};
use crate::{App, keys, stdio};

use super::describe::data_streams;
use super::{conninfo, limits, or_cancelled, resolve, stderr_lines, to_read, told};

mod cluster;
mod fetching;
mod only;
mod recovery;
mod summary;

/// A restore that can begin.
struct Prepared {
    restore: Restore,
    sink: Box<dyn Sink>,
    place: String,
    bytes_total: u64,
    manifest: Manifest,
    /// What the sink leaves out.
    warnings: Warnings,
    /// Whether newer backups are not trusted.
    passed_over: bool,
}

pub(crate) async fn run(app: &App, args: &RestoreArgs) -> Result<Exit> {
    let mut run = Run::new(app, "restore");
    let result = restore(app, args, &mut run).await;
    run.end(app, &result).await;
    result
}

async fn restore(app: &App, args: &RestoreArgs, run: &mut Run) -> Result<Exit> {
    if args.destination.to_stdout {
        if stdio::stdout_leads_nowhere() {
            app.output.note("standard output is closed, or /dev/null: what is restored goes nowhere");
        }
        if io::stdout().is_terminal() {
            return Err(
                Error::config("standard output is a terminal").with_hint("redirect it to a file or into a pipe")
            );
        }
    }
    // Before the repository is asked anything.
    let database = args.destination.into.as_deref().map(|text| conninfo("--into", text)).transpose()?;
    let begun = Instant::now();
    if let (Some(directory), false) = (&args.destination.to, args.only.is_empty()) {
        return only::run(app, args, directory, begun, run).await;
    }
    if let Some(wanted) = or_cancelled(app, cluster::wanted(app, args, run)).await? {
        return cluster::run(app, args, wanted, begun, run).await;
    }
    let Prepared { restore, sink, manifest, bytes_total, place, warnings, passed_over } =
        or_cancelled(app, prepare(app, args, database, run)).await?;
    run.begin(app).await;
    let handle = restore.into_boxed(sink);
    let counters = handle.counters();
    let restored =
        progress::during(&app.output, Some(bytes_total), || Shown::restoring(&counters.snapshot()), handle.wait())
            .await?;
    run.record.bytes = Some(restored);
    let elapsed = begun.elapsed();
    let left_out = warnings.count();
    app.output.note(format!(
        "restored {} of {} to {place}: {} in {:.1} s ({})",
        manifest.id,
        manifest.target,
        bytes(restored),
        elapsed.as_secs_f64(),
        rate(restored, elapsed),
    ));
    Ok(if left_out > 0 || passed_over { Exit::Warnings } else { Exit::Done })
}

async fn prepare(app: &App, args: &RestoreArgs, database: Option<ConnInfo>, run: &mut Run) -> Result<Prepared> {
    let identities = keys::identities_at_hand(&app.config).await?;
    let repository = to_read(app).await?;
    run.at(&repository);
    let limits = limits(&app.config, repository.part_bytes())?;
    let (found, passed_over) = resolve(app, &repository, &args.reference, &args.age).await?;
    run.about(&found.manifest);
    let backup = OpenBackup::open(&repository, &found.path, &identities).await?;
    let manifest = backup.manifest();
    let stream = match &args.stream {
        Some(name) => name.as_str(),
        None => main_stream(manifest)?,
    };
    let restore = backup.restore(stream)?.limits(limits).cancel_on(&app.cancel);
    if args.stream.is_none() {
        check_details(&backup, stream).await?;
    }
    let warnings = Warnings::default();
    let (sink, place) = sink(app, args, database, manifest, stream, &warnings).await?;
    let bytes_total = manifest.stream(stream).map_or(0, |s| s.bytes);
    Ok(Prepared { restore, sink, place, bytes_total, manifest: manifest.clone(), warnings, passed_over })
}

/// Reads the details: small, and not needed to restore; but damage to them should show now, before anything is written, and not when
/// somebody asks for them. Who names a stream wants that, whatever became of the others.
async fn check_details(backup: &OpenBackup, stream: &str) -> Result<()> {
    let Err(error) = backup.details().await else { return Ok(()) };
    Err(match error.kind() {
        ErrorKind::Integrity => error.with_hint(format!(
            "these are the details, not the data: '--stream {stream}' restores the data without them"
        )),
        _ => error,
    })
}

/// The stream that a restore is about when none is named.
fn main_stream(manifest: &Manifest) -> Result<&str> {
    let mut data = data_streams(manifest).map(|stream| stream.name.as_str());
    match (data.next(), data.next()) {
        (Some(name), None) => Ok(name),
        (None, _) => Err(Error::config("the backup has no stream of data").with_hint("name one with --stream")),
        (Some(_), Some(_)) => Err(Error::config("the backup has several streams of data")
            .with_hint(format!("name one with --stream; 'backup show {}' lists them", manifest.id))),
    }
}

/// What takes the stream, and the name of that place.
async fn sink(
    app: &App,
    args: &RestoreArgs,
    database: Option<ConnInfo>,
    manifest: &Manifest,
    stream: &str,
    warnings: &Warnings,
) -> Result<(Box<dyn Sink>, String)> {
    if let Some(conninfo) = database {
        if manifest.kind == Kind::Directory {
            return Err(Error::config("a directory cannot be loaded into a database").with_hint("restore it --to DIR"));
        }
        let mut options = LoadOptions::new(conninfo);
        options.no_owner = args.no_owner;
        options.no_privileges = args.no_owner;
        let database = options.conninfo.dbname().unwrap_or("the database").to_owned();
        return Ok((Box::new(LoadSink::open(options, stderr_lines(&app.output)).await?), database));
    }
    if let Some(directory) = &args.destination.to {
        return into_directory(app, directory, manifest, stream, warnings);
    }
    Ok((Box::new(WriterSink::stdout()?), "standard output".to_owned()))
}

/// A directory comes back as it was; any other stream becomes a file of its own name.
fn into_directory(
    app: &App,
    directory: &Path,
    manifest: &Manifest,
    stream: &str,
    warnings: &Warnings,
) -> Result<(Box<dyn Sink>, String)> {
    if manifest.kind == Kind::Directory && main_stream(manifest).is_ok_and(|main| main == stream) {
        return Ok((
            Box::new(DirectorySink::create_with(directory, told(&app.output, warnings))?),
            directory.display().to_string(),
        ));
    }
    Ok((Box::new(FileSink::create(directory, stream)?), directory.join(stream).display().to_string()))
}
