//! The index of a volume: the seek table of the zstd seekable format, version 0.1.0.
//!
//! A skippable frame, so that the concatenated plaintext of a volume's chunks is an ordinary seekable `.zst` file:
//! <https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md>

use super::FormatError;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const HEAD_LEN: usize = 8;
const TAIL_LEN: usize = 9;
const ENTRY_LEN: usize = 8;

/// For each frame its compressed and its plain length, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeekTable {
    /// `(frame_len, plain_len)` in bytes.
    pub frames: Vec<(u32, u32)>,
}

impl SeekTable {
    /// Length of the encoding for `frames` frames.
    pub fn encoded_len(frames: usize) -> usize {
        HEAD_LEN + frames * ENTRY_LEN + TAIL_LEN
    }

    /// The skippable frame.
    pub fn encode(&self) -> Vec<u8> {
        let frames = u32::try_from(self.frames.len()).expect("a volume has at most 2^20 chunks");
        let body = Self::encoded_len(self.frames.len()) - HEAD_LEN;
        let mut out = Vec::with_capacity(HEAD_LEN + body);
        out.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        out.extend_from_slice(&u32::try_from(body).expect("2^20 entries of 8 bytes").to_le_bytes());
        for (frame, plain) in &self.frames {
            out.extend_from_slice(&frame.to_le_bytes());
            out.extend_from_slice(&plain.to_le_bytes());
        }
        out.extend_from_slice(&frames.to_le_bytes());
        out.push(0); // descriptor: no checksums, the chunks are authenticated
        out.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        out
    }

    /// Reads the table of a volume that has `chunks` data chunks.
    pub fn decode(bytes: &[u8], chunks: u64) -> Result<Self, FormatError> {
        let expected = usize::try_from(chunks).ok().map(Self::encoded_len);
        if expected != Some(bytes.len()) {
            return Err(FormatError::Index("its length does not fit the number of chunks"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let tail = bytes.len() - TAIL_LEN;
        let sound = u32_at(0) == SKIPPABLE_MAGIC
            && u32_at(4) as usize == bytes.len() - HEAD_LEN
            && u64::from(u32_at(tail)) == chunks
            && bytes[tail + 4] == 0
            && u32_at(tail + 5) == SEEKABLE_MAGIC;
        if !sound {
            return Err(FormatError::Index("it is not a seek table"));
        }
        let frames = bytes[HEAD_LEN..tail]
            .chunks_exact(ENTRY_LEN)
            .map(|entry| {
                let (frame, plain) = entry.split_at(4);
                let read = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("four bytes"));
                (read(frame), read(plain))
            })
            .collect();
        Ok(Self { frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_as_written() {
        for n in [0u32, 1, 1000] {
            let table = SeekTable { frames: (0..n).map(|i| (i + 30, 4096)).collect() };
            let bytes = table.encode();
            assert_eq!(SeekTable::decode(&bytes, n.into()), Ok(table));
            assert!(SeekTable::decode(&bytes, u64::from(n) + 1).is_err());
            assert!(SeekTable::decode(&bytes[1..], n.into()).is_err());
        }
    }
}
