//! All tar streams of a base backup, several at once.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::decode::decode;
use super::destination::Destination;
use super::extract::{self, Shared};
use super::layout::{Layout, Part};
use super::manifest;
use super::{ClusterRestore, blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::restore::inspect::WorkerSink;
use crate::restore::stream::Share;
use crate::restore::worker::Worker;

/// Streams at once: each has a thread that writes, and more of them than a few gain nothing.
const STREAMS_MAX: usize = 3;

/// Runs all of `restores`, some at once. On failure `stop` ends the others, and the first cause is returned when none of them runs any more.
pub(super) async fn some_at_once(
    restores: impl Iterator<Item = impl Future<Output = Result<()>>>,
    stop: &CancellationToken,
) -> Result<()> {
    let (mut waiting, mut running) = (restores, FuturesUnordered::new());
    let mut failure: Option<Error> = None;
    loop {
        while running.len() < STREAMS_MAX && failure.is_none() {
            let Some(restore) = waiting.next() else { break };
            running.push(restore);
        }
        let Some(done) = running.next().await else { return failure.map_or(Ok(()), Err) };
        if let Err(error) = done {
            stop.cancel();
            if failure.as_ref().is_none_or(is_echo) {
                failure = Some(error);
            }
        }
    }
}

/// Whether an error only says that somebody else's was first.
fn is_echo(error: &Error) -> bool {
    error.kind() == ErrorKind::Cancelled
}

/// Restores all streams. On failure the first cause is returned, and no thread writes any more.
pub(super) async fn restore(
    run: &ClusterRestore,
    share: &Arc<Share>,
    layout: &Layout,
    destination: &Arc<Destination>,
    shared: &Arc<Shared>,
) -> Result<()> {
    let stop = run.cancel.child_token();
    let parts = layout.parts.iter().map(|part| one(run, share, layout, part, destination, shared, &stop));
    match (some_at_once(parts, &stop).await, shared.checker.wrong()) {
        (Err(_), Some(wrong)) => Err(manifest::explain_wrong(run, wrong).await),
        (restored, _) => restored,
    }
}

/// Restores one stream.
async fn one(
    run: &ClusterRestore,
    share: &Arc<Share>,
    layout: &Layout,
    part: &Part,
    destination: &Arc<Destination>,
    shared: &Arc<Shared>,
    stop: &CancellationToken,
) -> Result<()> {
    let (root, compression) = (part.root, layout.compression);
    let (of, to) = (Arc::clone(destination), Arc::clone(shared));
    let directory = blocking(move || of.open(root)).await?;
    let worker = Worker::spawn(move |incoming| extract::unpack(decode(incoming, compression), root, directory, &to))?;
    let restore = run.backup.restore(&part.stream)?.cancel_on(stop).sharing(share, &run.counters);
    restore.into(WorkerSink(worker)).wait().await.map(drop)
}
