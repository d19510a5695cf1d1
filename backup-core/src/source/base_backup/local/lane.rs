//! The lanes of a local copy: each reads one stream after the other, and all take from one queue.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::blocking;
use super::closing::{BaseSource, Closing, CopySource};
use super::copy::CopyInput;
use super::job::Job;
use super::queue::Begun;
use super::start::Ready;
use crate::error::Result;
use crate::repository::layout::StreamName;
use crate::source::{Lane, Named, ReaderSource, Source, consequence};

/// The lane that begins the backup, and ends it with the stream `base`.
#[derive(Debug)]
pub(super) struct MainLane(Main);

#[derive(Debug)]
enum Main {
    /// Nothing has been asked of the server.
    Ready(Box<Ready>, watch::Sender<Option<Arc<Job>>>),
    Running {
        job: Arc<Job>,
        closing: Box<Closing>,
        /// Roots before this one are done with.
        from: usize,
    },
    Over,
}

/// A lane that helps.
#[derive(Debug)]
pub(super) struct SideLane {
    job: watch::Receiver<Option<Arc<Job>>>,
    from: usize,
}

impl MainLane {
    pub(super) fn new(ready: Box<Ready>, begun: watch::Sender<Option<Arc<Job>>>) -> Self {
        Self(Main::Ready(ready, begun))
    }

    async fn advance(&mut self) -> Result<Option<Named>> {
        let (job, closing, from) = match std::mem::replace(&mut self.0, Main::Over) {
            Main::Ready(ready, begun) => {
                let (job, closing) = ready.start().await?;
                begun.send_replace(Some(Arc::clone(&job)));
                (job, closing, 0)
            }
            Main::Running { job, closing, from } => (job, closing, from),
            Main::Over => return Ok(None),
        };
        let token = job.tracker.token();
        let Some(begun) = begin(&job, from, true).await? else { return Ok(None) };
        let (name, of) = (stream_name(begun.root.oid, begun.number)?, begun.of);
        let is_base = begun.root.oid.is_none();
        let input = CopyInput::new(Arc::clone(&job), begun, name.as_str(), !is_base, token);
        let files = CopySource::new(Arc::clone(&job), ReaderSource::from_input(input)?);
        let source: Box<dyn Source> = match is_base {
            true => Box::new(BaseSource::new(files, closing)),
            false => {
                self.0 = Main::Running { job, closing, from: of + 1 };
                Box::new(files)
            }
        };
        Ok(Some((name, source)))
    }
}

impl Lane for MainLane {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Named>>> {
        self.advance().boxed()
    }
}

impl SideLane {
    pub(super) fn new(job: watch::Receiver<Option<Arc<Job>>>) -> Self {
        Self { job, from: 0 }
    }

    async fn advance(&mut self) -> Result<Option<Named>> {
        let job = match self.job.wait_for(Option::is_some).await {
            Ok(job) => job.clone(),
            Err(_) => None,
        };
        let Some(job) = job else { return Err(consequence("the base backup did not begin").await) };
        // Before anything is taken: the main lane waits for whoever has something.
        let token = job.tracker.token();
        let Some(begun) = begin(&job, self.from, false).await? else { return Ok(None) };
        self.from = begun.of + 1;
        let name = stream_name(begun.root.oid, begun.number)?;
        let input = CopyInput::new(Arc::clone(&job), begun, name.as_str(), true, token);
        Ok(Some((name, Box::new(CopySource::new(job, ReaderSource::from_input(input)?)))))
    }
}

impl Lane for SideLane {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Named>>> {
        self.advance().boxed()
    }
}

/// The next stream of a lane, as [`Queue::begin`](super::queue::Queue::begin): directories are read for it, where readers wait for each other.
async fn begin(job: &Arc<Job>, from: usize, main: bool) -> Result<Option<Begun>> {
    let job = Arc::clone(job);
    blocking(move || job.begin(from, main)).await
}

/// The names of a root's streams: `base`, `base-01`, …, `tablespace-16385`, `tablespace-16385-01`, ….
fn stream_name(oid: Option<u32>, number: usize) -> Result<StreamName> {
    let root = oid.map_or_else(|| "base".to_owned(), |oid| format!("tablespace-{oid}"));
    if number == 0 { root.parse() } else { format!("{root}-{number:02}").parse() }
}

#[cfg(test)]
mod tests;
