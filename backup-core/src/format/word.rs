//! The word before each chunk: what the chunk is, and how long.

use super::FormatError;
use crate::encrypt::TAG_LEN;

/// Length of the word in bytes.
pub const WORD_LEN: usize = 4;

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Data of the stream.
    Data,
    /// The volume's index; the stream goes on in the next volume.
    IndexMore,
    /// The volume's index; the stream ends with this volume.
    IndexEnd,
}

/// A flag in the top two bits, and below them the length of ciphertext and tag together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// What the chunk is.
    pub flag: Flag,
    /// Bytes of ciphertext and tag that follow the word: at least 16, below 2³⁰.
    pub len: u32,
}

impl Word {
    /// The word of a chunk whose content, before sealing, has `content_len` bytes.
    pub fn for_content(flag: Flag, content_len: usize) -> Self {
        let len = u32::try_from(content_len + TAG_LEN).ok().filter(|len| *len < 1 << 30);
        Self { flag, len: len.expect("chunks and indexes are bounded far below 1 GiB") }
    }

    /// The four bytes, which are also the chunk's additional authenticated data.
    pub fn encode(self) -> [u8; WORD_LEN] {
        let flag = match self.flag {
            Flag::Data => 0,
            Flag::IndexMore => 1,
            Flag::IndexEnd => 2,
        };
        (flag << 30 | self.len).to_le_bytes()
    }

    /// Reads a word. A chunk of `content_max` bytes is the largest that is accepted.
    pub fn decode(bytes: [u8; WORD_LEN], content_max: usize) -> Result<Self, FormatError> {
        let word = u32::from_le_bytes(bytes);
        let flag = match word >> 30 {
            0 => Flag::Data,
            1 => Flag::IndexMore,
            2 => Flag::IndexEnd,
            _ => return Err(FormatError::Word(word)),
        };
        let len = word & ((1 << 30) - 1);
        if (len as usize) < TAG_LEN || len as usize > content_max + TAG_LEN {
            return Err(FormatError::Word(word));
        }
        Ok(Self { flag, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_written() {
        for flag in [Flag::Data, Flag::IndexMore, Flag::IndexEnd] {
            let word = Word::for_content(flag, 1000);
            assert_eq!(Word::decode(word.encode(), 1000), Ok(word));
            assert!(Word::decode(word.encode(), 999).is_err());
        }
        assert!(Word::decode((3u32 << 30 | 100).to_le_bytes(), 1000).is_err());
        assert!(Word::decode(15u32.to_le_bytes(), 1000).is_err());
    }
}
