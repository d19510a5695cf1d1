//! HPKE (RFC 9180), base mode, one message: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. No I/O.
//!
//! The private half is on a token, which gives the Diffie-Hellman value and nothing else; all around that is computed here. Of HKDF only
//! outputs of at most one hash are needed.

use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::rand::SystemRandom;
use ring::{aead, hmac};
use zeroize::Zeroizing;

use crate::encrypt::{DATA_KEY_LEN, TAG_LEN, Unauthentic};

/// Length of a point of P-256 in bytes, uncompressed: 4, x, y.
pub(super) const POINT_LEN: usize = 65;
/// Length of the x coordinate that a Diffie-Hellman exchange gives.
pub(super) const SHARED_LEN: usize = 32;
/// Length of a sealed data key: the sender's point, ciphertext, tag.
pub(super) const SEALED_LEN: usize = POINT_LEN + DATA_KEY_LEN + TAG_LEN;

/// A point of P-256, uncompressed. Whether it is on the curve is checked by who computes with it.
pub(super) type Point = [u8; POINT_LEN];

const KEM: &[u8] = b"KEM\x00\x10";
const SUITE: &[u8] = b"HPKE\x00\x10\x00\x01\x00\x02";
const MODE_BASE: u8 = 0;
const HASH_LEN: usize = 32;
const NONCE_LEN: usize = 12;

type Secret = Zeroizing<[u8; HASH_LEN]>;

/// The recipient's point is none of P-256.
#[derive(Debug)]
pub(super) struct NotAPoint;

/// Seals a data key to the owner of `recipient`: the sender's point, ciphertext and tag.
pub(super) fn seal(recipient: &Point, info: &[u8], key: &[u8; DATA_KEY_LEN]) -> Result<[u8; SEALED_LEN], NotAPoint> {
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).expect("the system gives random bytes");
    let sender = own.compute_public_key().expect("a key of P-256 has a public half");
    let sender: Point = sender.as_ref().try_into().expect("ring gives points of P-256 uncompressed");
    let peer = UnparsedPublicKey::new(&ECDH_P256, recipient);
    let shared = agree_ephemeral(own, &peer, |shared| {
        Zeroizing::new(<[u8; SHARED_LEN]>::try_from(shared).expect("an x coordinate of P-256 has 32 bytes"))
    });
    let shared = shared.map_err(|_| NotAPoint)?;
    let (cipher, nonce) = schedule(&shared, &sender, recipient, info);
    let mut sealed = [0; SEALED_LEN];
    sealed[..POINT_LEN].copy_from_slice(&sender);
    sealed[POINT_LEN..][..DATA_KEY_LEN].copy_from_slice(key);
    let tag = cipher
        .seal_in_place_separate_tag(nonce, aead::Aad::empty(), &mut sealed[POINT_LEN..][..DATA_KEY_LEN])
        .expect("32 bytes are within what AES-GCM seals");
    sealed[POINT_LEN + DATA_KEY_LEN..].copy_from_slice(tag.as_ref());
    Ok(sealed)
}

/// The sender's point in what was sealed: what the token is to be asked about.
pub(super) fn sender(sealed: &[u8; SEALED_LEN]) -> &Point {
    sealed.first_chunk().expect("it is longer than a point")
}

/// Opens what was sealed to `recipient`; `shared` is the x coordinate that its private half and the sender's point give.
pub(super) fn open(
    shared: &[u8; SHARED_LEN],
    recipient: &Point,
    info: &[u8],
    sealed: &[u8; SEALED_LEN],
) -> Result<Zeroizing<[u8; DATA_KEY_LEN]>, Unauthentic> {
    let (cipher, nonce) = schedule(shared, sender(sealed), recipient, info);
    let mut buffer = Zeroizing::new([0; DATA_KEY_LEN + TAG_LEN]);
    buffer.copy_from_slice(&sealed[POINT_LEN..]);
    let plain = cipher.open_in_place(nonce, aead::Aad::empty(), &mut *buffer).map_err(|_| Unauthentic)?;
    let mut key = Zeroizing::new([0; DATA_KEY_LEN]);
    key.copy_from_slice(plain);
    Ok(key)
}

/// Sections 4.1 (`ExtractAndExpand`) and 5.1 (`KeySchedule`); the one message has the base nonce.
fn schedule(dh: &[u8; SHARED_LEN], sender: &Point, recipient: &Point, info: &[u8]) -> (aead::LessSafeKey, aead::Nonce) {
    let prk = labeled_extract(KEM, &[], b"eae_prk", dh);
    let shared_secret = labeled_expand(KEM, &prk, b"shared_secret", &[sender, recipient], HASH_LEN);
    let psk_id_hash = labeled_extract(SUITE, &[], b"psk_id_hash", &[]);
    let info_hash = labeled_extract(SUITE, &[], b"info_hash", info);
    let context: [&[u8]; 3] = [&[MODE_BASE], &*psk_id_hash, &*info_hash];
    let secret = labeled_extract(SUITE, &*shared_secret, b"secret", &[]);
    let key = labeled_expand(SUITE, &secret, b"key", &context, HASH_LEN);
    let nonce = labeled_expand(SUITE, &secret, b"base_nonce", &context, NONCE_LEN);
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, &*key).expect("the key has the cipher's length");
    let nonce = aead::Nonce::try_assume_unique_for_key(&nonce[..NONCE_LEN]).expect("the nonce has its length");
    (aead::LessSafeKey::new(key), nonce)
}

