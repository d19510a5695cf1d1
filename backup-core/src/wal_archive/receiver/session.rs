//! One stream of one timeline, from its start to its end.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;

use super::filling::{Filling, Job};
use super::{Known, Receiver, ReceiverEvent, SILENCE_MAX, heard, unheard, upload};
use crate::clock::{Clock, SystemClock};
use crate::encrypt::random;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{Lsn, SegmentSize, SystemIdentifier};
use crate::postgres::wire::{Connection, StandbyStatus, WalMessage, WalPosition, WalStream};
use crate::repository::Repository;

/// How often the server hears from us: well within `wal_sender_timeout`, which is a minute unless somebody changed it.
const STATUS: Duration = Duration::from_secs(10);
/// Nothing was heard from the server for so long: it is asked to answer.
const QUIET: Duration = Duration::from_secs(20);
/// More than so many bytes wait for the repository: nothing more is read. One segment always may.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// How long the last of it may take when the stream ends, whyever, and then taking leave of the server.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(20);
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// How a stream ended.
pub(super) enum Ended {
    /// We were told to.
    Stopped,
    /// The timeline ended, and this is the next.
    Timeline(Box<Connection>, WalPosition),
}

/// A stream, what has come of it, and what of that is durable.
pub(super) struct Session<'a> {
    receiver: &'a Receiver,
    known: &'a mut Known,
    cluster: SystemIdentifier,
    start: WalPosition,
    filling: Filling,
    waiting: VecDeque<Job>,
    upload: Option<(Job, AbortOnDropHandle<Uploaded>)>,
    /// Tails that are being removed.
    removing: JoinSet<()>,
    durable: Lsn,
    /// When the server was last heard of, or was not listened to.
    heard: Instant,
}

/// The repositories that have no use for the tail of a segment any more.
type Uploaded = Result<Vec<Repository>>;

/// Why nothing more is received.
enum Halt {
    Stop,
    Timeline,
}

