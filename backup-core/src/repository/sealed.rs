//! Everything that a data key seals, one thing after the other: the walk that a census and a rewrap have in common.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::HEXLOWER;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;

use super::census::{Census, Problem};
use super::layout::{BackupPath, KeyPath, TargetName};
use super::rewraps::Wanted;
use super::{Listed, Repository};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Purpose, RecipientName};
use crate::keys::{Identity, Wrap};
use crate::restore::OpenBackup;
use crate::wal_archive::kept::{ArchiveKeys, KeptFile, KeptName};

/// Headers and manifests that are on their way at once. They are small; what takes time is asking.
const FETCHES: usize = 16;

/// Whom a data key is wrapped for.
pub(crate) type Recipients = BTreeSet<RecipientName>;

/// A backup, or a file or piece of WAL, and what it says of its data key.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// For people.
    pub(crate) object: String,
    pub(crate) key: KeyPath,
    pub(crate) purpose: Purpose,
    pub(crate) recipients: Recipients,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Backup(BackupPath),
    Wal(Box<KeptFile>),
}

impl Sealed {
    pub(crate) fn wanted(&self) -> Wanted<'_> {
        Wanted { target: self.key.target().as_str(), purpose: self.purpose, data_key: self.key.data_key() }
    }
}

/// Opens data keys.
pub(crate) struct Opener {
    identities: Vec<Arc<dyn Identity>>,
    archive: ArchiveKeys,
}

impl Opener {
    pub(crate) fn new(identities: &[Arc<dyn Identity>]) -> Self {
        Self { identities: identities.to_vec(), archive: ArchiveKeys::new(identities.to_vec()) }
    }

    pub(crate) fn identities(&self) -> &[Arc<dyn Identity>] {
        &self.identities
    }

    /// The data key, and whom the object's own header wraps it for, to the last bit: a wrap that was damaged is nobody's.
    pub(crate) async fn open(&self, repository: &Repository, sealed: &Sealed) -> Result<(DataKey, Recipients)> {
        match &sealed.source {
            Source::Backup(path) => {
                let backup = OpenBackup::open(repository, path, &self.identities).await?;
                if backup.manifest().data_key != sealed.key.data_key() {
                    let manifest = repository.address(&path.manifest());
                    let message = format!("{manifest} was replaced while it was read (offset 0)");
                    return Err(Error::integrity(message).at(Stage::Catalog));
                }
                let wraps = backup.authentic_wraps().await?;
                Ok((backup.data_key().clone(), names(&wraps).collect()))
            }
            Source::Wal(file) => {
                let key = self.archive.open(repository, file).await?;
                Ok((key, names(&file.header().wraps).collect()))
            }
        }
    }
}

/// What is done about each data key, once.
pub(crate) trait Visit: Sync {
    /// Looks at one thing that the key seals; returns whom the key is wrapped for in the end.
    ///
    /// # Errors
    /// `Integrity` and `Key` are about this one thing, `NotFound` says that it is gone; others end the walk.
    fn visit<'a>(&'a self, sealed: &'a Sealed) -> BoxFuture<'a, Result<Recipients>>;
}

/// How far a walk has come. To be read while it goes on.
#[derive(Debug, Default)]
pub struct Looked {
    backups: AtomicU64,
    wal_files: AtomicU64,
    data_keys: AtomicU64,
}

impl Looked {
    /// Backups so far.
    pub fn backups(&self) -> u64 {
        self.backups.load(Ordering::Relaxed)
    }

    /// Files and pieces of write-ahead log so far.
    pub fn wal_files(&self) -> u64 {
        self.wal_files.load(Ordering::Relaxed)
    }

    /// Data keys that are done.
    pub fn data_keys(&self) -> u64 {
        self.data_keys.load(Ordering::Relaxed)
    }
}

