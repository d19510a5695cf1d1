//! The log of a base backup, from its start to its end: whole segments in a tar stream, as they belong into `pg_wal`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tar::{EntryType, Header};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::task::AbortOnDropHandle;

use super::{Facts, changed_timeline};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::postgres::wal::{Lsn, Timeline, WalFile};
use crate::postgres::wire::{Connection, StandbyStatus, WalMessage, WalPosition, WalStream};
use crate::source::{Piece, Source, consequence};

/// How often the server hears from us: well within `wal_sender_timeout`, which is a minute unless somebody changed it.
const STATUS: Duration = Duration::from_secs(10);
/// How long taking leave of the server may take.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);
/// Messages between the connection and the stream, each of at most 128 KiB. When they are full nothing more is read.
const MESSAGES: usize = 4;
const BLOCK: usize = 512;
/// Two blocks of zeros end a tar archive.
const TAR_END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The stream `pg_wal`.
#[derive(Debug)]
pub(super) struct WalSource {
    /// `None` once it was read to its end.
    pieces: Option<mpsc::Receiver<Bytes>>,
    /// `None` once it was waited for.
    pump: Option<AbortOnDropHandle<Result<()>>>,
    rest: Bytes,
}

/// What a task of its own does: reading the log, and telling the server that we are there, whatever the stream waits for.
struct Pump {
    facts: Arc<Facts>,
    slot: String,
    start: oneshot::Receiver<WalPosition>,
    end: watch::Receiver<Option<WalPosition>>,
    pieces: mpsc::Sender<Bytes>,
}

impl WalSource {
    pub(super) fn new(
        facts: Arc<Facts>,
        connection: Connection,
        slot: String,
        start: oneshot::Receiver<WalPosition>,
        end: watch::Receiver<Option<WalPosition>>,
    ) -> Self {
        let (sender, pieces) = mpsc::channel(MESSAGES);
        let pump = Pump { facts, slot, start, end, pieces: sender };
        let pump = AbortOnDropHandle::new(tokio::spawn(pump.run(connection)));
        Self { pieces: Some(pieces), pump: Some(pump), rest: Bytes::new() }
    }

    async fn fill(&mut self, mut buffer: Buffer) -> Result<Option<Piece>> {
        loop {
            let n = buffer.fill_from(&self.rest);
            self.rest.advance(n);
            if buffer.spare().is_empty() {
                return Ok(Some(Piece::Buffer(buffer)));
            }
            let received = match &mut self.pieces {
                Some(pieces) => pieces.recv().await,
                None => return Ok((!buffer.is_empty()).then_some(Piece::Buffer(buffer))),
            };
            match received {
                Some(piece) => self.rest = piece,
                None => {
                    self.pieces = None;
                    self.joined().await?;
                }
            }
        }
    }

    /// The log ends when the pump has said that it is complete, and not when its channel closes.
    async fn joined(&mut self) -> Result<()> {
        let Some(pump) = self.pump.take() else { return Ok(()) };
        pump.await.map_err(|e| Error::internal(Stage::Source, "the task that receives WAL panicked").with_source(e))?
    }
}

impl Source for WalSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.fill(buffer).boxed()
    }
}

impl Pump {
    async fn run(mut self, mut connection: Connection) -> Result<()> {
        let Ok(start) = (&mut self.start).await else {
            return Err(consequence("the base backup did not begin").await);
        };
        if start.timeline > Timeline::FIRST {
            let history = connection.timeline_history(start.timeline).await?.content;
            self.send(self.header(WalFile::History(start.timeline), history.len() as u64)?).await?;
            let padding = history.len().next_multiple_of(BLOCK) - history.len();
            self.send(history).await?;
            self.send(vec![0; padding].into()).await?;
        }
        // What this backup has flushed is in no repository until it is complete, so no commit may wait for it and be content. Who reports no flush is
        // no synchronous standby; it costs that the server keeps all of the log until the end.
        let counts = connection.show("synchronous_standby_names").await?.trim().is_empty();
        let from = self.facts.segment_size.start_of(start.lsn);
        let stream = connection.start_replication(Some(&self.slot), from, start.timeline).await?;
        let (stop, stopped) = self.receive(stream, start, counts).await?;
        self.send(Bytes::from_static(&TAR_END)).await?;
        self.facts.report(start, stop, stopped);
        Ok(())
    }

