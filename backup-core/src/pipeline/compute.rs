//! Threads for compression and encryption, apart from those that wait for I/O.

use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::compress::{Compressor, Decompressor};
use crate::error::{Error, Result, Stage};

/// A pool of compute threads. Cheap to clone; the threads end with the last clone.
#[derive(Clone)]
pub struct ComputePool(Arc<Shared>);

struct Shared {
    threads: rayon::ThreadPool,
    workspaces: Mutex<Vec<Workspace>>,
}

/// What a job needs and need not make anew each time.
#[derive(Default)]
pub(crate) struct Workspace {
    compressor: Option<Compressor>,
    decompressor: Option<Decompressor>,
}

impl Workspace {
    pub(crate) fn compressor(&mut self, level: i32) -> &mut Compressor {
        match &mut self.compressor {
            Some(compressor) if compressor.level() == level => {}
            other => *other = Some(Compressor::new(level)),
        }
        self.compressor.as_mut().expect("set above")
    }

    pub(crate) fn decompressor(&mut self) -> &mut Decompressor {
        self.decompressor.get_or_insert_default()
    }
}

impl ComputePool {
    /// A pool of `threads` threads.
    pub fn new(threads: NonZero<usize>) -> Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|i| format!("compute-{i}"))
            .build()
            .map_err(|e| Error::internal(Stage::Setup, "cannot start compute threads").with_source(e))?;
        Ok(Self(Arc::new(Shared { threads, workspaces: Mutex::default() })))
    }

    /// Runs `job` on a thread of the pool. A panic in it becomes an error of kind `Internal`.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Workspace) -> T + Send + 'static) -> Pending<T> {
        let (done, result) = oneshot::channel();
        let shared = Arc::downgrade(&self.0);
        self.0.threads.spawn_fifo(move || {
            let Some(shared) = shared.upgrade() else { return };
            let take = shared.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut workspace = take.unwrap_or_default();
            // A workspace that a panic went through is not used again.
            if let Ok(value) = catch_unwind(AssertUnwindSafe(|| job(&mut workspace))) {
                shared.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
                drop(shared);
                let _ = done.send(value);
            }
        });
        Pending(result)
    }
}

impl fmt::Debug for ComputePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComputePool").field("threads", &self.0.threads.current_num_threads()).finish_non_exhaustive()
    }
}

/// The result of a job, in the future.
#[derive(Debug)]
pub(crate) struct Pending<T>(oneshot::Receiver<T>);

impl<T> Pending<T> {
    pub(crate) async fn wait(self) -> Result<T> {
        self.0.await.map_err(|_| Error::internal(Stage::Compress, "a compute job panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_job_is_an_error_and_the_pool_goes_on() {
        let pool = ComputePool::new(NonZero::new(1).unwrap()).unwrap();
        let error = pool.run(|_| -> u32 { panic!("on purpose") }).wait().await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Internal);
        assert_eq!(pool.run(|_| 7).wait().await.unwrap(), 7);
    }
}
