//! The head of a volume: what it is, which name it answers to, and who can open it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, json};
use crate::encrypt::{COMMITMENT_LEN, DataKey, SALT_LEN, Suite, VolumeKey};
use crate::keys::Wrap;

/// The first eight bytes of every volume; the last is the format's major version.
pub const MAGIC: [u8; 8] = *b"backupV\x01";
/// Length of the magic number and the header's length together.
pub const PREFIX_LEN: usize = 12;
/// The longest header in bytes.
pub const HEADER_LEN_MAX: usize = 64 * 1024;
/// The smallest chunk in bytes of plaintext.
pub const CHUNK_SIZE_MIN: u32 = 4 * 1024;
/// The largest chunk in bytes of plaintext. At this size a frame of raw zstd blocks is 61 bytes longer than its content.
pub const CHUNK_SIZE_MAX: u32 = 2 * 1024 * 1024;
/// The most data chunks in a volume: its index stays below 8 MiB + 17 bytes.
pub const VOLUME_CHUNKS_MAX: u32 = 1 << 20;
/// The most recipients of one backup.
pub const WRAPS_MAX: usize = 64;

/// How chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not at all.
    None,
    /// One standard zstd frame (RFC 8878) for each chunk, with its content size.
    Zstd,
}

/// The name an object answers to. Readers compare it with the name they asked for, so that objects cannot be swapped,
/// grafted or replayed elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ObjectName {
    /// A stream of a backup.
    Backup {
        /// The target's name.
        target: String,
        /// The backup's id.
        backup: String,
        /// The stream's name.
        stream: String,
    },
    /// A file of PostgreSQL's write-ahead log.
    Wal {
        /// The target's name.
        target: String,
        /// The cluster's system identifier.
        system_identifier: String,
        /// The timeline, eight hexadecimal digits.
        timeline: String,
        /// The file's name.
        file: String,
    },
}

/// The JSON at the head of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Which name the object answers to.
    pub name: ObjectName,
    /// Random name of this run of the stream, the same in all of its volumes: 32 hexadecimal digits.
    pub stream_id: String,
    /// The volume's place in its stream, from 0.
    pub volume: u32,
    /// When the volume was begun.
    pub created: Timestamp,
    /// The cipher.
    pub suite: Suite,
    /// The codec.
    pub codec: Codec,
    /// Bytes of plaintext in each chunk, but the last of the stream.
    pub chunk_size: u32,
    /// Data chunks in each volume, but the last of the stream.
    pub volume_chunks: u32,
    /// Random; no two volumes share it.
    #[serde(with = "super::base64_bytes")]
    pub salt: [u8; SALT_LEN],
    /// Id of the data key.
    pub data_key: String,
    /// The data key, wrapped for each recipient.
    pub wraps: Vec<Wrap>,
    /// The whole stream's plaintext, where it was known before it was sealed: in every [`Wal`](ObjectName::Wal) object, and in no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<Plaintext>,
    /// Fields that a reader must understand or refuse the volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
}

/// What tells a plaintext from others without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plaintext {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its BLAKE3.
    #[serde(with = "super::base64_bytes")]
    pub blake3: [u8; 32],
}

/// A header with the exact bytes that it was written as: all of them take part in the volume's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preamble {
    /// What the bytes say.
    pub header: Header,
    bytes: Vec<u8>,
}

/// Reads the length of a header from the first bytes of an object.
pub fn header_len(prefix: &[u8; PREFIX_LEN]) -> Result<usize, FormatError> {
    if prefix[..7] != MAGIC[..7] {
        return Err(FormatError::Magic);
    }
    if prefix[7] != MAGIC[7] {
        return Err(FormatError::Version(prefix[7].into()));
    }
    let len = u32::from_le_bytes(prefix[8..].try_into().expect("four bytes"));
    if len as usize > HEADER_LEN_MAX {
        return Err(FormatError::OutOfBounds { what: "header length", value: len.into() });
    }
    Ok(len as usize)
}

impl Preamble {
    /// Writes a header.
    pub fn new(header: Header) -> Result<Self, FormatError> {
        header.check()?;
        let json = serde_json::to_vec(&header)
            .map_err(|e| FormatError::Malformed { what: "header", reason: e.to_string() })?;
        if json.len() > HEADER_LEN_MAX {
            return Err(FormatError::OutOfBounds { what: "header length", value: json.len() as u64 });
        }
        let mut bytes = Vec::with_capacity(PREFIX_LEN + json.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&u32::try_from(json.len()).expect("bounded above").to_le_bytes());
        bytes.extend_from_slice(&json);
        Ok(Self { header, bytes })
    }

    /// Reads the preamble at the start of `object`, which may be longer.
    pub fn decode(object: &[u8]) -> Result<Self, FormatError> {
        let prefix = object.first_chunk::<PREFIX_LEN>().ok_or(FormatError::Truncated)?;
        let len = PREFIX_LEN + header_len(prefix)?;
        let bytes = object.get(..len).ok_or(FormatError::Truncated)?;
        let header: Header = json::parse("header", &bytes[PREFIX_LEN..])?;
        header.check()?;
        Ok(Self { header, bytes: bytes.to_vec() })
    }

    /// The bytes as they stand in the object; the commitment follows them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the first chunk begins.
    pub fn chunks_offset(&self) -> u64 {
        (self.bytes.len() + COMMITMENT_LEN) as u64
    }

    /// The volume's key.
    pub fn key(&self, data_key: &DataKey) -> VolumeKey {
        VolumeKey::derive(data_key, self.header.suite, &self.header.salt, &self.bytes)
    }

    /// The volume's key, after comparing the commitment that was read behind the header.
    pub fn open(&self, data_key: &DataKey, commitment: &[u8; COMMITMENT_LEN]) -> Result<VolumeKey, FormatError> {
        let key = self.key(data_key);
        if key.commitment() == commitment { Ok(key) } else { Err(FormatError::Commitment) }
    }
}

impl Header {
    fn check(&self) -> Result<(), FormatError> {
        let bounds =
            |what, value: u64, ok: bool| if ok { Ok(()) } else { Err(FormatError::OutOfBounds { what, value }) };
        let chunk_size_ok = (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&self.chunk_size);
        bounds("chunk size", self.chunk_size.into(), chunk_size_ok)?;
        let volume_chunks_ok = (1..=VOLUME_CHUNKS_MAX).contains(&self.volume_chunks);
        bounds("chunks in a volume", self.volume_chunks.into(), volume_chunks_ok)?;
        bounds("number of recipients", self.wraps.len() as u64, self.wraps.len() <= WRAPS_MAX)
    }

    /// Whether both are volumes of streams that were cut and sealed alike; those of one stream always are.
    pub fn is_cut_like(&self, other: &Self) -> bool {
        let cut = |header: &Self| (header.suite, header.codec, header.chunk_size, header.volume_chunks);
        cut(self) == cut(other)
    }

    /// Bytes of plaintext in a volume that is full.
    pub fn volume_bytes(&self) -> u64 {
        u64::from(self.chunk_size) * u64::from(self.volume_chunks)
    }

    /// The longest content that a data chunk of this volume can have.
    pub fn frame_len_max(&self) -> usize {
        self.chunk_size as usize + if self.codec == Codec::Zstd { crate::compress::FRAME_OVERHEAD_MAX } else { 0 }
    }
}
