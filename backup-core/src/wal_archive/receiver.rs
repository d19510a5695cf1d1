//! Receiving: the log as a server streams it, durable in the repository within seconds.
//!
//! ```text
//! server ─▶ segment in memory ─▶ every few seconds: what is new, as a piece of its tail ─▶ full: the segment, and its tail is removed
//!    ◀───── how far it is durable, also while uploads wait
//! ```
//!
//! What the server is told to be flushed is durable in the repository, so it keeps the rest, and may let commits wait for it
//! (`synchronous_standby_names`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Archiver;
use crate::encrypt::random;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{Lsn, SegmentName, SegmentSize, SystemIdentifier, Timeline, WalFile};
use crate::postgres::wire::{ConnectOptions, Connection, Mode, WalPosition, sqlstate};

mod begin;
mod filling;
mod session;
mod upload;

use begin::{Behind, Leftover};
use session::{Ended, Session};

/// The largest segments that are received: one is held in memory until it is full.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The pause before the first new attempt to connect; doubled for each further one.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A server that says nothing for so long, though it was asked to, is given up: whatever is between us has let go of the connection without
/// telling. As long as the server's own `wal_sender_timeout` is unless somebody changed it.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// SQLSTATE `undefined_file`: the log was removed.
const REMOVED: &str = "58P01";
/// SQLSTATE `duplicate_object`: there is a slot of that name.
const EXISTS: &str = "42710";
/// SQLSTATE `undefined_object`: there is no slot of that name.
const MISSING: &str = "42704";

/// For whom the server keeps its log until it is durable here.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slot {
    /// For nobody once the connection breaks: what is removed until there is a new one is a gap.
    Temporary,
    /// For the slot of this name, which must be there.
    Existing(String),
    /// For the slot of this name, which is made if it is missing.
    Created(String),
}

/// How a [`Receiver`] works.
#[derive(Clone)]
#[non_exhaustive]
pub struct ReceiverOptions {
    /// The server: a primary or a standby.
    pub connect: ConnectOptions,
    /// Temporary unless set.
    pub slot: Slot,
    /// How often what is new of an unfinished segment becomes durable: what a disaster may cost. 10 s unless set.
    pub flush_interval: Duration,
    /// Stops when the log is durable up to here; never unless set.
    pub until: Option<Lsn>,
    /// Goes on behind log that the server has removed, which leaves a gap in the archive; an error unless set.
    pub skip_gap: bool,
    /// Stops in order when it is cancelled.
    pub cancel: CancellationToken,
    /// Is told what happens.
    pub on_event: Option<EventCallback>,
}

/// Is told what happens. Called on the task that receives: return soon.
pub type EventCallback = Arc<dyn Fn(&ReceiverEvent) + Send + Sync>;

/// Something that happened while receiving.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReceiverEvent {
    /// Streaming begins.
    Started {
        /// From here.
        lsn: Lsn,
        /// On this timeline.
        timeline: Timeline,
    },
    /// All before this position is durable.
    Durable(Lsn),
    /// A segment is complete and durable.
    Segment(SegmentName),
    /// The server went over to another timeline, whose history is durable now.
    Timeline {
        /// The new one.
        timeline: Timeline,
        /// Where it begins.
        lsn: Lsn,
    },
    /// The server has removed log that the archive does not have.
    Gap {
        /// The first position that is missing.
        from: Lsn,
        /// The first one behind it that is received.
        to: Lsn,
    },
    /// Something failed that may pass, and is tried again.
    Retrying {
        /// What failed, and why.
        error: String,
        /// In so long.
        pause: Duration,
    },
}

/// How far the log was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// All before this position is durable; `None` when nothing was received.
    pub durable: Option<WalPosition>,
}

/// Receives the log of one server into an archive.
#[derive(Debug)]
pub struct Receiver {
    archiver: Archiver,
    options: ReceiverOptions,
}

/// What outlives a connection.
#[derive(Debug, Default)]
struct Known {
    cluster: Option<SystemIdentifier>,
    durable: Option<WalPosition>,
    /// Up to here it was received when a stream ended, and could not be stored.
    unsaved: Option<WalPosition>,
    /// The newest timeline whose history is durable.
    history: Option<Timeline>,
    /// Whether there was a connection that worked since the last failure.
    streamed: bool,
    /// Log from here on was removed by the server; it is to be left out.
    gap_from: Option<Lsn>,
    /// Who lacks the log with which this connection begins.
    behind: Option<Behind>,
    /// What those who received before could not remove any more.
    leftovers: Vec<Leftover>,
}

