//! Where restored data goes.

use std::fmt;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, ready};

use crate::error::{Error, Result, Stage};

/// Receives a restored stream, in order.
///
/// Nothing counts as restored before [`finish`](Self::finish) has returned: it is called once, after the end of the
/// stream was verified. [`abort`](Self::abort) is called instead when anything went wrong before that.
pub trait Sink: Send + fmt::Debug {
    /// Takes the next bytes; returns when more may come. `data` is verified, and never empty.
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>>;

    /// The stream is complete: make it durable, make it visible.
    ///
    /// When the restore is cancelled meanwhile, the future is dropped and [`abort`](Self::abort) is called. What was visible by then
    /// may stay: it is complete.
    fn finish(&mut self) -> BoxFuture<'_, Result<()>>;

    /// The stream will not be completed: undo what can be undone, mark what cannot.
    fn abort(&mut self) -> BoxFuture<'_, Result<()>>;
}

/// Takes everything and keeps nothing: for verification and benchmarks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullSink;

impl Sink for NullSink {
    fn write(&mut self, _: Bytes) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }

    fn abort(&mut self) -> BoxFuture<'_, Result<()>> {
        ready(Ok(())).boxed()
    }
}

/// Keeps a short stream in memory; clones share it. It can be taken once the stream is complete.
#[derive(Debug, Clone)]
pub struct MemorySink {
    bytes_max: usize,
    state: std::sync::Arc<std::sync::Mutex<(Vec<u8>, bool)>>,
}

impl MemorySink {
    /// A sink for at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: std::sync::Arc::default() }
    }

    /// What was restored; `None` before the stream was complete.
    pub fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.1.then(|| std::mem::take(&mut state.0))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<u8>, bool)> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn append(&self, data: &[u8]) -> Result<()> {
        let mut state = self.lock();
        if state.0.len() + data.len() > self.bytes_max {
            return Err(Error::new(
                crate::ErrorKind::Sink,
                Stage::Sink,
                format!("the stream is longer than {} bytes", self.bytes_max),
            ));
        }
        state.0.extend_from_slice(data);
        Ok(())
    }
}

impl Sink for MemorySink {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>> {
        ready(self.append(&data)).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        self.lock().1 = true;
        ready(Ok(())).boxed()
    }

    fn abort(&mut self) -> BoxFuture<'_, Result<()>> {
        self.lock().0.clear();
        ready(Ok(())).boxed()
    }
}
