//! Threads for compression and encryption, apart from those that wait for I/O.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::compress::{Compressor, Content, Decompressor};
use crate::error::{Error, Result, Stage};

/// A pool of compute threads. Cheap to clone; the threads end with the last clone.
///
/// Jobs of a millisecond and one queue for all threads. A thread with nothing to do sleeps at once: pools that look for work elsewhere before
/// they sleep take the processor from a server on the same host, whose data is what they wait for.
#[derive(Clone)]
pub struct ComputePool(Arc<Handle>);

struct Handle {
    queue: Arc<Queue>,
    threads: NonZero<usize>,
}

type Job = Box<dyn FnOnce(&mut Workspace) + Send>;

#[derive(Default)]
struct Queue {
    state: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    closed: bool,
}

/// What a job needs and need not make anew each time.
#[derive(Default)]
pub(crate) struct Workspace {
    compressor: Option<Compressor>,
    decompressor: Option<Decompressor>,
}

impl Workspace {
    pub(crate) fn compressor(&mut self, level: i32, content: Content) -> &mut Compressor {
        match &mut self.compressor {
            Some(compressor) if compressor.settings() == (level, content) => {}
            other => *other = Some(Compressor::new(level, content)),
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
        let handle = Handle { queue: Arc::default(), threads };
        for i in 0..threads.get() {
            let queue = Arc::clone(&handle.queue);
            thread::Builder::new()
                .name(format!("compute-{i}"))
                .spawn(move || queue.work())
                .map_err(|e| Error::internal(Stage::Setup, "cannot start compute threads").with_source(e))?;
        }
        Ok(Self(Arc::new(handle)))
    }

    /// Runs `job` on a thread of the pool. A panic in it becomes an error of kind `Internal`.
    ///
    /// Jobs begin in the order in which they came. Those that wait when the last clone of the pool is dropped are dropped, too.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce(&mut Workspace) -> T + Send + 'static) -> Pending<T> {
        let (done, result) = oneshot::channel();
        self.0.queue.push(Box::new(move |workspace| {
            let _ = done.send(job(workspace));
        }));
        Pending(result)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().waiting.push_back(job);
        self.changed.notify_one();
    }

    /// What a thread does until the pool is dropped.
    fn work(&self) {
        let mut workspace = Workspace::default();
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| job(&mut workspace))).is_err() {
                // A workspace that a panic went through is not used again.
                workspace = Workspace::default();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let idle = |jobs: &mut Jobs| jobs.waiting.is_empty() && !jobs.closed;
        let mut jobs = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        jobs.waiting.pop_front()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut jobs = self.queue.lock();
        jobs.closed = true;
        let dropped = std::mem::take(&mut jobs.waiting);
        drop(jobs);
        self.queue.changed.notify_all();
        drop(dropped);
    }
}

impl fmt::Debug for ComputePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ComputePool").field("threads", &self.0.threads).finish_non_exhaustive()
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

    #[tokio::test]
    async fn jobs_begin_in_order_and_those_that_wait_go_with_the_pool() {
        let pool = ComputePool::new(NonZero::new(1).unwrap()).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let first = pool.run(move |_| gate.recv().is_ok());
        let jobs: Vec<_> = (0..20)
            .map(|i| {
                let order = Arc::clone(&order);
                pool.run(move |_| order.lock().unwrap().push(i))
            })
            .collect();
        go.send(()).unwrap();
        assert!(first.wait().await.unwrap());
        for job in jobs {
            job.wait().await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());

        let (go, gate) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let running = pool.run(move |_| begun.send(()).is_ok() && gate.recv().is_ok());
        let waiting = pool.run(|_| ());
        has_begun.await.unwrap();
        drop(pool);
        assert!(waiting.wait().await.is_err(), "nobody would run it");
        go.send(()).unwrap();
        assert!(running.wait().await.unwrap(), "what has begun is done");
    }
}
