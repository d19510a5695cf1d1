//! By whom all that is kept can be opened: which key is still needed, and for what.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use serde::Serialize;

use super::layout::{BackupPath, TargetName};
use super::rewraps::{Wanted, reached};
use super::sealed::{Opener, Recipients, Sealed, Visit, walk};
use super::{Found, Repository};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Purpose, RecipientName};
use crate::keys::Identity;
use crate::restore::OpenBackup;

pub use super::sealed::Looked;

/// Problems that are told one by one; all are counted.
const PROBLEMS_MAX: usize = 100;

/// What is kept, by those for whom its data keys are wrapped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    groups: BTreeMap<Recipients, Held>,
    /// The first hundred things that could not be looked at. None of them is counted in a group.
    pub problems: Vec<Problem>,
    /// How many things could not be looked at.
    pub problem_count: u64,
    /// Runs in progress, or what interrupted ones left: not backups, so not counted.
    pub unfinished: Vec<BackupPath>,
}

/// What has the same recipients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Held {
    /// Backups.
    pub backups: u64,
    /// Files of write-ahead log, and pieces of unfinished segments.
    pub wal_files: u64,
    /// Data keys of both.
    pub data_keys: u64,
    /// The names of a few of them.
    #[serde(skip)]
    pub examples: Vec<String>,
}

/// Something that could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The backup, or the object below the repository's root.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// Whether nobody here can open it; otherwise it is damaged, or needs a newer release.
    pub no_key: bool,
}

impl Census {
    /// Looks at all that `targets` keep.
    ///
    /// Without `identities`, what manifests, headers and rewraps say of their recipients is taken as it is. With some, every data key is opened,
    /// and only what is authentic counts: whoever wrote it had the data key. One manifest for each backup and one header for each
    /// file of WAL is read; and `concurrency` data keys are opened at once.
    ///
    /// # Errors
    /// Those of the store. What cannot be read or opened is a [`Problem`]. Cancel safe.
    pub async fn take(
        repository: &Repository,
        targets: &[TargetName],
        identities: &[Arc<dyn Identity>],
        concurrency: usize,
        looked: &Looked,
    ) -> Result<Self> {
        let mut census = Self::default();
        for target in targets {
            let opener = (!identities.is_empty()).then(|| Opener::new(identities));
            let counting = Counting { repository, opener, rewrapped: rewrapped(repository, target).await? };
            walk(repository, target, concurrency, &counting, looked, &mut census).await?;
        }
        Ok(census)
    }

    /// What is kept, by those for whom it is wrapped.
    pub fn groups(&self) -> impl Iterator<Item = (&Recipients, &Held)> {
        self.groups.iter()
    }

    /// All whom something is wrapped for.
    pub fn recipients(&self) -> Recipients {
        self.groups.keys().flatten().cloned().collect()
    }

    /// All that is kept.
    pub fn all(&self) -> Held {
        self.held(|_| true)
    }

    /// What `recipient` can open.
    pub fn opened_by(&self, recipient: &RecipientName) -> Held {
        self.held(|recipients| recipients.contains(recipient))
    }

    /// What `recipient` can open and nobody of `others` can: what would be lost with its identity.
    pub fn needing(&self, recipient: &RecipientName, others: &Recipients) -> Held {
        let alone = |other: &RecipientName, recipients: &Recipients| other != recipient && recipients.contains(other);
        self.held(|recipients| recipients.contains(recipient) && !others.iter().any(|other| alone(other, recipients)))
    }

    /// What none of `recipients` can open.
    pub fn closed_to(&self, recipients: &Recipients) -> Held {
        self.held(|held_for| held_for.is_disjoint(recipients))
    }

    /// What is not wrapped for all of `recipients`: what a rewrap would wrap again.
    pub fn lacking(&self, recipients: &Recipients) -> Held {
        self.held(|held_for| !recipients.is_subset(held_for))
    }

