//! A source made of a stream of bytes that somebody else produces.

use std::fmt;
use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};

use super::reader::source_error;
use super::{Piece, Source};
use crate::error::Result;
use crate::pipeline::Buffer;

/// Takes the items of a [`Stream`] as they are, without copying; the end of the stream is the end of the data.
pub struct StreamSource<S>(S);

impl<S: Stream<Item = io::Result<Bytes>> + Send + Unpin> StreamSource<S> {
    /// Wraps `stream`; use [`Box::pin`] for one that is not `Unpin`.
    pub fn new(stream: S) -> Self {
        Self(stream)
    }

    async fn pull(&mut self) -> Result<Option<Piece>> {
        loop {
            match self.0.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Ok(Some(Piece::Bytes(bytes))),
                Some(Err(error)) => return Err(source_error("cannot read the input", error)),
                None => return Ok(None),
            }
        }
    }
}

impl<S: Stream<Item = io::Result<Bytes>> + Send + Unpin> Source for StreamSource<S> {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        drop(buffer);
        self.pull().boxed()
    }
}

impl<S> fmt::Debug for StreamSource<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSource").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tests::read_all;

    #[tokio::test]
    async fn empty_items_are_not_the_end() {
        let items = ["a", "", "bc"].map(|text| Ok(Bytes::from(text)));
        let mut source = StreamSource::new(futures::stream::iter(items));
        assert_eq!(read_all(&mut source, 64).await.unwrap().concat(), b"abc");
    }
}