/// Goes through all that `target` keeps: shows each data key to `visit` until one visit succeeds, and counts into `census`.
///
/// In memory are some fifty bytes for each data key of the target. Cancel safe, as far as `visit` is.
pub(crate) async fn walk(
    repository: &Repository,
    target: &TargetName,
    concurrency: usize,
    visit: &dyn Visit,
    looked: &Looked,
    census: &mut Census,
) -> Result<()> {
    let keys = Keys::default();
    let found = stream::select(backups(repository, target), files(repository, target));
    let counted = found.try_for_each_concurrent(Some(concurrency), |found| {
        let keys = &keys;
        async move {
            match found {
                Thing::Sealed(sealed) => keys.see(visit, looked, &sealed).await,
                Thing::Problem(problem) => {
                    keys.lock().problems.push(problem);
                    Ok(())
                }
                Thing::Unfinished(path) => {
                    keys.lock().unfinished.push(path);
                    Ok(())
                }
            }
        }
    });
    counted.await?;
    keys.count_into(census);
    Ok(())
}

/// One thing of a listing.
enum Thing {
    Sealed(Box<Sealed>),
    Problem(Problem),
    Unfinished(BackupPath),
}

fn backups<'a>(repository: &'a Repository, target: &'a TargetName) -> BoxStream<'a, Result<Thing>> {
    let thing = |listed| match listed {
        Listed::Backup(found) => {
            let Some(key) = found.path.target.key(&found.manifest.data_key) else {
                let problem = "its manifest names no data key".to_owned();
                return Thing::Problem(Problem::new(found.path.to_string(), ErrorKind::Integrity, problem));
            };
            Thing::Sealed(Box::new(Sealed {
                object: found.path.to_string(),
                key,
                purpose: Purpose::Backup,
                recipients: found.manifest.recipients.into_iter().collect(),
                source: Source::Backup(found.path),
            }))
        }
        Listed::Unfinished(path) => Thing::Unfinished(path),
        Listed::Unreadable(path, e) => Thing::Problem(Problem::of(path.to_string(), &e)),
        Listed::UnreadableTarget(target, e) => Thing::Problem(Problem::of(target.to_string(), &e)),
    };
    repository.list(Some(target)).map_ok(thing).boxed()
}

fn files<'a>(repository: &'a Repository, target: &'a TargetName) -> BoxStream<'a, Result<Thing>> {
    let prefix = target.wal();
    let listing = repository.store().list(Some(&prefix));
    let listing = listing.map_err(move |e| repository.error(e, "list", &prefix).at(Stage::Catalog));
    let named = listing.try_filter_map(|object| {
        std::future::ready(Ok(KeptName::parse(target, &object.location).map(|name| (name, object.location))))
    });
    let read = named.map_ok(move |(name, object)| async move {
        match name.find(repository, target).await {
            Ok(Some(file)) => Ok(Some(file_thing(target, object.to_string(), file))),
            Ok(None) => Ok(None),
            Err(e) if e.kind() == ErrorKind::Integrity => Ok(Some(Thing::Problem(Problem::of(object.to_string(), &e)))),
            Err(e) => Err(e),
        }
    });
    read.try_buffer_unordered(FETCHES).try_filter_map(|thing| std::future::ready(Ok(thing))).boxed()
}

fn file_thing(target: &TargetName, object: String, file: KeptFile) -> Thing {
    let header = file.header();
    match target.key(&header.data_key) {
        Some(key) => Thing::Sealed(Box::new(Sealed {
            object,
            key,
            purpose: Purpose::Wal,
            recipients: names(&header.wraps).collect(),
            source: Source::Wal(Box::new(file)),
        })),
        None => {
            let problem = "its header names no data key".to_owned();
            Thing::Problem(Problem::new(object, ErrorKind::Integrity, problem))
        }
    }
}

/// For whom wraps were made.
pub(crate) fn names(wraps: &[Wrap]) -> impl Iterator<Item = RecipientName> + '_ {
    wraps.iter().map(|wrap| RecipientName { kind: wrap.kind.clone(), recipient: wrap.recipient.clone() })
}

type Id = [u8; 16];

