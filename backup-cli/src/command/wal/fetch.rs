//! `backup wal fetch`.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use backup_core::postgres::wal::{SegmentSize, WalFile};
use backup_core::wal_archive::{Fetched, Fetcher, FetcherOptions};
use backup_core::{Error, Result};

use crate::App;
use crate::args::FetchArgs;
use crate::command::repositories;
use crate::exit::Exit;
use crate::keys;

use super::target;

/// How long the process that fetches ahead may live.
const PREFETCH_DEADLINE: Duration = Duration::from_secs(120);

pub(crate) async fn run(app: &App, args: &FetchArgs) -> Result<Exit> {
    if let Some(bytes) = args.prefetch_behind {
        return prefetch(app, args, bytes).await;
    }
    let outcome = match fetcher(app, args).await {
        Ok(fetcher) => fetcher.fetch(args.name, &args.path).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(Fetched::Placed(placed)) => {
            tracing::info!(file = %args.name, ahead = placed.ahead, "fetched");
            if let Some(size) = placed.prefetch {
                start_prefetch(size);
            }
            Ok(Exit::Done)
        }
        Ok(Fetched::Absent) => {
            app.output.note(format!("{} is not in the archive, which ends before it", args.name));
            Ok(Exit::Absent)
        }
        Err(error) => {
            if args.standby && matches!(args.name, WalFile::History(_)) {
                app.output.warning(format!(
                    "it is not known whether {} exists: this standby may follow a timeline that was left",
                    args.name
                ));
            }
            Err(error)
        }
    }
}

async fn fetcher(app: &App, args: &FetchArgs) -> Result<Fetcher> {
    let target = target(&app.config)?;
    let repositories = repositories(&app.config)?;
    let identities = keys::identities(&app.config).await?;
    let mut options = FetcherOptions::default();
    options.system_identifier = args.system_identifier;
    options.patience = Duration::from_secs(args.patience);
    options.prefetch = args.prefetch;
    options.standby = args.standby;
    options.clock = Arc::clone(&app.clock);
    if let Some(workers) = &app.config.workers {
        options.workers = workers.value;
    }
    Fetcher::new(repositories, target, identities, options)
}

/// What the process that [`start_prefetch`] starts does. Nobody listens to what it has to say.
async fn prefetch(app: &App, args: &FetchArgs, bytes: u32) -> Result<Exit> {
    // Away from PostgreSQL's session: it signals all processes of that.
    let _ = rustix::process::setsid();
    let size = SegmentSize::new(bytes).ok_or_else(|| Error::config("no such segment size"))?;
    let fetching = async { fetcher(app, args).await?.prefetch(args.name, size, &args.path).await };
    match tokio::time::timeout(PREFETCH_DEADLINE, fetching).await {
        Ok(Ok(count)) => tracing::debug!(count, "fetched ahead"),
        Ok(Err(error)) => tracing::debug!(%error, "not fetched ahead"),
        Err(_) => tracing::debug!("not fetched ahead in time"),
    }
    // Whoever calls this by mistake must not believe that a file was placed.
    Ok(Exit::Failed)
}

/// Starts this program again, with the same arguments, to fetch what will be asked for next. PostgreSQL neither waits for it nor holds a
/// pipe to it. It is only a hope: that it cannot be started is no failure.
fn start_prefetch(size: SegmentSize) {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    arguments.insert(end, format!("--prefetch-behind={}", size.bytes()).into());
    let started = std::env::current_exe().and_then(|program| {
        let null = || Stdio::null();
        Command::new(program).args(arguments).stdin(null()).stdout(null()).stderr(null()).spawn()
    });
    if let Err(error) = started {
        tracing::debug!(%error, "cannot start to fetch ahead");
    }
}
