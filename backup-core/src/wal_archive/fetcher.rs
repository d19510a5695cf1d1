//! Bringing WAL back: what `restore_command` does.

use std::fmt;
use std::num::NonZero;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use super::absent::{Absence, GAP_HINT, absence};
use super::ask::{Asked, ask};
use super::branch::left_behind;
use super::local_file::{check_segment, cluster_beside};
use super::prefetched::{Prefetched, Temporary};
use super::stored::StoredFile;
use super::unseal::DataKeys;
use super::{CHUNK_SIZE, Tools, only_cluster, tail};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::keys::Identity;
use crate::postgres::wal::{SegmentName, SegmentSize, SystemIdentifier, WalFile};
use crate::repository::layout::{TargetName, WalPath};
use crate::repository::{Member, Repositories, Repository};

/// Segments are archived several at once, so the next one can be there a moment before this one.
const HOLE_PATIENCE: Duration = Duration::from_secs(3);
/// The pause before a file is asked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// Fetches WAL files from a repository, or from whichever of several has them. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) repositories: Repositories,
    pub(super) target: TargetName,
    pub(super) keys: DataKeys,
    pub(super) tools: Tools,
    pub(super) options: FetcherOptions,
}

/// How a [`Fetcher`] works; all have defaults.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FetcherOptions {
    /// The cluster, where no data directory tells.
    pub system_identifier: Option<SystemIdentifier>,
    /// How long doubt about a history file is borne by asking again; 60 s unless set.
    pub patience: Duration,
    /// How many segments may wait before they are asked for; 0 unless set.
    pub prefetch: usize,
    /// Whether an absent file is asked for again anyway, as a standby does: then it is not looked for holes.
    pub standby: bool,
    /// Threads that decrypt and decompress.
    pub workers: NonZero<usize>,
    /// The clock that ages are judged by.
    pub clock: Arc<dyn Clock>,
}

impl Default for FetcherOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            system_identifier: None,
            patience: Duration::from_secs(60),
            prefetch: 0,
            standby: false,
            workers: NonZero::new(cores.min(4)).unwrap_or(NonZero::<usize>::MIN),
            clock: Arc::new(SystemClock),
        }
    }
}

/// What became of a file that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// It is in its place: complete, proved and durable.
    Placed(Placed),
    /// It is certainly not in the archive, and nothing of a later segment of its timeline is. PostgreSQL may take this for the end of the log.
    Absent,
}

/// A file in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placed {
    /// Whether it had been fetched ahead.
    pub ahead: bool,
    /// The cluster's segment size, if it is worth while to [`prefetch`](Fetcher::prefetch) now.
    pub prefetch: Option<SegmentSize>,
}

enum Attempt {
    Placed { ahead: bool },
    Absent,
    Hole(Error),
}

impl Fetcher {
    /// Fetches files of `target` from a repository, or from several, which are opened when they are asked; opens them with any of `identities`.
    ///
    /// # Errors
    /// `Internal` when no threads can be started.
    pub fn new(
        repositories: impl Into<Repositories>,
        target: TargetName,
        identities: Vec<Arc<dyn Identity>>,
        options: FetcherOptions,
    ) -> Result<Self> {
        let tools = Tools::new(options.workers, CHUNK_SIZE)?;
        let (repositories, keys) = (repositories.into(), DataKeys::new(identities));
        Ok(Self(Arc::new(Inner { repositories, target, keys, tools, options })))
    }

