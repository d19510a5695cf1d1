//! Recipients and identities of [age](https://age-encryption.org): X25519 keys, in age's own file formats.
//!
//! A wrap is a binary age file for one recipient that holds the 32 bytes of the data key, so `age -d -i key.txt` opens it.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use age::{DecryptError, x25519};
use futures::future::BoxFuture;
use zeroize::Zeroizing;

use super::secret::read_private_file;
use super::{EncryptionContext, Identity, Recipient, Wrap};
use crate::clock::Clock;
use crate::durable;
use crate::encrypt::{DATA_KEY_LEN, DataKey};
use crate::error::{Error, ErrorKind, Result, Stage};

/// The kind of a [`Wrap`] made for an [`AgeRecipient`].
pub const KIND: &str = "age";

/// An identity file holds a line for each key; a larger file is something else.
const IDENTITY_FILE_MAX: usize = 64 * 1024;

/// The public half of an age key, `age1…`: a host that has only this can write backups and not read them.
#[derive(Clone)]
pub struct AgeRecipient(x25519::Recipient);

impl FromStr for AgeRecipient {
    type Err = Error;

    /// Parses `age1…`. Never repeats what it was given: people paste secret keys by mistake.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(Error::config("this is a secret key, not a recipient").with_hint(
                "give the public key 'age1…' that stands beside it in the identity file; treat the secret key as exposed",
            ));
        }
        text.parse().map(Self).map_err(|reason: &str| {
            Error::config(format!("not an age recipient: {reason}"))
                .with_hint("a recipient looks like 'age1…', as 'age-keygen -y key.txt' prints it")
        })
    }
}

impl fmt::Display for AgeRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for AgeRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgeRecipient({self})")
    }
}

impl Recipient for AgeRecipient {
    fn describe(&self) -> (&'static str, String) {
        (KIND, self.to_string())
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, _: &'a EncryptionContext) -> BoxFuture<'a, Result<Wrap>> {
        Box::pin(async move {
            let wrap = age::encrypt(&self.0, key.expose()).map_err(|e| {
                Error::new(ErrorKind::Key, Stage::Keys, format!("could not wrap the data key for {self}"))
                    .with_source(e)
            })?;
            Ok(Wrap { kind: KIND.to_owned(), recipient: self.to_string(), wrap })
        })
    }
}

/// The secret keys of one age identity file. `Debug` shows their public halves.
#[derive(Clone)]
pub struct AgeIdentity(Vec<x25519::Identity>);

impl AgeIdentity {
    /// A new key from the system's random source.
    pub fn generate() -> Self {
        Self(vec![x25519::Identity::generate()])
    }

    /// Reads an identity file. Blocks; the file is at most 64 KiB.
    ///
    /// A file that others could read is refused: what it protects is not protected.
    ///
    /// # Errors
    /// Of kind [`ErrorKind::Key`], when the file cannot be read, is open to others, or holds anything else than age keys.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_private_file(path, "identity file", IDENTITY_FILE_MAX)?;
        parse_identities(&text).map_err(|reason| reason.in_file(path))
    }

    /// The public halves, in the order of the file.
    pub fn recipients(&self) -> Vec<AgeRecipient> {
        self.0.iter().map(|identity| AgeRecipient(identity.to_public())).collect()
    }

    /// The identity file, as `age-keygen` would write it at the time that `clock` tells.
    pub fn to_file_text(&self, clock: &dyn Clock) -> Zeroizing<String> {
        let created = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut text = Zeroizing::new(format!("# created: {created}\n"));
        for identity in &self.0 {
            text.push_str(&format!("# public key: {}\n", identity.to_public()));
            text.push_str(identity.to_string().expose_secret());
            text.push('\n');
        }
        text
    }

    /// Writes the identity file to `path`, which must not exist: mode 0600, made durable, missing directories made with mode 0700.
    /// Blocks.
    pub fn create_file(&self, path: &Path, clock: &dyn Clock) -> Result<()> {
        durable::create_private_file(path, self.to_file_text(clock).as_bytes()).map_err(|e| {
            let exists = e.kind() == std::io::ErrorKind::AlreadyExists;
            let message = format!("could not create the identity file {}", path.display());
            let error = Error::new(ErrorKind::Key, Stage::Keys, message).with_source(e);
            if exists {
                error.with_hint(
                    "a key is never overwritten, since backups may need it; move that file away or choose another name",
                )
            } else {
                error
            }
        })
    }