fn labeled_extract(suite: &[u8], salt: &[u8], label: &[u8], ikm: &[u8]) -> Secret {
    mac(salt, &[b"HPKE-v1", suite, label, ikm])
}

/// `len` says how much of the output counts: it takes part in it.
fn labeled_expand(suite: &[u8], prk: &Secret, label: &[u8], info: &[&[u8]], len: usize) -> Secret {
    let len = u16::try_from(len).expect("at most one hash").to_be_bytes();
    let parts = [&[&len[..], b"HPKE-v1", suite, label], info, &[&[1]]].concat();
    mac(&**prk, &parts)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    let mut out = Zeroizing::new([0; HASH_LEN]);
    out.copy_from_slice(context.sign().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    const INFO: &[u8] = b"backup/v1 pkcs11 backup app";

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        HEXLOWER.decode(text.as_bytes()).unwrap().try_into().unwrap()
    }

    fn key() -> [u8; DATA_KEY_LEN] {
        std::array::from_fn(|i| i as u8)
    }

    /// Of the key of P-256 whose private half is 0x0102…20. Sealed by another implementation, the Python package cryptography 50.
    fn sealed_elsewhere() -> (Point, [u8; SHARED_LEN], [u8; SEALED_LEN]) {
        (
            hex(concat!(
                "04515c3d6eb9e396b904d3feca7f54fdcd0cc1e997bf375dca515ad0a6c3b4035f",
                "4536be3a50f318fbf9a5475902a221502bef0d57e08c53b2cc0a56f17d9f9354"
            )),
            hex("632ed191464b3924dbf5d3164e831ba47e7e132ff518acd3d7940ed6ac49c56e"),
            hex(concat!(
                "04665492cf32778b78f9b82411d7609380e462e76f8f270b7f0ebab6036529ffa9",
                "b962958002e6c685d1790eb179040f67c8a3fbb9dca3b58a17077ed41d310e39",
                "4a97a955a48b6709090021188f4d3dab49ec118ad19e4a946c0d44b2740a3085ccef0544063ecad3ea7e0188c1cbee53"
            )),
        )
    }

    #[test]
    fn what_another_implementation_sealed_opens() {
        let (recipient, shared, sealed) = sealed_elsewhere();
        assert_eq!(*open(&shared, &recipient, INFO, &sealed).unwrap(), key());
    }

    #[test]
    fn nothing_opens_that_was_changed_or_is_for_something_else() {
        let (recipient, shared, sealed) = sealed_elsewhere();
        for at in 0..SEALED_LEN {
            let mut damaged = sealed;
            damaged[at] ^= 1;
            assert!(open(&shared, &recipient, INFO, &damaged).is_err(), "byte {at}");
        }
        assert!(open(&shared, &recipient, b"backup/v1 pkcs11 backup other", &sealed).is_err());
        assert!(open(&shared, &recipient, b"backup/v1 pkcs11 wal app", &sealed).is_err());
        assert!(open(&[7; SHARED_LEN], &recipient, INFO, &sealed).is_err());
        let mut other = recipient;
        other[64] ^= 1;
        assert!(open(&shared, &other, INFO, &sealed).is_err());
    }

    #[test]
    fn what_is_sealed_opens_and_never_twice_the_same() {
        let random = SystemRandom::new();
        let private = EphemeralPrivateKey::generate(&ECDH_P256, &random).unwrap();
        let recipient: Point = private.compute_public_key().unwrap().as_ref().try_into().unwrap();
        let [one, two] = [(), ()].map(|()| seal(&recipient, INFO, &key()).unwrap());
        assert_ne!(one[..POINT_LEN], two[..POINT_LEN]);
        assert_ne!(one[POINT_LEN..], two[POINT_LEN..]);
        let peer = UnparsedPublicKey::new(&ECDH_P256, sender(&one));
        let shared: [u8; SHARED_LEN] = agree_ephemeral(private, &peer, |shared| shared.try_into().unwrap()).unwrap();
        assert_eq!(*open(&shared, &recipient, INFO, &one).unwrap(), key());
    }

    #[test]
    fn what_is_no_point_of_the_curve_is_refused() {
        let (mut recipient, ..) = sealed_elsewhere();
        recipient[64] ^= 1;
        assert!(seal(&recipient, INFO, &key()).is_err());
        assert!(seal(&[0; POINT_LEN], INFO, &key()).is_err());
    }
}
