//! `backup save`: one backup, of whatever the flags name.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use backup_core::format::{Kind, Manifest};
use backup_core::pipeline::{Backup, Warnings};
use backup_core::postgres::conninfo::ConnInfo;
use backup_core::postgres::dump::DumpOptions;
use backup_core::repository::Repository;
use backup_core::repository::layout::{StreamName, TargetName};
use backup_core::source::directory::{DirectoryOptions, DirectorySource};
use backup_core::source::{CommandOptions, CommandSource, ReaderSource, Source};
use backup_core::{Error, Result, Stage};
use serde_json::{Value, json};

use crate::args::SaveArgs;
use crate::exit::Exit;
use crate::output::{Output, bytes, write_stdout};
use crate::progress::{self, Shown, rate};
use crate::{App, keys};

use super::describe::data_bytes;
use super::{conninfo, limits, location, or_cancelled, stderr_lines, told};

/// What is read, and what is remembered about it.
struct Input {
    kind: Kind,
    streams: Vec<(&'static str, Box<dyn Source>)>,
    details: Value,
}

pub(crate) async fn run(app: &App, args: &SaveArgs) -> Result<Exit> {
    let target: TargetName = args.name.parse()?;
    if reads_stdin(args) && io::stdin().is_terminal() {
        return Err(Error::config("nothing to back up: standard input is a terminal").with_hint(
            "pipe data in, or use '-- COMMAND', --pg-dump CONNINFO or --directory PATH; see 'backup save --help'",
        ));
    }
    // Before the repository is asked anything.
    let database = args.source.pg_dump.as_deref().map(|text| conninfo("--pg-dump", text)).transpose()?;
    let begun = Instant::now();
    let backup = or_cancelled(app, prepare(app, args, target, database)).await?;
    let handle = backup.start()?;
    let counters = handle.counters();
    let manifest = progress::during(&app.output, None, || Shown::saving(&counters.snapshot()), handle.wait()).await?;
    finish(&app.output, &manifest, begun.elapsed())
}

async fn prepare(app: &App, args: &SaveArgs, target: TargetName, database: Option<ConnInfo>) -> Result<Backup> {
    let location = location(&app.config)?;
    let recipients = keys::recipients(&app.config).await?;
    let repository = Repository::open(&location).await?;
    let limits = limits(&app.config, &repository)?;
    let warnings = Warnings::default();
    let input = input(app, args, database, &warnings).await?;
    let mut backup = Backup::new(repository, target)
        .kind(input.kind)
        .recipients(recipients)
        .compression(app.config.encoding.compression())
        .suite(app.config.encoding.suite())
        .limits(limits)
        .warnings(warnings)
        .cancel_on(&app.cancel)
        .details(input.details);
    for (name, source) in input.streams {
        backup = backup.boxed_stream(name.parse::<StreamName>()?, source);
    }
    Ok(backup)
}

fn reads_stdin(args: &SaveArgs) -> bool {
    args.command.is_empty() && args.source.pg_dump.is_none() && args.source.directory.is_none()
}

async fn input(app: &App, args: &SaveArgs, database: Option<ConnInfo>, warnings: &Warnings) -> Result<Input> {
    if let Some(conninfo) = database {
        let options = DumpOptions::new(conninfo);
        let details = serde_json::to_value(options.details().await?)
            .map_err(|e| Error::internal(Stage::Setup, "could not describe the database").with_source(e))?;
        let source = options.source(stderr_lines(&app.output))?;
        return Ok(Input { kind: Kind::PgDump, streams: vec![("dump", Box::new(source))], details });
    }
    if let Some(path) = &args.source.directory {
        let mut options = DirectoryOptions::default();
        options.on_warning = Some(told(&app.output, warnings));
        let (tar, index) = DirectorySource::new(path, options)?;
        let details = json!({ "directory": path.to_string_lossy() });
        let streams: Vec<(_, Box<dyn Source>)> = vec![("data", Box::new(tar)), ("files", Box::new(index))];
        return Ok(Input { kind: Kind::Directory, streams, details });
    }
    if let Some((program, arguments)) = args.command.split_first() {
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        let mut options = CommandOptions::default();
        options.stderr = stderr_lines(&app.output);
        let source = CommandSource::spawn_with(command, options)?;
        // The arguments are not remembered: people put passwords there.
        let details = json!({ "program": program.to_string_lossy() });
        return Ok(Input { kind: Kind::Command, streams: vec![("data", Box::new(source))], details });
    }
    let source = ReaderSource::stdin()?;
    Ok(Input { kind: Kind::Stream, streams: vec![("data", Box::new(source))], details: Value::Null })
}

fn finish(output: &Output, manifest: &Manifest, elapsed: Duration) -> Result<Exit> {
    let (plain, stored) = (data_bytes(manifest), manifest.stored_bytes());
    output.note(format!(
        "saved {}: {} of data in {:.1} s ({}), stored in {} ({:.2} to 1)",
        manifest.target,
        bytes(plain),
        elapsed.as_secs_f64(),
        rate(plain, elapsed),
        bytes(stored),
        plain as f64 / stored.max(1) as f64,
    ));
    let mut exit = Exit::Done;
    if plain == 0 {
        // What a command that fails at once leaves in a pipe: we cannot see that it failed. An empty stream is a stream, though.
        output.note("the stream was empty; had a command before the pipe failed, it would look like this");
    }
    if manifest.warnings > 0 {
        output.warning(format!("the source gave {} warnings", manifest.warnings));
        exit = Exit::Warnings;
    }
    if let Err(e) = write_stdout(&format!("{}\n", manifest.id)) {
        output.warning(format!("the backup {} is complete, but its id could not be printed: {e}", manifest.id));
        exit = Exit::Warnings;
    }
    Ok(exit)
}
