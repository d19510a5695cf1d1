//! The random key that encrypts one backup.

use std::fmt;

use ring::hkdf;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::random;

/// Length of a data key in bytes.
pub const DATA_KEY_LEN: usize = 32;

/// The random 256-bit key of one backup, from which the keys of its volumes and of its manifest are derived.
///
/// It is never stored as it is, only wrapped for [recipients](crate::keys::Recipient). Zeroed when dropped; `Debug` shows its id.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; DATA_KEY_LEN]);

impl DataKey {
    /// A new key from the system's random source.
    pub fn generate() -> Self {
        Self(random::bytes())
    }

    /// A key that was unwrapped.
    pub fn from_bytes(bytes: [u8; DATA_KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The key itself, for wrapping. Do not let it out of sight.
    pub fn expose(&self) -> &[u8; DATA_KEY_LEN] {
        &self.0
    }

    /// The key's public name: 32 hexadecimal digits derived from it, so that a key that was unwrapped can be checked.
    pub fn id(&self) -> String {
        let mut id = [0; 16];
        self.derive(&[], &[b"backup/v1 data key id"], &mut id);
        data_encoding::HEXLOWER.encode(&id)
    }

    /// HKDF-SHA256 (RFC 5869) with this key as input; `info` is concatenated.
    pub(crate) fn derive(&self, salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
        struct Len(usize);
        impl hkdf::KeyType for Len {
            fn len(&self) -> usize {
                self.0
            }
        }
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(&self.0)
            .expand(info, Len(out.len()))
            .and_then(|okm| okm.fill(out))
            .expect("HKDF-SHA256 gives up to 8160 bytes and no caller asks for more than 64");
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id())
    }
}