    /// Puts `file` to the path `to`, in the place of what is there.
    ///
    /// # Errors
    /// Whatever leaves a doubt: it must not be taken for the end of the archive. At `to` nothing was changed then. Cancel safe, in that sense.
    pub async fn fetch(&self, file: WalFile, to: &FilePath) -> Result<Fetched> {
        let begun = Instant::now();
        loop {
            let (failure, patience) = match self.attempt(file, to).await {
                Ok(Attempt::Placed { ahead }) => {
                    return Ok(Fetched::Placed(Placed { ahead, prefetch: self.prefetch_due(file, to).await }));
                }
                Ok(Attempt::Absent) => return Ok(Fetched::Absent),
                Ok(Attempt::Hole(error)) => (error, HOLE_PATIENCE),
                Err(error) if matches!(file, WalFile::History(_)) && may_pass(&error) => {
                    (error, self.0.options.patience)
                }
                Err(error) => return Err(error),
            };
            if begun.elapsed() + PAUSE > patience {
                return Err(failure);
            }
            tracing::info!(error = %failure, %file, "asking again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, file: WalFile, to: &FilePath) -> Result<Attempt> {
        let archive = self.archive_for(to).await?;
        if let WalFile::Segment(segment) = file {
            // One is enough to know that what waits was fetched from a repository that is configured.
            self.first().await?;
            if self.take_prefetched(&archive, segment, to).await {
                return Ok(Attempt::Placed { ahead: true });
            }
        }
        if self.place_from_any(&archive, file, to).await? {
            return Ok(Attempt::Placed { ahead: false });
        }
        // None of them failed, so all are open.
        let all: Vec<&Repository> = self.0.repositories.open().collect();
        if all.len() != self.0.repositories.members().len() {
            return Err(Error::internal(Stage::Fetch, "a repository was not asked"));
        }
        if self.0.options.standby {
            // It will ask again, so it need not be known whether this is the end.
            try_join_all(all.iter().map(|repository| repository.confirm())).await?;
            return Ok(Attempt::Absent);
        }
        let absence = absence(&all, &archive, file, to).await?;
        if let (Absence::Certain | Absence::Tail(_), WalFile::Segment(segment)) = (&absence, file) {
            let Inner { keys, tools, .. } = &*self.0;
            let left = all.iter().map(|repository| left_behind(repository, &archive, segment, (keys, tools)));
            if let Some((timeline, lsn)) = try_join_all(left).await?.into_iter().flatten().next() {
                let file = archive.file(file);
                let message =
                    format!("the archive has a hole: {file} is missing, and timeline {timeline} went on from {lsn}");
                return Ok(Attempt::Hole(Error::new(ErrorKind::Integrity, Stage::Fetch, message).with_hint(GAP_HINT)));
            }
        }
        match absence {
            Absence::Certain => Ok(Attempt::Absent),
            Absence::Tail(segment) => self.place_tail(&all, &archive, segment, to).await,
            Absence::Hole(error) => Ok(Attempt::Hole(error)),
        }
    }

    /// Puts the file into its place from the first repository that has it, whole and proved; `false` when all of them, without an exception, say that
    /// they do not have it.
    ///
    /// # Errors
    /// That of the first that failed, when no other has it: it may be there.
    async fn place_from_any(&self, archive: &WalPath, file: WalFile, to: &FilePath) -> Result<bool> {
        let mut failures: Vec<(&Member, Error)> = Vec::new();
        loop {
            let untried = |member: &Member| !failures.iter().any(|(failed, _)| failed.is(member));
            let find = |repository| StoredFile::find(repository, archive, file);
            match ask(&self.0.repositories, untried, find).await {
                Asked::Found(member, found) => match self.place(found, archive, file, to).await {
                    Ok(()) => return Ok(true),
                    // It is this host that cannot.
                    Err(error) if error.kind() == ErrorKind::Sink => return Err(error),
                    Err(error) => failures.push((member, error)),
                },
                Asked::Nowhere(others) => {
                    let Some((member, error)) = failures.into_iter().chain(others).next() else { return Ok(false) };
                    return Err(self.doubtful(member, error));
                }
            }
        }
    }

    /// The error of a repository that cannot tell, while the others say that they do not have a file.
    fn doubtful(&self, member: &Member, error: Error) -> Error {
        if self.0.repositories.members().len() < 2 || error.hint().is_some() {
            return error;
        }
        error.with_hint(format!(
            "the other repositories do not have it, and {member} may; to go on without that one, name the others with --repo"
        ))
    }

    /// The archive of the cluster that is being restored.
    pub(super) async fn archive_for(&self, to: &FilePath) -> Result<WalPath> {
        let Inner { repositories, target, options, .. } = &*self.0;
        if let Some(cluster) = options.system_identifier {
            return Ok(target.wal_of(cluster));
        }
        let path = to.to_owned();
        match blocking(move || cluster_beside(&path)).await?? {
            Some(cluster) => Ok(target.wal_of(cluster)),
            None => Ok(target.wal_of(only_cluster(repositories, target).await?)),
        }
    }

    /// Puts a segment into its place of which only the beginning is stored, padded with zeros, since nothing later is there: what
    /// [`Receiver`](super::Receiver) had of it when it was last written to.
    ///
    /// Of several repositories that have some of it, the one whose pieces reach farthest: all before that was told to be durable. Should that one
    /// fail, only another that reaches as far will do.
    async fn place_tail(
        &self,
        all: &[&Repository],
        archive: &WalPath,
        segment: SegmentName,
        to: &FilePath,
    ) -> Result<Attempt> {
        let reaches = try_join_all(all.iter().map(|repository| tail::reach(repository, archive, segment))).await?;
        let farthest = reaches.iter().copied().max().unwrap_or(0);
        let mut failure = None;
        for (repository, _) in all.iter().zip(reaches).filter(|(_, reach)| *reach == farthest) {
            let target = to.to_owned();
            let temporary = blocking(move || Temporary::create(&target)).await?.map_err(|e| cannot_write(to, e))?;
            let Inner { keys, tools, .. } = &*self.0;
            if let Err(error) = tail::write(repository, archive, segment, keys, tools, &temporary.file).await {
                failure.get_or_insert(error);
                continue;
            }
            let target = to.to_owned();
            blocking(move || temporary.publish(&target)).await?.map_err(|e| cannot_write(to, e))?;
            return Ok(Attempt::Placed { ahead: false });
        }
        Err(failure.unwrap_or_else(|| Error::internal(Stage::Fetch, "no repository was asked")))
    }

    /// The repository to fetch ahead from: the first that is open, else the first that answers.
    pub(super) async fn first(&self) -> Result<&Repository> {
        if let Some(open) = self.0.repositories.to_read().find_map(Member::repository) {
            return Ok(open);
        }
        let opened = |repository| async move { Ok(Some(repository)) };
        match ask(&self.0.repositories, |_| true, opened).await {
            Asked::Found(_, repository) => Ok(repository),
            Asked::Nowhere(failures) => Err(failures
                .into_iter()
                .next()
                .map_or_else(|| Error::config("no repository is given"), |(_, error)| error)),
        }
    }

    async fn take_prefetched(&self, archive: &WalPath, segment: SegmentName, to: &FilePath) -> bool {
        for repository in self.0.repositories.open() {
            let (prefetched, to) = (Prefetched::beside(to, repository, archive), to.to_owned());
            match blocking(move || prefetched.take(segment, &to)).await {
                Ok(Ok(true)) => return true,
                Ok(Err(error)) => tracing::debug!(%error, %segment, "what was fetched ahead cannot be used"),
                Ok(Ok(false)) | Err(_) => {}
            }
        }
        false
    }

    async fn place(&self, found: StoredFile, archive: &WalPath, file: WalFile, to: &FilePath) -> Result<()> {
        let target = to.to_owned();
        let temporary = blocking(move || Temporary::create(&target)).await?.map_err(|e| cannot_write(to, e))?;
        self.write(found, archive, file, &temporary).await?;
        let target = to.to_owned();
        blocking(move || temporary.publish(&target)).await?.map_err(|e| cannot_write(to, e))
    }

    /// Writes a file and proves it; a segment must also be the segment that its name says, of this cluster.
    pub(super) async fn write(
        &self,
        found: StoredFile,
        archive: &WalPath,
        file: WalFile,
        to: &Temporary,
    ) -> Result<()> {
        let (object, len) = (found.path().clone(), found.plaintext.bytes);
        found.write_to(&self.0.keys, &self.0.tools, &to.file).await?;
        let (WalFile::Segment(segment) | WalFile::Partial(segment)) = file else { return Ok(()) };
        let (written, shown) = (Arc::clone(&to.file), FilePath::new(object.as_ref()).to_owned());
        let cluster = blocking(move || check_segment(&written, len, segment, &shown)).await?;
        let wrong = || Error::integrity(format!("{object} holds another file (offset 0)")).at(Stage::Fetch);
        match cluster {
            Ok(cluster) if cluster == archive.system_identifier => Ok(()),
            Ok(cluster) => Err(wrong().with_source(Error::integrity(format!("it is of the cluster {cluster}")))),
            Err(error) => Err(wrong().with_source(error)),
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|e| Error::internal(Stage::Sink, "a task for files panicked").with_source(e))
}

fn cannot_write(to: &FilePath, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Sink, Stage::Sink, format!("cannot write {}", to.display())).with_source(error)
}

/// Whether a failure may be over in a moment: not a wrong key, nor damage, nor a bug.
fn may_pass(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Key | ErrorKind::Integrity | ErrorKind::Internal | ErrorKind::Sink)
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("repositories", &self.0.repositories)
            .field("target", &self.0.target)
            .finish_non_exhaustive()
    }
}
