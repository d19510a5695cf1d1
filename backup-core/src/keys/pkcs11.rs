//! Recipients and identities that are keys on a PKCS#11 token: a hardware security module, a smart card, SoftHSM.
//!
//! A key is named by a [`pkcs11:` URI](https://www.rfc-editor.org/rfc/rfc7512). Two kinds of keys will do:
//!
//! - A pair of the curve P-256. Who wraps needs its public half only, which can be a part of the URI (`public-key`): such a host has no module, no
//!   token and no PIN. The data key is sealed by HPKE (RFC 9180); to open it the token makes one ECDH exchange.
//! - An AES key, where the host that writes has the token, too. The token seals by AES-GCM.
//!
//! Both bind the [`EncryptionContext`]. Why not RSA: `docs/decisions/0008-hpke-on-tokens.md`.

mod hpke;
mod token;
mod uri;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cryptoki::types::AuthPin;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::secret::SecretSource;
use super::{EncryptionContext, Identity, Recipient, Wrap, key_error};
use crate::encrypt::{DATA_KEY_LEN, DataKey, TAG_LEN};
use crate::error::{Error, ErrorKind, Result, Stage};
use hpke::SEALED_LEN;
use token::{Connection, NONCE_LEN, Named};
use uri::Uri;

/// The kind of a [`Wrap`] made for a key on a token.
pub const KIND: &str = "pkcs11";

/// The first byte of a wrap: how it was made.
const BY_HPKE: u8 = 1;
const BY_AES_GCM: u8 = 2;
const AES_GCM_LEN: usize = NONCE_LEN + DATA_KEY_LEN + TAG_LEN;

/// Tokens allow some tens of characters.
const PIN_LEN_MAX: usize = 1024;

/// How long a token may take, the PIN's command apart. A call into a module cannot be called back: later ones then wait for it in vain.
const DEADLINE: Duration = Duration::from_secs(30);

/// A key on a token, as a recipient and as an identity.
///
/// The URI names it by `object` or `id`, and its token by `token`, `serial`, `manufacturer` or `model` where there are several. `module-path` is
/// the library of the token's maker, else `BACKUP_PKCS11_MODULE` or `PKCS11_MODULE_PATH`; only a URI that one trusts may name it, since
/// it is loaded. `pin-source` is an absolute path of a file that nobody else can read, or `|` and a shell command, which prints the PIN. A PIN in
/// the URI is refused.
#[derive(Clone)]
pub struct Pkcs11Key(Arc<Inner>);

struct Inner {
    uri: Uri,
    named: OnceCell<Named>,
    pin: OnceCell<AuthPin>,
}

impl FromStr for Pkcs11Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse::<Uri>().map(Self::of)
    }
}

/// What [`FromStr`] reads, without the command that prints the PIN.
impl fmt::Display for Pkcs11Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.uri.fmt(f)
    }
}

impl fmt::Debug for Pkcs11Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pkcs11Key({self})")
    }
}

impl Pkcs11Key {
    fn of(uri: Uri) -> Self {
        Self(Arc::new(Inner { uri, named: OnceCell::new(), pin: OnceCell::new() }))
    }

    /// The key as its token knows it, without what is true of this host only; with its public half, if it is a pair: this is what a host needs
    /// that only writes.
    ///
    /// # Errors
    /// `Key` when the token does not have it, or does not show the public half of a pair. Cancel safe.
    pub async fn public_recipient(&self) -> Result<Self> {
        let named = self.named().await?;
        if named.is_aes || named.uri.public_key.is_some() {
            return Ok(Self::of(named.uri.clone()));
        }
        Err(no_public_half(&named.uri))
    }

    /// The key as it is on the token; asked once.
    async fn named(&self) -> Result<&Named> {
        self.0.named.get_or_try_init(|| self.look()).await
    }

    async fn look(&self) -> Result<Named> {
        if let Some(named) = self.on_token(None, |connection| connection.look()).await? {
            return Ok(named);
        }
        let pin = self.pin().await?;
        let found = self.on_token(Some(pin), |connection| connection.look()).await?;
        found.ok_or_else(|| {
            key_error(format!("there is no key {} on the token", self.0.uri.public()))
                .with_hint("a pair of the curve P-256 is needed, or an AES key: pkcs11-tool --list-objects")
        })
    }

    async fn pin(&self) -> Result<Option<AuthPin>> {
        let Some(source) = &self.0.uri.pin else { return Ok(None) };
        self.0.pin.get_or_try_init(|| read_pin(source)).await.cloned().map(Some)
    }

    /// Does `job` in a session, after a login with `pin` if it is `Some`.
    async fn on_token<T: Send + 'static>(
        &self,
        pin: Option<Option<AuthPin>>,
        job: impl FnOnce(&Connection<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let uri = self.0.uri.clone();
        let module = module_of(&uri)?;
        let working = tokio::task::spawn_blocking(move || {
            token::with_token(&module, &uri, |connection| {
                if let Some(pin) = pin {
                    connection.log_in(pin.as_ref())?;
                }
                job(connection)
            })
        });
        match tokio::time::timeout(DEADLINE, working).await {
            Ok(done) => {
                done.map_err(|e| Error::internal(Stage::Keys, "the work with the token did not finish").with_source(e))?
            }
            Err(_) => {
                let message =
                    format!("the token of {} did not answer within {} s", self.0.uri.public(), DEADLINE.as_secs());
                Err(Error::new(ErrorKind::Unavailable, Stage::Keys, message))
            }
        }
    }

