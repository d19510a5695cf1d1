//! Codecs: each chunk becomes a frame that stands alone. No I/O.
//!
//! Independent frames can be made and read on any number of cores, in any order, and cost about one percent of the ratio.

use zstd::bulk;
use zstd::zstd_safe;
use zstd::zstd_safe::{CParameter, Strategy};

pub use crate::format::Codec;

/// The most bytes by which a frame can be longer than its chunk, up to the largest chunk of 2 MiB.
pub const FRAME_OVERHEAD_MAX: usize = 64;

/// Lowest level of compression.
pub const LEVEL_MIN: i32 = -7;
/// Highest level of compression.
pub const LEVEL_MAX: i32 = 19;
/// The level when none is asked for.
pub const LEVEL_DEFAULT: i32 = 3;

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Store chunks as they are.
    None,
    /// zstd at a level from [`LEVEL_MIN`] to [`LEVEL_MAX`].
    Zstd(i32),
}

impl Compression {
    /// The codec as the format names it.
    pub fn codec(self) -> Codec {
        match self {
            Self::None => Codec::None,
            Self::Zstd(_) => Codec::Zstd,
        }
    }

    /// Memory in bytes that one worker needs beside its buffers: libzstd 1.5.7 for chunks of 1 MiB, rounded up.
    pub fn context_bytes(self) -> usize {
        const MIB: usize = 1 << 20;
        match self {
            Self::None => 0,
            Self::Zstd(..=3) => 3 * MIB / 2,
            Self::Zstd(4..=6) => 4 * MIB,
            Self::Zstd(7..=12) => 12 * MIB,
            Self::Zstd(_) => 18 * MIB,
        }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(LEVEL_DEFAULT)
    }
}

/// A frame did not decompress to the length it should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of the expected length")]
pub struct BadFrame;

/// What chunks are made of, as far as it matters for where matches are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Content {
    /// Anything.
    #[default]
    Any,
    /// Files of a PostgreSQL cluster: what is alike in their pages lies close together.
    Pages,
}

impl Content {
    /// Level 3 for frames of 1 MiB: tables that stay in a core's cache (libzstd's have 2^17 and 2^16 entries), and for pages one table is
    /// enough. See `docs/decisions/0006-small-tables.md`.
    fn level_default(self) -> &'static [CParameter] {
        match self {
            Self::Any => &[CParameter::HashLog(16), CParameter::ChainLog(14)],
            Self::Pages => {
                &[CParameter::Strategy(Strategy::ZSTD_fast), CParameter::HashLog(13), CParameter::MinMatch(5)]
            }
        }
    }
}

/// Makes frames; one for each worker, used again and again.
pub struct Compressor {
    context: bulk::Compressor<'static>,
    level: i32,
    content: Content,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor for `level`.
    pub fn new(level: i32, content: Content) -> Self {
        let level = level.clamp(LEVEL_MIN, LEVEL_MAX);
        let mut context = bulk::Compressor::new(level).expect("levels within the bounds are accepted");
        if level == LEVEL_DEFAULT {
            for parameter in content.level_default() {
                context.set_parameter(*parameter).expect("parameters within the bounds are accepted");
            }
        }
        Self { context, level, content }
    }

    /// The level it compresses at, and what it expects.
    pub fn settings(&self) -> (i32, Content) {
        (self.level, self.content)
    }

    /// Compresses `chunk` into the front of `out`, which has room for `chunk.len() + FRAME_OVERHEAD_MAX` bytes; returns the frame's length.
    ///
    /// What would not become smaller is stored in raw blocks. Where a probe says so beforehand, compression is not even tried.
    pub fn compress(&mut self, chunk: &[u8], out: &mut [u8]) -> usize {
        // A frame that is not smaller than its chunk is refused by libzstd for lack of room.
        let room = chunk.len().min(out.len());
        if !self.looks_incompressible(chunk)
            && let Ok(len) = self.context.compress_to_buffer(chunk, &mut out[..room])
        {
            return len;
        }
        store(chunk, out)
    }

    /// Whether a sample of `chunk` has neither skewed byte frequencies nor repetitions.
    ///
    /// Counting bytes costs a few microseconds and clears all ordinary data; only what then still looks random (compressed or
    /// encrypted files, mostly) has a stretch of it compressed on trial, at 3 % of the cost of the chunk.
    fn looks_incompressible(&mut self, chunk: &[u8]) -> bool {
        const STRIDES: usize = 16;
        const SAMPLE: usize = 1024;
        const TRIAL: usize = 32 * 1024;
        if chunk.len() < 4 * STRIDES * SAMPLE {
            return false;
        }
        let mut counts = [0u32; 256];
        for stride in chunk.chunks(chunk.len() / STRIDES).take(STRIDES) {
            for byte in &stride[..SAMPLE] {
                counts[usize::from(*byte)] += 1;
            }
        }
        // Random bytes give chi-squared of 255 ± 23 here; text gives tens of thousands.
        let expected = (STRIDES * SAMPLE) as f64 / 256.0;
        let chi_squared: f64 = counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        if chi_squared > 512.0 {
            return false;
        }
        let middle = chunk.len() / 2 - TRIAL / 2;
        let mut trial = [0; TRIAL];
        self.context.compress_to_buffer(&chunk[middle..middle + TRIAL], &mut trial[..TRIAL * 31 / 32]).is_err()
    }
}

