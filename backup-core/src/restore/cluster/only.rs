//! Single files out of a base backup: a file, a database, a tablespace, read from the chunks that hold them and no others.
//!
//! ```text
//! files ─▶ which entries are wanted (index) ─▶ ranges of base, tablespace-… ─▶ files (pick)
//! ```
//!
//! What comes back is files and no cluster: they are as they were read while the server ran, and only a whole cluster with its log is consistent.

use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::manifest::read_by_thread;
use super::place::{self, Place};
use super::streams::some_at_once;
use super::{absolute, blocking, or_give_up};
use crate::error::{Error, Result};
use crate::format::Kind;
use crate::pipeline::{Counters, Limits};
use crate::restore::inspect::WorkerSink;
use crate::restore::stream::Share;
use crate::restore::tree::{Tree, names};
use crate::restore::worker::{Worker, sink_error};
use crate::restore::{OpenBackup, RestoreHandle};

mod index;
mod pick;

use index::{Choice, Chosen, FILES, lengths, plain, read_index};
use pick::{pick, runs};

impl OpenBackup {
    /// The restore of single files or directories into `directory`, for backups of kind [`BaseBackup`](Kind::BaseBackup). Paths are those of the
    /// data directory, such as `global/1262`, `base/16384` or `pg_tblspc/16385`.
    pub fn restore_only(&self, paths: impl IntoIterator<Item = PathBuf>, directory: impl Into<PathBuf>) -> OnlyRestore {
        OnlyRestore {
            backup: self.clone(),
            paths: paths.into_iter().collect(),
            directory: directory.into(),
            limits: Limits::for_parts_of(self.0.repository.part_bytes()),
            counters: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }
}

/// The restore of single files: say how, then [`start`](Self::start).
#[derive(Debug)]
#[must_use]
pub struct OnlyRestore {
    backup: OpenBackup,
    paths: Vec<PathBuf>,
    directory: PathBuf,
    limits: Limits,
    counters: Arc<Counters>,
    cancel: CancellationToken,
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnlyRestored {
    /// How many files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl OnlyRestore {
    /// Memory and threads; of the sizes only those of the backup itself count. Besides, some 100 bytes are needed for each file.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Cancels the restore when it is cancelled.
    pub fn cancel_on(mut self, token: &CancellationToken) -> Self {
        self.cancel = token.child_token();
        self
    }

    /// Starts restoring on the current tokio runtime. The files are whole and on disk if and only if [`RestoreHandle::wait`] is `Ok`; else nothing of
    /// them is left, or a failed [clean-up](Error::cleanup) says what is.
    ///
    /// # Errors
    /// `Config` for paths that no data directory has, and for other kinds of backups. Of waiting: `NotFound` when the backup has no such file, `Config`
    /// for a directory that is not empty, `Integrity` when what is read is damaged, `Sink` when the files cannot be written.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(mut self) -> Result<RestoreHandle<OnlyRestored>> {
        let manifest = self.backup.manifest();
        if manifest.kind != Kind::BaseBackup || manifest.stream(FILES).is_none() {
            let message = format!("backup {} does not say where its files are", manifest.id);
            return Err(Error::config(message).with_hint("base backups do, unless the server compressed them"));
        }
        self.paths = self.paths.iter().map(|path| plain(path)).collect::<Result<_>>()?;
        let (counters, cancel) = (Arc::clone(&self.counters), self.cancel.clone());
        Ok(RestoreHandle { counters, cancel, task: tokio::spawn(self.run()) })
    }

    async fn run(self) -> Result<OnlyRestored> {
        let share = Arc::new(Share::new(self.limits, None));
        let choice = self.choose(&share).await?;
        let directory = absolute(&self.directory)?;
        let place = blocking(move || {
            Place::check(&directory, "restore into a new or an empty directory")?;
            Place::take(&directory)
        });
        let place = Arc::new(place.await?);
        let filled = self.fill(&share, choice, &place).await;
        or_give_up(filled, move || place.give_up().map_err(|e| place.stays(e))).await
    }

    /// Reads the index, and remembers what is wanted of it.
    async fn choose(&self, share: &Arc<Share>) -> Result<Choice> {
        let (paths, lengths) = (self.paths.clone(), lengths(self.backup.manifest()));
        let restore = self.backup.restore(FILES)?.cancel_on(&self.cancel).sharing(share, &Arc::default());
        read_by_thread(restore, move |incoming| read_index(BufReader::new(incoming), &paths, &lengths)).await
    }

    /// Everything between an empty directory and files on disk. On failure nobody writes there any more.
    async fn fill(&self, share: &Arc<Share>, choice: Choice, place: &Arc<Place>) -> Result<OnlyRestored> {
        let (files, bytes) = choice.total();
        let (of, directories) = (Arc::clone(place), choice.directories);
        blocking(move || {
            let mut tree = Tree::new(root(&of)?);
            directories.iter().try_for_each(|path| {
                let entered = tree.enter(&names(path)?).map(drop);
                entered.map_err(|errno| sink_error(format!("cannot create {}", path.display()), errno))
            })
        })
        .await?;
        let stop = self.cancel.child_token();
        let streams = choice.files.into_iter().map(|(stream, files)| self.stream(share, stream, files, place, &stop));
        some_at_once(streams, &stop).await?;
        let of = Arc::clone(place);
        blocking(move || {
            let synced = place::sync(std::iter::once(&*of)).and_then(|()| of.complete());
            synced.map_err(|e| sink_error("cannot write the restored files to disk", e))
        })
        .await?;
        Ok(OnlyRestored { files, bytes })
    }

    /// Restores the files of one stream, whose volumes are each opened once.
    async fn stream(
        &self,
        share: &Arc<Share>,
        stream: String,
        files: Vec<Chosen>,
        place: &Place,
        stop: &CancellationToken,
    ) -> Result<()> {
        let (runs, root) = (runs(files), root(place)?);
        let ranges: Vec<_> = runs.iter().map(|(range, _)| range.clone()).collect();
        let worker = Worker::spawn(move |incoming| pick(incoming, &runs, root))?;
        let restore = self.backup.restore(&stream)?.ranges(ranges).cancel_on(stop).sharing(share, &self.counters);
        restore.into(WorkerSink(worker)).wait().await.map(drop)
    }
}

fn root(place: &Place) -> Result<OwnedFd> {
    place.fd().try_clone().map_err(|e| sink_error(format!("cannot open {}", place.path().display()), e))
}

#[cfg(test)]
mod tests;
