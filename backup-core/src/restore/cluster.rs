//! A base backup restored: the data directory and the tablespaces of a PostgreSQL cluster, checked, and ready to start.
//!
//! ```text
//! backup_manifest ─▶ what there should be ──────┐
//! base, tablespace-…, pg_wal ─▶ unpack, check ──┴─▶ equal? ─▶ settings, links ─▶ disk ─▶ pg_control
//! ```
//!
//! All streams are restored at once, within the memory of one. The directories are marked as incomplete until the end, and the control
//! file, without which no server starts, gets its name as the last of all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::stream::Share;
use super::{OpenBackup, RestoreHandle};
use crate::error::{Error, Result, Stage};
use crate::format::ClusterEntry;
use crate::pipeline::{ComputePool, Counters, Limits, Warnings};
use crate::postgres::recovery::Recovery;

mod archives;
mod check;
mod complete;
mod decode;
mod destination;
mod extract;
pub(super) mod inspect;
mod layout;
mod manifest;
mod only;
mod owner;
mod place;
mod streams;
mod wal;

pub use archives::archives;
pub use destination::TablespaceMapping;
pub use only::{OnlyRestore, OnlyRestored};
pub use owner::Owner;

use destination::Destination;
use extract::Shared;
use layout::Layout;
use owner::Ownership;

impl OpenBackup {
    /// The restore of a whole cluster below `directory`, for backups of kind [`BaseBackup`](crate::format::Kind::BaseBackup).
    pub fn restore_cluster(&self, directory: impl Into<PathBuf>) -> ClusterRestore {
        ClusterRestore {
            backup: self.clone(),
            directory: directory.into(),
            mappings: Vec::new(),
            owner: None,
            recovery: Recovery::default(),
            limits: Limits::for_parts_of(self.0.repository.part_bytes()),
            pool: None,
            warnings: Warnings::default(),
            counters: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }
}

/// The restore of a cluster: say how, then [`start`](Self::start).
#[derive(Debug)]
#[must_use]
pub struct ClusterRestore {
    backup: OpenBackup,
    directory: PathBuf,
    mappings: Vec<TablespaceMapping>,
    owner: Option<Owner>,
    recovery: Recovery,
    limits: Limits,
    pool: Option<ComputePool>,
    warnings: Warnings,
    counters: Arc<Counters>,
    cancel: CancellationToken,
}

/// What was restored, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterRestored {
    /// Of which cluster, from where to where in its log.
    pub cluster: ClusterEntry,
    /// The data directory, absolute.
    pub directory: PathBuf,
    /// The tablespaces that have directories of their own: OID and absolute path.
    pub tablespaces: Vec<(u32, PathBuf)>,
    /// How many files were checked against PostgreSQL's manifest.
    pub files: u64,
    /// Bytes of all tar streams.
    pub bytes: u64,
    /// Whom the files were given to; `None` when they belong to this process's user.
    pub owner: Option<Owner>,
}

impl ClusterRestore {
    /// Puts tablespaces elsewhere than where they were.
    pub fn tablespace_mappings(mut self, mappings: impl IntoIterator<Item = TablespaceMapping>) -> Self {
        self.mappings.extend(mappings);
        self
    }

    /// Gives the files to this user, which only root can. Unless set, root gives them to whoever owns the existing directory, if that is
    /// not root, and else to the numeric owner that they had; others own what they restore.
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// How the cluster is to recover; unless set, from the log in the backup to the backup's end.
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// Memory and threads; of the sizes only those of the backup itself count.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Threads to compute on, shared with others; a pool of its own unless set.
    pub fn compute_pool(mut self, pool: ComputePool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// Receives what is told of single entries that are left out.
    pub fn warnings(mut self, warnings: Warnings) -> Self {
        self.warnings = warnings;
        self
    }

    /// Cancels the restore when it is cancelled.
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.cancel = token.child_token();
        self
    }

