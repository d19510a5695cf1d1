//! Making what was received durable, however long the repository is away.

use std::time::Duration;

use futures::future::join_all;

use super::filling::Job;
use super::session::STOP_DEADLINE;
use super::{Receiver, ReceiverEvent, may_pass};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::page::FirstPage;
use crate::postgres::wal::{SegmentName, SystemIdentifier, WalFile};
use crate::repository::Repository;
use crate::repository::layout::WalPath;
use crate::wal_archive::Archiver;
use crate::wal_archive::tail;

const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long removing the tail of a segment that is complete may take.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// Repeats `work` until it succeeds, is cancelled, or fails in a way that does not pass.
pub(super) async fn until_done<T, F: Future<Output = Result<T>>>(
    receiver: &Receiver,
    work: impl Fn() -> F,
) -> Result<T> {
    let mut pause = PAUSE;
    loop {
        // A store that does not answer keeps nobody from stopping.
        let given_up = async {
            receiver.options.cancel.cancelled().await;
            tokio::time::sleep(STOP_DEADLINE).await;
        };
        let done = tokio::select! {
            done = work() => done,
            () = given_up => return Err(Error::new(ErrorKind::Unavailable, Stage::Upload, "the repository did not answer in time")),
        };
        let error = match done {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
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

/// Makes one job durable. Returns the repositories in which the tail of its segment is only a leftover now: a complete object always wins over it.
pub(super) async fn store(archiver: Archiver, cluster: SystemIdentifier, job: &Job) -> Result<Vec<Repository>> {
    match job {
        Job::Segment(name, bytes) => {
            check(*name, bytes)?;
            archiver.store_received(cluster, WalFile::Segment(*name), bytes.clone()).await
        }
        Job::Piece(name, piece, bytes) => {
            archiver.store_piece(cluster, *name, piece, bytes.clone()).await.map(|()| Vec::new())
        }
    }
}

/// Removes the tail of a segment that is complete in these repositories, if it can be done in a while. Nothing may wait for it.
pub(super) async fn remove_tail(repositories: Vec<Repository>, archive: WalPath, segment: SegmentName) {
    let removing = join_all(repositories.iter().map(|repository| tail::remove(repository, &archive, segment)));
    let late = |_| Error::new(ErrorKind::Unavailable, Stage::Upload, "removing it took too long");
    let removed = tokio::time::timeout(REMOVE_DEADLINE, removing).await.map_err(late);
    if let Err(error) = removed.and_then(|removed| removed.into_iter().collect::<Result<()>>()) {
        tracing::warn!(%error, %segment, "cannot remove the tail of a segment that is complete");
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
