//! The stores, and a look behind each.

use std::sync::Arc;

use backup_core::clock::SystemClock;
use backup_core::repository::{Location, Repository};
use backup_tests::embedder::Embedder;
use backup_tests::host::files_below;
use backup_tests::s3::{ACCESS_KEY, BUCKET, S3, SECRET_KEY};
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use tempfile::TempDir;

/// The least that S3 allows for a part that is not the last.
const S3_PART_BYTES: usize = 5 << 20;

/// A store with an empty repository.
pub(crate) struct Store {
    /// The library's side of it.
    pub(crate) embedder: Embedder,
    pub(crate) location: Location,
    behind: Behind,
}

enum Behind {
    Directory(TempDir),
    Memory,
    S3(Box<S3>),
}

impl Store {
    async fn new(location: Location, behind: Behind) -> Self {
        let (repository, init) = Repository::init(&location, &SystemClock).await.expect("a repository can be made");
        assert!(init.created && init.warning.is_none(), "{init:?}");
        let mut embedder = Embedder::new(repository);
        if let Behind::S3(server) = &behind {
            embedder.limits.part_bytes = S3_PART_BYTES;
            server.take_requests();
        }
        Self { embedder, location, behind }
    }

    /// Everything that is stored but the repository's own document, the leavings of unfinished uploads included.
    pub(crate) async fn stored(&self) -> Vec<String> {
        let mut names = match &self.behind {
            Behind::Directory(directory) => files_below(directory.path()),
            Behind::Memory => {
                let listing = self.embedder.repository.store().list(None);
                listing.map_ok(|meta| meta.location.to_string()).try_collect().await.expect("a listing")
            }
            Behind::S3(server) => [server.objects(), server.unfinished()].concat(),
        };
        names.retain(|name| name != "repository.json");
        names
    }

    /// The sizes of the parts that were sent since the last call, in order, if the store can tell.
    pub(crate) fn parts(&self) -> Option<Vec<u64>> {
        let Behind::S3(server) = &self.behind else { return None };
        let requests = server.take_requests();
        let number = |target: &str| {
            let (_, rest) = target.split_once("partNumber=").expect("it is a part");
            rest.split('&').next().and_then(|n| n.parse::<u32>().ok())
        };
        let mut parts: Vec<_> = requests.iter().filter(|r| r.is_part()).map(|r| (number(&r.target), r.len)).collect();
        parts.sort_unstable();
        Some(parts.into_iter().map(|(_, len)| len).collect())
    }
}

pub(crate) async fn directory() -> Store {
    let directory = tempfile::tempdir().expect("a temporary directory");
    Store::new(Location::directory(directory.path()).expect("a path"), Behind::Directory(directory)).await
}

pub(crate) async fn memory() -> Store {
    Store::new(Location::memory(), Behind::Memory).await
}

/// As an embedder brings it; the program's own way to S3 is tested with the program.
pub(crate) async fn s3() -> Store {
    // No TLS is spoken here, but the client is not built without it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = S3::start();
    let client = AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_endpoint(server.endpoint())
        .with_allow_http(true)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_unsigned_payload(true)
        .with_disable_bulk_delete(true)
        .build()
        .expect("a client");
    let location = Location::store(Arc::new(client), format!("s3://{BUCKET}"), S3_PART_BYTES);
    Store::new(location, Behind::S3(Box::new(server))).await
}
