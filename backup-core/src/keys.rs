//! Recipients wrap a backup's data key, identities unwrap it.
//!
//! Every backup has a random 256-bit [`DataKey`]. It is wrapped once for each [`Recipient`]; each wrap is an entry of its own in the
//! header of every volume, so any one identity opens the backup, and a host that only holds recipients can write and not read.

use std::fmt;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};

pub mod age;
pub mod passphrase;
pub mod policy;
mod signing;

/// A data key wrapped for one recipient, as it stands in a volume header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrap {
    /// Which kind of recipient: `age`, `passphrase`. Readers skip kinds that they do not know.
    pub kind: String,
    /// The recipient in public form, for people and for choosing an identity: `age1…`.
    pub recipient: String,
    /// The wrapped key, in the form of its kind.
    #[serde(with = "crate::format::base64_bytes")]
    pub wrap: Vec<u8>,
}

/// Something a data key can be wrapped for. Needs no secret, except for passphrases.
pub trait Recipient: Send + Sync + fmt::Debug {
    /// The kind and public form, `("age", "age1…")`.
    fn describe(&self) -> (&'static str, String);

    /// Wraps `key`. Errors are of kind [`ErrorKind::Key`], or [`ErrorKind::Unavailable`] when a key service could not be reached.
    fn wrap<'a>(&'a self, key: &'a DataKey) -> BoxFuture<'a, Result<Wrap>>;
}

/// Something that can unwrap data keys.
pub trait Identity: Send + Sync + fmt::Debug {
    /// Unwraps `wrap`; `Ok(None)` when it was made for somebody else or is of another kind.
    /// An error when it was made for this identity and cannot be opened.
    fn unwrap<'a>(&'a self, wrap: &'a Wrap) -> BoxFuture<'a, Result<Option<DataKey>>>;
}

/// Wraps `key` for all `recipients`; at least one is demanded.
pub async fn wrap_for_all(key: &DataKey, recipients: &[std::sync::Arc<dyn Recipient>]) -> Result<Vec<Wrap>> {
    if recipients.is_empty() {
        return Err(no_recipient());
    }
    let mut wraps = Vec::with_capacity(recipients.len());
    for recipient in recipients {
        wraps.push(recipient.wrap(key).await?);
    }
    Ok(wraps)
}

/// Finds the data key with the id `data_key_id` among `wraps`, with any of `identities`.
///
/// An unwrapped key whose id differs is refused: the wrap belongs to another backup.
pub async fn unwrap_any(
    data_key_id: &str,
    wraps: &[Wrap],
    identities: &[std::sync::Arc<dyn Identity>],
) -> Result<DataKey> {
    let mut first_failure = None;
    for wrap in wraps {
        for identity in identities {
            match identity.unwrap(wrap).await {
                Ok(Some(key)) if key.id() == data_key_id => return Ok(key),
                Ok(Some(_)) => {
                    first_failure.get_or_insert_with(|| {
                        Error::new(ErrorKind::Integrity, Stage::Keys, "a wrapped data key belongs to another backup")
                    });
                }
                Ok(None) => {}
                Err(e) => {
                    first_failure.get_or_insert(e);
                }
            }
        }
    }
    Err(first_failure.unwrap_or_else(|| none_opens(wraps, identities.is_empty())))
}

pub(crate) fn no_recipient() -> Error {
    Error::new(ErrorKind::Key, Stage::Keys, "no recipient to encrypt to")
        .with_hint("name one with --recipient or BACKUP_RECIPIENTS, or run 'backup init' to make a key")
}

/// The error of a key that nobody here can unwrap; it names those who could.
pub(crate) fn none_opens(wraps: &[Wrap], no_identity: bool) -> Error {
    let mut who: Vec<String> = Vec::new();
    for wrap in wraps {
        let name = format!("{} {}", wrap.kind, wrap.recipient);
        if !who.contains(&name) {
            who.push(name);
        }
    }
    let message = if no_identity {
        "no identity was given to decrypt with"
    } else {
        "none of the given identities can open this backup"
    };
    Error::new(ErrorKind::Key, Stage::Keys, message)
        .with_hint(format!("it was encrypted to: {}; name an identity file with --identity-file", who.join(", ")))
}
