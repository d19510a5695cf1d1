//! A store for tests of what deletes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};

/// Memory in which objects are as old as they are said to be, and that stops, or refuses, as told.
#[derive(Debug, Default)]
pub(super) struct TestStore {
    pub(super) memory: InMemory,
    pub(super) ages: Mutex<BTreeMap<Path, Timestamp>>,
    /// Deletes until the machine dies; none when it is zero.
    pub(super) deletes_left: AtomicUsize,
    /// The end of names that may not be deleted.
    pub(super) locked: Mutex<Option<&'static str>>,
    pub(super) deleted: Mutex<Vec<Path>>,
    pub(super) others: Mutex<Option<Others>>,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    List,
    Put,
    Delete,
}

/// What others do meanwhile: right before the `nth` request of its kind for this path, once.
pub(super) struct Others {
    pub(super) request: Request,
    pub(super) path: Path,
    pub(super) nth: usize,
    pub(super) act: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}

impl fmt::Debug for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Others").field("request", &self.request).field("path", &self.path).finish_non_exhaustive()
    }
}

impl TestStore {
    fn aged(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(age) = self.ages.lock().unwrap().get(&meta.location) {
            let moved = age.as_second() - meta.last_modified.timestamp();
            let moved = std::time::Duration::from_secs(moved.unsigned_abs());
            // Always into the past.
            meta.last_modified -= moved;
        }
        meta
    }

    /// Lets others have their turn, if this is what they wait for.
    async fn let_others(&self, request: Request, path: Option<&Path>) {
        let act = {
            let mut waiting = self.others.lock().unwrap();
            match &mut *waiting {
                Some(others) if others.request == request && Some(&others.path) == path => {
                    others.nth -= 1;
                    if others.nth == 0 { waiting.take().map(|others| others.act) } else { None }
                }
                _ => None,
            }
        };
        if let Some(act) = act {
            act().await;
        }
    }

    fn delete(&self, path: &Path) -> StoreResult<()> {
        if self.locked.lock().unwrap().is_some_and(|end| path.as_ref().ends_with(end)) {
            let source = "Object Lock".into();
            return Err(object_store::Error::PermissionDenied { path: path.to_string(), source });
        }
        let left = self.deletes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_err() {
            let dead = object_store::client::HttpError::new(
                object_store::client::HttpErrorKind::Connect,
                std::io::Error::other("the machine is dead"),
            );
            return Err(object_store::Error::Generic { store: "test", source: Box::new(dead) });
        }
        self.deleted.lock().unwrap().push(path.clone());
        Ok(())
    }
}

impl fmt::Display for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("test")
    }
}

/// As the trait has them; the store is behind an `Arc` of its own, since streams outlive borrows.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(pub(super) Arc<TestStore>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Shared {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.0.let_others(Request::Put, Some(location)).await;
        // It is new, whatever was said of another.
        self.0.ages.lock().unwrap().remove(location);
        self.0.memory.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.0.memory.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let mut result = self.0.memory.get_opts(location, options).await?;
        result.meta = self.0.aged(result.meta);
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.0.memory.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        let store = Arc::clone(&self.0);
        locations
            .and_then(move |path| {
                let store = Arc::clone(&store);
                async move {
                    store.let_others(Request::Delete, Some(&path)).await;
                    store.delete(&path)?;
                    store.memory.delete(&path).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let (store, prefix) = (Arc::clone(&self.0), prefix.cloned());
        let listing = async move {
            store.let_others(Request::List, prefix.as_ref()).await;
            let listed = store.memory.list(prefix.as_ref());
            listed.map_ok(move |meta| store.aged(meta))
        };
        futures::stream::once(listing).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.0.let_others(Request::List, prefix).await;
        self.0.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.0.memory.copy_opts(from, to, options).await
    }
}
