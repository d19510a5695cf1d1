//! A stream of text that is written, a few lines at a time, while other streams are read: from a thread or from a task.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use super::{Piece, Source, consequence};
use crate::error::Result;
use crate::pipeline::Buffer;

/// Lines are sent on in pieces of about this size.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait to be read.
const PIECES: usize = 2;

/// A text that is written at one end and read at the other. `unfinished` is what the reader says when the writer did not come to the end.
pub(super) fn channel(unfinished: &'static str) -> (LineWriter, LineSource) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (LineWriter { sender: Some(sender), lines: Vec::new() }, LineSource { pieces, ended: false, unfinished })
}

#[derive(Debug)]
enum Lines {
    Some(Bytes),
    /// The text is complete. A channel that closes without it belongs to streams that failed.
    End,
}

/// The reading end.
#[derive(Debug)]
pub(super) struct LineSource {
    pieces: mpsc::Receiver<Lines>,
    ended: bool,
    unfinished: &'static str,
}

impl LineSource {
    async fn pull(&mut self) -> Result<Option<Piece>> {
        if self.ended {
            return Ok(None);
        }
        match self.pieces.recv().await {
            Some(Lines::Some(lines)) => Ok(Some(Piece::Bytes(lines))),
            Some(Lines::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(consequence(self.unfinished).await),
        }
    }
}

impl Source for LineSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        drop(buffer);
        self.pull().boxed()
    }
}

/// The writing end: collects lines and sends them on.
#[derive(Debug)]
pub(super) struct LineWriter {
    /// `None` once nobody reads any more.
    sender: Option<mpsc::Sender<Lines>>,
    lines: Vec<u8>,
}

impl LineWriter {
    /// Adds what `write` appends, and from a thread of its own waits until there is room for it.
    pub(super) fn push_blocking(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(piece) = self.collect(write) {
            self.send_blocking(piece);
        }
    }

    pub(super) fn finish_blocking(&mut self) {
        let rest = self.take();
        self.send_blocking(rest);
        self.send_blocking(Lines::End);
    }

    /// Adds what `write` appends. Not cancel safe: a piece may be lost, and with it the text.
    pub(super) async fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(piece) = self.collect(write) {
            self.send(piece).await;
        }
    }

    pub(super) async fn finish(&mut self) {
        let rest = self.take();
        self.send(rest).await;
        self.send(Lines::End).await;
    }

    /// A piece, when enough lines have come together for one.
    fn collect(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Option<Lines> {
        self.sender.as_ref()?;
        write(&mut self.lines);
        (self.lines.len() >= PIECE_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> Lines {
        Lines::Some(std::mem::take(&mut self.lines).into())
    }

    fn send_blocking(&mut self, piece: Lines) {
        if !is_empty(&piece) && self.sender.as_ref().is_some_and(|sender| sender.blocking_send(piece).is_err()) {
            self.sender = None;
        }
    }

    async fn send(&mut self, piece: Lines) {
        let Some(sender) = self.sender.as_ref().filter(|_| !is_empty(&piece)) else { return };
        if sender.send(piece).await.is_err() {
            self.sender = None;
        }
    }
}

/// Pieces of a stream have bytes.
fn is_empty(piece: &Lines) -> bool {
    matches!(piece, Lines::Some(lines) if lines.is_empty())
}
