//! Volumes written by hand, from the functions of the format alone: to be compared with what the pipeline writes, and to write what
//! the pipeline never would.

use backup_core::encrypt::{DataKey, VolumeKey, seal_record};
use backup_core::format::{Codec, FOOTER_LEN, Flag, Footer, Header, MAGIC, SeekTable, VolumeEntry};

/// Room for the word before a record's content, and for the tag behind it.
const WORD_AND_TAG: usize = 4 + 16;

/// Writes one volume.
#[derive(Debug)]
pub struct VolumeBuilder {
    key: VolumeKey,
    codec: Codec,
    bytes: Vec<u8>,
    index: SeekTable,
    commitment: usize,
    records: Vec<usize>,
}

/// A volume, and where its parts begin.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The object.
    pub bytes: Vec<u8>,
    /// Offset of each data chunk's word.
    pub records: Vec<usize>,
    /// Offset of the commitment.
    pub commitment: usize,
    /// Offset of the index chunk's word.
    pub index: usize,
    /// Offset of the footer.
    pub footer: usize,
    /// Bytes of plaintext, as its writer said.
    pub plain_len: u64,
}

impl VolumeBuilder {
    /// A volume with this header.
    pub fn new(header: &Header, data_key: &DataKey) -> Self {
        let json = serde_json::to_string(header).expect("headers are plain data");
        Self::with_json(&json, header, data_key)
    }

    /// A volume whose header is `json` as it stands; `header` says how to seal.
    pub fn with_json(json: &str, header: &Header, data_key: &DataKey) -> Self {
        let len = u32::try_from(json.len()).expect("test headers are short");
        let mut bytes = [&MAGIC[..], &len.to_le_bytes(), json.as_bytes()].concat();
        let key = VolumeKey::derive(data_key, header.suite, &header.salt, &bytes);
        let commitment = bytes.len();
        bytes.extend_from_slice(key.commitment());
        Self { key, codec: header.codec, bytes, index: SeekTable::default(), commitment, records: Vec::new() }
    }

    /// Adds a data chunk: `content` as it will be sealed, of `plain_len` bytes when decompressed.
    #[must_use]
    pub fn chunk(self, content: &[u8], plain_len: usize) -> Self {
        let counter = self.records.len() as u64;
        self.chunk_as(counter, content, plain_len)
    }

    /// Adds a data chunk under a counter that need not be its own.
    #[must_use]
    pub fn chunk_as(mut self, counter: u64, content: &[u8], plain_len: usize) -> Self {
        let len = |n: usize| u32::try_from(n).expect("test chunks are short");
        self.index.frames.push((len(content.len()), len(plain_len)));
        self.records.push(self.bytes.len());
        self.seal(counter, Flag::Data, content);
        self
    }

    /// Adds index and footer.
    #[must_use]
    pub fn finish(self, flag: Flag) -> Volume {
        let index = if self.codec == Codec::Zstd { self.index.encode() } else { Vec::new() };
        self.finish_with_index(flag, &index)
    }

    /// Adds index and footer, with the lengths of frames and chunks changed.
    #[must_use]
    pub fn finish_with_lengths(mut self, flag: Flag, change: impl FnOnce(&mut Vec<(u32, u32)>)) -> Volume {
        change(&mut self.index.frames);
        self.finish(flag)
    }

    /// Adds an index with this content, and the footer.
    #[must_use]
    pub fn finish_with_index(mut self, flag: Flag, content: &[u8]) -> Volume {
        let (commitment, index) = (self.commitment, self.bytes.len());
        let plain_len = self.index.frames.iter().map(|(_, plain)| u64::from(*plain)).sum();
        self.seal(self.records.len() as u64, flag, content);
        let footer = self.bytes.len();
        let digest = *blake3::hash(&self.bytes).as_bytes();
        let encoded = Footer::unsigned(index as u64, self.records.len() as u64, digest).encode();
        self.bytes.extend_from_slice(&encoded);
        Volume { bytes: self.bytes, records: self.records, commitment, index, footer, plain_len }
    }

    fn seal(&mut self, counter: u64, flag: Flag, content: &[u8]) {
        let mut record = vec![0; content.len() + WORD_AND_TAG];
        record[4..4 + content.len()].copy_from_slice(content);
        seal_record(&self.key, counter, flag, &mut record, content.len());
        self.bytes.extend_from_slice(&record);
    }
}

impl Volume {
    /// What the manifest says of it.
    pub fn entry(&self, path: &str) -> VolumeEntry {
        entry_of(path, &self.bytes)
    }
}

/// What a manifest says of a volume that ends with a footer, which may lie about its index.
///
/// # Panics
/// When `object` is shorter than a footer.
pub fn entry_of(path: &str, object: &[u8]) -> VolumeEntry {
    let footer: &[u8; FOOTER_LEN] = object.last_chunk().expect("a volume has a footer");
    let chunks = u64::from_le_bytes(footer[8..16].try_into().expect("eight bytes"));
    let digest = footer[16..48].try_into().expect("32 bytes");
    VolumeEntry { path: path.to_owned(), bytes: object.len() as u64, chunks, digest }
}
