//! `START_REPLICATION`: the write-ahead log as it is written ("Streaming Replication Protocol").

use bytes::{Buf, BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use postgres_protocol::message::frontend;

use super::base_backup::WalPosition;
use super::channel::confused_by;
use super::connection::{Answer, Connection, columns};
use super::replication::{identifier, leading, read, timeline_of};
use crate::error::Result;
use crate::postgres::wal::{Lsn, Timeline};

/// PostgreSQL counts microseconds from 2000-01-01 00:00 UTC; this many after 1970.
const EPOCH_MICROSECONDS: i64 = 946_684_800_000_000;

/// What an orderly stop may still bring: what the server had in its buffers.
const TAIL_BYTES_MAX: usize = 256 << 20;

const FAILED: &str = "streaming WAL failed";

/// What a streaming server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMessage {
    /// The next bytes of the log. They follow those before them without a gap, and need not end where a record or a page does.
    Data {
        /// Where they begin.
        start: Lsn,
        /// How far the server's log reaches.
        end: Lsn,
        /// The server's clock.
        time: Timestamp,
        /// The bytes: a part of the buffer into which they were read, which lives as long as they do.
        data: Bytes,
    },
    /// There is nothing to send, or an answer is wanted.
    Keepalive {
        /// How far the server's log reaches.
        end: Lsn,
        /// The server's clock.
        time: Timestamp,
        /// Whether the server wants a [`status`](WalStream::status) now, or it will close the connection soon (`wal_sender_timeout`).
        reply_requested: bool,
    },
}

/// How far somebody is who receives the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received up to here.
    pub write: Lsn,
    /// Durable up to here. The server removes what is older, and acknowledges commits to clients that wait for us (`synchronous_commit`).
    pub flush: Lsn,
    /// Replayed up to here; `Lsn(0)` for somebody who does not replay.
    pub apply: Lsn,
    /// The sender's clock.
    pub time: Timestamp,
    /// Whether the server shall answer with a keepalive at once.
    pub reply_requested: bool,
}

/// The log, streamed. Dropping it closes the connection.
#[derive(Debug)]
pub struct WalStream {
    connection: Connection,
    state: State,
    /// The position behind the last byte that came.
    position: Lsn,
    next_timeline: Option<WalPosition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Streaming,
    /// The server will send no more log; it waits for us to say the same.
    Ended,
    /// The result of the command follows, or has been read already.
    Finished,
    Failed,
}

impl Connection {
    /// Streams the log from `start` on `timeline`; for `slot`, if one is named, whose reserved log the server keeps.
    ///
    /// When that timeline ends at `start`, the stream is empty and [`finish`](WalStream::finish) tells the next one. Dropping the future closes
    /// the connection, and so does a failure.
    ///
    /// # Errors
    /// `Source` with the server's message, or when the connection breaks. SQLSTATE 58P01 when the log has been removed already; 55006 when
    /// another uses the slot; 42704 when there is none.
    pub async fn start_replication(mut self, slot: Option<&str>, start: Lsn, timeline: Timeline) -> Result<WalStream> {
        let slot = slot.map(|name| format!("SLOT {} ", identifier(name))).unwrap_or_default();
        self.begin(&format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}")).await?;
        let mut stream = WalStream { connection: self, state: State::Streaming, position: start, next_timeline: None };
        match stream.connection.answer(FAILED).await? {
            Answer::CopyBoth => {}
            Answer::Row(row) => {
                stream.next_timeline = Some(next_timeline(columns(&row)?)?);
                stream.state = State::Finished;
            }
            _ => return Err(confused_by("it does not stream, and does not say why")),
        }
        Ok(stream)
    }
}

impl WalStream {
    /// The server that streams.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The position behind the last byte that came.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// What the server says next; `None` when it ends the stream, because the timeline ends or the server stops. Then [`finish`](Self::finish).
    ///
    /// Cancel safe. What [`status`](Self::status) could not send yet is sent meanwhile.
    ///
    /// # Errors
    /// `Source` with the server's message, or when the connection breaks; also for log that does not follow what came before it.
    pub async fn next(&mut self) -> Result<Option<WalMessage>> {
        if self.state != State::Streaming {
            return Ok(None);
        }
        let received = self.connection.next_answer().await;
        let taken = received.and_then(|answer| match answer {
            Ok(Answer::CopyData(data)) => self.take(data).map(Some),
            Ok(Answer::CopyDone) => {
                self.state = State::Ended;
                Ok(None)
            }
            // A server that shuts down says that the command is complete without having ended the copy.
            Ok(Answer::Complete) => {
                self.state = State::Finished;
                Ok(None)
            }
            Ok(_) => Err(confused_by("it ends the stream without saying so")),
            Err(message) => Err(message.into_error(FAILED)),
        });
        if taken.is_err() {
            self.state = State::Failed;
        }
        taken
    }

