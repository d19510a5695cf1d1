//! Counters of a run, and who may watch it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counters that every stage adds to; read them with [`Counters::snapshot`].
#[derive(Debug, Default)]
pub struct Counters {
    plain_bytes: AtomicU64,
    sealed_bytes: AtomicU64,
    transferred_bytes: AtomicU64,
    end_stall_ns: AtomicU64,
    store_stall_ns: AtomicU64,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// Plaintext in bytes: read from the source, or written to the sink.
    pub plain_bytes: u64,
    /// Compressed and encrypted bytes: made, or opened.
    pub sealed_bytes: u64,
    /// Bytes that the store has acknowledged, or delivered. Of several repositories that are written, the first that is required.
    pub transferred_bytes: u64,
    /// Time spent waiting for the source or for the sink.
    pub end_stall: Duration,
    /// Time spent waiting for the store.
    pub store_stall: Duration,
}

impl Counters {
    /// The counters as they stand.
    pub fn snapshot(&self) -> Progress {
        Progress {
            plain_bytes: self.plain_bytes.load(Ordering::Relaxed),
            sealed_bytes: self.sealed_bytes.load(Ordering::Relaxed),
            transferred_bytes: self.transferred_bytes.load(Ordering::Relaxed),
            end_stall: Duration::from_nanos(self.end_stall_ns.load(Ordering::Relaxed)),
            store_stall: Duration::from_nanos(self.store_stall_ns.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn add_plain(&self, bytes: usize) {
        self.plain_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_sealed(&self, bytes: usize) {
        self.sealed_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_transferred(&self, bytes: usize) {
        self.transferred_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts the time that `wait` takes as waiting for source or sink.
    pub(crate) async fn at_end<T>(&self, wait: impl Future<Output = T>) -> T {
        timed(&self.end_stall_ns, wait).await
    }

    /// Counts the time that `wait` takes as waiting for the store.
    pub(crate) async fn at_store<T>(&self, wait: impl Future<Output = T>) -> T {
        timed(&self.store_stall_ns, wait).await
    }
}

async fn timed<T>(counter: &AtomicU64, wait: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let value = wait.await;
    counter.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    value
}

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A stream was written or restored to its end.
    StreamFinished {
        /// The stream's name.
        stream: String,
        /// Its plaintext in bytes.
        bytes: u64,
    },
    /// The backup goes on without an optional repository, which failed or kept the others waiting.
    Dropped {
        /// The repository's name.
        repository: String,
        /// Why.
        error: String,
    },
    /// The manifest is there, in every required repository: the backup is complete, durable and visible.
    Committed {
        /// The backup's id.
        id: String,
    },
}

/// Is told what happens. Called on the tasks that do the work: return soon.
pub trait Observer: Send + Sync + fmt::Debug {
    /// Something happened.
    fn event(&self, event: &Event);
}

/// Collects what was not as it should be. Clones share one collection; of very many texts only the first are kept.
#[derive(Debug, Clone, Default)]
pub struct Warnings(std::sync::Arc<std::sync::Mutex<Collected>>);

#[derive(Debug, Default)]
struct Collected {
    texts: Vec<String>,
    bytes: usize,
    count: u64,
}

impl Warnings {
    /// The most bytes of texts that are kept.
    pub const KEPT_BYTES_MAX: usize = 1 << 20;

    /// Adds a warning.
    pub fn push(&self, text: impl Into<String>) {
        let (text, mut collected) = (text.into(), self.lock());
        collected.count += 1;
        collected.bytes += text.len();
        if collected.bytes <= Self::KEPT_BYTES_MAX {
            collected.texts.push(text);
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// Their texts.
    pub fn texts(&self) -> Vec<String> {
        self.lock().texts.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Collected> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