impl Known {
    /// How it ends when it was told to. What nobody may have any more but us is no success.
    fn stopped(self) -> Result<Received> {
        let place = |position: &WalPosition| (position.timeline, position.lsn);
        let lost = self.unsaved.filter(|unsaved| self.durable.is_none_or(|durable| place(&durable) < place(unsaved)));
        let Some(lost) = lost else { return Ok(Received { durable: self.durable }) };
        let from = self.durable.map(|durable| format!(", which is durable up to {}", durable.lsn)).unwrap_or_default();
        let message = format!(
            "stopped: what was received up to {} of timeline {}{from}, could not be stored",
            lost.lsn, lost.timeline
        );
        Err(Error::new(ErrorKind::Unavailable, Stage::Upload, message).with_hint(
            "start it again when the repository is there: what the server still has is received again, as a slot (--slot) ensures",
        ))
    }
}

impl ReceiverOptions {
    /// Receives from the server of `connect`.
    pub fn new(connect: ConnectOptions) -> Self {
        Self {
            connect,
            slot: Slot::Temporary,
            flush_interval: Duration::from_secs(10),
            until: None,
            skip_gap: false,
            cancel: CancellationToken::new(),
            on_event: None,
        }
    }
}

impl Receiver {
    /// Receives into the archive of `archiver`.
    pub fn new(archiver: Archiver, options: ReceiverOptions) -> Self {
        Self { archiver, options }
    }