    fn unwrap_now(&self, wrap: &Wrap) -> Result<Option<DataKey>> {
        if wrap.kind != KIND {
            return Ok(None);
        }
        let names_us = self.0.iter().any(|identity| identity.to_public().to_string() == wrap.recipient);
        match open(&wrap.wrap, self.0.iter().map(|identity| identity as &dyn age::Identity)) {
            Ok(key) => Ok(Some(key)),
            Err(e) if names_us => {
                let message = format!("the data key wrapped for {} is damaged", wrap.recipient);
                Err(Error::new(ErrorKind::Integrity, Stage::Keys, message).with_source(e))
            }
            Err(_) => Ok(None),
        }
    }
}

impl FromStr for AgeIdentity {
    type Err = Error;

    /// Parses the text of an identity file: one key a line, empty lines and `#` comments between them.
    fn from_str(text: &str) -> Result<Self> {
        parse_identities(text).map_err(|reason| reason.in_text())
    }
}

impl fmt::Debug for AgeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AgeIdentity").field(&self.recipients()).finish()
    }
}

impl Identity for AgeIdentity {
    fn is_costly(&self, _: &Wrap) -> bool {
        false
    }

    fn unwrap<'a>(&'a self, wrap: &'a Wrap, _: &'a EncryptionContext) -> BoxFuture<'a, Result<Option<DataKey>>> {
        Box::pin(async move { self.unwrap_now(wrap) })
    }
}

/// Opens a binary age file that holds exactly one data key.
pub(super) fn open<'a>(
    file: &[u8],
    identities: impl Iterator<Item = &'a dyn age::Identity>,
) -> Result<DataKey, DecryptError> {
    let mut reader = age::Decryptor::new_buffered(file)?.decrypt(identities)?;
    let mut key = Zeroizing::new([0; DATA_KEY_LEN]);
    reader.read_exact(&mut *key)?;
    if reader.read(&mut [0])? != 0 {
        return Err(DecryptError::DecryptionFailed);
    }
    Ok(DataKey::from_bytes(*key))
}

/// Why a text is not an identity file. Never quotes the text.
struct NotAnIdentity {
    reason: String,
    hint: &'static str,
}

fn not_an_identity(reason: &str) -> NotAnIdentity {
    NotAnIdentity {
        reason: reason.to_owned(),
        hint: "an identity file holds lines 'AGE-SECRET-KEY-1…', as 'age-keygen' writes them",
    }
}

impl NotAnIdentity {
    fn in_file(self, path: &Path) -> Error {
        let message = format!("{} is not a usable age identity file: {}", path.display(), self.reason);
        Error::new(ErrorKind::Key, Stage::Keys, message).with_hint(self.hint)
    }

    fn in_text(self) -> Error {
        let message = format!("not a usable age identity: {}", self.reason);
        Error::new(ErrorKind::Key, Stage::Keys, message).with_hint(self.hint)
    }
}

fn parse_identities(text: &str) -> Result<AgeIdentity, NotAnIdentity> {
    if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE ENCRYPTED FILE") {
        return Err(NotAnIdentity {
            reason: "it is protected by a passphrase".to_owned(),
            hint: "decrypt it first: age -d -o key.txt protected-key.txt, then chmod 600 key.txt",
        });
    }
    let mut identities = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let identity = line.parse().map_err(|_| not_an_identity(&format!("line {number} holds {}", what_is(line))))?;
        identities.push(identity);
    }
    if identities.is_empty() {
        return Err(not_an_identity("it holds no key"));
    }
    Ok(AgeIdentity(identities))
}