    async fn unwrap_hpke(
        &self,
        sealed: [u8; SEALED_LEN],
        wrapped_for: &Uri,
        bound: Vec<u8>,
    ) -> Result<Option<DataKey>> {
        let Some(recipient) = wrapped_for.public_key else { return Ok(None) };
        let own = match self.0.uri.public_key {
            Some(own) => Some(own),
            None => self.named().await?.uri.public_key,
        };
        if own.is_some_and(|own| own != recipient) {
            return Ok(None);
        }
        let pin = self.pin().await?;
        let sender = *hpke::sender(&sealed);
        let shared = self.on_token(Some(pin), move |connection| connection.agree(&sender)).await?;
        match hpke::open(&shared, &recipient, &bound, &sealed) {
            Ok(key) => Ok(Some(DataKey::from_bytes(*key))),
            // A key whose public half nobody knows was tried.
            Err(_) if own.is_none() => Ok(None),
            Err(_) => Err(damaged(wrapped_for)),
        }
    }

    async fn unwrap_aes(
        &self,
        sealed: [u8; AES_GCM_LEN],
        wrapped_for: &Uri,
        bound: Vec<u8>,
    ) -> Result<Option<DataKey>> {
        let named = self.named().await?;
        // Not the token: a key that was moved to another one is the same key.
        if !named.is_aes || (&named.uri.object, &named.uri.id) != (&wrapped_for.object, &wrapped_for.id) {
            return Ok(None);
        }
        let pin = self.pin().await?;
        let opened = self.on_token(Some(pin), move |connection| connection.open(&bound, &sealed)).await?;
        let key = opened.and_then(|opened| opened.as_slice().try_into().ok());
        key.map(|key| Some(DataKey::from_bytes(key))).ok_or_else(|| damaged(wrapped_for))
    }

    async fn seal(&self, key: &DataKey, context: &EncryptionContext) -> Result<(Uri, Vec<u8>)> {
        let bound = bound_to(context);
        let uri = match self.0.uri.public_key {
            Some(_) => self.0.uri.public(),
            None => {
                let named = self.named().await?;
                if named.is_aes {
                    let (pin, plaintext) = (self.pin().await?, key.clone());
                    let job = move |connection: &Connection<'_>| connection.seal(&bound, plaintext.expose());
                    let sealed = self.on_token(Some(pin), job).await?;
                    return Ok((named.uri.clone(), [&[BY_AES_GCM], &sealed[..]].concat()));
                }
                named.uri.clone()
            }
        };
        let Some(point) = uri.public_key else { return Err(no_public_half(&uri)) };
        let sealed = hpke::seal(&point, &bound, key.expose())
            .map_err(|hpke::NotAPoint| Error::config(format!("the public key of {uri} is not a point of P-256")))?;
        Ok((uri, [&[BY_HPKE], &sealed[..]].concat()))
    }
}

/// What a wrap is bound to, as HPKE's `info` and as the additional authenticated data of AES-GCM. Neither half of the context has a space in it.
fn bound_to(context: &EncryptionContext) -> Vec<u8> {
    format!("backup/v1 pkcs11 {} {}", context.purpose(), context.target()).into_bytes()
}

/// The library to load, which the URI or the environment names.
fn module_of(uri: &Uri) -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named =
        uri.module.clone().or_else(|| variable("BACKUP_PKCS11_MODULE")).or_else(|| variable("PKCS11_MODULE_PATH"));
    named.ok_or_else(|| {
        Error::config(format!("no PKCS#11 module is named to find {} with", uri.public()))
            .with_hint("add '?module-path=/usr/lib/…so' to the URI, or set BACKUP_PKCS11_MODULE")
    })
}

async fn read_pin(source: &SecretSource) -> Result<AuthPin> {
    // Whoever takes it wipes it.
    Ok(AuthPin::from(std::mem::take(&mut *source.read("PIN", PIN_LEN_MAX).await?)))
}

fn no_public_half(uri: &Uri) -> Error {
    key_error(format!("the token does not show the public half of {uri}")).with_hint(
        "give it in the URI: …?public-key=BASE64URL; or have the token keep the public key beside the private one",
    )
}

fn damaged(wrapped_for: &Uri) -> Error {
    let message = format!("the data key wrapped for {wrapped_for} is damaged, or was made for another target");
    Error::new(ErrorKind::Integrity, Stage::Keys, message)
}

impl Recipient for Pkcs11Key {
    fn describe(&self) -> (&'static str, String) {
        (KIND, self.0.uri.public().to_string())
    }

