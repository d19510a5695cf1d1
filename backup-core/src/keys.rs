//! Recipients wrap a backup's data key, identities unwrap it.
//!
//! Every backup has a random 256-bit [`DataKey`]. It is wrapped once for each [`Recipient`]; each wrap is an entry of its own in the
//! header of every volume, so any one identity opens the backup, and a host that only holds recipients can write and not read.

use std::fmt;
use std::sync::Arc;

use futures::future::{BoxFuture, try_join_all};
use serde::{Deserialize, Serialize};

use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{ObjectName, Purpose};
use crate::http::HttpOptions;
use crate::repository::layout::TargetName;

pub mod age;
#[cfg(feature = "kms")]
pub mod kms;
pub mod passphrase;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod policy;
pub mod secret;
mod signing;

/// What a data key is for. Recipients whose kind can do so bind their wraps to it, so that whoever may use a key of a key service or an HSM
/// can be held to one target there. It is the same in every repository: a copy opens as the original does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EncryptionContext {
    target: String,
    purpose: Purpose,
}

impl EncryptionContext {
    /// Of a backup of `target`.
    pub fn of_backup(target: &TargetName) -> Self {
        Self::new(target.as_str(), Purpose::Backup)
    }

    /// Of the write-ahead log of `target`.
    pub fn of_wal(target: &TargetName) -> Self {
        Self::new(target.as_str(), Purpose::Wal)
    }

    /// Of the object with this name.
    pub fn of(name: &ObjectName) -> Self {
        let (target, purpose) = name.target_and_purpose();
        Self::new(target, purpose)
    }

    pub(crate) fn new(target: &str, purpose: Purpose) -> Self {
        Self { target: target.to_owned(), purpose }
    }

    /// The target's name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// `backup` or `wal`.
    pub fn purpose(&self) -> &'static str {
        match self.purpose {
            Purpose::Backup => "backup",
            Purpose::Wal => "wal",
        }
    }
}

/// A data key wrapped for one recipient, as it stands in a volume header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrap {
    /// Which kind of recipient: `age`, `passphrase`, `kms`, `pkcs11`. Readers skip kinds that they do not know.
    pub kind: String,
    /// The recipient in public form, for people and for choosing an identity: `age1…`, `kms:arn:…`.
    pub recipient: String,
    /// The wrapped key, in the form of its kind.
    #[serde(with = "crate::format::base64_bytes")]
    pub wrap: Vec<u8>,
}

/// Something a data key can be wrapped for. Needs no secret, except for passphrases.
pub trait Recipient: Send + Sync + fmt::Debug {
    /// The kind and public form, `("age", "age1…")`. A wrap may name its recipient more precisely: the key instead of its alias.
    fn describe(&self) -> (&'static str, String);

    /// Whether wraps call it what [`describe`](Self::describe) does, today and tomorrow. An alias of a key service is not stable, for who keeps
    /// account of keys.
    fn is_stable(&self) -> bool {
        true
    }

    /// Wraps `key`, which is for `context`. Asks a key service at most once, so do it once for a key. Cancel safe.
    ///
    /// Errors are of kind [`ErrorKind::Key`], [`ErrorKind::Unavailable`] when a key service could not be reached, and
    /// [`ErrorKind::Config`] when it knows the caller not at all.
    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Wrap>>;
}

/// Something that can unwrap data keys.
pub trait Identity: Send + Sync + fmt::Debug {
    /// Unwraps `wrap`, which was found where `context` says; `Ok(None)` when it was made for somebody else or is of another kind.
    /// An error when it was made for this identity and cannot be opened. Cancel safe.
    fn unwrap<'a>(&'a self, wrap: &'a Wrap, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Option<DataKey>>>;

