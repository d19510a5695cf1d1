//! Streams that are the same whenever they are made, of any length, without being in memory.

use std::fmt;
use std::io::{self, Read};

/// A stream of bytes, made as it is read.
#[derive(Clone)]
pub struct Data {
    bytes: blake3::OutputReader,
    left: u64,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Random,
    Compressible { block: Vec<u8>, at: usize },
}

/// A new part of a compressible stream, and how often it is repeated: so much smaller can it become.
const FRESH_BYTES: usize = 1 << 10;
const REPEATS: usize = 8;

impl Data {
    /// `len` bytes that cannot be compressed; another seed gives others.
    pub fn random(len: u64, seed: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(seed.as_bytes());
        Self { bytes: hasher.finalize_xof(), left: len, kind: Kind::Random }
    }

    /// `len` bytes that can be compressed to about an eighth.
    pub fn compressible(len: u64, seed: &str) -> Self {
        let kind = Kind::Compressible { block: Vec::new(), at: 0 };
        Self { kind, ..Self::random(len, seed) }
    }

    /// All of it. For short ones.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.clone().read_to_end(&mut bytes).expect("it is made in memory");
        bytes
    }

    /// What [`Digest`] says of it.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        let (mut reader, mut buffer) = (self.clone(), vec![0; 1 << 20]);
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            digest.update(&buffer[..n]);
        }
        digest
    }
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = match &mut self.kind {
            Kind::Random => {
                self.bytes.fill(&mut buffer[..n]);
                n
            }
            Kind::Compressible { block, at } => {
                if *at == block.len() {
                    let mut fresh = vec![0; FRESH_BYTES];
                    self.bytes.fill(&mut fresh);
                    (*block, *at) = (fresh.repeat(REPEATS), 0);
                }
                let n = n.min(block.len() - *at);
                buffer[..n].copy_from_slice(&block[*at..*at + n]);
                *at += n;
                n
            }
        };
        self.left -= n as u64;
        Ok(n)
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Data").field("left", &self.left).finish_non_exhaustive()
    }
}

/// Length and hash of a stream: equal if and only if the streams are.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    hasher: blake3::Hasher,
    len: u64,
}

impl Digest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// How many bytes there were.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.hasher.finalize() == other.hasher.finalize()
    }
}
