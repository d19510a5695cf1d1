//! A record: the word, and behind it the sealed content, in one buffer.

use super::{TAG_LEN, VolumeKey};
use crate::format::{Flag, FormatError, WORD_LEN, Word};

/// Seals the content that lies at `slab[4..4 + content_len]` in place, puts the word before it and the tag behind it; returns
/// the record's length.
pub fn seal_record(key: &VolumeKey, counter: u64, flag: Flag, slab: &mut [u8], content_len: usize) -> usize {
    let word = Word::for_content(flag, content_len).encode();
    let (head, body) = slab.split_at_mut(WORD_LEN);
    head.copy_from_slice(&word);
    let (content, tail) = body.split_at_mut(content_len);
    tail[..TAG_LEN].copy_from_slice(&key.seal(counter, word, content));
    WORD_LEN + content_len + TAG_LEN
}

/// Opens `record`, word and all, in place. The flag must be one of `flags` and the content have exactly `content_len` bytes;
/// they then lie at `record[4..4 + content_len]`.
pub fn open_record(
    key: &VolumeKey,
    counter: u64,
    flags: &[Flag],
    record: &mut [u8],
    content_len: usize,
) -> Result<Flag, FormatError> {
    let (head, body) = record.split_first_chunk_mut::<WORD_LEN>().ok_or(FormatError::Truncated)?;
    let word = Word::decode(*head, content_len)?;
    if !flags.contains(&word.flag) || word.len as usize != content_len + TAG_LEN || body.len() != word.len as usize {
        return Err(FormatError::Word(u32::from_le_bytes(*head)));
    }
    key.open(counter, *head, body).map_err(|_| FormatError::Chunk(counter))?;
    Ok(word.flag)
}