/// What is known of the data keys of one target.
#[derive(Default)]
struct Keys(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Keys that were visited: how often they were seen, and the place of their recipients in `sets`.
    done: HashMap<Id, Seen>,
    sets: Vec<Recipients>,
    /// Keys of which no visit has succeeded yet.
    failed: HashMap<Id, (Problem, u64)>,
    /// Keys that are being visited.
    turns: HashMap<Id, Arc<tokio::sync::Mutex<()>>>,
    examples: HashMap<usize, Vec<String>>,
    problems: Vec<Problem>,
    unfinished: Vec<BackupPath>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    set: u32,
    count: u32,
    purpose: Purpose,
}

impl Keys {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        // Nothing in here panics half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn see(&self, visit: &dyn Visit, looked: &Looked, sealed: &Sealed) -> Result<()> {
        let counter = if sealed.purpose == Purpose::Backup { &looked.backups } else { &looked.wal_files };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut id = [0; 16];
        let decoded = HEXLOWER.decode_mut(sealed.key.data_key().as_bytes(), &mut id);
        decoded.map_err(|_| Error::internal(Stage::Keys, "the id of a data key is not hexadecimal"))?;
        let turn = {
            let mut known = self.lock();
            if known.count_known(&id, sealed) {
                return Ok(());
            }
            Arc::clone(known.turns.entry(id).or_default())
        };
        let _turn = turn.lock().await;
        // Somebody else's turn may have come first.
        if self.lock().count_known(&id, sealed) {
            return Ok(());
        }
        let visited = visit.visit(sealed).await;
        let mut known = self.lock();
        match visited {
            Ok(recipients) => {
                looked.data_keys.fetch_add(1, Ordering::Relaxed);
                known.done(id, sealed, recipients);
                Ok(())
            }
            // Removed meanwhile: nothing needs a key for it.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::Integrity | ErrorKind::Key) => {
                known.failed.entry(id).or_insert_with(|| (Problem::of(sealed.object.clone(), &e), 0)).1 += 1;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    fn count_into(self, census: &mut Census) {
        let known = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        for seen in known.done.values() {
            let recipients = &known.sets[seen.set as usize];
            census.count(recipients, seen.purpose, seen.count.into());
        }
        for (set, examples) in known.examples {
            census.add_examples(&known.sets[set], examples);
        }
        for (problem, objects) in known.failed.into_values() {
            census.add_problem(problem, objects);
        }
        for problem in known.problems {
            census.add_problem(problem, 1);
        }
        census.unfinished.extend(known.unfinished);
    }
}

/// Names of objects that are kept for each set of recipients.
const EXAMPLES: usize = 5;

impl Known {
    /// Counts a thing whose key was visited.
    fn count_known(&mut self, id: &Id, sealed: &Sealed) -> bool {
        let Some(seen) = self.done.get_mut(id) else { return false };
        seen.count = seen.count.saturating_add(1);
        let set = seen.set as usize;
        self.add_example(set, sealed);
        self.turns.remove(id);
        true
    }

    fn done(&mut self, id: Id, sealed: &Sealed, recipients: Recipients) {
        let set = self.sets.iter().position(|set| *set == recipients).unwrap_or_else(|| {
            self.sets.push(recipients);
            self.sets.len() - 1
        });
        let failed_before = self.failed.remove(&id).map_or(0, |(_, count)| count);
        let count = u32::try_from(failed_before.saturating_add(1)).unwrap_or(u32::MAX);
        let seen = Seen { set: u32::try_from(set).unwrap_or(u32::MAX), count, purpose: sealed.purpose };
        self.done.insert(id, seen);
        self.add_example(set, sealed);
        self.turns.remove(&id);
    }

    fn add_example(&mut self, set: usize, sealed: &Sealed) {
        let examples = self.examples.entry(set).or_default();
        if examples.len() < EXAMPLES {
            examples.push(sealed.object.clone());
        }
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("identities", &self.identities).finish_non_exhaustive()
    }
}
