//! Tokens: loading a module, finding the key, and the two things that are asked of it. All of it blocks.
//!
//! A module is loaded and initialised once for a process and never finalised: others in the process may use it, too. It is asked one thing
//! at a time, each in a session of its own, since a login counts for all sessions that a program has with a token.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use age::secrecy::ExposeSecret;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use super::hpke::{POINT_LEN, Point, SHARED_LEN};
use super::uri::Uri;
use crate::encrypt::random;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::keys::key_error;

/// Length of the nonce that is stored before what AES-GCM sealed.
pub(super) const NONCE_LEN: usize = 12;
const TAG_BITS: u64 = 128;
/// `prime256v1`, as `CKA_EC_PARAMS` has it.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// DER of an OCTET STRING of 65 bytes: `CKA_EC_POINT` is one, with the point in it.
const POINT_DER: [u8; 2] = [0x04, POINT_LEN as u8];

struct Module {
    context: Pkcs11,
    busy: Mutex<()>,
    /// PINs that a token, by its serial number, has refused: each further try would bring it nearer to locking itself, and not all say when they are
    /// about to.
    refused: Mutex<Vec<(String, AuthPin)>>,
}

static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// The key that a URI names, as it is on the token.
pub(super) struct Named {
    /// The token's label, the key's label and id: the URI without what is only true of this host.
    pub(super) uri: Uri,
    /// Whether it is an AES key; otherwise it is one of P-256, whose public half is in the URI if the token shows it.
    pub(super) is_aes: bool,
}

fn module(path: &Path) -> Result<Arc<Module>> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(Arc::clone(module));
    }
    let unusable = |e: TokenError| {
        Error::config(format!("could not load the PKCS#11 module {}", path.display()))
            .with_source(cause(&e))
            .with_hint("'module-path' in the URI, BACKUP_PKCS11_MODULE or PKCS11_MODULE_PATH names the library of the token's maker")
    };
    let context = Pkcs11::new(path).map_err(unusable)?;
    match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(e) => return Err(unusable(e)),
    }
    let module = Arc::new(Module { context, busy: Mutex::new(()), refused: Mutex::default() });
    modules.insert(path.to_owned(), Arc::clone(&module));
    Ok(module)
}

/// A session with the token that a URI names, and nobody else's meanwhile.
pub(super) struct Connection<'a> {
    // Closed before the module is free again: fields are dropped in their order.
    session: Session,
    module: &'a Module,
    uri: &'a Uri,
    info: TokenInfo,
    _busy: MutexGuard<'a, ()>,
}

