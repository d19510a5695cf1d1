//! The checksums that PostgreSQL makes of a backup's files (`pg_checksum_update` in its `checksum_helper.c`).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// How checksums are made: `BASE_BACKUP`'s option `MANIFEST_CHECKSUMS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    /// Not at all: only sizes are known.
    #[default]
    None,
    /// What PostgreSQL does unless told otherwise.
    Crc32c,
    /// SHA-2 of 224 bits.
    Sha224,
    /// SHA-2 of 256 bits.
    Sha256,
    /// SHA-2 of 384 bits.
    Sha384,
    /// SHA-2 of 512 bits.
    Sha512,
}

/// A checksum that is being made.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    None,
    Crc32c(u32),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Algorithm {
    /// Bytes of such a checksum.
    pub fn checksum_bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Its name in a manifest, where it has one.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Crc32c => Some("CRC32C"),
            Self::Sha224 => Some("SHA224"),
            Self::Sha256 => Some("SHA256"),
            Self::Sha384 => Some("SHA384"),
            Self::Sha512 => Some("SHA512"),
        }
    }

    /// Begins a checksum.
    pub fn hasher(self) -> Hasher {
        Hasher(match self {
            Self::None => State::None,
            Self::Crc32c => State::Crc32c(0),
            Self::Sha224 => State::Sha224(Sha224::new()),
            Self::Sha256 => State::Sha256(Sha256::new()),
            Self::Sha384 => State::Sha384(Sha384::new()),
            Self::Sha512 => State::Sha512(Sha512::new()),
        })
    }
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::None => {}
            State::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            State::Sha224(hasher) => hasher.update(bytes),
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha384(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The checksum. A CRC stands in the order of the server's memory, which is little-endian on all that we know it to run on.
    pub fn finish(self) -> Vec<u8> {
        match self.0 {
            State::None => Vec::new(),
            State::Crc32c(crc) => crc.to_le_bytes().to_vec(),
            State::Sha224(hasher) => hasher.finalize().to_vec(),
            State::Sha256(hasher) => hasher.finalize().to_vec(),
            State::Sha384(hasher) => hasher.finalize().to_vec(),
            State::Sha512(hasher) => hasher.finalize().to_vec(),
        }
    }
}
