//! What the library traces, on standard error.

use std::io::{self, Write};

use backup_core::{Error, Result};
use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;

use crate::args::Globals;
use crate::config::Environment;
use crate::output::Output;

/// Starts logging: `BACKUP_LOG` is a filter such as `backup_core=debug`, and `-v` and `-q` are shorthands.
pub(crate) fn start(globals: &Globals, environment: &Environment, output: &Output) -> Result<()> {
    let flags = match (globals.quiet, globals.verbose) {
        (true, _) => Some("error"),
        (false, 0) => None,
        (false, 1) => Some("warn,backup_core=info,backup_cli=info"),
        (false, 2) => Some("info,backup_core=debug,backup_cli=debug"),
        (false, _) => Some("debug,backup_core=trace,backup_cli=trace"),
    };
    let from_environment = environment.text("BACKUP_LOG")?;
    let filter = flags.map(str::to_owned).or(from_environment).unwrap_or_else(|| "warn".to_owned());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|e| Error::config(format!("BACKUP_LOG: '{filter}' is not a filter")).with_source(e))?;
    let bars = output.bars.clone();
    let colored = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colored)
        .with_target(globals.verbose > 1)
        .with_writer(move || BesideBars(bars.clone()))
        .init();
    Ok(())
}

/// Standard error, with the progress bar out of the way while a line is written.
struct BesideBars(MultiProgress);

impl Write for BesideBars {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
