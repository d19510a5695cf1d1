//! What a volume says of itself, compared with its bytes as they come by, in order. No I/O.

use crate::encrypt::TAG_LEN;
use crate::encrypt::signature::Signer;
use crate::format::{
    FOOTER_LEN, Flag, Footer, FormatError, HEADER_LEN_MAX, Manifest, ObjectName, PREFIX_LEN, Preamble, SeekTable,
    StreamEntry, VolumeEntry, WORD_LEN, Word, header_len,
};
use crate::repository::layout::BackupPath;

/// What the header of a volume must say, by whoever asked for it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    name: ObjectName,
    /// Of a volume that a manifest lists: stream id, data key, and its number.
    listed: Option<(&'a str, &'a str, u32)>,
}

impl<'a> Wanted<'a> {
    /// Volume `number` of a stream of a backup.
    pub(crate) fn listed(path: &BackupPath, manifest: &'a Manifest, stream: &'a StreamEntry, number: u32) -> Self {
        let name = ObjectName::Backup {
            target: path.target.to_string(),
            backup: path.id.to_string(),
            stream: stream.name.clone(),
        };
        Self { name, listed: Some((&stream.stream_id, &manifest.data_key, number)) }
    }

    /// The only volume of a file of WAL.
    pub(crate) fn file(name: ObjectName) -> Self {
        Self { name, listed: None }
    }

    fn contradicted_by(&self, preamble: &Preamble) -> Option<&'static str> {
        let header = &preamble.header;
        let by_manifest = |(stream_id, data_key, number): (&str, &str, u32)| {
            header.stream_id == stream_id && header.data_key == data_key && header.volume == number
        };
        match self.listed {
            _ if header.name != self.name => Some("it is another volume than the one that was asked for (offset 0)"),
            Some(listed) if !by_manifest(listed) => Some("it is another volume than the manifest says (offset 0)"),
            _ => None,
        }
    }
}

/// Goes through a volume once, piece by piece; a problem is told in words, with its place.
pub(crate) struct VolumeCheck<'a> {
    entry: &'a VolumeEntry,
    wanted: Option<&'a Wanted<'a>>,
    hasher: blake3::Hasher,
    at: u64,
    /// The beginning, until the header was looked at.
    head: Vec<u8>,
    footer: Vec<u8>,
    /// Where the word of the index can lie, and what was seen there: with an index, and without.
    words: [(u64, Vec<u8>); 2],
}

impl<'a> VolumeCheck<'a> {
    /// For an object of `entry.bytes` bytes. With `wanted`, its header too is compared.
    pub(crate) fn new(entry: &'a VolumeEntry, wanted: Option<&'a Wanted<'a>>) -> Self {
        let chunks = usize::try_from(entry.chunks).unwrap_or(0);
        let word_of = |content_len: usize| {
            let behind = WORD_LEN + content_len + TAG_LEN + FOOTER_LEN;
            (entry.bytes.saturating_sub(behind as u64), Vec::with_capacity(WORD_LEN))
        };
        Self {
            entry,
            wanted,
            hasher: blake3::Hasher::new(),
            at: 0,
            head: Vec::new(),
            footer: Vec::with_capacity(FOOTER_LEN),
            words: [word_of(SeekTable::encoded_len(chunks)), word_of(0)],
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// What is wrong, as soon as the header shows it.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let Some(wanted) = self.wanted
            && let Some(preamble) = self.preamble(bytes)?
        {
            self.wanted = None;
            self.head = Vec::new();
            if let Some(problem) = wanted.contradicted_by(&preamble) {
                return Err(problem.to_owned());
            }
        }
        for (offset, word) in &mut self.words {
            let want = *offset + word.len() as u64..*offset + WORD_LEN as u64;
            let from = want.start.max(self.at);
            let to = want.end.min(self.at + bytes.len() as u64);
            if from < to {
                let at = |offset: u64| usize::try_from(offset - self.at).unwrap_or(usize::MAX);
                word.extend_from_slice(&bytes[at(from)..at(to)]);
            }
        }
        let left = self.footer_offset().saturating_sub(self.at);
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        self.hasher.update(&bytes[..n]);
        self.footer.extend_from_slice(&bytes[n..]);
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// All bytes came by.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn finish(self) -> Result<(), String> {
        let footer_offset = self.footer_offset();
        let damaged = |what: String| Err(format!("damaged at offset {footer_offset}: {what}"));
        let Ok(footer) = <[u8; FOOTER_LEN]>::try_from(self.footer.as_slice()) else {
            return Err("too short for a footer (offset 0)".to_owned());
        };
        if self.wanted.is_some() {
            return Err(format!("damaged at offset 0: {}", FormatError::Truncated));
        }
        let footer = match Footer::decode(&footer, self.entry.bytes) {
            Ok(footer) => footer,
            Err(e) => return damaged(e.to_string()),
        };
        if footer.digest != self.entry.digest || footer.chunks != self.entry.chunks {
            return damaged("footer and manifest contradict each other".to_owned());
        }
        if *self.hasher.finalize().as_bytes() != self.entry.digest {
            return Err(format!(
                "damaged between offset 0 and {footer_offset}: its digest is another; 'verify --deep' tells where"
            ));
        }
        // The digest covers the word of the index, and the footer's word for where it lies is covered by nothing else.
        let content_max = footer_offset.saturating_sub(footer.index_offset + WORD_LEN as u64);
        let is_index = self.words.iter().filter(|(offset, _)| *offset == footer.index_offset).any(|(_, word)| {
            let word = word.first_chunk().map(|word| Word::decode(*word, usize::try_from(content_max).unwrap_or(0)));
            matches!(word, Some(Ok(word)) if word.flag != Flag::Data && u64::from(word.len) == content_max)
        });
        if is_index { Ok(()) } else { damaged("the index does not lie where the footer says".to_owned()) }
    }

    fn footer_offset(&self) -> u64 {
        self.entry.bytes.saturating_sub(FOOTER_LEN as u64)
    }

    /// The header, once enough of it has come.
    fn preamble(&mut self, bytes: &[u8]) -> Result<Option<Preamble>, String> {
        const MOST: usize = PREFIX_LEN + HEADER_LEN_MAX;
        let n = bytes.len().min(MOST - self.head.len().min(MOST));
        self.head.extend_from_slice(&bytes[..n]);
        let damaged = |e: FormatError| format!("damaged at offset 0: {e}");
        let Some(prefix) = self.head.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = PREFIX_LEN + header_len(prefix).map_err(damaged)?;
        if self.head.len() < len {
            return Ok(None);
        }
        Preamble::decode(&self.head).map(Some).map_err(damaged)
    }
}

/// What a volume says of itself, which nothing proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) entry: VolumeEntry,
    /// Who signed it.
    pub(crate) signer: Option<Signer>,
}

/// What the last bytes of an object of `bytes` bytes say of it.
pub(crate) fn claimed(path: &str, tail: &[u8], bytes: u64) -> Result<Claim, String> {
    let footer = tail.last_chunk::<FOOTER_LEN>().ok_or("too short for a footer (offset 0)")?;
    let at = bytes.saturating_sub(FOOTER_LEN as u64);
    let footer = Footer::decode(footer, bytes).map_err(|e| format!("damaged at offset {at}: {e}"))?;
    let entry = VolumeEntry { path: path.to_owned(), bytes, chunks: footer.chunks, digest: footer.digest };
    Ok(Claim { entry, signer: footer.signed_by() })
}
