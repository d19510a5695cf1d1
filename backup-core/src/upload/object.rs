//! One object on its way into a repository.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::part::Part;
use crate::error::{Error, Result, Stage};
use crate::pipeline::Counters;
use crate::repository::Repository;

/// How long parts that are on their way may take to end by themselves, before an upload is aborted.
const PARTS_END: Duration = Duration::from_millis(500);

/// What writes runs as tasks that this owns, so that a caller who stops waiting for them can still have them undone: a request that was
/// only dropped may be carried out later, after everything was removed.
enum Multipart {
    None,
    Single(JoinHandle<Result<()>>),
    Beginning(JoinHandle<object_store::Result<Box<dyn MultipartUpload>>>),
    Open(Box<dyn MultipartUpload>),
    Completing(JoinHandle<(Box<dyn MultipartUpload>, object_store::Result<()>)>),
}

/// Sends parts as they come: what fits into one goes as one create-only request, more as a multipart upload.
///
/// Parts are sent by tasks of their own, so they make progress whatever their owner waits for.
pub(crate) struct ObjectUpload {
    repository: Repository,
    path: Path,
    large: Large,
    counters: Arc<Counters>,
    multipart: Multipart,
    tasks: JoinSet<object_store::Result<usize>>,
    len: u64,
}

/// Where an object of more than one part goes.
#[derive(Debug)]
enum Large {
    /// To the same name, which nobody else uses.
    Own,
    /// To the same name, which others may take meanwhile: the store then refuses to complete it.
    Contended,
    /// To another name, which nobody else uses.
    Elsewhere(Path),
}

impl ObjectUpload {
    /// An upload to `path`, a name that nobody else uses; nothing is sent yet.
    pub(crate) fn new(repository: Repository, path: Path, counters: Arc<Counters>) -> Self {
        Self::with(repository, path, Large::Own, counters)
    }

    /// An upload to `path`, which others may be about to create too: of all of them one succeeds. Stores that replace what is there when they
    /// complete a multipart upload get a large object under the name `large` instead; [`location`](Self::location) tells.
    pub(crate) fn contended(repository: Repository, path: Path, large: Path, counters: Arc<Counters>) -> Self {
        let large = if repository.publishes_once() { Large::Contended } else { Large::Elsewhere(large) };
        Self::with(repository, path, large, counters)
    }

    fn with(repository: Repository, path: Path, large: Large, counters: Arc<Counters>) -> Self {
        Self { repository, path, large, counters, multipart: Multipart::None, tasks: JoinSet::new(), len: 0 }
    }

    /// Where the object is, once it is finished.
    pub(crate) fn location(&self) -> &Path {
        match &self.large {
            Large::Elsewhere(path) if self.len > 0 => path,
            _ => &self.path,
        }
    }

    /// Sends a part behind which more will come.
    pub(crate) async fn push(&mut self, part: Part) -> Result<()> {
        while let Some(done) = self.tasks.try_join_next() {
            self.acknowledge(done)?;
        }
        let Part { payload, permits, ticket } = part;
        let len = payload.content_length();
        let sent = self.open().await?.put_part(payload);
        self.len += len as u64;
        self.tasks.spawn(async move {
            let sent = sent.await;
            drop((permits, ticket));
            sent.map(|()| len)
        });
        Ok(())
    }

    async fn open(&mut self) -> Result<&mut Box<dyn MultipartUpload>> {
        if let Multipart::None = self.multipart {
            let path = match &self.large {
                Large::Elsewhere(path) => path.clone(),
                Large::Own | Large::Contended => self.path.clone(),
            };
            let repository = self.repository.clone();
            let begin = async move { repository.store().put_multipart(&path).await };
            self.multipart = Multipart::Beginning(tokio::spawn(begin));
        }
        if let Multipart::Beginning(task) = &mut self.multipart {
            let begun = joined(task.await);
            self.multipart = Multipart::None;
            self.multipart = Multipart::Open(begun?.map_err(|e| self.failed(e))?);
        }
        match &mut self.multipart {
            Multipart::Open(multipart) => Ok(multipart),
            _ => Err(Error::internal(Stage::Upload, "a part came after the end of its object")),
        }
    }

    /// Sends the last part and completes the object. On error [`abort`](Self::abort) is still to be called.
    pub(crate) async fn finish(&mut self, last: Part) -> Result<()> {
        if let Multipart::None = self.multipart {
            return self.put(last).await;
        }
        if last.payload.content_length() > 0 {
            self.push(last).await?;
        }
        while let Some(done) = self.tasks.join_next().await {
            self.acknowledge(done)?;
        }
        self.complete().await
    }

    async fn put(&mut self, only: Part) -> Result<()> {
        let Part { payload, permits, ticket } = only;
        let len = payload.content_length();
        let (repository, path) = (self.repository.clone(), self.path.clone());
        let put = async move {
            let put = repository.put_once(&path, payload).await;
            drop((permits, ticket));
            put
        };
        self.multipart = Multipart::Single(tokio::spawn(put));
        let Multipart::Single(task) = &mut self.multipart else { return Ok(()) };
        let put = joined(task.await);
        self.multipart = Multipart::None;
        put?.map_err(|e| e.at(Stage::Upload))?;
        self.counters.add_transferred(len);
        Ok(())
    }

    async fn complete(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.multipart, Multipart::None) {
            Multipart::Open(mut multipart) => {
                let complete = async move {
                    let completed = multipart.complete().await.map(drop);
                    (multipart, completed)
                };
                self.multipart = Multipart::Completing(tokio::spawn(complete));
            }
            other => self.multipart = other,
        }
        let Multipart::Completing(task) = &mut self.multipart else { return Ok(()) };
        let (multipart, completed) = joined(task.await)?;
        self.multipart = Multipart::Open(multipart);
        if let Err(error) = completed {
            // The answer may have been lost, and the object be there: where its name is ours alone, its size tells.
            let ours = !matches!(self.large, Large::Contended);
            match self.repository.store().head(self.location()).await {
                Ok(meta) if ours && meta.size == self.len => {}
                _ => return Err(self.failed(error)),
            }
        }
        self.multipart = Multipart::None;
        Ok(())
    }

    /// Stops sending and discards what was sent of an unfinished object. One that was just being completed may end complete, but not
    /// after this has returned.
    pub(crate) async fn abort(&mut self) -> Result<()> {
        // A store may keep a part whose request was on its way when the upload was aborted.
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(PARTS_END, ended).await;
        self.tasks.shutdown().await;
        let unfinished = match std::mem::replace(&mut self.multipart, Multipart::None) {
            Multipart::None => None,
            Multipart::Single(task) => {
                let _ = joined(task.await)?;
                None
            }
            Multipart::Beginning(task) => joined(task.await)?.ok(),
            Multipart::Open(multipart) => Some(multipart),
            Multipart::Completing(task) => {
                let (multipart, completed) = joined(task.await)?;
                completed.is_err().then_some(multipart)
            }
        };
        match unfinished {
            Some(mut multipart) => multipart.abort().await.map_err(|e| self.failed(e)),
            None => Ok(()),
        }
    }

    fn acknowledge(&self, done: Result<object_store::Result<usize>, JoinError>) -> Result<()> {
        self.counters.add_transferred(joined(done)?.map_err(|e| self.failed(e))?);
        Ok(())
    }

    fn failed(&self, error: object_store::Error) -> Error {
        self.repository.error(error, "write", self.location()).at(Stage::Upload)
    }
}

fn joined<T>(task: Result<T, JoinError>) -> Result<T> {
    task.map_err(|e| Error::internal(Stage::Upload, "an upload task panicked").with_source(e))
}
