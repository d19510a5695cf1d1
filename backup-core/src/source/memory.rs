//! Bytes that are in memory already.

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use super::{Piece, Source};
use crate::error::Result;
use crate::pipeline::Buffer;

/// A stream of bytes that are in memory already; they are not copied.
#[derive(Debug)]
pub struct BytesSource(Bytes);

impl BytesSource {
    /// A stream of `bytes`.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }
}

impl Source for BytesSource {
    fn next(&mut self, _: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        let bytes = std::mem::take(&mut self.0);
        ready(Ok((!bytes.is_empty()).then_some(Piece::Bytes(bytes)))).boxed()
    }
}
