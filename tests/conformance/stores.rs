//! The stores, and a look behind each.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;

use backup_core::clock::SystemClock;
use backup_core::repository::{Location, Repository};
use backup_tests::azurite::{ACCOUNT, Azurite, CONTAINER, KEY};
use backup_tests::embedder::Embedder;
use backup_tests::gcs::{Gcs, TOKEN};
use backup_tests::host::files_below;
use backup_tests::moto::Moto;
use backup_tests::s3::{ACCESS_KEY, BUCKET, S3, SECRET_KEY};
use backup_tests::seaweedfs::SeaweedFs;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::prefix::PrefixStore;
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
    Directory(PathBuf, #[expect(dead_code, reason = "removed with this")] TempDir),
    S3(Box<S3>),
    /// What a listing shows is all that can be seen.
    Listing,
}

impl Store {
    async fn new(location: Location, behind: Behind) -> Self {
        let (repository, init) = Repository::init(&location, &SystemClock).await.expect("a repository can be made");
        assert!(init.created && init.warning.is_none(), "{init:?}");
        let mut embedder = Embedder::new(repository);
        if location.to_string().contains("://") {
            embedder.limits.part_bytes = S3_PART_BYTES;
        }
        if let Behind::S3(server) = &behind {
            server.take_requests();
        }
        Self { embedder, location, behind }
    }

    /// Everything that is stored but the repository's own document; the leavings of unfinished uploads too, where they can be seen.
    pub(crate) async fn stored(&self) -> Vec<String> {
        let mut names = match &self.behind {
            Behind::Directory(directory, _) => files_below(directory),
            Behind::S3(server) => [server.objects(), server.unfinished()].concat(),
            Behind::Listing => {
                let listing = self.embedder.repository.store().list(None);
                listing.map_ok(|meta| meta.location.to_string()).try_collect().await.expect("a listing")
            }
        };
        names.retain(|name| name != "repository.json");
        names.sort();
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

/// A server in which several repositories lie side by side.
pub(crate) struct Server {
    client: Arc<dyn ObjectStore>,
    name: &'static str,
    _process: Box<dyn Any + Send + Sync>,
}

impl Server {
    /// An empty repository below `prefix`.
    pub(crate) async fn repository(&self, prefix: &str) -> Store {
        let store = PrefixStore::new(Arc::clone(&self.client), prefix);
        let location = Location::store(Arc::new(store), format!("{}/{prefix}", self.name), S3_PART_BYTES);
        Store::new(location, Behind::Listing).await
    }
}

pub(crate) async fn directory() -> Store {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_owned();
    Store::new(Location::directory(&path).expect("a path"), Behind::Directory(path, directory)).await
}

pub(crate) async fn memory() -> Store {
    Store::new(Location::memory(), Behind::Listing).await
}

/// As an embedder brings it; the program's own way to stores is tested with the program.
pub(crate) async fn s3() -> Store {
    let server = S3::start();
    let location = Location::store(s3_client(server.endpoint()), format!("s3://{BUCKET}"), S3_PART_BYTES);
    Store::new(location, Behind::S3(Box::new(server))).await
}

pub(crate) async fn gcs() -> Store {
    use_ring();
    let server = Gcs::start();
    let client = GoogleCloudStorageBuilder::new()
        .with_bucket_name(BUCKET)
        .with_base_url(&server.endpoint())
        .with_bearer_token(TOKEN)
        .build()
        .expect("a client");
    let location = Location::store(Arc::new(client), format!("gs://{BUCKET}"), S3_PART_BYTES);
    Store::new(location, Behind::S3(Box::new(server.beneath))).await
}

pub(crate) fn seaweedfs() -> Server {
    let server = SeaweedFs::start();
    Server { client: s3_client(server.endpoint()), name: "s3://seaweedfs", _process: Box::new(server) }
}

pub(crate) fn moto() -> Server {
    let server = Moto::with_bucket();
    Server { client: s3_client(server.endpoint()), name: "s3://moto", _process: Box::new(server) }
}

pub(crate) fn azurite() -> Server {
    use_ring();
    let server = Azurite::start();
    let client = MicrosoftAzureBuilder::new()
        .with_container_name(CONTAINER)
        .with_account(ACCOUNT)
        .with_access_key(KEY)
        .with_endpoint(server.endpoint())
        .with_allow_http(true)
        .build()
        .expect("a client");
    Server { client: Arc::new(client), name: "az://azurite", _process: Box::new(server) }
}

fn s3_client(endpoint: String) -> Arc<dyn ObjectStore> {
    use_ring();
    let client = AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_unsigned_payload(true)
        .with_disable_bulk_delete(true)
        .build()
        .expect("a client");
    Arc::new(client)
}

/// No TLS is spoken here, but no client is built without it.
fn use_ring() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The same stores as the program reaches them.
pub(crate) mod program {
    use super::{Azurite, Gcs, Moto, S3, SeaweedFs};
    use backup_tests::host::Host;

    /// A test of the program on a host that has a store.
    type Test = fn(Host);

    pub(crate) fn directory(test: Test) {
        test(Host::new(crate::program::BACKUP));
    }

    pub(crate) fn s3(test: Test) {
        on(test, &S3::start(), S3::serve);
    }

    pub(crate) fn gcs(test: Test) {
        on(test, &Gcs::start(), Gcs::serve);
    }

    pub(crate) fn seaweedfs(test: Test) {
        on(test, &SeaweedFs::start(), SeaweedFs::serve);
    }

    pub(crate) fn moto(test: Test) {
        on(test, &Moto::with_bucket(), Moto::serve);
    }

    pub(crate) fn azurite(test: Test) {
        on(test, &Azurite::start(), Azurite::serve);
    }

    fn on<S>(test: Test, server: &S, serve: impl Fn(&S, &mut Host)) {
        let mut host = Host::new(crate::program::BACKUP);
        serve(server, &mut host);
        test(host);
    }
}