    /// Whether unwrapping `wrap` asks somebody (a key service, a token, a person) or takes long by design. Readers try any number of
    /// [rewraps](crate::repository::rewrap), which whoever can write to the repository may have put there, but only 64 wraps that are costly to
    /// one identity. An identity that turns most wraps down without asking should say so here.
    fn is_costly(&self, _wrap: &Wrap) -> bool {
        true
    }
}

/// Reads a recipient of any kind that is given as text: `age1…`, `kms:arn:…`, `pkcs11:…`. Asks nobody.
///
/// # Errors
/// `Config` when it is none, or of a kind that this build leaves out. Never repeats what it was given: people paste secrets by mistake.
pub fn parse_recipient(text: &str) -> Result<Arc<dyn Recipient>> {
    parse_recipient_with(text, &HttpOptions::default())
}

/// [`parse_recipient`] for who does not reach key services in the usual way.
///
/// # Errors
/// The same.
pub fn parse_recipient_with(text: &str, http: &HttpOptions) -> Result<Arc<dyn Recipient>> {
    match parse_key_elsewhere(text, http)? {
        Some(key) => Ok(key),
        None => Ok(Arc::new(text.parse::<age::AgeRecipient>()?)),
    }
}

/// Reads an identity that is no secret, only the name of a key elsewhere: `kms:arn:…`, `pkcs11:…`. Asks nobody. Those of age are in files
/// ([`AgeIdentity::load`](age::AgeIdentity::load)).
///
/// # Errors
/// As those of [`parse_recipient`].
pub fn parse_identity(text: &str) -> Result<Arc<dyn Identity>> {
    parse_identity_with(text, &HttpOptions::default())
}

/// [`parse_identity`] for who does not reach key services in the usual way.
///
/// # Errors
/// The same.
pub fn parse_identity_with(text: &str, http: &HttpOptions) -> Result<Arc<dyn Identity>> {
    match parse_key_elsewhere(text, http)? {
        Some(key) => Ok(key),
        None => Err(Error::config("an identity that is not in a file is 'kms:arn:…' or 'pkcs11:…'")
            .with_hint("a secret key of age is named by its file, with --identity-file or BACKUP_IDENTITY_FILE")),
    }
}

/// A key that never leaves where it is: to name it is enough for both ways.
trait KeyElsewhere: Recipient + Identity {}
#[cfg(feature = "kms")]
impl KeyElsewhere for kms::KmsKey {}
#[cfg(feature = "pkcs11")]
impl KeyElsewhere for pkcs11::Pkcs11Key {}

/// `None` for a text of another kind.
#[cfg_attr(not(feature = "kms"), expect(unused_variables, reason = "what is reached by HTTP is left out"))]
fn parse_key_elsewhere(text: &str, http: &HttpOptions) -> Result<Option<Arc<dyn KeyElsewhere>>> {
    match kind_of(text) {
        #[cfg(feature = "kms")]
        "kms" => Ok(Some(Arc::new(text.parse::<kms::KmsKey>()?.with_http_options(http)))),
        #[cfg(feature = "pkcs11")]
        "pkcs11" => Ok(Some(Arc::new(text.parse::<pkcs11::Pkcs11Key>()?))),
        #[cfg(not(feature = "kms"))]
        "kms" => Err(left_out("kms")),
        #[cfg(not(feature = "pkcs11"))]
        "pkcs11" => Err(left_out("pkcs11")),
        _ => Ok(None),
    }
}

/// What hosts that only write are given of the key `text`: an `age1…` or `kms:arn:…` as it is; of a `pkcs11:…` what its token says, with the
/// public half if it has one. Asks the token. Cancel safe.
///
/// # Errors
/// As those of [`parse_recipient`], and those of the token.
pub async fn public_recipient(text: &str) -> Result<String> {
    #[cfg(feature = "pkcs11")]
    if kind_of(text) == "pkcs11" {
        return Ok(text.parse::<pkcs11::Pkcs11Key>()?.public_recipient().await?.describe().1);
    }
    Ok(parse_recipient(text)?.describe().1)
}

/// A recipient or an identity as it may be shown, whether it is one or not: of a key on a token without the command that prints the PIN, since people
/// put secrets into commands.
pub fn shown(text: &str) -> String {
    let Some((key, query)) = text.split_once('?').filter(|_| kind_of(text) == "pkcs11") else { return text.to_owned() };
    let harmless = |part: &&str| match part.split_once('=') {
        Some(("module-path" | "public-key", _)) => true,
        Some(("pin-source", source)) => source.starts_with('/') || source.starts_with("file:"),
        _ => false,
    };
    let kept: Vec<&str> = query.split('&').filter(harmless).collect();
    if kept.is_empty() { key.to_owned() } else { format!("{key}?{}", kept.join("&")) }
}

fn kind_of(text: &str) -> &str {
    text.trim().split_once(':').map_or("age", |(kind, _)| kind)
}

#[cfg(not(all(feature = "kms", feature = "pkcs11")))]
fn left_out(kind: &str) -> Error {
    Error::config(format!("this build has no support for keys of the kind '{kind}'"))
        .with_hint(format!("build it with the feature '{kind}'"))
}

/// Wraps `key`, which is for `context`, for all `recipients` at once; at least one is demanded, and one that fails fails all. Cancel safe.
pub async fn wrap_for_all(
    key: &DataKey,
    context: &EncryptionContext,
    recipients: &[Arc<dyn Recipient>],
) -> Result<Vec<Wrap>> {
    if recipients.is_empty() {
        return Err(no_recipient());
    }
    try_join_all(recipients.iter().map(|recipient| recipient.wrap(key, context))).await
}

/// Finds the data key with the id `data_key_id` among `wraps`, which were found where `context` says, with any of `identities`.
///
/// The identities are asked in their order, so name those first that need no network. One that fails does not keep the next from
/// being asked. An unwrapped key whose id differs is refused: the wrap belongs to another backup. Cancel safe.
pub async fn unwrap_any(
    data_key_id: &str,
    wraps: &[Wrap],
    context: &EncryptionContext,
    identities: &[Arc<dyn Identity>],
) -> Result<DataKey> {
    let mut any = Budget::new(identities, usize::MAX);
    unwrap_within(&mut any, data_key_id, wraps, context, identities)
        .await
        .map_err(|failures| failures.into_iter().next().unwrap_or_else(|| none_opens(wraps, identities.is_empty())))
}

/// How many more wraps that are costly to it each of some identities is asked to unwrap.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Vec<usize>,
    /// Whether there was one more.
    pub(crate) is_exceeded: bool,
}