    /// Receives to the backup's end, whenever that becomes known; returns it, and the server's time by then. Only if that `counts` is the server told
    /// how far it is flushed.
    async fn receive(
        &mut self,
        mut stream: WalStream,
        start: WalPosition,
        counts: bool,
    ) -> Result<(WalPosition, Timestamp)> {
        let mut ticks = interval_at(Instant::now() + STATUS, STATUS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut queue: VecDeque<Bytes> = VecDeque::new();
        let mut seen = None;
        loop {
            let end = *self.end.borrow_and_update();
            if let (Some(end), Some(time)) = (end, seen)
                && stream.position() >= end.lsn
            {
                let position = stream.position();
                leave(stream).await;
                for piece in queue {
                    self.send(piece).await?;
                }
                self.pad(position).await?;
                return Ok((end, time));
            }
            // Nothing is read while something waits to be taken, and whatever waits, the server hears from us.
            tokio::select! {
                biased;
                _ = ticks.tick() => stream.status(&status(&stream, counts)).await?,
                changed = self.end.changed(), if end.is_none() => if changed.is_err() {
                    return Err(consequence("the base backup did not end").await);
                },
                permit = self.pieces.reserve(), if !queue.is_empty() => {
                    let permit = permit.map_err(|_| Error::cancelled(Stage::Source))?;
                    if let Some(piece) = queue.pop_front() {
                        permit.send(piece);
                    }
                }
                message = stream.next(), if queue.is_empty() => match message? {
                    Some(WalMessage::Data { start: at, time, data, .. }) => {
                        seen = Some(time);
                        self.cut(start, at, data, &mut queue)?;
                    }
                    Some(WalMessage::Keepalive { time, reply_requested, .. }) => {
                        seen = Some(time);
                        if reply_requested {
                            stream.status(&status(&stream, counts)).await?;
                        }
                    }
                    None => return Err(ended_early(stream, start.timeline).await),
                },
            }
        }
    }

    /// Log that lies in one segment or in several, with a header before each segment.
    fn cut(&self, start: WalPosition, mut at: Lsn, mut data: Bytes, queue: &mut VecDeque<Bytes>) -> Result<()> {
        let size = self.facts.segment_size;
        while !data.is_empty() {
            let offset = size.offset_of(at);
            if offset == 0 {
                let segment = size.segment_at(start.timeline, at);
                queue.push_back(self.header(WalFile::Segment(segment), size.bytes())?);
            }
            let n = usize::try_from(size.bytes() - offset).map_or(data.len(), |left| left.min(data.len()));
            queue.push_back(data.split_to(n));
            at.0 += n as u64;
        }
        Ok(())
    }

    /// Zeros to the end of the segment in which `position` lies.
    async fn pad(&self, position: Lsn) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let size = self.facts.segment_size;
        let mut missing = match size.offset_of(position) {
            0 => 0,
            offset => size.bytes() - offset,
        };
        while missing > 0 {
            let n = usize::try_from(missing).map_or(ZEROS.len(), |missing| missing.min(ZEROS.len()));
            self.send(Bytes::from_static(&ZEROS[..n])).await?;
            missing -= n as u64;
        }
        Ok(())
    }

    async fn send(&self, piece: Bytes) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        // The stream was dropped: whoever did that knows why.
        self.pieces.send(piece).await.map_err(|_| Error::cancelled(Stage::Source))
    }

    fn header(&self, file: WalFile, size: u64) -> Result<Bytes> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        let named = header.set_path(file.to_string());
        named.map_err(|e| Error::internal(Stage::Source, "the name of a WAL file is too long").with_source(e))?;
        header.set_mode(0o600);
        header.set_size(size);
        header.set_mtime(u64::try_from(self.facts.connected.as_second()).unwrap_or_default());
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        Ok(Bytes::copy_from_slice(header.as_bytes()))
    }
}

/// Why the server has no more log: it says so when it went to another timeline.
async fn ended_early(stream: WalStream, timeline: Timeline) -> Error {
    match tokio::time::timeout(LEAVE_DEADLINE, stream.finish()).await {
        Ok(Ok((_, Some(next)))) => changed_timeline(timeline, next.timeline),
        _ => Error::new(ErrorKind::Source, Stage::Source, "the server stopped streaming WAL")
            .with_hint("it was shut down: begin the backup again when it runs"),
    }
}

/// Takes leave of the server, which would log a connection that is only dropped. What it does not hear does not matter.
async fn leave(stream: WalStream) {
    let leaving = async { stream.finish().await?.0.close().await };
    if let Ok(Err(error)) = tokio::time::timeout(LEAVE_DEADLINE, leaving).await {
        tracing::debug!(%error, "left without taking leave");
    }
}

/// All of it is as durable as the backup will be: if that fails, nobody asks for this log again.
fn status(stream: &WalStream, counts: bool) -> StandbyStatus {
    let position = stream.position();
    let flush = if counts { position } else { Lsn(0) };
    StandbyStatus { write: position, flush, apply: Lsn(0), time: SystemClock.now(), reply_requested: false }
}
