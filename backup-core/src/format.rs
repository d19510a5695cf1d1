//! Format version 1, byte by byte: volume header, chunk words, seek table, footer, manifest, rewraps. No I/O.
//!
//! `docs/FORMAT.md` is the same for people who write a decoder of their own. A volume is
//!
//! ```text
//! magic(8) | header_len u32 LE | header JSON | commitment(32) | data chunk* | index chunk | footer(152)
//! chunk := word u32 LE | ciphertext | tag(16)
//! ```

pub mod base64_bytes;
mod footer;
mod header;
pub mod json;
mod manifest;
mod rewrap;
mod seek_table;
mod volume;
mod word;

pub use footer::{FOOTER_LEN, Footer};
pub use header::{
    CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Codec, HEADER_LEN_MAX, Header, MAGIC, ObjectName, PREFIX_LEN, Plaintext, Preamble,
    VOLUME_CHUNKS_MAX, WRAPS_MAX, header_len,
};
pub use manifest::{
    ClusterEntry, Condition, Kind, MANIFEST_LEN_MAX, Manifest, RecipientName, StreamEntry, VolumeEntry,
};
pub use rewrap::{Purpose, REWRAP_LEN_MAX, Rewrap};
pub use seek_table::SeekTable;
pub use volume::{Place, index_range, open_index, read_volume};
pub use word::{Flag, WORD_LEN, Word};

/// What is wrong with stored bytes. Names no object: the reader that knows it adds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not one of ours, or not any more.
    #[error("not a volume of this format: the magic number is missing")]
    Magic,
    /// Written by a later version.
    #[error("format version {0} is not known to this release")]
    Version(u32),
    /// A field that must be understood is not.
    #[error("needs a newer release: critical field '{0}' is not known")]
    Critical(String),
    /// Too short.
    #[error("truncated")]
    Truncated,
    /// A length or a count is outside its bounds.
    #[error("{what} of {value} is out of bounds")]
    OutOfBounds {
        /// What was read.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// JSON that cannot be read as what it should be.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The word before a chunk makes no sense.
    #[error("malformed chunk word {0:#010x}")]
    Word(u32),
    /// A chunk did not authenticate.
    #[error("chunk {0} does not authenticate")]
    Chunk(u64),
    /// The header's commitment is not that of the key.
    #[error("the header does not belong to this data key, or was changed")]
    Commitment,
    /// A chunk did not decompress to what it must.
    #[error("chunk {chunk} does not decompress to {expected} bytes")]
    Frame {
        /// Number of the chunk in its volume.
        chunk: u64,
        /// Its plaintext's length.
        expected: usize,
    },
    /// The seek table contradicts the volume that holds it.
    #[error("the index contradicts the volume: {0}")]
    Index(&'static str),
    /// The footer contradicts the volume that it closes.
    #[error("the footer contradicts the volume: {0}")]
    Footer(&'static str),
    /// The object is not the one that was asked for.
    #[error("answers to another name: {0}")]
    Name(String),
}
