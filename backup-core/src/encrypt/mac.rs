//! The MAC that binds a manifest to the data key of its backup: HMAC-SHA256 (RFC 2104).

use ring::hmac;
use zeroize::Zeroizing;

use super::{DataKey, Unauthentic};

const MANIFEST_DOMAIN: &[u8] = b"backup/v1 manifest";

/// Length of the MAC in bytes.
pub const MAC_LEN: usize = 32;

/// The MAC of a manifest's first line.
pub fn manifest_mac(data_key: &DataKey, document: &[u8]) -> [u8; MAC_LEN] {
    let mut context = hmac::Context::with_key(&manifest_key(data_key));
    context.update(MANIFEST_DOMAIN);
    context.update(document);
    context.sign().as_ref().try_into().expect("HMAC-SHA256 is 32 bytes")
}

/// Compares in constant time.
pub fn verify_manifest_mac(data_key: &DataKey, document: &[u8], mac: &[u8]) -> Result<(), Unauthentic> {
    let message = [MANIFEST_DOMAIN, document].concat();
    hmac::verify(&manifest_key(data_key), &message, mac).map_err(|_| Unauthentic)
}

fn manifest_key(data_key: &DataKey) -> hmac::Key {
    let mut key = Zeroizing::new([0; 32]);
    data_key.derive(&[], &[MANIFEST_DOMAIN], key.as_mut());
    hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
}