    fn is_stable(&self) -> bool {
        // An AES key is called in wraps what its token calls it, which may be more than this URI says, and is nothing that nobody else has.
        self.0.uri.public_key.is_some()
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Wrap>> {
        Box::pin(async move {
            let (uri, wrap) = self.seal(key, context).await?;
            Ok(Wrap { kind: KIND.to_owned(), recipient: uri.to_string(), wrap })
        })
    }
}

impl Identity for Pkcs11Key {
    fn is_costly(&self, wrap: &Wrap) -> bool {
        wrap.kind == KIND
    }

    fn unwrap<'a>(&'a self, wrap: &'a Wrap, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Option<DataKey>>> {
        Box::pin(async move {
            if wrap.kind != KIND {
                return Ok(None);
            }
            // Read for its public key and its labels. What it says of modules and PINs, if anything, is never followed.
            let Ok(wrapped_for) = wrap.recipient.parse::<Uri>().map(|uri| uri.public()) else { return Ok(None) };
            let bound = bound_to(context);
            match wrap.wrap.split_first() {
                Some((&BY_HPKE, sealed)) => match sealed.try_into() {
                    Ok(sealed) => self.unwrap_hpke(sealed, &wrapped_for, bound).await,
                    Err(_) => Err(damaged(&wrapped_for)),
                },
                Some((&BY_AES_GCM, sealed)) => match sealed.try_into() {
                    Ok(sealed) => self.unwrap_aes(sealed, &wrapped_for, bound).await,
                    Err(_) => Err(damaged(&wrapped_for)),
                },
                // One that a later release made, perhaps.
                _ => Ok(None),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(fill: u8) -> String {
        data_encoding::BASE64URL_NOPAD.encode(&[&[4][..], &[fill; 64]].concat())
    }

    fn wrap(kind: &str, recipient: &str, wrap: Vec<u8>) -> Wrap {
        Wrap { kind: kind.to_owned(), recipient: recipient.to_owned(), wrap }
    }

    /// None of these needs a token; asked for one, this identity would fail, since it names no module.
    #[tokio::test]
    async fn wraps_of_others_and_of_later_releases_are_left_alone_and_ask_no_token() {
        let own = format!("pkcs11:object=dr?public-key={}", point(1));
        let other =
            format!("pkcs11:object=dr?public-key={}&module-path=/nowhere.so&pin-source=%7Ctouch%20/nowhere", point(2));
        let identity: Pkcs11Key = format!("{own}&module-path=/nowhere.so").parse().unwrap();
        let context = EncryptionContext::of_backup(&"app".parse().unwrap());
        let sealed = |first: u8, len: usize| [&[first][..], &vec![4; len]].concat();
        for wrap in [
            wrap("age", &own, sealed(BY_HPKE, SEALED_LEN)),
            wrap(KIND, "hush", sealed(BY_HPKE, SEALED_LEN)),
            wrap(KIND, &other, sealed(BY_HPKE, SEALED_LEN)),
            wrap(KIND, "pkcs11:object=dr", sealed(BY_HPKE, SEALED_LEN)),
            wrap(KIND, &own, sealed(3, 1000)),
            wrap(KIND, &own, Vec::new()),
        ] {
            assert!(identity.unwrap(&wrap, &context).await.unwrap().is_none(), "{wrap:?}");
        }
        for (first, len) in
            [(BY_HPKE, SEALED_LEN - 1), (BY_HPKE, SEALED_LEN + 1), (BY_AES_GCM, AES_GCM_LEN + 1), (BY_AES_GCM, 0)]
        {
            let error = identity.unwrap(&wrap(KIND, &own, sealed(first, len)), &context).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Integrity);
        }
        let error = identity.unwrap(&wrap(KIND, &own, sealed(BY_HPKE, SEALED_LEN)), &context).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().contains("/nowhere.so")),
            (ErrorKind::Config, true),
            "ours asks it"
        );
    }

    #[tokio::test]
    async fn a_public_key_is_enough_to_wrap_and_stands_in_the_wrap_without_what_is_the_host_s_own() {
        // The base point of P-256.
        let base = "BGsX0fLhLEJH-Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU";
        let key: Pkcs11Key =
            format!("pkcs11:object=dr?public-key={base}&module-path=/m&pin-source=/p").parse().unwrap();
        let context = EncryptionContext::of_wal(&"main".parse().unwrap());
        let wrapped = key.wrap(&DataKey::generate(), &context).await.unwrap();
        assert_eq!(wrapped.recipient, format!("pkcs11:object=dr?public-key={base}"));
        assert_eq!((wrapped.kind.as_str(), wrapped.wrap.len(), wrapped.wrap[0]), (KIND, 1 + SEALED_LEN, BY_HPKE));
        assert_eq!(key.describe().1, wrapped.recipient);
    }

    #[test]
    fn only_a_public_key_says_today_what_wraps_will_say_tomorrow() {
        let is_stable = |text: &str| text.parse::<Pkcs11Key>().unwrap().is_stable();
        assert!(is_stable(&format!("pkcs11:object=dr?public-key={}", point(1))));
        for text in ["pkcs11:object=dr", "pkcs11:serial=12ab;object=dr", "pkcs11:token=t;serial=12ab;object=dr;id=%01"]
        {
            assert!(!is_stable(text), "{text}");
        }
    }
}