    /// Bytes of all tar streams that there are to restore.
    pub fn bytes(&self) -> u64 {
        layout::bytes_of(self.backup.manifest())
    }

    /// Starts restoring on the current tokio runtime. The cluster is whole, checked and on disk if and only if [`RestoreHandle::wait`] is `Ok`; else
    /// nothing of it is left, or a failed [clean-up](Error::cleanup) says what is. Cancelled once all is restored and goes to disk, it is
    /// completed instead.
    ///
    /// # Errors
    /// `Config` when the settings of the recovery contradict each other. Of waiting: `Config` for directories that are not empty, `Integrity` when
    /// the backup is damaged, or is not what PostgreSQL's manifest says, `Sink` when the files cannot be written.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Result<RestoreHandle<ClusterRestored>> {
        self.recovery.settings()?;
        let (counters, cancel) = (Arc::clone(&self.counters), self.cancel.clone());
        Ok(RestoreHandle { counters, cancel, task: tokio::spawn(self.run()) })
    }

    async fn run(self) -> Result<ClusterRestored> {
        let details = self.unless_cancelled(self.backup.details()).await?;
        let layout = Layout::of(self.backup.manifest(), &details)?;
        let directory = absolute(&self.directory)?;
        let ownership = Ownership::new(self.owner, &directory)?;
        let (mappings, tablespaces) = (self.mappings.clone(), layout.tablespaces.clone());
        let destination = blocking(move || Destination::take(&directory, &tablespaces, &mappings)).await?;
        let destination = Arc::new(destination);
        let filled = self.fill(&layout, ownership, &destination).await;
        or_give_up(filled, move || destination.give_up()).await
    }

    /// Everything between an empty directory and a cluster. On failure nobody writes there any more.
    async fn fill(
        &self,
        layout: &Layout,
        ownership: Ownership,
        destination: &Arc<Destination>,
    ) -> Result<ClusterRestored> {
        let share = Arc::new(Share::new(self.limits, self.pool.clone()));
        let (checker, summary) = manifest::read(self, &share, destination).await?;
        manifest::check_ranges(&summary, &layout.cluster)?;
        let shared = Arc::new(Shared::new(checker, ownership, self.warnings.clone(), destination.linked()));
        streams::restore(self, &share, layout, destination, &shared).await?;
        if !shared.checker.is_complete() {
            return Err(manifest::explain_incomplete(self, destination).await);
        }
        if layout.cluster.wal_included {
            shared.segments.check(&summary.wal_ranges, layout.cluster.wal_segment_bytes)?;
        }
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled(Stage::Sink));
        }
        let (place, shared_too, recovery) = (Arc::clone(destination), Arc::clone(&shared), self.recovery.clone());
        blocking(move || complete::complete(&place, &shared_too, &recovery)).await?;
        Ok(ClusterRestored {
            cluster: layout.cluster.clone(),
            directory: destination.data().to_owned(),
            tablespaces: destination.tablespaces(),
            files: summary.files,
            bytes: self.bytes(),
            owner: shared.ownership.own(),
        })
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled(Stage::Fetch)),
            done = work => done,
        }
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal(Stage::Sink, "a blocking task panicked").with_source(e)))
}

/// Where to restore, whatever the present directory will be.
fn absolute(directory: &Path) -> Result<PathBuf> {
    let no_path = |e| Error::config(format!("{} is no path", directory.display())).with_source(e);
    std::path::absolute(directory).map_err(no_path)
}

/// What came of filling a directory: on failure it is given up, and nobody writes there any more.
async fn or_give_up<T>(filled: Result<T>, give_up: impl FnOnce() -> Result<()> + Send + 'static) -> Result<T> {
    let Err(error) = filled else { return filled };
    Err(match blocking(give_up).await {
        Ok(()) => error,
        Err(cleanup) => error.with_cleanup(cleanup),
    })
}

/// A path of the backup, for people.
fn shown(path: &[u8]) -> String {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path)).display().to_string()
}

#[cfg(test)]
mod tests;
