//! Ed25519 signatures (RFC 8032): who made an object, for readers that hold no key of the data.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Unauthentic, random};
use crate::error::{Error, Result};

/// Length of a signature in bytes.
pub const SIGNATURE_LEN: usize = 64;
/// Length of a public key in bytes.
pub const SIGNER_LEN: usize = 32;

/// How a public key begins as text.
const SCHEME: &str = "ed25519:";
/// Length of the secret that a key pair is made of.
const SEED_LEN: usize = 32;
/// RFC 8410, section 7: what precedes the seed in a `PrivateKeyInfo` of version 1, as OpenSSL writes it.
const PKCS8_HEAD: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// The public key of somebody who signs: `ed25519:` and the 32 bytes in Base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signer([u8; SIGNER_LEN]);

impl Signer {
    /// The key with these bytes; `None` when they are zeros, which stand for "not signed".
    pub fn from_bytes(bytes: [u8; SIGNER_LEN]) -> Option<Self> {
        (bytes != [0; SIGNER_LEN]).then_some(Self(bytes))
    }

    /// The key as objects hold it.
    pub fn as_bytes(&self) -> &[u8; SIGNER_LEN] {
        &self.0
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", BASE64.encode(&self.0))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({self})")
    }
}

impl FromStr for Signer {
    type Err = Error;

    /// Parses `ed25519:…`. Never repeats what it was given: people paste secret keys by mistake.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let parsed = text.strip_prefix(SCHEME).and_then(|base64| BASE64.decode(base64.as_bytes()).ok());
        parsed.and_then(|bytes| bytes.try_into().ok()).and_then(Self::from_bytes).ok_or_else(|| {
            if text.contains("PRIVATE KEY") {
                return Error::config("this is a secret key, not the public key of a signer")
                    .with_hint("treat it as exposed, and make another with 'backup key generate --signing FILE'");
            }
            Error::config("not the public key of a signer")
                .with_hint("it looks like 'ed25519:…', as 'backup key generate --signing FILE' prints it")
        })
    }
}

impl TryFrom<String> for Signer {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Signer> for String {
    fn from(signer: Signer) -> Self {
        signer.to_string()
    }
}

/// A secret key to sign with. Cheap to clone; the secret is wiped with the last clone. `Debug` shows the public half.
///
/// What `ring` derives from the secret lives for as long as one signature is being made, and is not wiped.
#[derive(Clone)]
pub struct SigningKey(Arc<Secret>);

struct Secret {
    seed: Zeroizing<[u8; SEED_LEN]>,
    signer: Signer,
}

impl SigningKey {
    /// A new key from the system's random source.
    pub fn generate() -> Self {
        loop {
            // The public key of zeros has a meaning of its own; nobody will ever meet it.
            if let Some(key) = Self::from_seed(&Zeroizing::new(random::bytes())) {
                return key;
            }
        }
    }

    /// Reads a PKCS#8 document (RFC 5958, RFC 8410); `None` when it is not one of an Ed25519 key.
    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        // Of version 1 or 2: the seed is in the same place, and `ring` knows the rest.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        let seed = der.get(PKCS8_HEAD.len()..PKCS8_HEAD.len() + SEED_LEN)?;
        let key = Self::from_seed(seed.try_into().ok()?)?;
        (key.signer().as_bytes().as_slice() == pair.public_key().as_ref()).then_some(key)
    }

    /// The key as a PKCS#8 document of version 1, which OpenSSL reads, too.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(PKCS8_HEAD.len() + SEED_LEN));
        der.extend_from_slice(&PKCS8_HEAD);
        der.extend_from_slice(self.0.seed.as_slice());
        der
    }

    /// The public half.
    pub fn signer(&self) -> Signer {
        self.0.signer
    }

    /// The signature over `domain` and `message` together.
    pub fn sign(&self, domain: &[u8], message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let pair = pair(&self.0.seed);
        let signature = pair.sign(&[domain, message].concat());
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    fn from_seed(seed: &[u8; SEED_LEN]) -> Option<Self> {
        let public = pair(seed).public_key().as_ref().try_into().ok()?;
        let signer = Signer::from_bytes(public)?;
        Some(Self(Arc::new(Secret { seed: Zeroizing::new(*seed), signer })))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.signer())
    }
}

fn pair(seed: &[u8; SEED_LEN]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("a seed has 32 bytes")
}

/// Checks the `signature` of `signer` over `domain` and `message` together. Whether to trust the signer is for the caller to say.
///
/// Zeros are neither a key nor a signature here: as a key they are a point of order four, under which one forgery in four verifies.
pub fn verify(
    domain: &[u8],
    message: &[u8],
    signature: &[u8; SIGNATURE_LEN],
    signer: &[u8; SIGNER_LEN],
) -> Result<(), Unauthentic> {
    if *signer == [0; SIGNER_LEN] || *signature == [0; SIGNATURE_LEN] {
        return Err(Unauthentic);
    }
    let message = [domain, message].concat();
    UnparsedPublicKey::new(&ED25519, signer).verify(&message, signature).map_err(|_| Unauthentic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_key_signs_no_other_key_has_signed() {
        let (key, other) = (SigningKey::generate(), SigningKey::generate());
        let signature = key.sign(b"domain", b"message");
        let holds = |domain: &[u8], message: &[u8], signer: Signer| {
            verify(domain, message, &signature, signer.as_bytes()).is_ok()
        };
        assert!(holds(b"domain", b"message", key.signer()));
        assert!(!holds(b"domain", b"message", other.signer()));
        assert!(!holds(b"Domain", b"message", key.signer()));
        assert!(!holds(b"domain", b"massage", key.signer()));
    }

    #[test]
    fn a_key_comes_back_from_its_document_and_no_other_document_is_one() {
        let key = SigningKey::generate();
        let der = key.to_pkcs8();
        assert_eq!(SigningKey::from_pkcs8(&der).unwrap().signer(), key.signer());
        let with_public_half = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
        assert!(SigningKey::from_pkcs8(with_public_half.as_ref()).is_some());
        for wrong in [&der[..47], &der[1..], b""] {
            assert!(SigningKey::from_pkcs8(wrong).is_none());
        }
        assert!(!format!("{key:?}").contains(&BASE64.encode(&der[16..])));
    }

    #[test]
    fn public_keys_have_one_form_and_secret_ones_are_not_repeated() {
        let signer = SigningKey::generate().signer();
        let text = signer.to_string();
        assert_eq!(text.parse::<Signer>().unwrap(), signer);
        for wrong in
            ["", "ed25519:", &text[1..], &text[..text.len() - 2], &format!("ed25519:{}", BASE64.encode(&[0; 32]))]
        {
            assert!(wrong.parse::<Signer>().is_err(), "{wrong}");
        }
        let error = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw".parse::<Signer>().unwrap_err();
        assert!(!format!("{error:?}").contains("MC4CAQ") && error.to_string().contains("secret key"), "{error:?}");
    }

    #[test]
    fn a_key_of_zeros_verifies_nothing() {
        // The encodings of two points that a key of zeros, of order four, leads to; each fits about every fourth message.
        let (mut one, mut zero) = ([0; SIGNATURE_LEN], [0; SIGNATURE_LEN]);
        (one[0], zero[31]) = (1, 0x80);
        for message in 0..64u8 {
            for signature in [one, zero, [0; SIGNATURE_LEN]] {
                assert_eq!(verify(b"domain", &[message], &signature, &[0; SIGNER_LEN]), Err(Unauthentic));
            }
        }
    }
}
