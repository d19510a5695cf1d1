//! Recipients and identities that are a passphrase: age's scrypt recipient.
//!
//! A wrap is a binary age file that holds the 32 bytes of the data key, so `age -d` opens it after asking for the passphrase.
//! age allows no other recipient beside a passphrase in one file; each wrap here is a file of its own, so passphrases and keys mix freely.

use std::fmt;
use std::sync::Arc;

use age::secrecy::SecretString;
use age::{DecryptError, scrypt};
use futures::future::BoxFuture;

use super::{EncryptionContext, Identity, Recipient, Wrap};
use crate::encrypt::DataKey;
use crate::error::{Error, ErrorKind, Result, Stage};

/// The kind of a [`Wrap`] made for a [`PassphraseRecipient`].
pub const KIND: &str = "passphrase";

/// log2 of scrypt's cost N when wrapping: 2^17 with r = 8 and p = 1, the least that OWASP recommends for p = 1 (which age fixes).
/// It takes about 0.3 s and, for that time, 128 MiB. age would measure the machine instead, and a fast one
/// would write what a small one cannot read.
const WORK_FACTOR: u8 = 17;

/// The greatest log2 N that is accepted when unwrapping: what `age -p` writes, and 256 MiB. Time and memory double with each
/// step, so without this bound whoever can write to the repository could stop a restore with one number.
const WORK_FACTOR_MAX: u8 = 18;

/// Shorter passphrases are refused when wrapping. No rule makes a passphrase good; this one stops the empty variable.
const PASSPHRASE_LEN_MIN: usize = 8;

#[derive(Clone)]
struct Passphrase(Arc<SecretString>);

impl Passphrase {
    fn new(text: String) -> Self {
        Self(Arc::new(SecretString::from(text)))
    }

    fn secret(&self) -> SecretString {
        SecretString::clone(&self.0)
    }
}

/// Wraps data keys with a passphrase. A host that can write can read, too: prefer an [age recipient](super::age::AgeRecipient).
#[derive(Clone)]
pub struct PassphraseRecipient(Passphrase);

impl PassphraseRecipient {
    /// A recipient for `passphrase`, of at least 8 bytes.
    pub fn new(passphrase: String) -> Result<Self> {
        let len = passphrase.len();
        let passphrase = Passphrase::new(passphrase);
        if len < PASSPHRASE_LEN_MIN {
            return Err(Error::new(ErrorKind::Config, Stage::Keys, "the passphrase is too short")
                .with_hint(format!("give at least {PASSPHRASE_LEN_MIN} characters, better several random words")));
        }
        Ok(Self(passphrase))
    }
}

impl fmt::Debug for PassphraseRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassphraseRecipient")
    }
}

impl Recipient for PassphraseRecipient {
    fn describe(&self) -> (&'static str, String) {
        (KIND, KIND.to_owned())
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, _: &'a EncryptionContext) -> BoxFuture<'a, Result<Wrap>> {
        let (passphrase, key) = (self.0.clone(), key.clone());
        Box::pin(off_the_async_threads(move || {
            let mut recipient = scrypt::Recipient::new(passphrase.secret());
            recipient.set_work_factor(WORK_FACTOR);
            let wrap = age::encrypt(&recipient, key.expose()).map_err(|e| {
                Error::new(ErrorKind::Key, Stage::Keys, "could not wrap the data key with the passphrase")
                    .with_source(e)
            })?;
            Ok(Wrap { kind: KIND.to_owned(), recipient: KIND.to_owned(), wrap })
        }))
    }
}

/// Unwraps data keys with a passphrase.
#[derive(Clone)]
pub struct PassphraseIdentity(Passphrase);

impl PassphraseIdentity {
    /// An identity for `passphrase`.
    pub fn new(passphrase: String) -> Self {
        Self(Passphrase::new(passphrase))
    }
}

impl fmt::Debug for PassphraseIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassphraseIdentity")
    }
}

impl Identity for PassphraseIdentity {
    fn is_costly(&self, wrap: &Wrap) -> bool {
        wrap.kind == KIND
    }

