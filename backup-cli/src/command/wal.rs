//! `backup wal`: what PostgreSQL's `archive_command` and `restore_command` run, and a look at what they did.

mod check;
mod fetch;
mod push;

use backup_core::repository::layout::TargetName;
use backup_core::{Error, Result};

use crate::App;
use crate::args::WalAction;
use crate::config::Config;
use crate::exit::Exit;

use super::or_cancelled;

pub(crate) async fn run(app: &App, action: &WalAction) -> Result<Exit> {
    match action {
        WalAction::Push(args) => push::run(app, args).await,
        WalAction::Fetch(args) => fetch::run(app, args).await,
        WalAction::Check(args) => or_cancelled(app, check::run(app, args)).await,
    }
}

/// Whose WAL it is about.
fn target(config: &Config) -> Result<TargetName> {
    let Some(target) = &config.target else {
        return Err(Error::config("no target is given")
            .with_hint("name it with --target or BACKUP_TARGET: the name under which the cluster is backed up"));
    };
    target.value.parse()
}
