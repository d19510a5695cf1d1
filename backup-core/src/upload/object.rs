//! One object on its way into a repository.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::part::Part;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Counters;
use crate::repository::Repository;

/// What of the time for giving up an upload is kept for the request that discards it.
const DISCARD: Duration = Duration::from_secs(1);
/// How long parts that are on their way may take to end by themselves while others wait for their memory; and how long after they were cut off the
/// upload is discarded once more.
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

    /// Stops sending and discards what was sent of an unfinished object, within `deadline`. One that was just being completed may end complete, but not
    /// after this has returned.
    ///
    /// Parts that are on their way end by themselves if they can: a store may keep a part whose request was cut off and arrives all the same.
    pub(crate) async fn abort(&mut self, deadline: Duration) -> Result<()> {
        self.abort_within(deadline.saturating_sub(DISCARD), deadline).await
    }

    /// The same where others wait for the memory of these parts.
    pub(crate) async fn abort_soon(&mut self, deadline: Duration) -> Result<()> {
        self.abort_within(PARTS_END, deadline).await
    }

    async fn abort_within(&mut self, parts_end: Duration, deadline: Duration) -> Result<()> {
        let deadline = Instant::now() + deadline;
        let late = |_| Error::new(ErrorKind::Unavailable, Stage::Upload, "giving up an upload took too long");
        let aborted = tokio::time::timeout_at(deadline, self.discard(parts_end)).await.map_err(late)?;
        let Some(mut cut_off) = aborted? else { return Ok(()) };
        // A part that arrived after that stays, unless the upload is aborted again.
        let again = async {
            tokio::time::sleep(PARTS_END).await;
            cut_off.abort().await
        };
        if let Ok(Err(error)) = tokio::time::timeout_at(deadline, again).await {
            tracing::debug!(%error, object = %self.location(), "it was given up before");
        }
        Ok(())
    }

    /// Returns the upload when parts had to be cut off.
    async fn discard(&mut self, parts_end: Duration) -> Result<Option<Box<dyn MultipartUpload>>> {
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let cut_off = tokio::time::timeout(parts_end, ended).await.is_err();
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
        let Some(mut multipart) = unfinished else { return Ok(None) };
        multipart.abort().await.map_err(|e| self.failed(e))?;
        Ok(cut_off.then_some(multipart))
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use object_store::{PutPayload, PutResult, UploadPart};

    use super::*;

    /// An upload whose parts take their time, and what it was asked for.
    #[derive(Debug, Clone)]
    struct Slow {
        takes: Duration,
        done: Arc<Mutex<Vec<&'static str>>>,
    }

    #[async_trait]
    impl MultipartUpload for Slow {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            let Self { takes, done } = self.clone();
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                done.lock().unwrap().push("part");
                Ok(())
            })
        }

        async fn complete(&mut self) -> object_store::Result<PutResult> {
            Err(object_store::Error::NotImplemented { operation: "complete".into(), implementer: "Slow".into() })
        }

        async fn abort(&mut self) -> object_store::Result<()> {
            self.done.lock().unwrap().push("abort");
            Ok(())
        }
    }

    /// An upload with a part on its way, and what becomes of it.
    async fn sending(takes: Duration) -> (ObjectUpload, Arc<Mutex<Vec<&'static str>>>) {
        let repository = Repository::in_memory().await.unwrap();
        let mut upload = ObjectUpload::new(repository, Path::from("x"), Arc::default());
        let slow = Slow { takes, done: Arc::default() };
        let done = Arc::clone(&slow.done);
        upload.multipart = Multipart::Open(Box::new(slow));
        upload.push(Part { payload: "x".into(), permits: Arc::default(), ticket: None }).await.unwrap();
        (upload, done)
    }

    #[tokio::test]
    async fn a_part_on_its_way_may_end_as_long_as_there_is_time_to_discard_it() {
        let (mut upload, done) = sending(PARTS_END * 2).await;
        upload.abort(DISCARD + PARTS_END * 8).await.unwrap();
        assert_eq!(*done.lock().unwrap(), ["part", "abort"]);
    }

    #[tokio::test]
    async fn an_upload_whose_part_was_cut_off_is_discarded_once_more() {
        for soon in [true, false] {
            let (mut upload, done) = sending(Duration::from_secs(60)).await;
            let deadline = DISCARD + PARTS_END;
            let aborted = async { if soon { upload.abort_soon(deadline).await } else { upload.abort(deadline).await } };
            tokio::time::timeout(deadline * 2, aborted).await.expect("it ends").unwrap();
            assert_eq!(*done.lock().unwrap(), ["abort", "abort"], "soon: {soon}");
        }
    }
}
