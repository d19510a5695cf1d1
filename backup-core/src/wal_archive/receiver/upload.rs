//! Making what was received durable, however long the repository is away.

use std::time::Duration;

use futures::TryStreamExt;

use super::filling::Job;
use super::{Receiver, ReceiverEvent, may_pass};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::page::FirstPage;
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::wal_archive::Archiver;
use crate::wal_archive::tail;

const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long removing the tail of a segment that is complete may take.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Repeats `work` until it succeeds, is cancelled, or fails in a way that does not pass.
pub(super) async fn until_done<F: Future<Output = Result<()>>>(
    receiver: &Receiver,
    work: impl Fn() -> F,
) -> Result<()> {
    let mut pause = PAUSE;
    loop {
        let Err(error) = work().await else { return Ok(()) };
        if !may_pass(&error) {
            return Err(error);
        }
        receiver.tell(&ReceiverEvent::Retrying { error: error.in_one_line(), pause });
        tokio::select! {
            () = receiver.options.cancel.cancelled() => return Err(error),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
        }
    }
}

/// Makes one job durable.
pub(super) async fn store(archiver: Archiver, cluster: SystemIdentifier, job: &Job) -> Result<()> {
    match job {
        Job::Segment(name, bytes) => {
            check(*name, bytes)?;
            archiver.store_received(cluster, WalFile::Segment(*name), bytes.clone()).await?;
            // Only a leftover: a complete object always wins over a tail.
            if let Err(error) = remove_tail(&archiver, cluster, *name).await {
                tracing::warn!(%error, segment = %name, "cannot remove the tail of a segment that is complete");
            }
            Ok(())
        }
        Job::Piece(name, piece, bytes) => archiver.store_piece(cluster, *name, piece, bytes.clone()).await,
    }
}

/// A server that streams something else than its log would fill the archive with it.
fn check(name: SegmentName, bytes: &[u8]) -> Result<()> {
    let page = bytes.first_chunk().ok_or(crate::postgres::wal::page::NotTheSegment::Short(bytes.len() as u64));
    let checked = page.and_then(FirstPage::parse).and_then(|page| page.check(name, bytes.len() as u64));
    checked.map_err(|e| {
        Error::new(ErrorKind::Integrity, Stage::Source, format!("what the server streamed is not the segment {name}"))
            .with_source(e)
    })
}

async fn remove_tail(archiver: &Archiver, cluster: SystemIdentifier, segment: SegmentName) -> Result<()> {
    let archive = archiver.target().wal_of(cluster);
    let removing = archiver.repositories().open().map(|repository| {
        let archive = &archive;
        async move {
            let pieces = tail::pieces(repository, archive, segment).await?;
            let paths: Vec<_> = pieces.iter().map(|piece| Ok(archive.tail_piece(segment, piece))).collect();
            let removed = repository.store().delete_stream(Box::pin(futures::stream::iter(paths)));
            let failed = |e| repository.error(e, "remove", &archive.tail(segment));
            removed.try_for_each(|_| async { Ok(()) }).await.map_err(failed)
        }
    });
    let removing = futures::future::join_all(removing);
    // An optional repository that hangs must not hold up the log.
    let removed = tokio::time::timeout(REMOVE_DEADLINE, removing).await;
    let late = |_| Error::new(ErrorKind::Unavailable, Stage::Upload, "removing it took too long");
    removed.map_err(late)?.into_iter().collect()
}
