//! `backup run`: the configured targets, one after the other.

use backup_core::{Error, ErrorKind, Result};

use crate::App;
use crate::args::RunArgs;
use crate::config::Target;
use crate::exit::Exit;
use crate::report;

use super::save::back_up;

pub(crate) async fn run(app: &App, args: &RunArgs) -> Result<Exit> {
    let targets = chosen(app, &args.targets)?;
    let mut worst = Exit::Done;
    let mut failed: Vec<(&Target, Error)> = Vec::new();
    for target in &targets {
        match back_up(app, "run", &target.name, &target.input, args.json).await {
            Ok(exit) => worst = if exit == Exit::Done { worst } else { exit },
            Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
            // One target's failure is no reason to leave the others without a backup.
            Err(e) if targets.len() > 1 => {
                app.output.note(format!("target '{}' failed:", target.name));
                report::error(&e);
                failed.push((target, e));
            }
            Err(e) => return Err(e),
        }
    }
    let Some((_, first)) = failed.first() else { return Ok(worst) };
    let names: Vec<String> = failed.iter().map(|(target, _)| format!("'{}'", target.name)).collect();
    app.output.note(format!("{} of {} targets failed: {}", failed.len(), targets.len(), names.join(", ")));
    Ok(first.kind().into())
}

/// The targets that were named, in that order, or all.
fn chosen<'a>(app: &'a App, names: &[String]) -> Result<Vec<&'a Target>> {
    let configured = &app.config.targets;
    let hint = "a target is a table of the configuration file: [targets.app] with base_backup = \"CONNINFO\"";
    if configured.is_empty() {
        return Err(Error::config("no target is configured").with_hint(hint));
    }
    if names.is_empty() {
        return Ok(configured.iter().collect());
    }
    let find = |name: &String| {
        configured.iter().find(|target| target.name.as_str() == name).ok_or_else(|| {
            let known: Vec<&str> = configured.iter().map(|target| target.name.as_str()).collect();
            Error::config(format!("no target '{}' is configured", name.escape_debug()))
                .with_hint(format!("configured are: {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}
