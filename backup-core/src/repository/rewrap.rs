//! Wrapping the data keys of what is kept again, for the recipients of today: new objects under `keys/`, nothing else is touched.
//!
//! It can end anywhere and be run again, several times at once too: what is wrapped already is seen, and two rewraps of one key are as good as
//! one. It takes nothing away: whoever could open something before still can, with a copy of it and the old identity.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use object_store::PutPayload;

use super::Repository;
use super::census::{Census, Looked, Problem};
use super::layout::{RewrapName, TargetName};
use super::rewraps::{Reached, reached};
use super::sealed::{Opener, Recipients, Sealed, Visit, names, walk};
use crate::clock::{Clock, SystemClock};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{RecipientName, Rewrap, WRAPS_MAX};
use crate::keys::{EncryptionContext, Identity, Recipient, unwrap_any, wrap_for_all};

/// Data keys that are worked on at once, unless set.
const CONCURRENCY: usize = 16;

/// How a [`rewrap`] works. All but the recipients and identities have defaults.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RewrapOptions {
    /// Whom all is wrapped for: the recipients of today.
    pub recipients: Vec<Arc<dyn Recipient>>,
    /// With what the data keys are opened, and, as far as they are those of new recipients, the new wraps, too.
    pub identities: Vec<Arc<dyn Identity>>,
    /// Only find out what there is to do.
    pub dry_run: bool,
    /// Data keys that are worked on at once: 16. A passphrase takes 128 MiB for each.
    pub concurrency: usize,
    /// The clock that times are taken from.
    pub clock: Arc<dyn Clock>,
}

/// What a [`rewrap`] found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Rewrapped {
    /// Data keys that were wrapped again, or would be.
    pub data_keys: u64,
    /// Of those, the ones of which a new wrap was opened with an identity. The others were found as readers do, and are authentic.
    pub proved: u64,
    /// Data keys that had all of these recipients before.
    pub unchanged: u64,
    /// What is kept, as it is afterwards.
    pub census: Census,
}

impl RewrapOptions {
    /// For these recipients, opening with these identities.
    pub fn new(recipients: Vec<Arc<dyn Recipient>>, identities: Vec<Arc<dyn Identity>>) -> Self {
        Self { recipients, identities, dry_run: false, concurrency: CONCURRENCY, clock: Arc::new(SystemClock) }
    }
}

/// Wraps the data keys of all that `targets` keep for the recipients in `options`, where they are not already.
///
/// Everything that was written is looked for as readers do, and a wrap of it opened if one of the identities is that of a new recipient. What cannot be
/// opened, or is hidden behind what others put there, is a [`Problem`] of the census and does not stop the others; no such thing means that all is
/// done, but for what is being written meanwhile.
///
/// # Errors
/// `Key` without a recipient, `Config` with too many, and those of the store and of key services that fail. What was done stays; run it again.
/// Cancel safe, in that sense.
pub async fn rewrap(
    repository: &Repository,
    targets: &[TargetName],
    options: &RewrapOptions,
    looked: &Looked,
) -> Result<Rewrapped> {
    match options.recipients.len() {
        0 => return Err(crate::keys::no_recipient()),
        1..=WRAPS_MAX => {}
        n => return Err(Error::config(format!("{n} recipients are more than {WRAPS_MAX}"))),
    }
    let wanted = match targets.first() {
        Some(target) => names_in_wraps(&options.recipients, target).await?,
        None => Recipients::new(),
    };
    let mut census = Census::default();
    let wrapping = Wrapping {
        repository,
        options,
        wanted,
        opener: Opener::new(&options.identities),
        written: AtomicU64::default(),
        proved: AtomicU64::default(),
        unchanged: AtomicU64::default(),
    };
    for target in targets {
        walk(repository, target, options.concurrency.max(1), &wrapping, looked, &mut census).await?;
    }
    Ok(Rewrapped {
        data_keys: wrapping.written.into_inner(),
        proved: wrapping.proved.into_inner(),
        unchanged: wrapping.unchanged.into_inner(),
        census,
    })
}

/// A recipient by the name that manifests and headers know it by.
pub fn named(recipient: &dyn Recipient) -> RecipientName {
    let (kind, recipient) = recipient.describe();
    RecipientName { kind: kind.to_owned(), recipient }
}

