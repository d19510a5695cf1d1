//! An object store that is infinitely fast and keeps nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Accepts volumes, counts their bytes and drops them; keeps the small objects around them, which a backup reads back.
#[derive(Debug, Default)]
pub struct NullStore {
    kept: InMemory,
    dropped: Dropped,
}

/// What the volumes would have weighed: the backup asks before its commit.
#[derive(Debug, Clone, Default)]
struct Dropped(Arc<Mutex<BTreeMap<Path, u64>>>);

impl Dropped {
    fn insert(&self, path: Path, len: u64) -> PutResult {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(path, len);
        PutResult { e_tag: None, version: None, extensions: Default::default() }
    }

    fn below(&self, prefix: Option<&Path>) -> Vec<Result<ObjectMeta>> {
        let dropped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let meta = |(location, size): (&Path, &u64)| ObjectMeta {
            location: location.clone(),
            last_modified: Default::default(),
            size: *size,
            e_tag: None,
            version: None,
        };
        let below = |path: &Path| prefix.is_none_or(|prefix| path.prefix_matches(prefix));
        dropped.iter().filter(|(path, _)| below(path)).map(|entry| Ok(meta(entry))).collect()
    }
}

#[async_trait]
impl ObjectStore for NullStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if path.extension() == Some("vol") {
            return Ok(self.dropped.insert(path.clone(), payload.content_length() as u64));
        }
        self.kept.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(&self, path: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(NullUpload { path: path.clone(), len: 0, dropped: self.dropped.clone() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.kept.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.kept.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.kept.list(prefix).chain(stream::iter(self.dropped.below(prefix))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.kept.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.kept.copy_opts(from, to, options).await
    }
}

impl fmt::Display for NullStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null")
    }
}

#[derive(Debug)]
struct NullUpload {
    path: Path,
    len: u64,
    dropped: Dropped,
}

#[async_trait]
impl MultipartUpload for NullUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.len += part.content_length() as u64;
        Box::pin(async move {
            drop(part);
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        Ok(self.dropped.insert(self.path.clone(), self.len))
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}
