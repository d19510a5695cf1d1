//! The MACs that bind documents to a data key: HMAC-SHA256 (RFC 2104), each kind of document in a domain of its own.

use ring::hmac;
use zeroize::Zeroizing;

use super::{DataKey, Unauthentic};

/// Length of the MAC in bytes.
pub const MAC_LEN: usize = 32;

/// What is authenticated. The name goes into the key and before the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain(&'static [u8]);

/// The first line of a manifest.
pub const MANIFEST: Domain = Domain(b"backup/v1 manifest");
/// The first line of a rewrap.
pub const REWRAP: Domain = Domain(b"backup/v1 rewrap");

impl Domain {
    /// The MAC of a document.
    pub fn mac(self, data_key: &DataKey, document: &[u8]) -> [u8; MAC_LEN] {
        let mut context = hmac::Context::with_key(&self.key(data_key));
        context.update(self.0);
        context.update(document);
        context.sign().as_ref().try_into().expect("HMAC-SHA256 is 32 bytes")
    }

    /// Compares in constant time.
    pub fn verify(self, data_key: &DataKey, document: &[u8], mac: &[u8]) -> Result<(), Unauthentic> {
        let message = [self.0, document].concat();
        hmac::verify(&self.key(data_key), &message, mac).map_err(|_| Unauthentic)
    }

    fn key(self, data_key: &DataKey) -> hmac::Key {
        let mut key = Zeroizing::new([0; 32]);
        data_key.derive(&[], &[self.0], key.as_mut());
        hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
    }
}
