//! Messages over a socket. Reading and writing keep what is unfinished in buffers, so both are cancel safe.

use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncReadExt, AsyncWrite};
use zeroize::Zeroize;

use super::frame::{self, COPY_LEAD_BYTES_MAX, CopyLead, CopyNext, Incoming, Phase};
use super::message::{NoticeCallback, ServerMessage};
use super::parameters::Parameters;
use super::socket::Socket;
use crate::error::{Error, ErrorKind, Result, Stage};

/// As much is read at once: a Unix socket holds about 200 KiB.
const READ_BYTES: usize = 256 << 10;

/// So many messages of copy data, besides the one that is being read, are read at once where they belong: about as much.
const COPY_AHEAD: usize = 8;

/// A read that emptied a Unix socket of so much, and the pause before the next: meanwhile a server that is this fast sends on, and neither waits to
/// be woken by the other for each 8 KiB. With what the kernel adds it is some 0.1 ms, half of what a Unix socket holds.
const PACED_BYTES: usize = 32 << 10;
const PACE: Duration = Duration::from_micros(30);

/// Room for what is said at once, to begin with.
const OUTGOING_BYTES: usize = 4 << 10;

/// So many notices and changed parameters in a row, with nothing else between them, are enough.
const ASIDES_MAX: u32 = 10_000;

/// A socket and what has been read from it and not been looked at, and what has been said and not been sent.
pub(super) struct Channel {
    socket: Socket,
    phase: Phase,
    incoming: BytesMut,
    outgoing: BytesMut,
    flushed: bool,
    /// Why nothing can be sent any more. What the server said before that, it may be why, is still to be read.
    deaf: Option<io::Error>,
    parameters: Parameters,
    notices: Option<NoticeCallback>,
    asides: u32,
    copy: Copying,
}

/// Where we are in copy data that is read to where it is wanted.
#[derive(Debug, Clone, Copy, Default)]
struct Copying {
    /// Bytes of the message's data that have not been handed out.
    left: usize,
    /// Bytes that the last message had, and the most that one had.
    last: usize,
    most: usize,
    /// When the last read was, if it had much and left nothing.
    emptied: Option<Instant>,
}

impl Copying {
    /// Whether the next messages are likely to be as large as the largest was: in a large file.
    fn is_steady(&self) -> bool {
        self.most > 0 && self.last == self.most
    }
}

/// What came where copy data was awaited.
pub(super) enum Received {
    /// So many bytes of it.
    Copied(usize),
    /// A message of another kind.
    Other(Incoming),
}

impl Channel {
    pub(super) fn new(socket: Socket, notices: Option<NoticeCallback>) -> Self {
        Self {
            socket,
            phase: Phase::Startup,
            incoming: BytesMut::new(),
            // Enough for a login: a buffer that grows leaves copies behind.
            outgoing: BytesMut::with_capacity(OUTGOING_BYTES),
            flushed: true,
            deaf: None,
            parameters: Parameters::default(),
            notices,
            asides: 0,
            copy: Copying::default(),
        }
    }

    /// From now on the server may send what it sends to those who are logged in.
    pub(super) fn logged_in(&mut self) {
        self.phase = Phase::Session;
    }

    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Adds messages to what will be sent.
    pub(super) fn say(&mut self, message: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        let before = self.outgoing.len();
        message(&mut self.outgoing).map_err(|error| {
            self.outgoing.truncate(before);
            // A zero byte in a text, or a message of more than 2 GiB.
            Error::config("a text for the server is not one that PostgreSQL can take").with_source(error)
        })
    }

    /// Sends what has been said. Cancel safe: what is left is sent by the next call, or while reading.
    ///
    /// That the other end is gone is told by [`receive`](Self::receive), after the last that it said.
    pub(super) async fn send(&mut self) {
        poll_fn(|cx| self.poll_send(cx)).await;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.deaf.is_none()
            && let Err(error) = ready!(self.poll_write(cx))
        {
            self.deaf = Some(error);
        }
        if self.deaf.is_some() {
            self.forget(self.outgoing.len());
        }
        Poll::Ready(())
    }

