//! Messages over a socket. Reading and writing keep what is unfinished in buffers, so both are cancel safe.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncReadExt, AsyncWrite};
use zeroize::Zeroize;

use super::frame::{self, Incoming, Phase};
use super::message::{NoticeCallback, ServerMessage};
use super::parameters::Parameters;
use super::socket::Socket;
use crate::error::{Error, ErrorKind, Result, Stage};

/// As much is read at once: a Unix socket holds about 200 KiB.
const READ_BYTES: usize = 256 << 10;

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
    /// Cancel safe.
    pub(super) async fn receive(&mut self) -> Result<Incoming> {
        loop {
            if let Some(incoming) = self.buffered()? {
                return Ok(incoming);
            }
            if poll_fn(|cx| self.poll_fill(cx)).await.map_err(lost)? == 0 {
                let why = match self.incoming.is_empty() {
                    true => "the server closed the connection",
                    false => "the server closed the connection in the middle of a message",
                };
                return Err(lost(
                    self.deaf.take().unwrap_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, why)),
                ));
            }
        }
    }

    /// The next message among what has been read already.
    fn buffered(&mut self) -> Result<Option<Incoming>> {
        loop {
            let Some(incoming) = frame::take(&mut self.incoming, self.phase).map_err(confused)? else {
                return Ok(None);
            };
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
            if self.asides > ASIDES_MAX {
                return Err(confused_by("it sends notices and nothing else"));
            }
        }
    }

    /// Reads once; goes on sending meanwhile, so that nobody waits for what stands in our buffer.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let _ = self.poll_send(cx);
        poll_read(&mut self.socket, cx, &mut self.incoming)
    }
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