enum Next {
    Message(Option<WalMessage>),
    Uploaded(Uploaded),
    Status,
    Flush,
    Stop,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        receiver: &'a Receiver,
        cluster: SystemIdentifier,
        size: SegmentSize,
        start: WalPosition,
        known: &'a mut Known,
    ) -> Self {
        let filling = Filling::new(size, start.timeline, start.lsn, new_run());
        // What was durable before stays so, though we begin at the beginning of its segment.
        let durable = known.durable.map_or(start.lsn, |durable| durable.lsn.max(start.lsn));
        let (waiting, upload, heard) = (VecDeque::new(), None, Instant::now());
        let (leftovers, archive) = (std::mem::take(&mut known.leftovers), receiver.archiver.target().wal_of(cluster));
        let mut removing = JoinSet::new();
        removing.spawn(async move {
            for (repository, segment) in leftovers {
                upload::remove_tail(vec![repository], archive.clone(), segment).await;
            }
        });
        Self { receiver, known, cluster, start, filling, waiting, upload, removing, durable, heard }
    }

    pub(super) async fn run(mut self, mut stream: WalStream) -> Result<Ended> {
        match self.follow(&mut stream).await {
            Ok(Halt::Stop) => self.stop(stream).await,
            Ok(Halt::Timeline) => self.timeline_ended(stream).await,
            Err(error) => Err(self.broken(error).await),
        }
    }

    /// Receives until there is a reason to end.
    async fn follow(&mut self, stream: &mut WalStream) -> Result<Halt> {
        let mut statuses = ticks(STATUS);
        let mut flushes = ticks(self.receiver.options.flush_interval);
        stream.status(&self.status()).await?;
        loop {
            self.begin_upload();
            if self.has_reached_its_end() {
                return Ok(Halt::Stop);
            }
            let next = self.next(stream, &mut statuses, &mut flushes).await?;
            if matches!(next, Next::Message(_)) {
                self.heard = Instant::now();
            }
            match next {
                Next::Message(Some(WalMessage::Data { data, .. })) => self.waiting.extend(self.filling.add(&data)),
                Next::Message(Some(WalMessage::Keepalive { reply_requested, .. })) => {
                    if reply_requested {
                        stream.status(&self.status()).await?;
                    }
                }
                Next::Message(None) => return Ok(Halt::Timeline),
                Next::Uploaded(done) => {
                    self.uploaded(done)?;
                    stream.status(&self.status()).await?;
                }
                Next::Status => {
                    let reply_requested = self.is_quiet()?;
                    stream.status(&StandbyStatus { reply_requested, ..self.status() }).await?;
                }
                Next::Flush => self.waiting.extend(self.filling.piece()),
                Next::Stop => return Ok(Halt::Stop),
            }
        }
    }

    async fn next(&mut self, stream: &mut WalStream, statuses: &mut Interval, flushes: &mut Interval) -> Result<Next> {
        let idle = self.upload.is_none() && self.waiting.is_empty();
        let waiting: usize = self.waiting.iter().chain(self.upload.as_ref().map(|(job, _)| job)).map(Job::bytes).sum();
        // If memory is full, nothing more is read; the server still hears from us.
        let has_room = waiting == 0 || waiting + self.filling.len() < WAITING_BYTES_MAX;
        if !has_room {
            self.heard = Instant::now();
        }
        let upload = async {
            match &mut self.upload {
                Some((_, task)) => task
                    .await
                    .unwrap_or_else(|e| Err(Error::internal(Stage::Upload, "an upload task panicked").with_source(e))),
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            biased;
            () = self.receiver.options.cancel.cancelled() => Next::Stop,
            _ = statuses.tick() => Next::Status,
            done = upload => Next::Uploaded(done),
            _ = flushes.tick(), if idle => Next::Flush,
            message = stream.next(), if has_room => Next::Message(message?),
        })
    }

    /// Whether the server should be asked to say something.
    fn is_quiet(&self) -> Result<bool> {
        let silence = self.heard.elapsed();
        if silence >= SILENCE_MAX { Err(unheard(silence)) } else { Ok(silence >= QUIET) }
    }

    fn begin_upload(&mut self) {
        if self.upload.is_some() {
            return;
        }
        if let Some(job) = self.waiting.pop_front() {
            let (archiver, cluster, of_task) = (self.receiver.archiver.clone(), self.cluster, job.clone());
            let task = tokio::spawn(async move { upload::store(archiver, cluster, &of_task).await });
            self.upload = Some((job, AbortOnDropHandle::new(task)));
        }
    }

    /// Takes note of an upload that ended. One that failed in a way that may pass is tried again, by and by.
    fn uploaded(&mut self, done: Uploaded) -> Result<()> {
        let Some((job, _)) = self.upload.take() else { return Ok(()) };
        let leftovers = match done {
            Ok(leftovers) => leftovers,
            Err(error) if !super::may_pass(&error) => return Err(error),
            Err(error) => {
                self.upload_again(job, &error);
                return Ok(());
            }
        };
        let size = self.filling.size();
        let end = match &job {
            Job::Segment(name, _) => name.end(size),
            Job::Piece(name, piece, _) => name.start(size).map(|start| Lsn(start.0 + u64::from(piece.end))),
        };
        if let Some(end) = end.filter(|end| *end > self.durable) {
            self.durable = end;
            self.known.durable = Some(WalPosition { lsn: end, timeline: self.start.timeline });
            self.receiver.tell(&ReceiverEvent::Durable(end));
        }
        if let Job::Segment(name, _) = job {
            self.receiver.tell(&ReceiverEvent::Segment(name));
            let archive = self.receiver.archiver.target().wal_of(self.cluster);
            while self.removing.try_join_next().is_some() {}
            self.removing.spawn(upload::remove_tail(leftovers, archive, name));
        }
        Ok(())
    }

    fn upload_again(&mut self, mut job: Job, error: &Error) {
        self.receiver.tell(&ReceiverEvent::Retrying { error: error.in_one_line(), pause: RETRY });
        // It may be stored all the same, with the answer lost: the next attempt is sealed anew, and needs a name of its own.
        if let Job::Piece(_, piece, _) = &mut job {
            piece.run = new_run();
        }
        let (archiver, cluster, of_task) = (self.receiver.archiver.clone(), self.cluster, job.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(RETRY).await;
            upload::store(archiver, cluster, &of_task).await
        });
        self.upload = Some((job, AbortOnDropHandle::new(task)));
    }

    /// Waits a moment for tails that are being removed.
    async fn tidy(&mut self) {
        let removed = async { while self.removing.join_next().await.is_some() {} };
        // What is left of them does no harm.
        let _ = tokio::time::timeout(LEAVE_DEADLINE, removed).await;
    }

    fn has_reached_its_end(&self) -> bool {
        self.receiver.options.until.is_some_and(|until| self.filling.end() >= until)
    }

    /// What was received becomes durable, if the repository is there; then the server is told, and left.
    async fn stop(mut self, mut stream: WalStream) -> Result<Ended> {
        let drained = self.save().await;
        let left = async {
            stream.status(&self.status()).await?;
            let (connection, _) = stream.finish().await?;
            connection.close().await
        };
        if let Ok(Err(error)) | Err(error) = tokio::time::timeout(LEAVE_DEADLINE, left).await.map_err(|_| late()) {
            tracing::debug!(%error, "left without taking leave");
        }
        self.tidy().await;
        drained.map(|()| Ended::Stopped)
    }

    /// The stream broke, and this may be all that is left of the server. An error for a person to decide about goes before its own.
    async fn broken(mut self, error: Error) -> Error {
        if !super::may_pass(&error) {
            return error;
        }
        match self.save().await {
            Err(decide) if !super::may_pass(&decide) => decide,
            saved => {
                if let Err(late) = saved {
                    tracing::warn!(error = late.in_one_line(), "the stream broke");
                }
                self.tidy().await;
                error
            }
        }
    }

    /// Makes what was received durable, if that can be done in a while; else takes note of how far it was.
    async fn save(&mut self) -> Result<()> {
        self.waiting.extend(self.filling.piece());
        let drained = tokio::time::timeout(STOP_DEADLINE, self.drain()).await.unwrap_or_else(|_| Err(late()));
        let received = self.filling.end();
        if drained.is_err() && received > self.durable {
            self.known.unsaved = Some(WalPosition { lsn: received, timeline: self.start.timeline });
        }
        drained
    }

    /// Waits until all that waits is durable.
    async fn drain(&mut self) -> Result<()> {
        loop {
            self.begin_upload();
            let Some((_, task)) = &mut self.upload else { return Ok(()) };
            let done = task.await;
            let done =
                done.unwrap_or_else(|e| Err(Error::internal(Stage::Upload, "an upload task panicked").with_source(e)));
            self.uploaded(done)?;
        }
    }

    /// The server has no more of this timeline. What there is of its last segment stays a tail.
    async fn timeline_ended(mut self, stream: WalStream) -> Result<Ended> {
        let (connection, next) = match heard(stream.finish()).await {
            Ok(finished) => finished,
            Err(error) => return Err(self.broken(error).await),
        };
        self.save().await?;
        self.tidy().await;
        match next {
            Some(next) => Ok(Ended::Timeline(Box::new(connection), next)),
            None => Err(Error::new(ErrorKind::Source, Stage::Source, "the server stopped streaming: it shuts down")),
        }
    }

    fn status(&self) -> StandbyStatus {
        StandbyStatus {
            write: self.filling.end(),
            flush: self.durable.min(self.filling.end().max(self.start.lsn)),
            apply: Lsn(0),
            time: SystemClock.now(),
            reply_requested: false,
        }
    }
}

fn late() -> Error {
    Error::new(ErrorKind::Unavailable, Stage::Upload, "what was received last could not be stored in time")
}

/// The pause before a failed upload is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Tells the pieces of one run, or of one attempt, from those of others.
fn new_run() -> String {
    data_encoding::HEXLOWER.encode(&random::bytes::<8>())
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
