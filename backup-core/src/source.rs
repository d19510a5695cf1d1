//! Where the data to back up comes from.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::repository::layout::StreamName;

pub mod base_backup;
pub mod command;
pub mod directory;
pub mod files_index;
mod lines;
pub mod memory;
pub mod reader;
pub mod stream;
mod tar_header;

pub use base_backup::{ClusterOptions, ClusterSource, Method};
pub use command::{CommandOptions, CommandSource, LineCallback};
pub use directory::{DirectoryOptions, DirectorySource, DirectoryWarning, WarningCallback};
pub use files_index::FilesIndexSource;
pub use memory::BytesSource;
pub use reader::ReaderSource;
pub use stream::StreamSource;

/// A stream of bytes to back up.
///
/// Implementations are asked for one [`Piece`] after the other. Cutting pieces into chunks is the pipeline's work;
/// pieces may have any size but zero.
pub trait Source: Send + fmt::Debug {
    /// The next piece, or `None` at the end of the stream. Not called again after `None` or an error.
    ///
    /// `buffer` is an empty buffer of one chunk's capacity that belongs to the pipeline's memory budget. A source that reads
    /// should read into it ([`Buffer::spare`], [`Buffer::advance`]), as full as it can, and give it back as
    /// [`Piece::Buffer`]: such bytes are never copied. A source that already holds its data as [`Bytes`] returns those and drops
    /// the buffer.
    ///
    /// The end of the stream is a promise that the data is complete: a source that cannot be sure (a command that has not
    /// been waited for) must not return `None`.
    ///
    /// Cancel safety: none is needed. A source whose future was dropped is dropped next.
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>>;
}

/// A stream: its name, and where its bytes come from.
pub type Named = (StreamName, Box<dyn Source>);

/// Streams that are written one after the other, with the memory of one: what comes as one conversation, such as a server's archives.
pub trait Lane: Send + fmt::Debug {
    /// The next stream, when the one before was read to its end; `None` when there are no more. Not called again after `None` or an error.
    ///
    /// Cancel safety: none is needed. A lane whose future was dropped is dropped next.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Named>>>;
}

/// A lane of one stream.
#[derive(Debug)]
pub(crate) struct Single(Option<Named>);

impl Single {
    pub(crate) fn new(name: StreamName, source: Box<dyn Source>) -> Self {
        Self(Some((name, source)))
    }
}

impl Lane for Single {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Named>>> {
        ready(Ok(self.0.take())).boxed()
    }
}

/// How long an error that follows from another stream's waits for that one to be told.
const CONSEQUENCE_GRACE: Duration = Duration::from_secs(5);

/// An error that another stream's failure must have caused: that is the one to tell, and it stops this stream before this returns.
pub(crate) async fn consequence(message: &str) -> Error {
    tokio::time::sleep(CONSEQUENCE_GRACE).await;
    Error::new(ErrorKind::Source, Stage::Source, message)
}

/// Some bytes from a [`Source`].
#[derive(Debug)]
pub enum Piece {
    /// The pipeline's own buffer, filled.
    Buffer(Buffer),
    /// Bytes that were there before; shared, not copied.
    Bytes(Bytes),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pipeline::BufferPool;

    /// The pieces of a whole stream, read with buffers of `chunk_size`.
    pub(crate) async fn read_all(source: &mut dyn Source, chunk_size: usize) -> Result<Vec<Vec<u8>>> {
        let pool = BufferPool::new(chunk_size);
        let mut pieces = Vec::new();
        while let Some(piece) = source.next(pool.lease()).await? {
            pieces.push(match piece {
                Piece::Buffer(buffer) => buffer.filled().to_vec(),
                Piece::Bytes(bytes) => bytes.to_vec(),
            });
        }
        Ok(pieces)
    }
}
