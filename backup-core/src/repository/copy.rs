//! Bringing another repository up to date: ciphertext to ciphertext, without keys.
//!
//! ```text
//! of each target: keys/ ─▶ pins/ ─▶ wal/ ─▶ backups/: volumes, proved while they pass, then the manifest
//! ```
//!
//! Nothing is opened, nothing is replaced and nothing is removed. What is there already is compared, by size and by the digest in its footer, and
//! left; so a copy that was interrupted goes on where it was, and two at once do each other no harm. A backup exists at the destination
//! when all that it needs is there.

mod backups;
mod pins;
mod rewraps;
mod small;
mod tally;
mod transfer;
mod wal;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use tokio_util::sync::CancellationToken;

use super::budget::ByteBudget;
use super::layout::{BackupPath, TargetName, WalPath};
use super::{Repository, is_untrusted};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::{Counters, Limits};

pub use tally::{Copied, CopyProblem, Count};

use tally::Kind;

/// Backups that are copied at once, the oldest first. Each has several volumes on their way.
const BACKUPS: usize = 2;
/// Small objects that are looked at or copied at once.
const OBJECTS: usize = 16;

/// What is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All targets: their backups and pins, their write-ahead log, and their data keys that were wrapped again.
    Everything,
    /// The same of these targets only.
    Targets(Vec<TargetName>),
    /// These backups, those that they require, their pins, what was wrapped again of their data keys, and the log that they cannot be restored
    /// without.
    Backups(Vec<BackupPath>),
}

/// What to copy, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CopyOptions {
    /// What is to be copied.
    pub selection: Selection,
    /// Memory; of the rest only the size of parts counts, which the repositories tell.
    pub limits: Limits,
    /// Takes what is there with the same size for the same, and reads no footers: a listing then tells all, however much there is.
    pub quick: bool,
    /// Only finds out what there is to do.
    pub dry_run: bool,
    /// The clock for heartbeats.
    pub clock: Arc<dyn Clock>,
}

impl CopyOptions {
    /// All of it, with limits that suit the destination.
    pub fn new(to: &Repository) -> Self {
        Self {
            selection: Selection::Everything,
            limits: Limits::for_parts_of(to.part_bytes()),
            quick: false,
            dry_run: false,
            clock: Arc::new(SystemClock),
        }
    }
}