    /// As for every identity. A wrong passphrase cannot be told from a wrap made with another one: both are `Ok(None)`.
    fn unwrap<'a>(&'a self, wrap: &'a Wrap, _: &'a EncryptionContext) -> BoxFuture<'a, Result<Option<DataKey>>> {
        if wrap.kind != KIND {
            return Box::pin(async { Ok(None) });
        }
        let (passphrase, wrap) = (self.0.clone(), wrap.wrap.clone());
        Box::pin(off_the_async_threads(move || {
            let mut identity = scrypt::Identity::new(passphrase.secret());
            identity.set_max_work_factor(WORK_FACTOR_MAX);
            match super::age::open(&wrap, std::iter::once(&identity as &dyn age::Identity)) {
                Ok(key) => Ok(Some(key)),
                Err(
                    DecryptError::NoMatchingKeys | DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed,
                ) => Ok(None),
                // Not shown with age's own words: they are computed by a shift that overflows for such numbers.
                Err(DecryptError::ExcessiveWork { required, .. }) => {
                    let message = format!(
                        "opening the data key with a passphrase would cost 2^{required} rounds, more than 2^{WORK_FACTOR_MAX}"
                    );
                    Err(Error::new(ErrorKind::Integrity, Stage::Keys, message))
                }
                Err(e) => {
                    let message = "the data key wrapped with a passphrase is damaged";
                    Err(Error::new(ErrorKind::Integrity, Stage::Keys, message).with_source(e))
                }
            }
        }))
    }
}

/// scrypt keeps a core busy for a good part of a second. Cancel safe: a job that nobody waits for runs to its end and is forgotten.
async fn off_the_async_threads<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(job)
        .await
        .unwrap_or_else(|e| Err(Error::internal(Stage::Keys, "the passphrase job did not finish").with_source(e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::age::AgeIdentity;
    use crate::keys::{unwrap_any, wrap_for_all};

    fn context() -> EncryptionContext {
        EncryptionContext::of_backup(&"app".parse().unwrap())
    }

    #[tokio::test]
    async fn passphrases_and_keys_mix_and_each_opens_alone() {
        let key = DataKey::generate();
        let age = AgeIdentity::generate();
        let recipients: Vec<Arc<dyn Recipient>> = vec![
            Arc::new(PassphraseRecipient::new("correct horse".to_owned()).unwrap()),
            Arc::new(age.recipients().remove(0)),
            Arc::new(PassphraseRecipient::new("battery staple".to_owned()).unwrap()),
        ];
        let wraps = wrap_for_all(&key, &context(), &recipients).await.unwrap();
        assert_eq!((wraps[0].kind.as_str(), wraps[0].recipient.as_str()), ("passphrase", "passphrase"));
        let identities: [Arc<dyn Identity>; 3] = [
            Arc::new(PassphraseIdentity::new("correct horse".to_owned())),
            Arc::new(PassphraseIdentity::new("battery staple".to_owned())),
            Arc::new(age),
        ];
        for identity in identities {
            assert_eq!(unwrap_any(&key.id(), &wraps, &context(), &[identity]).await.unwrap(), key);
        }

        let wrong = Arc::new(PassphraseIdentity::new("incorrect horse".to_owned()));
        assert!(wrong.unwrap(&wraps[0], &context()).await.unwrap().is_none());
        let error = unwrap_any(&key.id(), &wraps, &context(), &[wrong]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Key);
        assert!(error.hint().unwrap().contains("passphrase"), "{:?}", error.hint());
    }

    #[tokio::test]
    async fn a_header_that_asks_for_hours_of_work_is_refused_at_once() {
        let recipient = PassphraseRecipient::new("correct horse".to_owned()).unwrap();
        let mut wrap = recipient.wrap(&DataKey::generate(), &context()).await.unwrap();
        let at = wrap.wrap.windows(4).position(|w| w == b" 17\n").unwrap();
        let identity = PassphraseIdentity::new("correct horse".to_owned());
        for factor in ["19", "63", "64", "99"] {
            wrap.wrap[at + 1..at + 3].copy_from_slice(factor.as_bytes());
            let error = identity.unwrap(&wrap, &context()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity);
            assert!(error.to_string().contains(factor), "{error}");
        }
    }

    #[test]
    fn passphrases_do_not_show_and_are_not_empty() {
        let recipient = PassphraseRecipient::new("correct horse".to_owned()).unwrap();
        let identity = PassphraseIdentity::new("correct horse".to_owned());
        assert!(!format!("{recipient:?} {identity:?}").contains("horse"));
        assert_eq!(PassphraseRecipient::new(String::new()).unwrap_err().kind(), ErrorKind::Config);
    }
}