    fn held(&self, is_meant: impl Fn(&Recipients) -> bool) -> Held {
        let mut sum = Held::default();
        for (_, held) in self.groups.iter().filter(|(recipients, _)| is_meant(recipients)) {
            sum.add(held);
        }
        sum
    }

    pub(super) fn count(&mut self, recipients: &Recipients, purpose: Purpose, objects: u64) {
        if !self.groups.contains_key(recipients) {
            self.groups.insert(recipients.clone(), Held::default());
        }
        let Some(held) = self.groups.get_mut(recipients) else { return };
        held.data_keys += 1;
        match purpose {
            Purpose::Backup => held.backups += objects,
            Purpose::Wal => held.wal_files += objects,
        }
    }

    pub(super) fn add_examples(&mut self, recipients: &Recipients, examples: Vec<String>) {
        if let Some(held) = self.groups.get_mut(recipients) {
            held.add(&Held { examples, ..Held::default() });
        }
    }

    pub(super) fn add_problem(&mut self, problem: Problem, objects: u64) {
        self.problem_count += objects;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

impl Held {
    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.data_keys == 0
    }

    fn add(&mut self, other: &Self) {
        self.backups += other.backups;
        self.wal_files += other.wal_files;
        self.data_keys += other.data_keys;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.iter().take(room).cloned());
    }
}

/// Names that are told.
const EXAMPLES_MAX: usize = 5;

impl Problem {
    pub(super) fn new(object: String, kind: ErrorKind, problem: String) -> Self {
        Self { object, problem, no_key: kind == ErrorKind::Key }
    }

    pub(super) fn of(object: String, error: &Error) -> Self {
        Self::new(object, error.kind(), error.in_one_line())
    }
}

/// Ids of the data keys of `target` that were wrapped again: a listing saves asking for each of the others.
async fn rewrapped(repository: &Repository, target: &TargetName) -> Result<HashSet<[u8; 16]>> {
    let prefix = target.keys();
    let failed = |e| repository.error(e, "list", &prefix).at(Stage::Keys);
    let mut ids = HashSet::new();
    let mut listing = repository.store().list(Some(&prefix));
    while let Some(object) = listing.try_next().await.map_err(failed)? {
        if let Some((key, _)) = target.parse_rewrap(&object.location) {
            ids.extend(id(key.data_key()));
        }
    }
    Ok(ids)
}

fn id(data_key: &str) -> Option<[u8; 16]> {
    data_encoding::HEXLOWER.decode(data_key.as_bytes()).ok()?.try_into().ok()
}

struct Counting<'a> {
    repository: &'a Repository,
    opener: Option<Opener>,
    rewrapped: HashSet<[u8; 16]>,
}

impl Visit for Counting<'_> {
    fn visit<'a>(&'a self, sealed: &'a Sealed) -> BoxFuture<'a, Result<Recipients>> {
        Box::pin(async move {
            let (key, mut recipients) = match &self.opener {
                Some(opener) => opener.open(self.repository, sealed).await.map(|(key, names)| (Some(key), names))?,
                None => (None, sealed.recipients.clone()),
            };
            if id(sealed.key.data_key()).is_some_and(|id| self.rewrapped.contains(&id)) {
                let since = reached(self.repository, &sealed.key, sealed.wanted(), key.as_ref(), |_| false).await?;
                recipients.extend(since.recipients);
            }
            Ok(recipients)
        })
    }
}

/// For whom the data key of a backup was wrapped since it was made: as the repository says, or, where it was `opened`, as far as that is proved.
///
/// # Errors
/// Those of the store. Cancel safe.
pub async fn rewrapped_for(
    repository: &Repository,
    found: &Found,
    opened: Option<&OpenBackup>,
) -> Result<BTreeSet<RecipientName>> {
    let (target, data_key) = (&found.path.target, &found.manifest.data_key);
    let Some(path) = target.key(data_key) else { return Ok(Recipients::new()) };
    let wanted = Wanted { target: target.as_str(), purpose: Purpose::Backup, data_key };
    Ok(reached(repository, &path, wanted, opened.map(OpenBackup::data_key), |_| false).await?.recipients)
}
