//! The library as other programs use it, with sizes so small that little data goes through all that much data would.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use backup_core::Result;
use backup_core::format::Manifest;
use backup_core::keys::age::AgeIdentity;
use backup_core::keys::{Identity, Recipient};
use backup_core::pipeline::{Backup, Counters, Limits};
use backup_core::repository::Repository;
use backup_core::repository::layout::{BackupPath, TargetName};
use backup_core::repository::verify::{self, KeylessOptions, Verification};
use backup_core::restore::{MemorySink, OpenBackup};
use backup_core::source::{BytesSource, Source};
use tokio_util::sync::CancellationToken;

/// A repository and a key to it.
#[derive(Debug, Clone)]
pub struct Embedder {
    /// The repository.
    pub repository: Repository,
    /// The key.
    pub identity: Arc<AgeIdentity>,
    /// Sizes of chunks, parts and volumes.
    pub limits: Limits,
}

impl Embedder {
    /// A new key for `repository`; chunks of 4 KiB, of which three make a volume, and parts of 5,000 bytes.
    pub fn new(repository: Repository) -> Self {
        let limits = Limits {
            memory_bytes: Some(32 << 20),
            workers: NonZero::new(2).expect("two is not zero"),
            part_bytes: 5000,
            chunk_size: 4096,
            volume_chunks: 3,
        };
        Self { repository, identity: Arc::new(AgeIdentity::generate()), limits }
    }

    /// A backup of the target `app`, to which streams are to be added.
    pub fn backup(&self) -> Backup {
        let recipients = self.identity.recipients().into_iter().map(|r| Arc::new(r) as Arc<dyn Recipient>);
        Backup::new(self.repository.clone(), target()).recipients(recipients).limits(self.limits)
    }

    /// Makes a backup of one stream, `data`.
    pub async fn save(&self, source: impl Source + 'static) -> Result<(BackupPath, Manifest)> {
        let backup = self.backup().stream("data".parse()?, source).start()?;
        let path = target().backup(backup.id());
        Ok((path, backup.wait().await?))
    }

    /// Makes a backup of bytes.
    pub async fn save_bytes(&self, bytes: impl Into<Vec<u8>>) -> Result<(BackupPath, Manifest)> {
        self.save(BytesSource::new(bytes.into())).await
    }

    /// The identities to open backups with.
    pub fn identities(&self) -> [Arc<dyn Identity>; 1] {
        [Arc::clone(&self.identity) as _]
    }

    /// Opens a backup.
    pub async fn open(&self, path: &BackupPath) -> Result<OpenBackup> {
        OpenBackup::open(&self.repository, path, &self.identities()).await
    }

    /// Restores the stream `data`, or a part of it.
    pub async fn restore(&self, path: &BackupPath, range: Range<u64>) -> Result<Vec<u8>> {
        let sink = MemorySink::new(1 << 30);
        let restore = self.open(path).await?.restore("data")?.range(range).limits(self.limits);
        restore.into(sink.clone()).wait().await?;
        Ok(sink.take().expect("a finished sink is complete"))
    }

    /// Verifies a backup with the key.
    pub async fn verify_deep(&self, path: &BackupPath) -> Result<Verification> {
        verify::deep(&self.repository, path, &self.identities(), self.limits, &CancellationToken::new()).await
    }

    /// Verifies a backup without the key.
    pub async fn verify_keyless(&self, path: &BackupPath) -> Result<Verification> {
        verify::keyless(&self.repository, path, &KeylessOptions::new(&self.repository), &Counters::default()).await
    }
}

/// What all of its backups are of.
pub fn target() -> TargetName {
    "app".parse().expect("a name")
}
