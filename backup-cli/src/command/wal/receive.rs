//! `backup wal receive`.

use std::sync::Arc;
use std::time::Duration;

use backup_core::Result;
use backup_core::repository::Member;
use backup_core::repository::layout::TargetName;
use backup_core::wal_archive::{Archiver, Epochs, EventCallback, Receiver, ReceiverEvent, ReceiverOptions, Slot};

use crate::App;
use crate::args::ReceiveArgs;
use crate::command::{or_cancelled, repositories};
use crate::exit::Exit;
use crate::keys::Following;
use crate::output::Output;

use super::{archiver_options, connect_options, target};

pub(crate) async fn run(app: &App, args: &ReceiveArgs) -> Result<Exit> {
    let target = target(&app.config)?;
    let options = options(app, args, &target)?;
    let archiver = or_cancelled(app, archiver(app, target)).await?;
    let received = Receiver::new(archiver, options).run().await?;
    if let Some(durable) = received.durable {
        app.output.note(format!("stopped: the WAL of timeline {} is durable up to {}", durable.timeline, durable.lsn));
    }
    Ok(Exit::Done)
}

async fn archiver(app: &App, target: TargetName) -> Result<Archiver> {
    let repositories = repositories(&app.config)?;
    let recipients = Following::load(app).await?;
    // It may run for longer than a key is used.
    let epochs = Epochs::chosen_by(move || recipients.current()).await?;
    let options = archiver_options(app)?;
    // The archiver opens the optional ones, and leaves alone what is away.
    repositories.filtered(Member::is_required).open_all(options.optional_lag).await?;
    // Its uploads are not cancelled when we are told to stop: what was received becomes durable first.
    Archiver::new(repositories, target, epochs, options)
}

fn options(app: &App, args: &ReceiveArgs, target: &TargetName) -> Result<ReceiverOptions> {
    let mut options = ReceiverOptions::new(connect_options(app, args.conninfo.as_deref(), target)?);
    options.slot = match (&args.slot, args.create_slot) {
        (Some(name), true) => Slot::Created(name.clone()),
        (Some(name), false) => Slot::Existing(name.clone()),
        (None, _) => Slot::Temporary,
    };
    options.flush_interval = Duration::from_secs(args.flush_interval);
    options.until = args.until_lsn;
    options.skip_gap = args.skip_gap;
    options.cancel = app.cancel.clone();
    options.on_event = Some(told(&app.output));
    Ok(options)
}

fn told(output: &Output) -> EventCallback {
    let output = output.clone();
    Arc::new(move |event| match event {
        ReceiverEvent::Started { lsn, timeline } => output.note(format!("receiving timeline {timeline} from {lsn} on")),
        ReceiverEvent::Timeline { timeline, lsn } => {
            output.note(format!("the server went over to timeline {timeline} at {lsn}"));
        }
        ReceiverEvent::Gap { from, to } => {
            output.warning(format!("the archive has a gap from {from} to {to}: take a base backup now"));
        }
        ReceiverEvent::Retrying { error, pause } => {
            output.warning(format!("{error}; trying again in {} s", pause.as_secs()));
        }
        ReceiverEvent::Segment(name) => tracing::info!(%name, "a segment is complete"),
        ReceiverEvent::Durable(lsn) => tracing::debug!(%lsn, "durable"),
        _ => {}
    })
}