impl Budget {
    pub(crate) fn new(identities: &[Arc<dyn Identity>], each: usize) -> Self {
        Self { left: vec![each; identities.len()], is_exceeded: false }
    }

    fn spend(&mut self, identity: usize) -> bool {
        let left = self.left.get_mut(identity).filter(|left| **left > 0);
        self.is_exceeded |= left.is_none();
        left.map(|left| *left -= 1).is_some()
    }
}

/// As [`unwrap_any`], within `budget`, which is that of `identities`. The error is every failure of somebody for whom a wrap was made, in their order.
pub(crate) async fn unwrap_within(
    budget: &mut Budget,
    data_key_id: &str,
    wraps: &[Wrap],
    context: &EncryptionContext,
    identities: &[Arc<dyn Identity>],
) -> Result<DataKey, Vec<Error>> {
    let mut failures = Vec::new();
    for (i, identity) in identities.iter().enumerate() {
        for wrap in wraps {
            if identity.is_costly(wrap) && !budget.spend(i) {
                continue;
            }
            match identity.unwrap(wrap, context).await {
                Ok(Some(key)) if key.id() == data_key_id => return Ok(key),
                Ok(Some(_)) => {
                    let message = "a wrapped data key belongs to another backup";
                    failures.push(Error::new(ErrorKind::Integrity, Stage::Keys, message));
                }
                Ok(None) => {}
                Err(e) => failures.push(e),
            }
        }
    }
    Err(failures)
}

fn key_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Key, Stage::Keys, message)
}

pub(crate) fn no_recipient() -> Error {
    Error::new(ErrorKind::Key, Stage::Keys, "no recipient to encrypt to")
        .with_hint("name one with --recipient or BACKUP_RECIPIENTS, or run 'backup init' to make a key")
}

const NO_IDENTITY: &str = "no identity was given to decrypt with";
const NONE_OPENS: &str = "none of the given identities can open this backup";

/// Whether that was for others, and not that somebody here failed to unwrap it: a key service that denies, a wrong PIN.
pub(crate) fn is_for_others(error: &Error) -> bool {
    error.kind() == ErrorKind::Key && [NO_IDENTITY, NONE_OPENS].contains(&error.to_string().as_str())
}

/// The error of a key that nobody here can unwrap; it names those who could.
pub(crate) fn none_opens(wraps: &[Wrap], no_identity: bool) -> Error {
    let mut who: Vec<String> = Vec::new();
    for wrap in wraps {
        // Of the kinds that are known, the recipient tells the kind. What they say comes from the repository, so no line ends.
        let name = match wrap.recipient.starts_with(&wrap.kind) {
            true => wrap.recipient.escape_debug().to_string(),
            false => format!("{} {}", wrap.kind, wrap.recipient).escape_debug().to_string(),
        };
        if !who.contains(&name) {
            who.push(name);
        }
    }
    let message = if no_identity { NO_IDENTITY } else { NONE_OPENS };
    Error::new(ErrorKind::Key, Stage::Keys, message).with_hint(format!(
        "it was encrypted to: {}; any one of them opens it: --identity-file for age, --identity for others",
        who.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_on_a_token_is_shown_without_the_command_that_prints_its_pin() {
        for (text, expected) in [
            ("age1x", "age1x"),
            (
                "kms:arn:aws:kms:x:1:key/1?endpoint=http://127.0.0.1",
                "kms:arn:aws:kms:x:1:key/1?endpoint=http://127.0.0.1",
            ),
            ("pkcs11:object=dr?module-path=/m&pin-source=/p", "pkcs11:object=dr?module-path=/m&pin-source=/p"),
            ("pkcs11:object=dr?pin-source=file:/p", "pkcs11:object=dr?pin-source=file:/p"),
            ("pkcs11:object=dr?pin-source=%7Cecho%20hush&public-key=B", "pkcs11:object=dr?public-key=B"),
            (" pkcs11:object=dr?pin-source=|echo hush", " pkcs11:object=dr"),
            ("pkcs11:object=dr?pin-source=|echo a & echo hush", "pkcs11:object=dr"),
            ("pkcs11:object=dr?pin-source=%7cPIN=hush&pin-value=hush", "pkcs11:object=dr"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }
}
