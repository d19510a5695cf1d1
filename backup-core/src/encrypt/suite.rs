//! The two ciphers, and the key of one volume.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::DataKey;

/// Length of an authentication tag in bytes, the same for both suites.
pub const TAG_LEN: usize = 16;
/// Length of a volume's salt in bytes.
pub const SALT_LEN: usize = 32;
/// Length of the key commitment in bytes.
pub const COMMITMENT_LEN: usize = 32;

const VOLUME_INFO: &[u8] = b"backup/v1 volume";

/// An authenticated cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Suite {
    /// AES-256-GCM: the default, 7.5 GB/s on one core that has AES instructions.
    #[default]
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): for machines without AES instructions.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl Suite {
    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

/// The bytes did not authenticate: damaged, forged, moved, or sealed with another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Unauthentic;

/// The key that seals the chunks of one volume, and the commitment to it.
#[derive(Debug)]
pub struct VolumeKey {
    key: LessSafeKey,
    commitment: [u8; COMMITMENT_LEN],
}

impl VolumeKey {
    /// Derives the key of the volume that begins with `preamble`: everything before the commitment, so that each
    /// bit of the header takes part.
    pub fn derive(data_key: &DataKey, suite: Suite, salt: &[u8; SALT_LEN], preamble: &[u8]) -> Self {
        let mut okm = Zeroizing::new([0; 64]);
        data_key.derive(salt, &[VOLUME_INFO, digest(&SHA256, preamble).as_ref()], okm.as_mut());
        let (key, commitment) = okm.split_at(32);
        let key = UnboundKey::new(suite.algorithm(), key).expect("both suites take keys of 32 bytes");
        Self { key: LessSafeKey::new(key), commitment: commitment.try_into().expect("the second half is 32 bytes") }
    }

    /// What stands behind the header: it tells a wrong key or a changed header before any chunk is opened.
    pub fn commitment(&self) -> &[u8; COMMITMENT_LEN] {
        &self.commitment
    }

    /// Seals `data` in place under `counter` and returns the tag. No counter may be used twice with one key.
    pub fn seal(&self, counter: u64, aad: [u8; 4], data: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), data)
            .expect("a chunk is far below the 64 GiB that one GCM nonce can seal");
        tag.as_ref().try_into().expect("both suites have tags of 16 bytes")
    }

    /// Opens ciphertext and tag in place; returns the plaintext's length. On failure `data` is garbage.
    pub fn open(&self, counter: u64, aad: [u8; 4], data: &mut [u8]) -> Result<usize, Unauthentic> {
        self.key.open_in_place(nonce(counter), Aad::from(aad), data).map(|plain| plain.len()).map_err(|_| Unauthentic)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}
