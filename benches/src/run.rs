//! Whole backups and restores, set up as the command line sets them up.

use std::sync::Arc;

use backup_core::clock::SystemClock;
use backup_core::compress::Compression;
use backup_core::keys::Identity;
use backup_core::keys::age::AgeIdentity;
use backup_core::pipeline::{Backup, BufferPool};
use backup_core::repository::layout::{BackupPath, TargetName};
use backup_core::repository::{LOCAL_PART_BYTES, Location, Repository};
use backup_core::restore::{NullSink, OpenBackup};
use backup_core::source::Source;
use object_store::ObjectStore;
use tokio::runtime::Runtime;

use crate::data::CHUNK;

/// A repository, somebody who may read it, and threads.
#[derive(Debug)]
pub struct World {
    runtime: Runtime,
    repository: Repository,
    identity: Arc<AgeIdentity>,
}

impl World {
    /// A new repository at `location`.
    ///
    /// # Panics
    /// When it cannot be made; so does everything here, since there is nothing to measure then.
    pub fn new(location: &Location) -> Self {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = threads.expect("threads can be started");
        let made = runtime.block_on(Repository::init(location, &SystemClock));
        let (repository, _) = made.expect("a repository can be made");
        Self { runtime, repository, identity: Arc::new(AgeIdentity::generate()) }
    }

    /// A repository in `store`, in parts as for a local directory.
    pub fn of_store(store: impl ObjectStore) -> Self {
        Self::new(&Location::store(Arc::new(store), "bench", LOCAL_PART_BYTES))
    }

    /// Backs `source` up.
    pub fn backup(&self, source: impl Source + 'static, compression: Compression) -> BackupPath {
        let target: TargetName = "bench".parse().expect("a valid name");
        self.runtime.block_on(async {
            let handle = Backup::new(self.repository.clone(), target.clone())
                .recipient(Arc::new(self.identity.recipients().remove(0)))
                .stream("data".parse().expect("a valid name"), source)
                .compression(compression)
                .start()
                .expect("valid options");
            let path = target.backup(handle.id());
            handle.wait().await.expect("a backup");
            path
        })
    }

    /// Restores a backup to nowhere; returns its length.
    pub fn restore(&self, path: &BackupPath) -> u64 {
        let identities: [Arc<dyn Identity>; 1] = [Arc::clone(&self.identity) as _];
        self.runtime.block_on(async {
            let backup = OpenBackup::open(&self.repository, path, &identities).await.expect("our own backup");
            backup.restore("data").expect("its stream").into(NullSink).wait().await.expect("a restore")
        })
    }

    /// Reads `source` to its end, as a backup would, and does nothing else.
    pub fn drain(&self, mut source: impl Source) {
        let pool = BufferPool::new(CHUNK);
        self.runtime.block_on(async { while source.next(pool.lease()).await.expect("a source").is_some() {} });
    }
}
