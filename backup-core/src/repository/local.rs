//! A local directory, as durable as a remote store.
//!
//! [`LocalFileSystem`] with `fsync` does what is needed for whole objects: a temporary file, its data made durable, published by a
//! link that does not replace, folders made durable, new ones too. Its multipart uploads fall short, and are done here:
//! completing replaces what is there, a failed completion (a full disk, as some file systems tell only then) leaves the temporary file for ever,
//! beginning one blocks the async thread, and all data is flushed at the end instead of on its way.
//!
//! Nor is anything written where no repository is (any more): a directory that is made anew below an unmounted file system looks like success.
//!
//! Modes are the umask's, in both: the directory of the repository itself, which `init` makes for its owner alone, is the gate.

mod staging;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use rustix::fs::Advice;

use super::layout;
use crate::durable;

pub(super) use staging::sweep_staging;

/// After so many bytes the system is asked to begin writing them out: a flush of the whole volume at its end would stand still.
const WRITE_OUT_BYTES: u64 = 8 * 1024 * 1024;

/// A directory as an object store. Every object is durable when it appears.
#[derive(Debug, Clone)]
pub(super) struct LocalStore {
    inner: LocalFileSystem,
    /// `repository.json`.
    document: Arc<FilePath>,
}

impl LocalStore {
    /// A store in `directory`, which exists.
    pub(super) fn open(directory: &FilePath) -> Result<Self> {
        let inner = LocalFileSystem::new_with_prefix(directory)?;
        // With the last object of a backup goes its folder, or each aborted run would leave one.
        let inner = inner.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self { inner, document: directory.join(layout::REPOSITORY).into() })
    }

    /// Refuses to write beside a `repository.json` that is not there.
    async fn check_present(&self, location: &Path) -> Result<()> {
        if location.as_ref() == layout::REPOSITORY {
            return Ok(());
        }
        let document = Arc::clone(&self.document);
        blocking(move || match std::fs::metadata(&document) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let message = format!("{} is gone; is the directory still mounted?", document.display());
                Err(io::Error::other(format!("{message} ({e})")))
            }
            // Such as that it must not be looked at: what it is tells what to do.
            Err(e) => Err(e),
        })
        .await
    }

    async fn begin(&self, location: &Path) -> Result<Box<dyn MultipartUpload>> {
        self.check_present(location).await?;
        let target = self.inner.path_to_filesystem(location)?;
        let (file, staged) = blocking(move || {
            let (file, path) = stage(&target)?;
            Ok((file, Staged { path, target }))
        })
        .await?;
        Ok(Box::new(LocalUpload { file: Some(Arc::new(file)), staged: Some(staged), len: 0, written_out: 0 }))
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.begin(location).await
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check_present(location).await?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// An object that is being written under a temporary name.
#[derive(Debug)]
struct LocalUpload {
    file: Option<Arc<File>>,
    staged: Option<Staged>,
    len: u64,
    written_out: u64,
}

/// The temporary file, which goes away with this unless its path was cleared.
#[derive(Debug)]
struct Staged {
    path: PathBuf,
    target: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl LocalUpload {
    async fn publish(&mut self) -> Result<PutResult> {
        let (Some(file), Some(staged)) = (self.file.take(), self.staged.take()) else { return Err(ended()) };
        blocking(move || {
            file.sync_all()?;
            publish(staged)
        })
        .await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn discard(&mut self) -> Result<()> {
        self.file = None;
        let staged = self.staged.take();
        blocking(move || {
            drop(staged);
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl MultipartUpload for LocalUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let offset = self.len;
        self.len += data.content_length() as u64;
        let write_out = (self.len - self.written_out >= WRITE_OUT_BYTES).then_some(self.written_out..self.len);
        if write_out.is_some() {
            self.written_out = self.len;
        }
        let file = self.file.clone();
        Box::pin(async move {
            let file = file.ok_or_else(ended)?;
            blocking(move || write_part(&file, offset, &data, write_out)).await
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.publish().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.discard().await
    }
}

fn write_part(file: &File, mut offset: u64, data: &PutPayload, write_out: Option<Range<u64>>) -> io::Result<()> {
    for piece in data {
        file.write_all_at(piece, offset)?;
        offset += piece.len() as u64;
    }
    if let Some(range) = write_out {
        // Begins to write dirty pages, waits for nothing, and lets go of those that are written: a backup is not read again soon.
        // Only a hint, so a file system that does not know it is none the worse.
        let _ = rustix::fs::fadvise(file, range.start, NonZeroU64::new(range.end - range.start), Advice::DontNeed);
    }
    Ok(())
}

/// A new file beside `target`, under a name that listings of [`LocalFileSystem`] pass over.
fn stage(target: &FilePath) -> io::Result<(File, PathBuf)> {
    let mut number = 1u64;
    loop {
        let mut name = target.as_os_str().to_owned();
        name.push(format!("#{number}"));
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Ok(file) => return Ok((file, name.into())),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                durable::create_dir(target.parent().unwrap_or(target), 0o777)?;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Gives the file its name, unless another has it.
fn publish(mut staged: Staged) -> io::Result<()> {
    let published = durable::publish_new(&staged.path, &staged.target);
    // The temporary name may be another's by now.
    staged.path.clear();
    published
}

/// Makes the absence of an object durable. With the last object of a folder goes the folder.
pub(super) async fn settle(root: &FilePath, object: &Path) -> Result<()> {
    let path = root.join(object.as_ref());
    blocking(move || {
        let mut folders = path.ancestors().skip(1);
        match folders.find_map(|folder| File::open(folder).ok()) {
            Some(folder) => folder.sync_all(),
            None => Ok(()),
        }
    })
    .await
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(job).await?.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => StoreError::AlreadyExists { path: String::new(), source: source.into() },
        _ => StoreError::Generic { store: "local", source: source.into() },
    })
}

fn ended() -> StoreError {
    StoreError::Generic { store: "local", source: "the upload was completed or aborted".into() }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    use super::*;

    pub(super) fn store() -> (tempfile::TempDir, LocalStore) {
        let temp = tempfile::tempdir().unwrap();
        let store = LocalStore::open(temp.path()).unwrap();
        std::fs::write(temp.path().join(layout::REPOSITORY), "{}").unwrap();
        (temp, store)
    }

    pub(super) fn files(temp: &tempfile::TempDir) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![temp.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push(path.strip_prefix(temp.path()).unwrap().display().to_string()),
                }
            }
        }
        files.retain(|name| name != layout::REPOSITORY);
        files
    }

    #[tokio::test]
    async fn parts_may_be_written_in_any_order_and_appear_at_once() {
        let (temp, store) = store();
        let path = Path::from("app/backups/x/dump.00000.vol");
        let mut upload = store.put_multipart(&path).await.unwrap();
        let parts: Vec<UploadPart> = (0..20u8)
            .map(|i| {
                let half = Bytes::from(vec![i; 500_000]);
                upload.put_part([half.clone(), half].into_iter().collect())
            })
            .collect();
        assert!(store.list(Some(&Path::from("app"))).try_next().await.unwrap().is_none());
        for part in parts.into_iter().rev() {
            part.await.unwrap();
        }
        assert_eq!(files(&temp), ["app/backups/x/dump.00000.vol#1"]);
        upload.complete().await.unwrap();
        let bytes = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(bytes.len(), 20_000_000);
        assert!(bytes.chunks(1_000_000).zip(0..).all(|(chunk, i)| chunk.iter().all(|b| *b == i)));
        assert_eq!(files(&temp), ["app/backups/x/dump.00000.vol"]);
        store.delete(&path).await.unwrap();
        assert!(!temp.path().join("app").exists(), "folders go with their last object");
    }

    #[tokio::test]
    async fn nothing_is_replaced_and_nothing_is_left_behind() {
        let (temp, store) = store();
        let path = Path::from("x");
        store.put(&path, "first".into()).await.unwrap();
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part("second".into()).await.unwrap();
        let error = upload.complete().await.unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
        assert_eq!(files(&temp), ["x"]);

        let mut aborted = store.put_multipart(&Path::from("y")).await.unwrap();
        aborted.put_part("z".into()).await.unwrap();
        aborted.abort().await.unwrap();
        assert!(aborted.put_part("z".into()).await.is_err() && aborted.complete().await.is_err());
        drop(store.put_multipart(&Path::from("y")).await.unwrap());
        assert_eq!(files(&temp), ["x"]);
    }

    #[tokio::test]
    async fn nothing_is_written_where_no_repository_is_any_more() {
        let (temp, store) = store();
        std::fs::remove_file(temp.path().join(layout::REPOSITORY)).unwrap();
        let put = store.put(&Path::from("app/x"), "x".into()).await.unwrap_err();
        let begun = store.put_multipart(&Path::from("app/y")).await.unwrap_err();
        for error in [put, begun] {
            assert!(crate::repository::storage_error(error, "").in_one_line().contains("still mounted"));
        }
        assert!(!temp.path().join("app").exists());
        store.put(&Path::from(layout::REPOSITORY), "{}".into()).await.unwrap();
        store.put(&Path::from("app/x"), "x".into()).await.unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_looked_at_is_not_called_gone() {
        let (temp, store) = store();
        let document = temp.path().join(layout::REPOSITORY);
        std::fs::remove_file(&document).unwrap();
        std::os::unix::fs::symlink(&document, &document).unwrap();
        let error = store.put(&Path::from("app/x"), "x".into()).await.unwrap_err();
        let kind =
            |error: &(dyn std::error::Error + 'static)| error.downcast_ref::<io::Error>().map(io::Error::raw_os_error);
        let first = std::error::Error::source(&error).and_then(kind);
        assert_eq!(first, Some(Some(rustix::io::Errno::LOOP.raw_os_error())), "{error:?}");
        assert!(!crate::repository::storage_error(error, "").in_one_line().contains("still mounted"));
    }

    #[tokio::test]
    async fn a_full_disk_is_said_to_be_one() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = blocking(move || write_part(&file, 0, &"x".into(), None)).await.unwrap_err();
        let error = crate::repository::storage_error(error, "cannot write x");
        assert_eq!(error.to_string(), "cannot write x: no space is left");
        assert!(error.hint().unwrap().contains("remove old backups"));
    }
}
