//! All tar streams of a base backup, several at once.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::decode::decode;
use super::destination::Destination;
use super::extract::{self, Shared};
use super::layout::{Layout, Part};
use super::manifest::{self, WorkerSink};
use super::{ClusterRestore, blocking, is_echo};
use crate::error::{Error, Result};
use crate::restore::stream::Share;
use crate::restore::worker::Worker;

/// Streams at once: each has a thread that writes, and more of them than a few gain nothing.
const STREAMS_MAX: usize = 3;

/// Restores all streams. On failure the first cause is returned, and no thread writes any more.
pub(super) async fn restore(
    run: &ClusterRestore,
    share: &Arc<Share>,
    layout: &Layout,
    destination: &Arc<Destination>,
    shared: &Arc<Shared>,
) -> Result<()> {
    let stop = run.cancel.child_token();
    let mut waiting = layout.parts.iter();
    let mut running = FuturesUnordered::new();
    let mut failure: Option<Error> = None;
    loop {
        while running.len() < STREAMS_MAX && failure.is_none() {
            let Some(part) = waiting.next() else { break };
            running.push(one(run, share, layout, part, destination, shared, &stop));
        }
        let Some(done) = running.next().await else { break };
        if let Err(error) = done {
            stop.cancel();
            if failure.as_ref().is_none_or(is_echo) {
                failure = Some(error);
            }
        }
    }
    match (failure, shared.checker.wrong()) {
        (Some(_), Some(wrong)) => Err(manifest::explain_wrong(run, wrong).await),
        (Some(error), None) => Err(error),
        (None, _) => Ok(()),
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