    /// Receives until it is cancelled or has reached [`ReceiverOptions::until`]. Connects again, for as long as it takes, when the server or the
    /// network fails, and tries again when the repository does; the server keeps its log meanwhile.
    ///
    /// Not cancel safe: cancel with the token, and wait. What was received by then becomes durable, if the repository is there; `Unavailable` if it
    /// is not.
    ///
    /// # Errors
    /// What does not pass by itself: `Config` when the server refuses us, has another system identifier than before, or larger segments than
    /// 64 MiB; `NotFound` when log was removed that the archive does not have (a gap), or the slot is missing; `Storage` when
    /// another file of that name is archived already; `Key`, `Integrity` and the like.
    pub async fn run(self) -> Result<Received> {
        let mut known = Known::default();
        let mut pause = PAUSE;
        loop {
            known.streamed = false;
            let failure = match self.session(&mut known).await {
                Ok(()) => return known.stopped(),
                Err(error) if self.options.cancel.is_cancelled() && may_pass(&error) => {
                    tracing::info!(error = error.in_one_line(), "stopped while something was away");
                    return known.stopped();
                }
                Err(error) if !may_pass(&error) => return Err(error),
                Err(error) => error,
            };
            if known.streamed {
                pause = PAUSE;
            }
            self.tell(&ReceiverEvent::Retrying { error: failure.in_one_line(), pause });
            tokio::select! {
                () = self.options.cancel.cancelled() => return known.stopped(),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// One connection, from the position that is durable on.
    async fn session(&self, known: &mut Known) -> Result<()> {
        let connecting = heard(async {
            let mut connection = Connection::connect(&self.options.connect, Mode::Replication).await?;
            let identity = connection.identify_system().await?;
            let size = SegmentSize::of_setting(&connection.show("wal_segment_size").await?)?;
            Ok((connection, identity, size))
        });
        let (mut connection, identity, size) = tokio::select! {
            () = self.options.cancel.cancelled() => return Ok(()),
            connected = connecting => connected?,
        };
        let cluster = *known.cluster.get_or_insert(identity.system);
        if cluster != identity.system {
            let message =
                format!("this server is of the cluster {}, and the one before was of {cluster}", identity.system);
            return Err(Error::config(message).with_hint("a cluster that was made anew needs a target of its own"));
        }
        if size.bytes() > SEGMENT_BYTES_MAX {
            return Err(Error::config(format!(
                "segments of {} MiB are larger than can be received",
                size.bytes() >> 20
            ))
            .with_hint("archive them with 'backup wal push' as archive_command"));
        }
        let slot = heard(self.slot(&mut connection)).await?;
        let mut start = self.start(&mut connection, &identity, size, slot.as_deref(), known).await?;
        self.store_first_history(&mut connection, cluster, start.timeline, known).await?;
        loop {
            let opened = heard(connection.start_replication(slot.as_deref(), start.lsn, start.timeline)).await;
            let stream = opened.map_err(|e| self.lost(e, start, known))?;
            known.streamed = true;
            self.tell(&ReceiverEvent::Started { lsn: start.lsn, timeline: start.timeline });
            let ended = Session::new(self, cluster, size, start, known).run(stream).await;
            let (streaming, next) = match ended.map_err(|e| self.lost(e, start, known))? {
                Ended::Stopped => return Ok(()),
                Ended::Timeline(streaming, next) => (*streaming, next),
            };
            connection = streaming;
            self.store_history(&mut connection, cluster, next.timeline, known).await?;
            self.tell(&ReceiverEvent::Timeline { timeline: next.timeline, lsn: next.lsn });
            start = WalPosition { timeline: next.timeline, lsn: size.start_of(next.lsn) };
            known.durable = Some(start);
        }
    }

    /// The slot to stream for. A temporary one is made anew for each connection.
    async fn slot(&self, connection: &mut Connection) -> Result<Option<String>> {
        match &self.options.slot {
            Slot::Existing(name) => Ok(Some(name.clone())),
            Slot::Temporary => {
                let name = format!("backup_receive_{}", data_encoding::HEXLOWER.encode(&random::bytes::<8>()));
                connection.create_replication_slot(&name, true, true).await?;
                Ok(Some(name))
            }
            Slot::Created(name) => match connection.create_replication_slot(name, false, true).await {
                Err(error) if sqlstate(&error) != Some(EXISTS) => Err(error),
                _ => Ok(Some(name.clone())),
            },
        }
    }

    /// What a server's refusal means. Log that it has removed is a gap, which nobody jumps over without having been told to.
    fn lost(&self, error: Error, start: WalPosition, known: &mut Known) -> Error {
        match sqlstate(&error) {
            Some(REMOVED) => {
                let from = known.durable.map_or(start.lsn, |durable| durable.lsn);
                if self.options.skip_gap {
                    (known.durable, known.gap_from) = (None, Some(from));
                    return error;
                }
                if let (Some(Behind { repository, ahead }), None) = (&known.behind, known.durable) {
                    let message = format!("the server has removed its WAL from {from} on, which {repository} lacks");
                    return Error::new(ErrorKind::NotFound, Stage::Source, message).with_source(error).with_hint(format!(
                        "{ahead} has more of it: run 'backup copy --from {ahead} --to {repository}', and begin again"
                    ));
                }
                let message = format!("the server has removed its WAL from {from} on: this is a gap in the archive");
                Error::new(ErrorKind::NotFound, Stage::Source, message).with_source(error).with_hint(
                    "take a base backup now, and then go on behind the gap with --skip-gap; a slot (--slot) keeps WAL from being removed",
                )
            }
            Some(MISSING) => Error::new(ErrorKind::NotFound, Stage::Source, "the replication slot is missing")
                .with_source(error)
                .with_hint(
                    "was it dropped? --create-slot makes it; WAL that the server has removed meanwhile is a gap",
                ),
            _ => error,
        }
    }

    /// The history of the timeline that receiving begins on: nobody else may archive it. A server that was restored may run without the file.
    async fn store_first_history(
        &self,
        connection: &mut Connection,
        cluster: SystemIdentifier,
        timeline: Timeline,
        known: &mut Known,
    ) -> Result<()> {
        if timeline == Timeline::FIRST || known.history == Some(timeline) {
            return Ok(());
        }
        match self.store_history(connection, cluster, timeline, known).await {
            Err(error) if sqlstate(&error) == Some(REMOVED) => {
                tracing::warn!(%error, "the server lacks the history of timeline {timeline}, without which no recovery finds that timeline");
                Ok(())
            }
            stored => stored,
        }
    }

    /// The history comes first: who sees a segment of a timeline can find out where it came from. The same one again does no harm.
    async fn store_history(
        &self,
        connection: &mut Connection,
        cluster: SystemIdentifier,
        timeline: Timeline,
        known: &mut Known,
    ) -> Result<()> {
        let history = heard(connection.timeline_history(timeline)).await?.content;
        let file = WalFile::History(timeline);
        upload::until_done(self, || self.archiver.store_received(cluster, file, history.clone())).await?;
        known.history = Some(timeline);
        Ok(())
    }

    fn tell(&self, event: &ReceiverEvent) {
        if let Some(callback) = &self.options.on_event {
            callback(event);
        }
    }
}

/// What the server answers, unless it does not.
async fn heard<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(SILENCE_MAX, answer).await.unwrap_or_else(|_| Err(unheard(SILENCE_MAX)))
}

fn unheard(silence: Duration) -> Error {
    let message = format!("PostgreSQL was not heard of for {} s", silence.as_secs());
    Error::new(ErrorKind::Source, Stage::Source, message)
}

/// Whether a failure may be over in a while. What a person has to decide about does not.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Source | ErrorKind::Unavailable | ErrorKind::Storage) && !error.is_lasting()
}

impl fmt::Debug for ReceiverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiverOptions")
            .field("connect", &self.connect)
            .field("slot", &self.slot)
            .field("flush_interval", &self.flush_interval)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