/// Writes `chunk` as a zstd frame of raw blocks (RFC 8878, 3.1.1): single segment, content size in four bytes, no checksum.
fn store(chunk: &[u8], out: &mut [u8]) -> usize {
    const BLOCK_MAX: usize = 128 * 1024;
    const SINGLE_SEGMENT_SIZE4: u8 = 0b1010_0000;
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&zstd_safe::MAGICNUMBER.to_le_bytes());
    put(&[SINGLE_SEGMENT_SIZE4]);
    put(&u32::try_from(chunk.len()).expect("chunks are at most 2 MiB").to_le_bytes());
    if chunk.is_empty() {
        put(&[1, 0, 0]);
    }
    let mut blocks = chunk.chunks(BLOCK_MAX).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = last | u32::try_from(block.len()).expect("at most 128 KiB") << 3;
        put(&header.to_le_bytes()[..3]);
        put(block);
    }
    at
}

/// Reads frames; one for each worker, used again and again.
pub struct Decompressor(bulk::Decompressor<'static>);

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Decompressor {
    /// A decompressor.
    pub fn new() -> Self {
        Self(bulk::Decompressor::new().expect("a context without a dictionary can be made"))
    }

    /// Decompresses exactly one `frame`, which must fill `out` exactly: no bomb can go beyond it.
    pub fn decompress(&mut self, frame: &[u8], out: &mut [u8]) -> Result<(), BadFrame> {
        if zstd_safe::find_frame_compressed_size(frame).ok() != Some(frame.len()) {
            return Err(BadFrame);
        }
        match self.0.decompress_to_buffer(frame, out) {
            Ok(len) if len == out.len() => Ok(()),
            _ => Err(BadFrame),
        }
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encrypt::random;
    use proptest::prelude::*;

    fn random_bytes(len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < len {
            out.extend_from_slice(&random::bytes::<4096>());
        }
        out.truncate(len);
        out
    }

    fn round_trip(level: i32, chunk: &[u8]) -> usize {
        let mut frame = vec![0; chunk.len() + FRAME_OVERHEAD_MAX];
        let len = Compressor::new(level, Content::Any).compress(chunk, &mut frame);
        let mut out = vec![0; chunk.len()];
        Decompressor::new().decompress(&frame[..len], &mut out).unwrap();
        assert_eq!(out, chunk);
        if !out.is_empty() {
            let short = out.len() - 1;
            assert_eq!(Decompressor::new().decompress(&frame[..len], &mut out[..short]), Err(BadFrame));
        }
        len
    }

    #[test]
    fn frames_never_outgrow_their_bound_and_tell_their_size() {
        for len in [0, 1, 2, 100, 4096, 128 << 10, (128 << 10) + 1, 1 << 20, 2 << 20] {
            let random = random_bytes(len);
            assert!(round_trip(3, &random) <= len + FRAME_OVERHEAD_MAX);
            assert!(round_trip(3, &vec![b'x'; len]) <= len.div_ceil(100) + 20);
        }
    }

    #[test]
    fn every_level_is_accepted() {
        let text = b"all levels give the same bytes back ".repeat(3000);
        for level in LEVEL_MIN..=LEVEL_MAX {
            round_trip(level, &text);
        }
    }

    #[test]
    fn the_probe_finds_random_data_and_spares_the_rest() {
        let mut c = Compressor::new(3, Content::Any);
        assert!(c.looks_incompressible(&random_bytes(1 << 20)));
        assert!(!c.looks_incompressible(&b"text 1234".repeat(100_000)));
        // Flat byte frequencies, and yet nothing but repetition.
        assert!(!c.looks_incompressible(&random_bytes(4096).repeat(256)));
    }

    #[test]
    fn two_frames_are_not_one() {
        let mut frame = vec![0; 200];
        let len = Compressor::new(3, Content::Any).compress(&[1; 50], &mut frame);
        let twice = frame[..len].repeat(2);
        assert_eq!(Decompressor::new().decompress(&twice, &mut [0; 100]), Err(BadFrame));
    }

    proptest! {
        #[test]
        fn any_chunk_comes_back(chunk in proptest::collection::vec(any::<u8>(), 0..20_000), level in LEVEL_MIN..4) {
            round_trip(level, &chunk);
        }
    }
}
