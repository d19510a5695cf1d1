//! What all stores over a network have in common, whatever each of them knows.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, future};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use crate::error::Error;

/// A store whose paths are those of a repository.
///
/// - A listing from an offset on begins behind it, also where the service does not know what it was asked for and lists all: whether a later
///   segment of WAL exists is asked so.
/// - Volumes of backups are kept in a class of their own, if one was chosen.
#[derive(Debug)]
pub(super) struct RemoteStore<S> {
    store: S,
    storage_class: Option<String>,
}

/// What is kept in these cannot be read when it is needed: it has to be asked for, hours before.
const ARCHIVES: [&str; 4] = ["GLACIER", "DEEP_ARCHIVE", "ARCHIVE_ACCESS", "Archive"];

/// Refuses a storage class that no backup can be restored from at once, and what is none.
pub(super) fn check_storage_class(class: &str) -> crate::Result<()> {
    // Google's ARCHIVE is as fast as its others, and only dear to read.
    if ARCHIVES.contains(&class) {
        return Err(Error::config(format!(
            "objects of the storage class {class} cannot be read before they were thawed"
        ))
        .with_hint("a backup there could not be restored when it is needed, nor verified"));
    }
    if class.is_empty() || !class.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(Error::config(format!("'{}' cannot name a storage class", class.escape_debug())));
    }
    Ok(())
}

impl<S> RemoteStore<S> {
    pub(super) fn new(store: S, storage_class: Option<String>) -> Self {
        Self { store, storage_class }
    }

    fn classify(&self, location: &Path, attributes: &mut Attributes) {
        if let Some(class) = &self.storage_class
            && is_volume_of_a_backup(location)
        {
            attributes.insert(Attribute::StorageClass, class.clone().into());
        }
    }
}

/// `<target>/backups/<id>/<stream>.<nnnnn>.vol`
fn is_volume_of_a_backup(location: &Path) -> bool {
    location.extension() == Some("vol") && location.parts().nth(1).is_some_and(|part| part.as_ref() == "backups")
}

impl<S: ObjectStore> fmt::Display for RemoteStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.store, f)
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for RemoteStore<S> {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        self.classify(location, &mut options.attributes);
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        mut options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.classify(location, &mut options.attributes);
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let behind = offset.clone();
        let listed = self.store.list_with_offset(prefix, offset);
        listed.try_filter(move |meta| future::ready(meta.location > behind)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_volumes_of_backups_are_kept_in_a_class_of_their_own() {
        for (path, is) in [
            ("app/backups/20261122T020000Z-abcdefghijklmnop/dump.00000.vol", true),
            ("app/backups/20261122T020000Z-abcdefghijklmnop/manifest.json", false),
            ("app/wal/1/00000001/000000010000000000000001.vol", false),
            ("backups/wal/1/00000001/000000010000000000000001.vol", false),
            ("repository.json", false),
        ] {
            let store = RemoteStore::new(object_store::memory::InMemory::new(), Some("STANDARD_IA".to_owned()));
            let mut attributes = Attributes::new();
            store.classify(&Path::from(path), &mut attributes);
            assert_eq!(attributes.get(&Attribute::StorageClass).is_some(), is, "{path}");
        }
    }

    #[test]
    fn classes_that_have_to_be_thawed_are_refused() {
        for class in ["STANDARD_IA", "GLACIER_IR", "INTELLIGENT_TIERING", "Cool", "NEARLINE", "ARCHIVE"] {
            check_storage_class(class).unwrap();
        }
        for class in ["GLACIER", "DEEP_ARCHIVE", "Archive", "", "a b", "x\ny"] {
            assert!(check_storage_class(class).is_err(), "{class}");
        }
    }
}
