//! `backup wal`: what PostgreSQL's `archive_command` and `restore_command` run, and a look at what they did.

mod check;
mod fetch;
mod push;
mod receive;

use std::sync::Arc;

use backup_core::compress::Compression;
use backup_core::postgres::ConnInfo;
use backup_core::postgres::wire::{ConnectOptions, Environment};
use backup_core::repository::layout::TargetName;
use backup_core::wal_archive::ArchiverOptions;
use backup_core::{Error, Result};

use crate::App;
use crate::args::{CodecName, WalAction};
use crate::config::{Config, Origin};
use crate::exit::Exit;
use crate::input::Input;
use crate::signing;

use super::{optional_lag, or_cancelled};

pub(crate) async fn run(app: &App, action: &WalAction) -> Result<Exit> {
    match action {
        WalAction::Push(args) => push::run(app, args).await,
        WalAction::Fetch(args) => fetch::run(app, args).await,
        WalAction::Receive(args) => receive::run(app, args).await,
        WalAction::Check(args) => or_cancelled(app, check::run(app, args)).await,
    }
}

/// Whose WAL it is about: the target that is named, else the only cluster that is configured.
fn target(config: &Config) -> Result<TargetName> {
    if let Some(target) = &config.target {
        return target.value.parse();
    }
    let mut clusters = config.targets.iter().filter(|target| matches!(target.input, Input::Cluster(_)));
    match (clusters.next(), clusters.next()) {
        (Some(only), None) => Ok(only.name.clone()),
        _ => Err(Error::config("no target is given")
            .with_hint("name it with --target or BACKUP_TARGET: the name under which the cluster is backed up")),
    }
}

/// How to connect to the target's server: as `conninfo` says, else as the configuration does, else as libpq's environment does.
fn connect_options(app: &App, conninfo: Option<&str>, target: &TargetName) -> Result<ConnectOptions> {
    let configured = app.config.targets.iter().find(|configured| configured.name == *target);
    let conninfo = match (conninfo, configured.map(|target| &target.input)) {
        (Some(conninfo), _) => conninfo,
        (None, Some(Input::Cluster(cluster))) => &cluster.conninfo,
        (None, _) => "",
    };
    ConnectOptions::resolve(&ConnInfo::parse(conninfo)?, &Environment::of_process())
}

/// Stores WAL as the configuration has it.
fn archiver_options(app: &App) -> Result<ArchiverOptions> {
    let mut options = ArchiverOptions::default();
    options.clock = Arc::clone(&app.clock);
    options.signing_key = signing::signing_key(&app.config)?;
    if let Some(lag) = optional_lag(&app.config) {
        options.optional_lag = lag;
    }
    let output = app.output.clone();
    options.on_missed = Some(Arc::new(move |missed| {
        output.warning(format!("{} is not in {}, which is optional: {}", missed.file, missed.repository, missed.error));
    }));
    options.compression = compression(&app.config, options.compression);
    options.suite = app.config.encoding.suite();
    if let Some(workers) = &app.config.workers {
        options.workers = workers.value;
    }
    Ok(options)
}

/// WAL has a level of its own, unless one is set.
fn compression(config: &Config, own: Compression) -> Compression {
    let encoding = &config.encoding;
    match encoding.codec.value {
        CodecName::Zstd if encoding.level.origin == Origin::Default => own,
        _ => encoding.compression(),
    }
}