    /// Tells the server how far we are. It can be sent at any time, also while nothing comes.
    ///
    /// Cancel safe: a status that was not sent to its end is sent by the next call of any method. It waits when the network takes no more, so
    /// somebody who must go on meanwhile gives it a time to finish.
    ///
    /// # Errors
    /// None for a connection that is broken: [`next`](Self::next) tells that, after the last that the server said.
    pub async fn status(&mut self, status: &StandbyStatus) -> Result<()> {
        if self.state != State::Streaming {
            return Ok(());
        }
        let mut body = BytesMut::with_capacity(STATUS_BYTES);
        body.put_u8(b'r');
        for lsn in [status.write, status.flush, status.apply] {
            body.put_u64(lsn.0);
        }
        body.put_i64(status.time.as_microsecond() - EPOCH_MICROSECONDS);
        body.put_u8(status.reply_requested.into());
        self.connection.channel.say(|out| {
            frontend::CopyData::new(body)?.write(out);
            Ok(())
        })?;
        self.connection.channel.send().await;
        Ok(())
    }

    /// Ends the stream in order, whether the server did so or not, and gives the connection back: with the timeline that follows and where it
    /// begins, if this one has ended. Log that arrives meanwhile is dropped.
    ///
    /// Not cancel safe: dropping the future closes the connection.
    ///
    /// # Errors
    /// `Source` with the server's message, or when the connection breaks, as it does when the stream ended because the server stops.
    pub async fn finish(mut self) -> Result<(Connection, Option<WalPosition>)> {
        if self.state != State::Finished {
            self.connection.channel.say(|out| {
                frontend::copy_done(out);
                Ok(())
            })?;
            self.connection.channel.send().await;
        }
        let mut bytes = 0;
        loop {
            match self.connection.answer(FAILED).await? {
                Answer::Ready => return Ok((self.connection, self.next_timeline)),
                Answer::Row(row) => self.next_timeline = Some(next_timeline(columns(&row)?)?),
                Answer::CopyData(data) => bytes += data.len(),
                _ => {}
            }
            bytes += 64;
            if bytes > TAIL_BYTES_MAX {
                return Err(confused_by("it goes on streaming after it was asked to stop"));
            }
        }
    }

    fn take(&mut self, mut data: Bytes) -> Result<WalMessage> {
        let message = message(&mut data).ok_or_else(|| confused_by("a message of its stream is malformed"))?;
        if let WalMessage::Data { start, data, .. } = &message {
            if *start != self.position {
                let expected = self.position;
                return Err(confused_by(format!("it streams from {start} where {expected} comes next")));
            }
            self.position = start
                .0
                .checked_add(data.len() as u64)
                .map(Lsn)
                .ok_or_else(|| confused_by("it streams beyond the end of all positions"))?;
        }
        Ok(message)
    }
}

/// `r`, three positions, a time and a flag.
const STATUS_BYTES: usize = 1 + 3 * 8 + 8 + 1;

fn message(data: &mut Bytes) -> Option<WalMessage> {
    match data.try_get_u8().ok()? {
        b'w' => Some(WalMessage::Data {
            start: Lsn(data.try_get_u64().ok()?),
            end: Lsn(data.try_get_u64().ok()?),
            time: time(data.try_get_i64().ok()?)?,
            data: std::mem::take(data),
        }),
        b'k' => Some(WalMessage::Keepalive {
            end: Lsn(data.try_get_u64().ok()?),
            time: time(data.try_get_i64().ok()?)?,
            reply_requested: data.try_get_u8().ok()? != 0,
        }),
        _ => None,
    }
}

fn time(microseconds: i64) -> Option<Timestamp> {
    Timestamp::from_microsecond(microseconds.checked_add(EPOCH_MICROSECONDS)?).ok()
}

fn next_timeline(row: Vec<Option<Bytes>>) -> Result<WalPosition> {
    let [timeline, lsn] = leading(row)?;
    Ok(WalPosition { timeline: timeline_of(timeline)?, lsn: read(lsn, "a position")? })
}
