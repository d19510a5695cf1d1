//! Data keys that were wrapped again, as readers find them: only where the wraps in an object's own header do not open.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;

use super::Repository;
use super::layout::{KeyPath, RewrapName, TargetName};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{FormatError, Purpose, REWRAP_LEN_MAX, Rewrap};
use crate::keys::{EncryptionContext, Identity, Wrap, is_for_others, none_opens, unwrap_any};

/// How many rewraps of one data key are looked at, the newest first. One a year is usual; who can write to the repository can put any number
/// there, and each can ask for a slow passphrase or for a call to a key service.
pub(crate) const REWRAPS_TRIED: usize = 64;

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
/// `failure`, when there is nothing else. When it is that nobody here is among the recipients, it names all for whom the key was wrapped since; and where that
/// cannot be found out, the error of the store. Cancel safe.
pub(crate) async fn open_rewrapped(
    repository: &Repository,
    wanted: Wanted<'_>,
    tried: &[Wrap],
    identities: &[Arc<dyn Identity>],
    failure: Error,
) -> Result<DataKey> {
    let target: Option<TargetName> = wanted.target.parse().ok();
    let Some(path) = target.and_then(|target| target.key(wanted.data_key)) else { return Err(failure) };
    let no_key = failure.kind() == ErrorKind::Key;
    let names = match repository.rewraps(&path).await {
        Ok(names) => names,
        Err(e) => return Err(if no_key { e } else { failure }),
    };
    let mut for_whom = tried.to_vec();
    let mut damaged = None;
    for name in names.iter().take(REWRAPS_TRIED) {
        let stored = match StoredRewrap::read(repository, &path, name).await {
            Ok(Some(stored)) => stored,
            Ok(None) => continue,
            Err(e) => return Err(if no_key { e } else { failure }),
        };
        let opened = match stored.decode(wanted) {
            Ok(rewrap) => {
                let opened = unwrap_any(wanted.data_key, &rewrap.wraps, &wanted.context(), identities).await;
                for_whom.extend(rewrap.wraps);
                opened.and_then(|key| stored.open(wanted, &key).map(|_| key))
            }
            Err(e) => Err(e),
        };
        match opened {
            Ok(key) => return Ok(key),
            Err(e) if e.kind() == ErrorKind::Integrity => {
                tracing::warn!(error = e.in_one_line(), "a rewrap is passed over");
                damaged.get_or_insert(e);
            }
            // Made for others, or a key service does not answer: that may pass.
            Err(e) => tracing::debug!(error = e.in_one_line(), "a rewrap does not open"),
        }
    }
    if !is_for_others(&failure) {
        return Err(failure);
    }
    let error = none_opens(&for_whom, identities.is_empty());
    Err(match damaged {
        Some(damaged) => error.with_source(damaged),
        None => error,
    })
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