    /// Drops the first bytes of what was said. They are wiped: one of the messages is a password.
    fn forget(&mut self, len: usize) {
        self.outgoing[..len].zeroize();
        self.outgoing.advance(len);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.forget(sent),
            }
            self.flushed = false;
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// The next message that is not an aside: notices go to the callback, parameters are kept. An error of the server is a message here.
    /// What is left of copy data that was being read is passed over. Cancel safe.
    pub(super) async fn receive(&mut self) -> Result<Incoming> {
        loop {
            if let Some(incoming) = self.buffered()? {
                return Ok(incoming);
            }
            self.fill().await?;
        }
    }

    /// The same where copy data of a kind is awaited: it goes to `room`, which is not empty, without a detour wherever it can. Cancel safe.
    ///
    /// A server sends a large file in messages of one size. So while the last was of the size of the largest, the next are taken to be, too:
    /// one read puts what is in them side by side, and what stands between them aside.
    pub(super) async fn receive_into(&mut self, kind: Option<u8>, room: &mut [u8]) -> Result<Received> {
        loop {
            if self.copy.left == 0 {
                match frame::begin_copy(&mut self.incoming, kind).map_err(confused)? {
                    CopyNext::Data(len) => {
                        self.asides = 0;
                        self.copy = Copying { left: len, last: len, most: self.copy.most.max(len), ..self.copy };
                        continue;
                    }
                    CopyNext::Other => {
                        // Another archive may have messages of another size.
                        self.copy = Copying::default();
                        if let Some(incoming) = frame::take(&mut self.incoming, self.phase).map_err(confused)? {
                            match self.unless_aside(incoming)? {
                                Some(other) => return Ok(Received::Other(other)),
                                None => continue,
                            }
                        }
                    }
                    CopyNext::Incomplete => {}
                }
                if !self.incoming.is_empty() || !self.copy.is_steady() || !self.socket.fills_several() {
                    self.fill().await?;
                    continue;
                }
            } else if !self.incoming.is_empty() {
                let n = self.copy.left.min(self.incoming.len()).min(room.len());
                room[..n].copy_from_slice(&self.incoming[..n]);
                self.incoming.advance(n);
                self.copy.left -= n;
                return Ok(Received::Copied(n));
            }
            match poll_fn(|cx| self.poll_scatter(cx, kind, room)).await.map_err(lost)? {
                None => return Err(self.ended()),
                // A part of what stands before the data, or something else altogether.
                Some(0) => {}
                Some(n) => {
                    self.asides = 0;
                    return Ok(Received::Copied(n));
                }
            }
        }
    }

    /// The next message among what has been read already.
    fn buffered(&mut self) -> Result<Option<Incoming>> {
        let unread = self.copy.left.min(self.incoming.len());
        self.incoming.advance(unread);
        self.copy.left -= unread;
        if self.copy.left > 0 {
            return Ok(None);
        }
        while let Some(incoming) = frame::take(&mut self.incoming, self.phase).map_err(confused)? {
            let other = self.unless_aside(incoming)?;
            if other.is_some() {
                return Ok(other);
            }
        }
        Ok(None)
    }

    /// The message, if it is for whoever waits for one.
    fn unless_aside(&mut self, incoming: Incoming) -> Result<Option<Incoming>> {
        match incoming {
            Incoming::Message(Message::NoticeResponse(body)) => {
                if let Some(callback) = &self.notices {
                    callback(&ServerMessage::read(body.fields()));
                }
            }
            Incoming::Message(Message::ParameterStatus(body)) => self.parameters.learn(&body)?,
            Incoming::Message(Message::NotificationResponse(_)) => {}
            other => {
                self.asides = 0;
                return Ok(Some(other));
            }
        }
        self.asides += 1;
        match self.asides > ASIDES_MAX {
            true => Err(confused_by("it sends notices and nothing else")),
            false => Ok(None),
        }
    }

    /// Reads more behind what is there.
    async fn fill(&mut self) -> Result<()> {
        match poll_fn(|cx| self.poll_fill(cx)).await.map_err(lost)? {
            0 => Err(self.ended()),
            _ => Ok(()),
        }
    }

