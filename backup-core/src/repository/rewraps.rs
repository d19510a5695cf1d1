//! Data keys that were wrapped again, as readers find them: only where the wraps in an object's own header do not open.

use std::pin::pin;
use std::sync::Arc;

use futures::stream::{self, Stream};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

use super::Repository;
use super::layout::{KeyPath, RewrapName, TargetName};
use super::sealed::{Recipients, names as names_of};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, Purpose, REWRAP_LEN_MAX, Rewrap};
use crate::keys::{Budget, EncryptionContext, Identity, Wrap, age, is_for_others, none_opens, unwrap_within};

/// How many wraps that are costly to it an identity is asked to unwrap, of all rewraps of one data key. One a year is usual; who can write to the
/// repository can put any number there, and each can ask for a slow passphrase or for a call to a key service. What costs next to nothing is
/// tried without end, so nobody hides a rewrap for a key in a file.
pub(crate) const COSTLY_TRIED: usize = 64;
/// Rewraps that are on their way at once, behind the newest, which is mostly the only one.
const READS: usize = 8;
/// Wraps whose recipients are named to who can open none of them.
const NAMED_MAX: usize = 256;

/// Which data key is wanted, as the object says that it encrypts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) target: &'a str,
    pub(crate) purpose: Purpose,
    pub(crate) data_key: &'a str,
}

impl Wanted<'_> {
    pub(crate) fn context(&self) -> EncryptionContext {
        EncryptionContext::new(self.target, self.purpose)
    }
}

/// The data key, from what was wrapped again after `failure`: that the wraps in the header, which are `tried`, do not open.
///
/// # Errors
/// The first failure that may pass, or that somebody can mend: the store or a key service does not answer, or denies. Without such, `failure`, when it is
/// not that nobody here is among the recipients; otherwise that, and it names all for whom the key was wrapped since. Cancel safe.
pub(crate) async fn open_rewrapped(
    repository: &Repository,
    wanted: Wanted<'_>,
    tried: &[Wrap],
    identities: &[Arc<dyn Identity>],
    failure: Error,
) -> Result<DataKey> {
    let target: Option<TargetName> = wanted.target.parse().ok();
    let Some(path) = target.and_then(|target| target.key(wanted.data_key)) else { return Err(failure) };
    let mut search = Search::new(identities, tried);
    match search.all(repository, &path, wanted).await {
        Ok(Some(key)) => return Ok(key),
        Ok(None) => {}
        Err(e) => search.refused = search.refused.or(Some(e)),
    }
    if !is_for_others(&failure) && failure.kind() != ErrorKind::Integrity {
        return Err(failure);
    }
    match search.refused {
        Some(refused) => Err(refused),
        None if is_for_others(&failure) => Err(search.nobody()),
        None => Err(failure),
    }
}

/// A search for a rewrap that opens.
struct Search<'a> {
    identities: &'a [Arc<dyn Identity>],
    budget: Budget,
    for_whom: Vec<Wrap>,
    /// The first that was damaged or forged.
    damaged: Option<Error>,
    /// The first failure of another kind.
    refused: Option<Error>,
}

impl<'a> Search<'a> {
    fn new(identities: &'a [Arc<dyn Identity>], tried: &[Wrap]) -> Self {
        let budget = Budget::new(identities, COSTLY_TRIED);
        Self { identities, budget, for_whom: tried.to_vec(), damaged: None, refused: None }
    }

    /// The data key, from the first that gives it.
    async fn all(&mut self, repository: &Repository, path: &KeyPath, wanted: Wanted<'_>) -> Result<Option<DataKey>> {
        let names = repository.rewraps(path).await?;
        let mut rewraps = pin!(newest_first(repository, path, &names));
        while let Some(stored) = rewraps.try_next().await? {
            let rewrap = match stored.decode(wanted) {
                Ok(rewrap) => rewrap,
                Err(e) => {
                    self.failed(e);
                    continue;
                }
            };
            let (budget, context) = (&mut self.budget, wanted.context());
            let opened = unwrap_within(budget, wanted.data_key, &rewrap.wraps, &context, self.identities).await;
            self.name(rewrap.wraps);
            match opened.and_then(|key| stored.open(wanted, &key).map(|_| key).map_err(|e| vec![e])) {
                Ok(key) => return Ok(Some(key)),
                Err(failures) => failures.into_iter().for_each(|e| self.failed(e)),
            }
        }
        Ok(None)
    }

    /// Remembers whom to name: anybody can have put any number there.
    fn name(&mut self, wraps: Vec<Wrap>) {
        let room = NAMED_MAX.saturating_sub(self.for_whom.len());
        self.for_whom.extend(wraps.into_iter().take(room));
    }

    fn failed(&mut self, error: Error) {
        if error.kind() != ErrorKind::Integrity {
            self.refused.get_or_insert(error);
        } else if self.damaged.is_none() {
            tracing::warn!(error = error.in_one_line(), "a rewrap is passed over");
            self.damaged = Some(error);
        } else {
            tracing::debug!(error = error.in_one_line(), "another rewrap is passed over");
        }
    }

    /// The error of a key that none of the identities opens.
    fn nobody(self) -> Error {
        let error = none_opens(&self.for_whom, self.identities.is_empty());
        let untried = || {
            let message = format!("rewraps were left untried, behind {COSTLY_TRIED} wraps that do not open");
            Error::integrity(message).at(Stage::Keys)
        };
        let why = if self.budget.is_exceeded { Some(untried()) } else { self.damaged };
        match why {
            Some(why) => error.with_source(why),
            None => error,
        }
    }
}