/// What wraps call the recipients: of an alias, the key that it stands for. Found by wrapping a key that is for nothing, so a recipient that
/// fails does so before anything is written.
async fn names_in_wraps(recipients: &[Arc<dyn Recipient>], target: &TargetName) -> Result<Recipients> {
    let wraps = wrap_for_all(&DataKey::generate(), &EncryptionContext::of_backup(target), recipients).await?;
    Ok(names(&wraps).collect())
}

struct Wrapping<'a> {
    repository: &'a Repository,
    options: &'a RewrapOptions,
    wanted: Recipients,
    opener: Opener,
    written: AtomicU64,
    proved: AtomicU64,
    unchanged: AtomicU64,
}

impl Visit for Wrapping<'_> {
    fn visit<'a>(&'a self, sealed: &'a Sealed) -> BoxFuture<'a, Result<Recipients>> {
        Box::pin(self.wrap(sealed))
    }
}

impl Wrapping<'_> {
    async fn wrap(&self, sealed: &Sealed) -> Result<Recipients> {
        let (key, mut has) = self.opener.open(self.repository, sealed).await?;
        let before = self.reached(sealed, &key, &has).await?;
        has.extend(before.recipients);
        if self.wanted.is_subset(&has) {
            self.unchanged.fetch_add(1, Ordering::Relaxed);
            return Ok(has);
        }
        if !self.options.dry_run {
            let name = RewrapName::after(before.newest.as_ref());
            let proved = self.write(sealed, &key, &name, &has).await?;
            self.proved.fetch_add(proved.into(), Ordering::Relaxed);
            has.extend(self.wanted.iter().cloned());
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(has)
    }

    /// Whom readers find it wrapped for besides those in `has`; no more than is wanted.
    async fn reached(&self, sealed: &Sealed, key: &DataKey, has: &Recipients) -> Result<Reached> {
        let enough = |found: &Recipients| self.wanted.iter().all(|name| has.contains(name) || found.contains(name));
        reached(self.repository, &sealed.key, sealed.wanted(), Some(key), enough).await
    }

    /// Wraps `key` for everybody, and finds it as readers do; whether a wrap that is new was opened.
    async fn write(&self, sealed: &Sealed, key: &DataKey, name: &RewrapName, has: &Recipients) -> Result<bool> {
        let rewrap = Rewrap {
            format: 1,
            target: sealed.key.target().to_string(),
            purpose: sealed.purpose,
            data_key: sealed.key.data_key().to_owned(),
            created: self.options.clock.now(),
            wraps: wrap_for_all(key, &sealed.wanted().context(), &self.options.recipients).await?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            critical: Vec::new(),
        };
        let bytes = rewrap.encode(key).map_err(|e| {
            Error::config("the wraps for all recipients together are too long").at(Stage::Keys).with_source(e)
        })?;
        let object = sealed.key.rewrap(name);
        self.repository.put_once(&object, PutPayload::from(bytes)).await?;
        let found = self.reached(sealed, key, has).await?.recipients;
        if !self.wanted.iter().all(|name| has.contains(name) || found.contains(name)) {
            let folder = self.repository.address(&sealed.key.prefix());
            let message = format!(
                "{} was stored, and readers do not find it: what comes before it in {folder} nobody who has the key made, and has to be removed",
                self.repository.address(&object)
            );
            return Err(Error::integrity(message).at(Stage::Keys));
        }
        let mut wraps = rewrap.wraps;
        wraps.retain(|wrap| names(std::slice::from_ref(wrap)).any(|name| !has.contains(&name)));
        match unwrap_any(sealed.key.data_key(), &wraps, &sealed.wanted().context(), self.opener.identities()).await {
            Ok(_) => Ok(true),
            // It is theirs, and does not open: what was written is worth nothing.
            Err(e) if e.kind() == ErrorKind::Integrity => Err(e),
            // Nobody here is a new recipient, or their key service does not let us.
            Err(_) => Ok(false),
        }
    }
}

impl Rewrapped {
    /// What could not be opened or read.
    pub fn problems(&self) -> &[Problem] {
        &self.census.problems
    }
}

#[cfg(test)]
mod tests;