    /// The server has closed the connection.
    fn ended(&mut self) -> Error {
        let why = match self.incoming.is_empty() && self.copy.left == 0 {
            true => "the server closed the connection",
            false => "the server closed the connection in the middle of a message",
        };
        lost(self.deaf.take().unwrap_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, why)))
    }

    /// Reads once; goes on sending meanwhile, so that nobody waits for what stands in our buffer.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let _ = self.poll_send(cx);
        poll_read(&mut self.socket, cx, &mut self.incoming)
    }

    /// Reads once, the rest of the message to the front of `room`, and behind it the data of messages that are as large as the largest was.
    /// How many bytes of data that came to; `None` at the end. Where the next messages are of another size, they are put together again.
    fn poll_scatter(
        &mut self,
        cx: &mut Context<'_>,
        kind: Option<u8>,
        room: &mut [u8],
    ) -> Poll<io::Result<Option<usize>>> {
        let _ = self.poll_send(cx);
        let Copying { left, most, .. } = self.copy;
        let expected = CopyLead::new(kind, most);
        let lead_len = expected.as_slice().len();
        let mut leads = [[0; COPY_LEAD_BYTES_MAX]; COPY_AHEAD];
        let (rest, mut ahead) = room.split_at_mut(left.min(room.len()));
        let rest_len = rest.len();
        let mut slices = Vec::with_capacity(1 + 2 * COPY_AHEAD);
        if !rest.is_empty() {
            slices.push(IoSliceMut::new(rest));
        }
        if !self.copy.is_steady() {
            ahead = &mut [];
        }
        for lead in &mut leads {
            if ahead.is_empty() {
                break;
            }
            let (data, further) = ahead.split_at_mut(most.min(ahead.len()));
            slices.extend([IoSliceMut::new(&mut lead[..lead_len]), IoSliceMut::new(data)]);
            ahead = further;
        }
        if self.copy.emptied.take().is_some_and(|emptied| emptied.elapsed() < PACE) {
            pause();
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut unseen = ready!(self.socket.poll_read_vectored(cx, &mut slices))?;
        let emptied = self.socket.is_local() && (PACED_BYTES..wanted).contains(&unseen);
        self.copy.emptied = emptied.then(Instant::now);
        if unseen == 0 {
            return Poll::Ready(Ok(None));
        }
        let mut end = unseen.min(rest_len);
        let (mut copied, mut as_expected) = (end, true);
        self.copy.left -= end;
        unseen -= end;
        for lead in &leads {
            let lead = &lead[..lead_len.min(unseen)];
            unseen -= lead.len();
            let data = end..end + unseen.min(most).min(room.len() - end);
            unseen -= data.len();
            end = data.end;
            as_expected &= lead == expected.as_slice();
            if as_expected {
                self.copy.left = most - data.len();
                copied = end;
            } else {
                self.incoming.extend_from_slice(lead);
                self.incoming.extend_from_slice(&room[data]);
            }
        }
        Poll::Ready(Ok(Some(copied)))
    }
}

#[expect(clippy::disallowed_methods, reason = "the runtime's timers know nothing shorter than a millisecond")]
fn pause() {
    thread::sleep(PACE);
}

/// Reads once behind what is there.
fn poll_read(socket: &mut Socket, cx: &mut Context<'_>, bytes: &mut BytesMut) -> Poll<io::Result<usize>> {
    if bytes.capacity() - bytes.len() < READ_BYTES / 4 {
        bytes.reserve(READ_BYTES);
    }
    // A future that keeps nothing between polls: it may as well be a new one each time.
    pin!(socket.read_buf(bytes)).poll(cx)
}

/// The connection broke.
pub(super) fn lost(error: io::Error) -> Error {
    Error::new(ErrorKind::Source, Stage::Source, "lost the connection to PostgreSQL").with_source(error)
}

/// What came is not what PostgreSQL says.
pub(super) fn confused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Source, Stage::Source, "the server does not speak PostgreSQL's protocol").with_source(error)
}

pub(super) fn confused_by(why: impl Into<String>) -> Error {
    confused(io::Error::new(io::ErrorKind::InvalidData, why.into()))
}

#[cfg(test)]
mod tests;
