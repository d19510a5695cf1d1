//! A vector in a repository, and every way to read it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use backup_core::format::{Condition, Kind, Manifest, StreamEntry};
use backup_core::keys::Identity;
use backup_core::keys::age::AgeIdentity;
use backup_core::pipeline::{Counters, Limits};
use backup_core::repository::Repository;
use backup_core::repository::layout::{BackupPath, TargetName};
use backup_core::repository::verify::{self, KeylessOptions, Verification};
use backup_core::restore::{MemorySink, OpenBackup};
use backup_core::{Error, Result};
use object_store::ObjectStoreExt;
use tokio_util::sync::CancellationToken;

use super::make;
use super::vector::{Vector, Vectors};

const PLAIN_MAX: usize = 8 << 20;

/// A repository in memory with the objects of one vector and a manifest that lists `stream`.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) repository: Repository,
    pub(crate) path: BackupPath,
    pub(crate) identity: AgeIdentity,
    pub(crate) stream: StreamEntry,
}

impl World {
    pub(crate) async fn new(
        all: &Vectors,
        vector: &Vector,
        stream: StreamEntry,
        files: &BTreeMap<String, Vec<u8>>,
    ) -> Self {
        let repository = Repository::in_memory().await.expect("memory");
        let target: TargetName = all.asked.target.parse().expect("a target");
        let path = target.backup(&all.asked.backup.parse().expect("an id"));
        for object in &vector.objects {
            let bytes = object.edit(&files[&object.file]);
            repository.store().put(&path.named(&object.path), bytes.into()).await.expect("memory");
        }
        let manifest = manifest(all, &stream).encode(&make::data_key()).expect("a manifest");
        repository.store().put(&path.manifest(), manifest.into()).await.expect("memory");
        let identity = vector.identity.as_ref().unwrap_or(&all.identity).parse().expect("an identity");
        Self { repository, path, identity, stream }
    }

    async fn open(&self) -> Result<OpenBackup> {
        OpenBackup::open(&self.repository, &self.path, &self.identities()).await
    }

    fn identities(&self) -> [Arc<dyn Identity>; 1] {
        [Arc::new(self.identity.clone())]
    }

    pub(crate) async fn whole(&self) -> Result<Vec<u8>> {
        let sink = MemorySink::new(PLAIN_MAX);
        self.open().await?.restore(&self.stream.name)?.into(sink.clone()).wait().await?;
        Ok(sink.take().expect("a finished sink is complete"))
    }

    pub(crate) async fn range(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let sink = MemorySink::new(PLAIN_MAX);
        self.open().await?.restore(&self.stream.name)?.range(range).into(sink.clone()).wait().await?;
        Ok(sink.take().expect("a finished sink is complete"))
    }

    /// What a deep verification finds.
    pub(crate) async fn deep(&self) -> Result<Verification> {
        let limits = Limits::for_parts_of(self.repository.part_bytes());
        verify::deep(&self.repository, &self.path, &self.identities(), limits, &CancellationToken::new()).await
    }

    /// The same without a key.
    pub(crate) async fn keyless(&self) -> Result<Verification> {
        verify::keyless(&self.repository, &self.path, &KeylessOptions::new(&self.repository), &Counters::default())
            .await
    }

    /// Ranges that together are the whole stream, none of them at the edges of chunks.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let step = (self.stream.bytes / 7).max(1500);
        (0..self.stream.bytes.div_ceil(step).max(1)).map(|i| i * step..(i + 1) * step).collect()
    }
}

pub(crate) fn manifest(all: &Vectors, stream: &StreamEntry) -> Manifest {
    Manifest {
        format: 1,
        id: all.asked.backup.clone(),
        target: all.asked.target.clone(),
        kind: Kind::Stream,
        condition: Condition::Good,
        warnings: 0,
        started: "2026-11-22T02:00:00Z".parse().expect("a time"),
        finished: "2026-11-22T02:00:01Z".parse().expect("a time"),
        data_key: make::data_key().id(),
        recipients: Vec::new(),
        streams: vec![stream.clone()],
        cluster: None,
        requires: Vec::new(),
        version: "vectors".into(),
        critical: Vec::new(),
    }
}

/// An error with all of its causes.
pub(crate) fn chain(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |e| e.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