/// Brings `to` up to date with `from`. `counters` tell the bytes that were stored so far.
///
/// Volumes are compared with the digests of their manifests while they pass, files of WAL with those in their own footers; what does not pass is not
/// stored, and told as a [problem](Copied::problems) while the rest is copied. Records of runs, unfinished backups and objects that this release does
/// not know are not copied.
///
/// # Errors
/// `Integrity` when the destination has another object under the name of one that is to be copied: then it stops, and names it. Those of
/// [`storage_error`](super::storage_error); and `Cancelled`. What was copied until then stays, and the next copy goes on from there.
///
/// Not cancel safe: unfinished uploads are given up when `cancel` says so, and left behind when the future is dropped.
pub async fn copy(
    from: &Repository,
    to: &Repository,
    options: &CopyOptions,
    counters: &Arc<Counters>,
    cancel: &CancellationToken,
) -> Result<Copied> {
    if (from.name(), from.id()) == (to.name(), to.id()) {
        return Err(Error::config(format!("{from} cannot be copied to itself")));
    }
    let run = Run {
        from,
        to,
        options,
        budget: ByteBudget::new(options.limits.memory()),
        counters: Arc::clone(counters),
        stop: cancel.child_token(),
        tally: Mutex::default(),
        failure: Mutex::default(),
    };
    run.check_memory(run.piece_bytes())?;
    match &options.selection {
        Selection::Everything => {
            for target in from.targets().await? {
                run.target(&target).await?;
            }
        }
        Selection::Targets(targets) => {
            for target in targets {
                run.target(target).await?;
            }
        }
        Selection::Backups(paths) => run.chosen(paths).await?,
    }
    Ok(run.tally.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// One copy, while it runs.
struct Run<'a> {
    from: &'a Repository,
    to: &'a Repository,
    options: &'a CopyOptions,
    budget: ByteBudget,
    counters: Arc<Counters>,
    stop: CancellationToken,
    tally: Mutex<Copied>,
    /// The first, which stopped the others.
    failure: Mutex<Option<Error>>,
}

impl Run<'_> {
    fn check_memory(&self, piece: u64) -> Result<()> {
        // One piece is sent while the next is read.
        let (has, least) = (self.options.limits.memory(), piece.saturating_mul(2));
        if has as u64 >= least {
            return Ok(());
        }
        Err(Error::config(format!("{has} bytes of memory are too little for this"))
            .with_hint(format!("the least that would do is {} MiB", least.div_ceil(1 << 20))))
    }

    /// All of one target.
    async fn target(&self, target: &TargetName) -> Result<()> {
        // Before the log, so that the log of all of them is there when it is listed.
        let backups = self.backups_of(target).await?;
        self.look_for_strangers(target).await?;
        self.rewraps_below(target, &target.keys()).await?;
        // Before the backups that they hold, which a prune would find unpinned otherwise.
        self.pins_below(target, &target.pins()).await?;
        self.wal_of(target).await?;
        self.backups(backups).await
    }

    /// Counts what lies in the target's folder and is of no known kind.
    async fn look_for_strangers(&self, target: &TargetName) -> Result<()> {
        let folder = Path::from(target.as_str());
        let failed = |e| self.from.error(e, "list", &folder).at(Stage::Catalog);
        let listing = self.from.store().list_with_delimiter(Some(&folder)).await.map_err(failed)?;
        for object in listing.objects {
            self.tally().leave_alone(&object.location);
        }
        let known = [target.backups(), target.wal(), target.keys(), target.pins()];
        for folder in listing.common_prefixes.iter().filter(|folder| !known.contains(folder)) {
            let mut objects = self.from.store().list(Some(folder));
            while let Some(object) = objects.try_next().await.map_err(failed)? {
                self.tally().leave_alone(&object.location);
            }
        }
        Ok(())
    }

    /// Does `work` with each of `items`, `at_once` at a time. The first failure stops the others, each of which cleans up first.
    async fn each<T: Send, F: Future<Output = Result<()>> + Send>(
        &self,
        items: impl Stream<Item = Result<T>> + Send,
        at_once: usize,
        work: impl Fn(T) -> F + Send + Sync,
    ) -> Result<()> {
        let items = items.take_until(self.stop.clone().cancelled_owned());
        let worked = items.for_each_concurrent(at_once, |item| {
            let work = item.map(&work);
            async move {
                let done = match work {
                    Ok(work) => work.await,
                    Err(e) => Err(e),
                };
                if let Err(error) = done {
                    self.fail(error);
                }
            }
        });
        worked.await;
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None if self.stop.is_cancelled() => Err(Error::cancelled(Stage::Upload)),
            None => Ok(()),
        }
    }

    fn fail(&self, error: Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever was stopped is not the cause.
        if failure.is_none() && (error.kind() != ErrorKind::Cancelled || !self.stop.is_cancelled()) {
            *failure = Some(error);
        }
        drop(failure);
        self.stop.cancel();
    }

    fn tally(&self) -> MutexGuard<'_, Copied> {
        // Nothing in here panics half way.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what is wrong with an object of the source.
    fn problem(&self, object: &Path, problem: impl Into<String>) {
        self.tally().add_problem(CopyProblem { object: object.to_string(), problem: problem.into(), damage: true });
    }

    /// The error of something that has the name of another at the destination.
    fn differs(&self, object: &Path) -> Error {
        let (there, here) = (self.to.address(object), self.from.address(object));
        Error::integrity(format!("{there} is not what {here} is (offset 0), and was left as it is")).at(Stage::Upload).with_hint(
            "one of them was damaged or replaced: 'backup verify --all' of both repositories tells which. Nothing is copied over it; remove the wrong one and run this again",
        )
    }
}

/// Whether an error is about one object of the source, and the others may fare better.
fn concerns_one_object(error: &Error) -> bool {
    error.kind() == ErrorKind::Integrity || is_untrusted(error) || super::catalog::is_newer(error)
}

/// Sizes of the objects that the destination has, by their paths: some thirty bytes for each, however long its path.
struct Held {
    sizes: std::collections::HashMap<u64, u64>,
    /// The large files, by the paths of what refers to them and their sizes.
    large: HashSet<u64>,
    /// Secret, so that nobody can choose a name that passes for another.
    hasher: RandomState,
}

impl Held {
    async fn list(repository: &Repository, prefix: &Path) -> Result<Self> {
        let mut held = Self { sizes: Default::default(), large: HashSet::new(), hasher: RandomState::new() };
        let mut objects = repository.store().list(Some(prefix));
        while let Some(ObjectMeta { location, size, .. }) =
            objects.try_next().await.map_err(|e| repository.error(e, "list", prefix).at(Stage::Catalog))?
        {
            let key = held.hasher.hash_one(location.as_ref());
            held.sizes.insert(key, size);
            if let Some(reference) = WalPath::reference_to(&location) {
                let key = held.hasher.hash_one((reference.as_ref(), size));
                held.large.insert(key);
            }
        }
        Ok(held)
    }

    fn size(&self, object: &Path) -> Option<u64> {
        self.sizes.get(&self.hasher.hash_one(object.as_ref())).copied()
    }

    /// Whether there is a large file of so many bytes that this object may refer to.
    fn has_large(&self, object: &Path, bytes: u64) -> bool {
        self.large.contains(&self.hasher.hash_one((object.as_ref(), bytes)))
    }
}

/// Names in a folder, with their sizes.
async fn folder(repository: &Repository, prefix: &Path) -> Result<std::collections::HashMap<String, u64>> {
    let failed = |e| repository.error(e, "list", prefix).at(Stage::Catalog);
    let name = |object: ObjectMeta| (object.location.filename().unwrap_or_default().to_owned(), object.size);
    repository.store().list(Some(prefix)).map_ok(name).try_collect().await.map_err(failed)
}

/// Ids that were looked at.
type Seen = HashSet<BackupPath>;

#[cfg(test)]
mod tests;
