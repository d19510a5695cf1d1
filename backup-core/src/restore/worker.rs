//! A thread that takes the bytes of a sink, for sinks that block.

use std::fmt;
use std::io::{self, Read};
use std::thread;

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result, Stage};

/// Pieces that wait for the thread. One is enough to keep it busy; each holds up to a chunk of memory.
const PIECES: usize = 1;

/// The async side: hands pieces over and learns the outcome.
pub(super) struct Worker {
    sender: Option<mpsc::Sender<Message>>,
    /// `None` once it was told.
    outcome: Option<oneshot::Receiver<Result<()>>>,
}

enum Message {
    Data(Bytes),
    Finish,
}

/// The thread's side.
pub(super) struct Incoming {
    messages: mpsc::Receiver<Message>,
    current: Bytes,
    finished: bool,
}

impl Worker {
    /// Runs `body` on a thread. It returns when it met an error, or when [`Incoming`] said that the stream ended.
    pub(super) fn spawn(body: impl FnOnce(Incoming) -> Result<()> + Send + 'static) -> Result<Self> {
        let (sender, messages) = mpsc::channel(PIECES);
        let (done, outcome) = oneshot::channel();
        thread::Builder::new()
            .name("backup-write".into())
            .spawn(move || {
                let incoming = Incoming { messages, current: Bytes::new(), finished: false };
                // Nobody listens when the sink was dropped.
                let _ = done.send(body(incoming));
            })
            .map_err(|e| Error::internal(Stage::Sink, "cannot start the writer thread").with_source(e))?;
        Ok(Self { sender: Some(sender), outcome: Some(outcome) })
    }

    pub(super) async fn write(&mut self, data: Bytes) -> Result<()> {
        if self.send(Message::Data(data)).await {
            return Ok(());
        }
        Err(match self.outcome().await {
            Err(error) => error,
            Ok(()) => Error::internal(Stage::Sink, "the writer thread ended early"),
        })
    }

    pub(super) async fn finish(&mut self) -> Result<()> {
        self.send(Message::Finish).await;
        self.outcome().await
    }

    /// Returns when the thread has ended; what it had to say does not matter any more.
    pub(super) async fn abort(&mut self) {
        let _ = self.outcome().await;
    }

    /// Lets the thread end by itself.
    pub(super) fn detach(&mut self) {
        self.sender = None;
    }

    async fn send(&self, message: Message) -> bool {
        match &self.sender {
            Some(sender) => sender.send(message).await.is_ok(),
            None => false,
        }
    }

    async fn outcome(&mut self) -> Result<()> {
        self.sender = None;
        let gone = || Error::internal(Stage::Sink, "the writer thread ended unexpectedly");
        let outcome = self.outcome.as_mut().ok_or_else(gone)?.await;
        self.outcome = None;
        outcome.unwrap_or_else(|_| Err(gone()))
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("open", &self.sender.is_some()).finish_non_exhaustive()
    }
}

impl Incoming {
    /// The next piece; `None` at the verified end of the stream.
    ///
    /// # Errors
    /// `Cancelled` when the stream will not be completed.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>> {
        if self.finished {
            return Ok(None);
        }
        match self.messages.blocking_recv() {
            Some(Message::Data(data)) => Ok(Some(data)),
            Some(Message::Finish) => {
                self.finished = true;
                Ok(None)
            }
            None => Err(Error::cancelled(Stage::Sink)),
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.next().map_err(io::Error::other)? {
                Some(data) => self.current = data,
                None => return Ok(0),
            }
        }
        let n = room.len().min(self.current.len());
        self.current.copy_to_slice(&mut room[..n]);
        if self.current.is_empty() {
            // Even empty it would hold its chunk's memory, which others may wait for.
            self.current = Bytes::new();
        }
        Ok(n)
    }
}

pub(super) fn sink_error(message: impl Into<String>, error: impl Into<io::Error>) -> Error {
    Error::new(ErrorKind::Sink, Stage::Sink, message).with_source(error.into())
}