/// Whom a data key was wrapped for again, as far as readers get there, whatever else was put beside it; with the `key`, as far as that is proved.
/// Ends as soon as that is `enough`.
///
/// # Errors
/// Those of the store. Cancel safe.
pub(crate) async fn reached(
    repository: &Repository,
    path: &KeyPath,
    wanted: Wanted<'_>,
    key: Option<&DataKey>,
    enough: impl Fn(&Recipients) -> bool,
) -> Result<Reached> {
    let mut reached = Reached { recipients: Recipients::new(), newest: None };
    let names = repository.rewraps(path).await?;
    reached.newest = names.first().cloned();
    // Of wraps that may be costly to somebody: no reader tries more of them than this says.
    let mut costly = 0;
    let mut is_told = false;
    let mut rewraps = pin!(newest_first(repository, path, &names));
    while !enough(&reached.recipients)
        && let Some(stored) = rewraps.try_next().await?
    {
        let claimed = stored.decode(wanted);
        let proved = key.map(|key| stored.open(wanted, key));
        if let Some(e) = claimed.as_ref().err().or(proved.as_ref().and_then(|proved| proved.as_ref().err())) {
            match std::mem::replace(&mut is_told, true) {
                false => tracing::warn!(error = e.in_one_line(), "a rewrap is not believed"),
                true => tracing::debug!(error = e.in_one_line(), "another rewrap is not believed"),
            }
        }
        let Ok(rewrap) = claimed else { continue };
        for (wrap, name) in rewrap.wraps.iter().zip(names_of(&rewrap.wraps)) {
            costly += usize::from(wrap.kind != age::KIND);
            let is_tried = wrap.kind == age::KIND || costly <= COSTLY_TRIED;
            if is_tried && proved.as_ref().is_none_or(Result::is_ok) {
                reached.recipients.insert(name);
            }
        }
    }
    Ok(reached)
}

/// What [`reached`] finds.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) recipients: Recipients,
    /// The newest of all that are there.
    pub(crate) newest: Option<RewrapName>,
}

/// The rewraps of these names, in the order in which readers try them: alone the newest, then several at once. What is gone is left out.
fn newest_first<'a>(
    repository: &'a Repository,
    path: &'a KeyPath,
    names: &'a [RewrapName],
) -> impl Stream<Item = Result<StoredRewrap>> + Send + 'a {
    let read = |name| StoredRewrap::read(repository, path, name);
    let (newest, older) = names.split_at(names.len().min(1));
    let newest = stream::iter(newest).then(read);
    let all = newest.chain(stream::iter(older).map(read).buffered(READS));
    all.try_filter_map(|stored| std::future::ready(Ok(stored)))
}

impl Repository {
    /// The rewraps of a data key, the newest first. Cancel safe.
    pub(crate) async fn rewraps(&self, path: &KeyPath) -> Result<Vec<RewrapName>> {
        let prefix = path.prefix();
        let failed = |e| self.error(e, "list", &prefix).at(Stage::Keys);
        let parsed = |object: &Path| path.target().parse_rewrap(object).map(|(_, name)| name);
        let listing = self.store().list(Some(&prefix)).map_err(failed);
        let named = listing.try_filter_map(|object| std::future::ready(Ok(parsed(&object.location))));
        let mut names: Vec<RewrapName> = named.try_collect().await?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }
}

/// A rewrap as it is stored; nothing proves what it says.
#[derive(Debug)]
pub(crate) struct StoredRewrap {
    address: String,
    bytes: bytes::Bytes,
}

impl StoredRewrap {
    /// Reads one; `None` when it is gone.
    pub(crate) async fn read(repository: &Repository, path: &KeyPath, name: &RewrapName) -> Result<Option<Self>> {
        let object = path.rewrap(name);
        let address = repository.address(&object);
        match repository.read_small(&object, REWRAP_LEN_MAX).await {
            Ok(bytes) => Ok(bytes.map(|bytes| Self { address, bytes })),
            // It is there, and it is none.
            Err(e) if e.kind() == ErrorKind::Integrity => Ok(Some(Self { address, bytes: bytes::Bytes::new() })),
            Err(e) => Err(e.at(Stage::Keys)),
        }
    }

    /// What it says.
    ///
    /// # Errors
    /// `Integrity` when it is damaged, is of another key, or needs a later release.
    pub(crate) fn decode(&self, wanted: Wanted<'_>) -> Result<Rewrap> {
        Rewrap::decode(&self.bytes).and_then(|rewrap| is_of(rewrap, wanted)).map_err(|e| self.damaged(e))
    }

    /// What it says, proved: whoever wrote it had the data key.
    ///
    /// # Errors
    /// `Integrity` when it is not authentic, or is of another key.
    pub(crate) fn open(&self, wanted: Wanted<'_>, key: &DataKey) -> Result<Rewrap> {
        Rewrap::open(&self.bytes, key).and_then(|rewrap| is_of(rewrap, wanted)).map_err(|e| self.damaged(e))
    }

    fn damaged(&self, error: FormatError) -> Error {
        Error::integrity(format!("{} is damaged at offset 0", self.address)).at(Stage::Keys).with_source(error)
    }
}

/// The MAC covers the name, too: a rewrap of one target's key is none in the folder of another.
fn is_of(rewrap: Rewrap, wanted: Wanted<'_>) -> Result<Rewrap, FormatError> {
    let found = (rewrap.target.as_str(), rewrap.purpose, rewrap.data_key.as_str());
    if found == (wanted.target, wanted.purpose, wanted.data_key) {
        return Ok(rewrap);
    }
    let (target, purpose, data_key) = found;
    Err(FormatError::Name(format!("data key {data_key} of '{target}' ({purpose:?})")))
}