fn what_is(line: &str) -> &'static str {
    if line.starts_with("AGE-PLUGIN-") {
        "the key of an age plugin, which is not supported"
    } else if line.starts_with("AGE-SECRET-KEY-PQ-") {
        "a post-quantum key, which is not supported"
    } else if line.starts_with("AGE-SECRET-KEY-") {
        "a mistyped or truncated key"
    } else if line.starts_with("age1") {
        "a public key, not a secret one"
    } else if line.starts_with("-----BEGIN") || line.starts_with("ssh-") {
        "an SSH or PEM key, which is not supported"
    } else {
        "something else than a key"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;
    use crate::keys::{unwrap_any, wrap_for_all};

    fn context() -> EncryptionContext {
        EncryptionContext::of_backup(&"app".parse().unwrap())
    }

    #[tokio::test]
    async fn each_of_several_recipients_opens_alone() {
        let key = DataKey::generate();
        let identities = [AgeIdentity::generate(), AgeIdentity::generate(), AgeIdentity::generate()];
        let recipients: Vec<Arc<dyn Recipient>> =
            identities.iter().map(|i| Arc::new(i.recipients().remove(0)) as Arc<dyn Recipient>).collect();
        let wraps = wrap_for_all(&key, &context(), &recipients).await.unwrap();
        assert_eq!(wraps.len(), 3);
        for identity in identities {
            let opened = unwrap_any(&key.id(), &wraps, &context(), &[Arc::new(identity)]).await.unwrap();
            assert_eq!(opened, key);
        }
    }

    #[tokio::test]
    async fn a_stranger_opens_nothing_and_learns_who_can() {
        let key = DataKey::generate();
        let recipient = AgeIdentity::generate().recipients().remove(0);
        let wraps = [recipient.wrap(&key, &context()).await.unwrap()];
        let stranger = AgeIdentity::generate();
        assert!(stranger.unwrap(&wraps[0], &context()).await.unwrap().is_none());
        let error = unwrap_any(&key.id(), &wraps, &context(), &[Arc::new(stranger)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Key);
        assert!(error.hint().unwrap().contains(&recipient.to_string()), "{:?}", error.hint());
        let error = unwrap_any(&key.id(), &wraps, &context(), &[]).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Key, "no identity was given to decrypt with")
        );
    }

    #[tokio::test]
    async fn a_damaged_wrap_is_reported_by_the_identity_that_it_was_made_for() {
        let key = DataKey::generate();
        let identity = AgeIdentity::generate();
        let whole = identity.recipients()[0].wrap(&key, &context()).await.unwrap();
        for at in 0..whole.wrap.len() {
            let mut damaged = whole.clone();
            damaged.wrap[at] ^= 1;
            let error = identity.unwrap(&damaged, &context()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity, "byte {at}");
            assert!(AgeIdentity::generate().unwrap(&damaged, &context()).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_wrap_of_something_else_than_a_key_is_refused() {
        let identity = AgeIdentity::generate();
        let recipient = identity.recipients().remove(0);
        for len in [0, DATA_KEY_LEN - 1, DATA_KEY_LEN + 1] {
            let wrap = age::encrypt(&recipient.0, &vec![7; len]).unwrap();
            let wrap = Wrap { kind: KIND.to_owned(), recipient: recipient.to_string(), wrap };
            assert_eq!(identity.unwrap(&wrap, &context()).await.unwrap_err().kind(), ErrorKind::Integrity);
        }
    }

    #[test]
    fn identity_files_round_trip_with_comments_and_several_keys() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("backup/key.txt");
        let identity = AgeIdentity::generate();
        identity.create_file(&path, &SystemClock).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("# created: 2") && lines[0].ends_with('Z'), "{}", lines[0]);
        assert_eq!(lines[1], format!("# public key: {}", identity.recipients()[0]));
        assert!(lines[2].starts_with("AGE-SECRET-KEY-1"));
        assert_eq!(format!("{:?}", AgeIdentity::load(&path).unwrap()), format!("{identity:?}"));
        let error = identity.create_file(&path, &SystemClock).unwrap_err();
        assert!(error.hint().unwrap().contains("never overwritten"));

        let other = AgeIdentity::generate();
        let both = format!("\n# mine\r\n{}\r\n\n{}", &*text, &*other.to_file_text(&SystemClock));
        assert_eq!(both.parse::<AgeIdentity>().unwrap().recipients().len(), 2);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key.txt");
        AgeIdentity::generate().create_file(&path, &SystemClock).unwrap();
        for mode in [0o640, 0o604, 0o644] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = AgeIdentity::load(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Key);
            assert_eq!(error.hint().unwrap(), format!("chmod 600 {}", path.display()));
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        AgeIdentity::load(&path).unwrap();
    }

    #[test]
    fn what_is_not_an_identity_is_named_and_never_quoted() {
        let secret = AgeIdentity::generate().0[0].to_string();
        let truncated = &secret.expose_secret()[..40];
        for (text, expected) in [
            ("", "holds no key"),
            ("# only a comment\n", "holds no key"),
            (truncated, "mistyped or truncated"),
            ("age1abc", "a public key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", "SSH"),
            ("-----BEGIN AGE ENCRYPTED FILE-----\n", "passphrase"),
            ("age-encryption.org/v1\n-> scrypt", "passphrase"),
        ] {
            let error = text.parse::<AgeIdentity>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Key);
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!format!("{error:?}").contains(&truncated[16..]), "{error:?}");
        }
        let error = secret.expose_secret().parse::<AgeRecipient>().unwrap_err();
        assert!(!format!("{error:?}").contains(truncated), "{error:?}");
        assert!("age1abc".parse::<AgeRecipient>().is_err());
    }

    #[test]
    fn secrets_do_not_show() {
        let identity = AgeIdentity::generate();
        assert!(!format!("{identity:?}").contains("SECRET"));
    }
}
