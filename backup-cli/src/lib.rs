//! The command `backup`, as a library so that test programs can call it: it parses, resolves and prints.
//! All that has to do with backups is in [`backup_core`].
//!
//! `args` says what can be typed, `config` merges it with the environment and the file, `command` has one file for each command,
//! `output` and `report` print, `exit` says how it ended.

use std::cell::Cell;
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backup_core::Result;
use backup_core::clock::{Clock, SystemClock};
use clap::error::ErrorKind as UsageKind;
use tokio_util::sync::CancellationToken;

use args::{Cli, ColorWhen, Command, WalAction};
use config::{Config, Environment};
use exit::{Exit, Law};
use output::Output;

mod args;
mod audit;
mod command;
mod config;
mod exit;
mod input;
mod keys;
mod log;
mod output;
mod progress;
mod report;
mod runtime;
mod signing;
mod stdio;
mod stores;
mod style;

/// What every command works with.
struct App {
    config: Config,
    sources: Arc<Sources>,
    output: Output,
    cancel: CancellationToken,
    clock: Arc<dyn Clock>,
    /// Whether a repository was found to lack what another has.
    lacking: Arc<AtomicBool>,
}

/// What the configuration is merged from, besides its file.
#[derive(Debug)]
struct Sources {
    cli: Cli,
    environment: Environment,
}

impl Sources {
    /// The configuration with what its file says now.
    fn config(&self) -> Result<Config> {
        Config::load(&self.cli.globals, &self.cli.command, &self.environment)
    }
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    main_at(Arc::new(SystemClock))
}

/// The same, at another time: policies are judged, and backups named, by what `clock` tells.
pub fn main_at(clock: Arc<dyn Clock>) -> ExitCode {
    keep_memory_private();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Before anything can go wrong.
    let law = Cell::new(Law::guess(&arguments));
    std::panic::set_hook(Box::new(report::panic));
    let run = AssertUnwindSafe(|| run(arguments.into_iter(), &law, clock));
    let exit = std::panic::catch_unwind(run).unwrap_or(Exit::Failed);
    ExitCode::from(law.get().code(exit))
}

/// No core dump of this process is written, and other processes of the same user cannot look into it: it may hold keys. Programs that it starts
/// are as they would be.
fn keep_memory_private() {
    // Elsewhere, and should it fail, what protects the memory is that secrets are wiped when they are not needed any more.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// Whether `text` would do as a configuration file: its syntax, keys and types, before any value is merged with others.
///
/// # Errors
/// `Config`, with the line.
pub fn check_config_text(text: &str) -> Result<()> {
    config::file::ConfigFile::parse(Path::new("backup.toml"), text.to_owned()).map(drop)
}

fn run(arguments: impl Iterator<Item = OsString>, law: &Cell<Law>, clock: Arc<dyn Clock>) -> Exit {
    let cli = match Cli::parse_all(arguments) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    law.set(Law::of(&cli.command));
    set_colors(cli.globals.color);
    match start(cli, clock) {
        Ok(exit) => exit,
        Err(e) => {
            report::error(&e);
            e.kind().into()
        }
    }
}

fn start(cli: Cli, clock: Arc<dyn Clock>) -> Result<Exit> {
    let environment = Environment::of_process();
    let output = Output::new(&cli.globals);
    log::start(&cli.globals, &environment, &output)?;
    if let Command::Generate(args) = &cli.command {
        return command::generate::run(args, &output);
    }
    let sources = Arc::new(Sources { cli, environment });
    let config = sources.config()?;
    let (cancel, lacking) = (CancellationToken::new(), Arc::default());
    let app = App { config, sources: Arc::clone(&sources), output, cancel, clock, lacking };
    let command = &sources.cli.command;
    let work = command::run(&app, command);
    match command {
        Command::Wal(args) if matches!(args.action, WalAction::Push(_) | WalAction::Fetch(_)) => {
            runtime::block_on_for_postgresql(&args.action, &app.cancel, work)
        }
        _ => runtime::block_on(&app.output, &app.cancel, work),
    }
}

/// Prints what clap has to say: help and version are no errors.
fn usage(error: &clap::Error) -> Exit {
    let text = error.render().ansi().to_string();
    match error.kind() {
        UsageKind::DisplayHelp | UsageKind::DisplayVersion => {
            use std::io::Write as _;
            // A reader that has gone away has seen enough.
            let _ = anstream::stdout().write_all(text.as_bytes());
            Exit::Told
        }
        _ => {
            report::to_stderr(&in_our_words(&text));
            Exit::Usage
        }
    }
}

/// clap's tips as our hints.
fn in_our_words(text: &str) -> String {
    let line =
        |line: &str| if line.contains("tip:") { line.trim_start().replace("tip:", "hint:") } else { line.to_owned() };
    text.lines().map(|l| line(l) + "\n").collect()
}

fn set_colors(when: ColorWhen) {
    match when {
        ColorWhen::Auto => anstream::ColorChoice::Auto,
        ColorWhen::Always => anstream::ColorChoice::Always,
        ColorWhen::Never => anstream::ColorChoice::Never,
    }
    .write_global();
}