/// Does `job` in a session with the token of `uri`.
pub(super) fn with_token<T>(path: &Path, uri: &Uri, job: impl FnOnce(&Connection<'_>) -> Result<T>) -> Result<T> {
    let module = module(path)?;
    let busy = module.busy.lock().unwrap_or_else(PoisonError::into_inner);
    let (slot, info) = find_token(&module.context, uri)?;
    let session = module.context.open_ro_session(slot).map_err(|e| failed(uri, "open a session", &e))?;
    job(&Connection { session, module: &module, uri, info, _busy: busy })
}

fn find_token(context: &Pkcs11, uri: &Uri) -> Result<(Slot, TokenInfo)> {
    let slots = context.get_slots_with_initialized_token().map_err(|e| failed(uri, "list the tokens", &e))?;
    let mut found = Vec::new();
    let mut labels = Vec::new();
    for slot in slots {
        // One that was pulled out meanwhile is none.
        let Ok(info) = context.get_token_info(slot) else { continue };
        let is = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        labels.push(info.label().to_owned());
        if is(&uri.token, info.label())
            && is(&uri.serial, info.serial_number())
            && is(&uri.manufacturer, info.manufacturer_id())
            && is(&uri.model, info.model())
        {
            found.push((slot, info));
        }
    }
    let error = |why: &str| {
        let message = format!("{why} {}", uri.public());
        Error::new(ErrorKind::Key, Stage::Keys, message)
            .with_hint(format!("the tokens there are: {}", labels.join(", ")))
    };
    match found.len() {
        1 => found.pop().ok_or_else(|| error("no token has")),
        0 => Err(error("no token is the one of")),
        n => Err(error(&format!("{n} tokens match"))),
    }
}

impl Connection<'_> {
    /// Logs in, unless the token wants none. A PIN is not tried when that could lock the token.
    pub(super) fn log_in(&self, pin: Option<&AuthPin>) -> Result<()> {
        let info = &self.info;
        if !info.login_required() {
            return Ok(());
        }
        if info.user_pin_locked() {
            return Err(key_error(format!("the PIN of the token '{}' is locked", info.label())));
        }
        if pin.is_some() && info.user_pin_final_try() {
            let message = format!(
                "the token '{}' allows one more PIN before it locks itself, and it is not tried here",
                info.label()
            );
            return Err(key_error(message)
                .with_hint("log in by hand, with pkcs11-tool --login --test say, which sets the count back"));
        }
        if pin.is_none() && !info.protected_authentication_path() {
            let message = format!("the token '{}' wants a PIN", info.label());
            return Err(key_error(message).with_hint(
                "name a file in the URI: …?pin-source=/etc/backup/pin, or a command: …?pin-source=%7Ccommand",
            ));
        }
        let refused = || {
            key_error(format!("the PIN is not that of the token '{}'", info.label()))
                .with_hint("several wrong ones lock it")
        };
        let tried = pin.map(|pin| (info.serial_number().to_owned(), pin.clone()));
        let mut known = self.module.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(serial, pin): &(String, AuthPin)| {
            tried.as_ref().is_some_and(|(of, tried)| of == serial && tried.expose_secret() == pin.expose_secret())
        };
        if known.iter().any(same) {
            return Err(refused());
        }
        match self.session.login(UserType::User, pin) {
            Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(TokenError::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _)) => {
                known.extend(tried);
                Err(refused())
            }
            Err(e) => Err(failed(self.uri, "log in", &e)),
        }
    }

    /// What can be known of the key. Of a pair, the public half does; others are only seen after a login.
    pub(super) fn look(&self) -> Result<Option<Named>> {
        if let Some(key) = self.find(ObjectClass::PUBLIC_KEY, KeyType::EC)? {
            let public_key = Some(self.point(key)?);
            return Ok(Some(Named { uri: Uri { public_key, ..self.name_of(key)? }, is_aes: false }));
        }
        if let Some(key) = self.find(ObjectClass::SECRET_KEY, KeyType::AES)? {
            return Ok(Some(Named { uri: self.name_of(key)?, is_aes: true }));
        }
        let private = self.find(ObjectClass::PRIVATE_KEY, KeyType::EC)?;
        private.map(|key| Ok(Named { uri: self.name_of(key)?, is_aes: false })).transpose()
    }

    /// The x coordinate of the product of the private key and `point`.
    pub(super) fn agree(&self, point: &Point) -> Result<Zeroizing<[u8; SHARED_LEN]>> {
        let key =
            self.find(ObjectClass::PRIVATE_KEY, KeyType::EC)?.ok_or_else(|| self.no_key("a private key of P-256"))?;
        let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), point));
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen((SHARED_LEN as u64).into()),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        let what = "derive a secret by ECDH";
        let derived = self.session.derive_key(&mechanism, key, &template).map_err(|e| failed(self.uri, what, &e))?;
        let attributes = self.session.get_attributes(derived, &[AttributeType::Value]);
        // It goes with the session, too.
        let _ = self.session.destroy_object(derived);
        let mut shared = Zeroizing::new([0; SHARED_LEN]);
        for attribute in attributes.map_err(|e| failed(self.uri, what, &e))? {
            if let Attribute::Value(value) = attribute {
                let value = Zeroizing::new(value);
                if value.len() == SHARED_LEN {
                    shared.copy_from_slice(&value);
                    return Ok(shared);
                }
            }
        }
        Err(key_error(format!("the token does not give away what it derives with {}", self.uri.public())))
    }

    /// Seals with an AES key that never leaves the token: nonce, ciphertext, tag.
    pub(super) fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
        let key = self.aes_key()?;
        let mut nonce: [u8; NONCE_LEN] = random::bytes();
        let params = GcmParams::new(&mut nonce, aad, TAG_BITS.into()).map_err(|e| failed(self.uri, "encrypt", &e))?;
        let mechanism = Mechanism::AesGcm(params);
        let sealed = self.session.encrypt(&mechanism, key, plaintext).map_err(|e| failed(self.uri, "encrypt", &e))?;
        drop(mechanism);
        // Some tokens insist on a nonce of their own, and have put it there.
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens what [`seal`](Self::seal) made; `None` when the token refuses, which may say anything: wrong tags are general errors to some.
    pub(super) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let key = self.aes_key()?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).unwrap_or_default();
        let mut nonce = nonce.to_vec();
        let params = GcmParams::new(&mut nonce, aad, TAG_BITS.into()).map_err(|e| failed(self.uri, "decrypt", &e))?;
        match self.session.decrypt(&Mechanism::AesGcm(params), key, sealed) {
            Ok(plaintext) => Ok(Some(Zeroizing::new(plaintext))),
            Err(e) if is_away(&e) => Err(failed(self.uri, "decrypt", &e)),
            Err(e) => {
                tracing::debug!(error = %e, "the token does not decrypt");
                Ok(None)
            }
        }
    }

    fn aes_key(&self) -> Result<ObjectHandle> {
        self.find(ObjectClass::SECRET_KEY, KeyType::AES)?.ok_or_else(|| self.no_key("an AES key"))
    }

    fn no_key(&self, what: &str) -> Error {
        let message = format!("the token '{}' has not {what} of the name {}", self.info.label(), self.uri.public());
        key_error(message)
    }

    /// The one object of this class that the URI names.
    fn find(&self, class: ObjectClass, key_type: KeyType) -> Result<Option<ObjectHandle>> {
        let mut template = vec![Attribute::Class(class), Attribute::KeyType(key_type)];
        template.extend(self.uri.object.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
        template.extend(self.uri.id.clone().map(Attribute::Id));
        let found = self.session.find_objects(&template).map_err(|e| failed(self.uri, "look for the key", &e))?;
        match found[..] {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            _ => Err(key_error(format!("{} keys of one kind have the name {}", found.len(), self.uri.public()))
                .with_hint("'id' tells keys of one label apart")),
        }
    }

    fn name_of(&self, key: ObjectHandle) -> Result<Uri> {
        let mut uri = Uri { token: Some(self.info.label().to_owned()), ..Uri::default() };
        let wanted = [AttributeType::Label, AttributeType::Id];
        for attribute in
            self.session.get_attributes(key, &wanted).map_err(|e| failed(self.uri, "look at the key", &e))?
        {
            match attribute {
                Attribute::Label(label) => uri.object = String::from_utf8(label).ok().filter(|label| !label.is_empty()),
                Attribute::Id(id) => uri.id = Some(id).filter(|id| !id.is_empty()),
                _ => {}
            }
        }
        Ok(uri)
    }

    fn point(&self, key: ObjectHandle) -> Result<Point> {
        let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
        let (mut curve, mut point) = (Vec::new(), Vec::new());
        for attribute in
            self.session.get_attributes(key, &wanted).map_err(|e| failed(self.uri, "look at the key", &e))?
        {
            match attribute {
                Attribute::EcParams(value) => curve = value,
                Attribute::EcPoint(value) => point = value,
                _ => {}
            }
        }
        // Some tokens leave the DER out.
        let point = point.strip_prefix(&POINT_DER).unwrap_or(&point);
        Point::try_from(point).ok().filter(|point| curve == P256 && point[0] == 4).ok_or_else(|| {
            key_error(format!("{} is not a key of the curve P-256", self.uri.public()))
                .with_hint("make one with: pkcs11-tool --keypairgen --key-type EC:prime256v1 --usage-derive")
        })
    }
}

/// Whether the token, and not what was asked, is at fault.
fn is_away(error: &TokenError) -> bool {
    matches!(
        error,
        TokenError::Pkcs11(
            RvError::DeviceRemoved
                | RvError::DeviceError
                | RvError::DeviceMemory
                | RvError::HostMemory
                | RvError::TokenNotPresent
                | RvError::TokenNotRecognized
                | RvError::SessionHandleInvalid
                | RvError::SessionCount,
            _
        )
    )
}

fn failed(uri: &Uri, what: &str, error: &TokenError) -> Error {
    let kind = if is_away(error) { ErrorKind::Unavailable } else { ErrorKind::Key };
    Error::new(kind, Stage::Keys, format!("the token of {} could not {what}", uri.public())).with_source(cause(error))
}

/// The library's own words for a code are the standard's paragraphs about it.
fn cause(error: &TokenError) -> String {
    match error {
        TokenError::Pkcs11(code, function) => format!("{}: {code:?}", function.to_string().replace("Function::", "C_")),
        other => other.to_string(),
    }
}
