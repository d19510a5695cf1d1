//! PostgreSQL's write-ahead log in a repository: archiving it, bringing it back, and finding out what is missing.
//!
//! ```text
//! archive_command ─▶ Archiver ─▶ <target>/wal/<system id>/<timeline>/<file>.vol ─▶ Fetcher ─▶ restore_command
//! a server's stream ─▶ Receiver ─▶ …, and <segment>.tail/ until it is full      └▶ Inventory: ranges, gaps, ages
//! ```
//!
//! One file is one object: a volume of its own that answers to the file's name, and whose header holds length and BLAKE3 of the plaintext.
//! So a host that cannot read it can tell the same file from another. Objects are created once and never replaced.
//!
//! What these programs promise to PostgreSQL is more than most: [`Archiver::push`] succeeds only when the file is durable, and
//! [`Fetched::Absent`] is said only when the archive certainly ends there, since PostgreSQL then ends its recovery.

mod absent;
mod ahead;
mod archiver;
mod ask;
mod branch;
mod digest;
mod epoch;
mod fetcher;
mod inventory;
pub(crate) mod kept;
mod local_file;
mod prefetch;
mod prefetched;
mod receiver;
mod reference;
mod seal;
mod server;
mod stored;
mod tail;
#[cfg(test)]
mod tests;
mod text;
mod unseal;

use std::collections::BTreeSet;
use std::num::NonZero;

use futures::future::join_all;
use object_store::path::Path;

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::{BufferPool, ComputePool};
use crate::postgres::wal::SystemIdentifier;
use crate::repository::layout::TargetName;
use crate::repository::{Member, Repositories, Repository};

pub use archiver::{Archiver, ArchiverOptions, Missed, MissedCallback, Pushed};
pub use epoch::Epochs;
pub use fetcher::{Fetched, Fetcher, FetcherOptions, Placed};
pub use inventory::{ClusterInventory, Inventory, ReadyFiles, SegmentRange, TimelineInventory};
pub use receiver::{EventCallback, Received, Receiver, ReceiverEvent, ReceiverOptions, Slot};
pub(crate) use reference::REFERENCE_LEN_MAX;
pub use reference::Reference;
pub use server::{ArchiverCount, ServerWal};
pub(crate) use stored::archived_at;
pub(crate) use text::Histories;

/// Bytes of plaintext in a chunk of a WAL file: half of what backups have, since a process that archives one segment should stay small.
const CHUNK_SIZE: u32 = 512 * 1024;
/// The longest file that is taken: the largest segment.
const FILE_LEN_MAX: u64 = 1 << 30;
/// The longest history file or backup label that is taken.
const TEXT_LEN_MAX: u64 = 1 << 20;
/// The folder beside WAL files in which we keep what is ours. PostgreSQL passes over names in `pg_wal` that it does not know.
const OWN_FOLDER: &str = ".backup";

/// Threads and buffers that the chunks of WAL files are worked on with.
#[derive(Debug, Clone)]
struct Tools {
    pool: ComputePool,
    buffers: BufferPool,
    /// Chunks of one file that are being worked on at once.
    window: usize,
}

impl Tools {
    fn new(workers: NonZero<usize>, chunk_size: u32) -> Result<Self> {
        let pool = ComputePool::new(workers)?;
        Ok(Self { pool, buffers: BufferPool::new(chunk_size as usize), window: workers.get() + 1 })
    }

    /// The same threads, for chunks of another size.
    fn with_chunks_of(&self, chunk_size: u32) -> Self {
        if self.buffers.chunk_size() == chunk_size as usize {
            return self.clone();
        }
        Self { buffers: BufferPool::new(chunk_size as usize), ..self.clone() }
    }
}

/// The clusters that have an archive under `target`. Cancel safe.
pub async fn clusters(repository: &Repository, target: &TargetName) -> Result<Vec<SystemIdentifier>> {
    let prefix = target.wal();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Catalog);
    let listing = repository.store().list_with_delimiter(Some(&prefix)).await.map_err(failed)?;
    let identifier = |folder: &Path| folder.filename()?.parse().ok();
    Ok(listing.common_prefixes.iter().filter_map(identifier).collect())
}

/// Which cluster a command means that has no data directory to ask: the only one that has an archive under `target`, in any of the repositories. One
/// that cannot be asked is passed over if the others know of one.
async fn only_cluster(repositories: &Repositories, target: &TargetName) -> Result<SystemIdentifier> {
    let asked = repositories.to_read().map(async |member| (member, clusters_of(member, target).await));
    let (mut found, mut failures) = (BTreeSet::new(), Vec::new());
    for (member, answer) in join_all(asked).await {
        match answer {
            Ok(clusters) => found.extend(clusters),
            Err(error) => failures.push((member, error)),
        }
    }
    match (found.len(), found.pop_first()) {
        (1, Some(cluster)) => {
            failures.iter().for_each(|(member, error)| ask::warn(member, error));
            Ok(cluster)
        }
        (0, _) => Err(failures
            .into_iter()
            .next()
            .map_or_else(|| unknown_cluster(format!("no repository holds WAL of '{target}'")), |(_, error)| error)),
        (several, _) => Err(unknown_cluster(format!(
            "there is WAL of {several} clusters of '{target}' in the configured repositories"
        ))),
    }
}

async fn clusters_of(member: &Member, target: &TargetName) -> Result<Vec<SystemIdentifier>> {
    clusters(member.open().await?, target).await
}

fn unknown_cluster(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, Stage::Setup, message).with_hint(
        "run the command in the data directory, as PostgreSQL does, or name the cluster with --system-identifier",
    )
}
