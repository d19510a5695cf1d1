//! A volume as a whole: where its index says that the chunks lie, and what is in them.

use std::ops::Range;

use super::{Codec, FOOTER_LEN, Flag, Footer, FormatError, Header, Preamble, SeekTable, WORD_LEN};
use crate::compress::Decompressor;
use crate::encrypt::{DataKey, TAG_LEN, VolumeKey, open_record};

/// Where a chunk lies and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number in the volume.
    pub counter: u64,
    /// Where its word begins.
    pub offset: u64,
    /// Bytes between word and tag.
    pub content_len: usize,
    /// Bytes of plaintext.
    pub plain_len: usize,
}

impl Place {
    /// Bytes of the whole record.
    pub fn record_len(&self) -> usize {
        WORD_LEN + self.content_len + TAG_LEN
    }
}

/// Where the index lies, word and all, in an object of `object_len` bytes that `footer` closes.
pub fn index_range(preamble: &Preamble, footer: &Footer, object_len: u64) -> Result<Range<u64>, FormatError> {
    let record_len = (WORD_LEN + index_len(&preamble.header, footer) + TAG_LEN) as u64;
    let range = footer.index_offset..footer.index_offset + record_len;
    if range.start < preamble.chunks_offset() || range.end != object_len.saturating_sub(FOOTER_LEN as u64) {
        return Err(FormatError::Footer("the index cannot lie where it says"));
    }
    Ok(range)
}

/// Bytes of the index between word and tag.
fn index_len(header: &Header, footer: &Footer) -> usize {
    match header.codec {
        Codec::Zstd => SeekTable::encoded_len(usize::try_from(footer.chunks).expect("bounded when it was decoded")),
        Codec::None => 0,
    }
}

/// Opens the index, `record`, in place: afterwards every chunk's place is known and authentic, and whether the stream ends here, which it
/// must if this is the `last` volume and must not otherwise.
pub fn open_index(
    preamble: &Preamble,
    key: &VolumeKey,
    footer: &Footer,
    record: &mut [u8],
    last: bool,
) -> Result<Vec<Place>, FormatError> {
    let header = &preamble.header;
    let content_len = index_len(header, footer);
    let flag = open_record(key, footer.chunks, &[Flag::IndexMore, Flag::IndexEnd], record, content_len)?;
    match (flag, last) {
        (Flag::IndexEnd, false) => return Err(FormatError::Index("the stream ends with this volume")),
        (Flag::IndexMore, true) => return Err(FormatError::Index("the stream goes on in a volume that is missing")),
        _ => {}
    }
    let chunks = preamble.chunks_offset()..footer.index_offset;
    places(header, chunks, footer.chunks, &record[WORD_LEN..WORD_LEN + content_len], last)
}

/// All the plaintext of a volume that lies in memory, which is the last of its stream or not.
///
/// There is no manifest to compare the digest with, which alone is neither sealed nor signed: so it is computed.
pub fn read_volume(object: &[u8], data_key: &DataKey, last: bool) -> Result<Vec<u8>, FormatError> {
    let preamble = Preamble::decode(object)?;
    let commitment = object[preamble.bytes().len()..].first_chunk().ok_or(FormatError::Truncated)?;
    let key = preamble.open(data_key, commitment)?;
    let footer = object.last_chunk::<FOOTER_LEN>().ok_or(FormatError::Truncated)?;
    let footer = Footer::decode(footer, object.len() as u64)?;
    if *blake3::hash(&object[..object.len() - FOOTER_LEN]).as_bytes() != footer.digest {
        return Err(FormatError::Footer("its digest is not that of the object"));
    }
    let at = |offset: u64| usize::try_from(offset).expect("within the object, which is in memory");
    let index = index_range(&preamble, &footer, object.len() as u64)?;
    let mut index = object[at(index.start)..at(index.end)].to_vec();
    let mut plain = Vec::new();
    let mut decompressor = Decompressor::new();
    for place in open_index(&preamble, &key, &footer, &mut index, last)? {
        let mut record = object[at(place.offset)..][..place.record_len()].to_vec();
        open_record(&key, place.counter, &[Flag::Data], &mut record, place.content_len)?;
        let content = &record[WORD_LEN..WORD_LEN + place.content_len];
        match preamble.header.codec {
            Codec::None => plain.extend_from_slice(content),
            Codec::Zstd => {
                let start = plain.len();
                plain.resize(start + place.plain_len, 0);
                let bad = |_| FormatError::Frame { chunk: place.counter, expected: place.plain_len };
                decompressor.decompress(content, &mut plain[start..]).map_err(bad)?;
            }
        }
    }
    Ok(plain)
}

/// Where the chunks of a volume lie between `chunks.start` and `chunks.end`, checked against the rules of the format.
fn places(
    header: &Header,
    chunks: Range<u64>,
    count: u64,
    index: &[u8],
    last: bool,
) -> Result<Vec<Place>, FormatError> {
    let wrong = |why| Err(FormatError::Index(why));
    let least = if last { u32::from(header.volume > 0) } else { header.volume_chunks };
    if !(u64::from(least)..=u64::from(header.volume_chunks)).contains(&count) {
        return wrong("the volume does not hold as many chunks as its header says");
    }
    let chunk_size = header.chunk_size as usize;
    let seek_table = match header.codec {
        Codec::Zstd => SeekTable::decode(index, count)?,
        Codec::None => SeekTable::default(),
    };
    let overhead = count * (WORD_LEN + TAG_LEN) as u64;
    let full = count.saturating_sub(1) * u64::from(header.chunk_size);
    let last_len = (chunks.end - chunks.start).checked_sub(overhead).and_then(|plain| plain.checked_sub(full));
    let lens = |i: u64| match header.codec {
        Codec::Zstd => seek_table.frames.get(usize::try_from(i).ok()?).map(|(f, p)| (*f as usize, *p as usize)),
        Codec::None if i + 1 < count => Some((chunk_size, chunk_size)),
        Codec::None => last_len.and_then(|len| usize::try_from(len).ok()).map(|len| (len, len)),
    };
    let mut places = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    let mut offset = chunks.start;
    for counter in 0..count {
        let Some((content_len, plain_len)) = lens(counter) else {
            return wrong("there is less data than so many chunks have");
        };
        let ends_stream = last && counter + 1 == count;
        let plain_ok = plain_len == chunk_size || (ends_stream && (1..chunk_size).contains(&plain_len));
        if !plain_ok || content_len == 0 || content_len > header.frame_len_max() {
            return wrong("a chunk has an impossible length");
        }
        let place = Place { counter, offset, content_len, plain_len };
        offset += place.record_len() as u64;
        places.push(place);
    }
    if offset != chunks.end {
        return wrong("the chunks do not fill the volume");
    }
    Ok(places)
}
