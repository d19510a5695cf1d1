//! `backup wal push`.

use std::time::Duration;

use backup_core::wal_archive::{Archiver, Epochs, Pushed};
use backup_core::{Error, ErrorKind, Result, Stage};

use crate::App;
use crate::args::PushArgs;
use crate::command::repositories;
use crate::exit::Exit;
use crate::keys::Recipients;

use super::{archiver_options, target};

/// An optional repository may take this part of the time when it is opened, and again when it is asked, sent to, and asked what came of it: not even
/// all of that together keeps a file from being archived.
const LAG_SHARE: u32 = 5;

/// How long an upload may take to end, once it is too late for it to succeed.
const END_DEADLINE: Duration = Duration::from_secs(3);

pub(crate) async fn run(app: &App, args: &PushArgs) -> Result<Exit> {
    let pushing = push(app, args);
    tokio::pin!(pushing);
    let pushed = match tokio::time::timeout(time(args), &mut pushing).await {
        Ok(pushed) => pushed?,
        Err(_) => {
            app.cancel.cancel();
            // What it says now is only that it was cancelled.
            let _ = tokio::time::timeout(END_DEADLINE, pushing).await;
            let message = format!("{} was not archived within {} s", args.path.display(), args.timeout);
            return Err(Error::new(ErrorKind::Unavailable, Stage::Upload, message)
                .with_hint("PostgreSQL will ask again; --timeout sets another time"));
        }
    };
    let how = match pushed {
        Pushed::Stored => "archived",
        Pushed::AlreadyThere => "was archived already",
        _ => "had been archived ahead",
    };
    tracing::info!(path = %args.path.display(), "{how}");
    Ok(Exit::Done)
}

/// How long it may take.
fn time(args: &PushArgs) -> Duration {
    Duration::from_secs(args.timeout)
}

async fn push(app: &App, args: &PushArgs) -> Result<Pushed> {
    let target = target(&app.config)?;
    let repositories = repositories(&app.config)?;
    let epochs = Epochs::new(Recipients::load(&app.config).await?.at(app.clock.now())?)?;
    let mut options = archiver_options(app)?;
    options.system_identifier = args.system_identifier;
    options.look_ahead = args.look_ahead;
    options.cancel = app.cancel.child_token();
    options.optional_lag = options.optional_lag.min(time(args) / LAG_SHARE);
    Archiver::new(repositories, target, epochs, options)?.push(&args.path).await
}
