//! The last 152 bytes of a volume: where its index lies, and a digest that needs no key.

use super::{FormatError, SeekTable, WORD_LEN};
use crate::encrypt::TAG_LEN;
use crate::encrypt::signature::{self, SIGNATURE_LEN, SIGNER_LEN, Signer, SigningKey};

/// Length of a footer in bytes.
pub const FOOTER_LEN: usize = 152;

const MAGIC: [u8; 8] = *b"backupE\x01";
const SIGNATURE_OFFSET: usize = 48;
const SIGNATURE_DOMAIN: &[u8] = b"backup/v1 volume signature";
const UNSIGNED: ([u8; SIGNATURE_LEN], [u8; SIGNER_LEN]) = ([0; SIGNATURE_LEN], [0; SIGNER_LEN]);

/// The footer of a volume.
///
/// Anybody could have written it: what it says about chunks is to be believed only once the index chunk that it names has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Where the index chunk's word begins.
    pub index_offset: u64,
    /// How many data chunks precede it.
    pub chunks: u64,
    /// BLAKE3 of everything before the footer.
    pub digest: [u8; 32],
    /// Ed25519 signature over `"backup/v1 volume signature"` and the three fields above as encoded, or zeros.
    pub signature: [u8; SIGNATURE_LEN],
    /// The public key that it verifies with, or zeros.
    pub signer: [u8; SIGNER_LEN],
}

impl Footer {
    /// A footer without a signature.
    pub fn unsigned(index_offset: u64, chunks: u64, digest: [u8; 32]) -> Self {
        let (signature, signer) = UNSIGNED;
        Self { index_offset, chunks, digest, signature, signer }
    }

    /// The same footer, signed.
    #[must_use]
    pub fn signed(mut self, key: &SigningKey) -> Self {
        self.signer = *key.signer().as_bytes();
        self.signature = key.sign(SIGNATURE_DOMAIN, &self.encode()[..SIGNATURE_OFFSET]);
        self
    }

    /// Who signed it; `None` when nobody did.
    pub fn signed_by(&self) -> Option<Signer> {
        Signer::from_bytes(self.signer)
    }

    /// `index_offset u64 LE | chunks u64 LE | digest | signature | signer | magic`.
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&self.index_offset.to_le_bytes());
        out[8..16].copy_from_slice(&self.chunks.to_le_bytes());
        out[16..48].copy_from_slice(&self.digest);
        out[48..112].copy_from_slice(&self.signature);
        out[112..144].copy_from_slice(&self.signer);
        out[144..].copy_from_slice(&MAGIC);
        out
    }

    /// Reads the footer of an object of `object_len` bytes. A signature in it verifies; whose it is, is for the reader's policy to judge.
    pub fn decode(bytes: &[u8; FOOTER_LEN], object_len: u64) -> Result<Self, FormatError> {
        fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("the range has N bytes")
        }
        if field(bytes, 144) != MAGIC {
            return Err(FormatError::Footer("its magic number is missing"));
        }
        let footer = Self {
            index_offset: u64::from_le_bytes(field(bytes, 0)),
            chunks: u64::from_le_bytes(field(bytes, 8)),
            digest: field(bytes, 16),
            signature: field(bytes, 48),
            signer: field(bytes, 112),
        };
        if footer.chunks > u64::from(super::VOLUME_CHUNKS_MAX) {
            return Err(FormatError::OutOfBounds { what: "number of chunks", value: footer.chunks });
        }
        footer.check_index_offset(object_len)?;
        footer.check_signature()?;
        Ok(footer)
    }

    /// The index ends where the footer begins, and has one of two lengths: that of a seek table, or with codec `none` nothing.
    fn check_index_offset(&self, object_len: u64) -> Result<(), FormatError> {
        let ends = |content_len: usize| {
            self.index_offset.checked_add((WORD_LEN + content_len + TAG_LEN + FOOTER_LEN) as u64) == Some(object_len)
        };
        let chunks = usize::try_from(self.chunks).expect("at most 2^20");
        if ends(0) || ends(SeekTable::encoded_len(chunks)) {
            return Ok(());
        }
        Err(FormatError::Footer("the index cannot lie where it says"))
    }

    /// Zeros, or a signature that verifies: no byte of a footer can change unnoticed.
    fn check_signature(&self) -> Result<(), FormatError> {
        if (self.signature, self.signer) == UNSIGNED {
            return Ok(());
        }
        signature::verify(SIGNATURE_DOMAIN, &self.encode()[..SIGNATURE_OFFSET], &self.signature, &self.signer)
            .map_err(|_| FormatError::Footer("its signature does not verify"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of objects of seven chunks whose index begins at 1000.
    const WITHOUT_TABLE: u64 = 1000 + 20 + 152;
    const WITH_TABLE: u64 = WITHOUT_TABLE + 17 + 7 * 8;

    #[test]
    fn footers_are_read_as_written() {
        let footer = Footer::unsigned(1000, 7, [9; 32]);
        assert_eq!(Footer::decode(&footer.encode(), WITH_TABLE), Ok(footer.clone()));
        assert_eq!(Footer::decode(&footer.encode(), WITHOUT_TABLE), Ok(footer.clone()));
        assert!(Footer::decode(&footer.encode(), WITHOUT_TABLE - 1).is_err());
        for at in (0..16).chain(48..FOOTER_LEN) {
            let mut bytes = footer.encode();
            bytes[at] ^= 1;
            assert!(Footer::decode(&bytes, WITH_TABLE).is_err(), "byte {at}");
        }
        for lie in [Footer::unsigned(u64::MAX, 7, [9; 32]), Footer::unsigned(1000, u64::MAX, [9; 32])] {
            assert!(Footer::decode(&lie.encode(), WITH_TABLE).is_err());
        }
    }

    #[test]
    fn a_signature_is_one_over_the_rest_or_none() {
        let key = SigningKey::generate();
        let unsigned = Footer::unsigned(1000, 7, [9; 32]);
        let signed = unsigned.clone().signed(&key);
        assert_eq!(Footer::decode(&signed.encode(), WITH_TABLE), Ok(signed.clone()));
        assert_eq!((signed.signed_by(), Footer::unsigned(1000, 7, [9; 32]).signed_by()), (Some(key.signer()), None));
        for at in 0..FOOTER_LEN {
            let mut bytes = signed.encode();
            bytes[at] ^= 1;
            assert!(Footer::decode(&bytes, WITH_TABLE).is_err(), "byte {at}");
        }
        let signature = key.sign(b"another purpose", &unsigned.encode()[..48]);
        let elsewhere = Footer { signature, ..signed };
        assert!(Footer::decode(&elsewhere.encode(), WITH_TABLE).is_err());
    }
}
