//! A store in memory that fails or hangs as it is told, while it is used.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
    UploadPart,
};

use crate::clock::SystemClock;
use crate::repository::{Location, Repository};

/// What it does to requests that it is told to do something to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// As if the network were down.
    Away,
    /// As if the disk were full.
    Full,
    /// It never answers.
    Hangs,
    /// Of what is read, only the first byte comes.
    BreaksOff,
    /// At that moment, all that lies in its folder is removed.
    Removes,
    /// What is read is a file, from which nothing can be read once it is open.
    Unreadable,
}

/// Which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Writes,
    Reads,
    All,
}

#[derive(Debug)]
struct Rule {
    fault: Fault,
    of: Of,
    path: &'static str,
    /// So many requests go well before.
    well: usize,
}

/// Memory that goes wrong as told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faulty {
    memory: Arc<InMemory>,
    rules: Arc<Mutex<Vec<Rule>>>,
    reads: Arc<Mutex<Vec<String>>>,
}

impl Faulty {
    /// An empty repository in it.
    pub(crate) async fn repository() -> (Self, Repository) {
        Self::repository_at("faulty:").await
    }

    /// The same, called so.
    pub(crate) async fn repository_at(address: &str) -> (Self, Repository) {
        let store = Self::default();
        let location = Location::store(Arc::new(store.clone()), address, 1 << 20);
        let (repository, _) = Repository::init(&location, &SystemClock).await.unwrap();
        (store, repository)
    }

    /// From now on, requests about objects whose paths contain `path` go wrong.
    pub(crate) fn inject(&self, fault: Fault, of: Of, path: &'static str) {
        self.inject_after(0, fault, of, path);
    }

    /// The same, behind so many of these requests.
    pub(crate) fn inject_after(&self, well: usize, fault: Fault, of: Of, path: &'static str) {
        self.rules.lock().unwrap().push(Rule { fault, of, path, well });
    }

    /// The paths of the objects of which something was read since this was asked last.
    pub(crate) fn take_reads(&self) -> Vec<String> {
        std::mem::take(&mut *self.reads.lock().unwrap())
    }

    /// All goes well again.
    pub(crate) fn mend(&self) {
        self.rules.lock().unwrap().clear();
    }

    fn fault(&self, of: Of, path: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let met = |rule: &&mut Rule| (rule.of == Of::All || rule.of == of) && path.contains(rule.path);
        let rule = rules.iter_mut().find(met)?;
        let is_due = rule.well == 0;
        rule.well = rule.well.saturating_sub(1);
        is_due.then_some(rule.fault)
    }

    /// Goes wrong, if it is to. Returns what is still to go wrong.
    async fn meet(&self, of: Of, path: &str) -> StoreResult<Option<Fault>> {
        match self.fault(of, path) {
            fault @ (None | Some(Fault::BreaksOff | Fault::Unreadable)) => Ok(fault),
            Some(Fault::Removes) => {
                let folder = Path::from(path.rsplit_once('/').map_or("", |(folder, _)| folder));
                let objects: Vec<_> = self.memory.list(Some(&folder)).try_collect().await?;
                for object in objects {
                    self.memory.delete(&object.location).await?;
                }
                Ok(None)
            }
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Away) => {
                let source = HttpError::new(HttpErrorKind::Connect, std::io::Error::other("scripted"));
                Err(StoreError::Generic { store: "faulty", source: Box::new(source) })
            }
            Some(Fault::Full) => {
                let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(StoreError::Generic { store: "faulty", source: Box::new(source) })
            }
        }
    }
}

#[derive(Debug)]
struct Upload {
    store: Faulty,
    path: Path,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, path, part) = (self.store.clone(), self.path.clone(), self.inner.put_part(data));
        Box::pin(async move {
            store.meet(Of::Writes, path.as_ref()).await?;
            part.await
        })
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        self.store.meet(Of::Writes, self.path.as_ref()).await?;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.meet(Of::Writes, path.as_ref()).await?;
        self.memory.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.meet(Of::Writes, path.as_ref()).await?;
        let inner = self.memory.put_multipart_opts(path, options).await?;
        Ok(Box::new(Upload { store: self.clone(), path: path.clone(), inner }) as _)
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let head = options.head;
        if !head {
            self.reads.lock().unwrap().push(path.to_string());
        }
        let fault = self.meet(Of::Reads, path.as_ref()).await?;
        let result = self.memory.get_opts(path, options).await?;
        if head || fault.is_none() {
            return Ok(result);
        }
        let GetResult { payload, meta, range, attributes, extensions } = result;
        if fault == Some(Fault::Unreadable) {
            let path = std::path::PathBuf::from("/dev/null");
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let payload = GetResultPayload::File(file, path);
            return Ok(GetResult { payload, meta, range, attributes, extensions });
        }
        let payload = match payload {
            GetResultPayload::Stream(body) => {
                let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                let broken = StoreError::Generic { store: "faulty", source: Box::new(source) };
                let first = body.take(1).map(|piece| piece.map(|bytes| bytes.slice(..1.min(bytes.len()))));
                GetResultPayload::Stream(first.chain(futures::stream::iter([Err(broken)])).boxed())
            }
            file => file,
        };
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.memory.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let (this, listing) = (self.clone(), self.memory.list(prefix));
        let path = prefix.map_or_else(String::new, ToString::to_string);
        let met = futures::stream::once(async move { this.meet(Of::Reads, &path).await });
        met.filter_map(|met| async { met.err().map(Err) }).chain(listing).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.meet(Of::Reads, prefix.map_or("", AsRef::as_ref)).await?;
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}
