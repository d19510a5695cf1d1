//! Cutting a stream into chunks. No I/O.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::compress::FRAME_OVERHEAD_MAX;
use crate::encrypt::TAG_LEN;
use crate::format::WORD_LEN;
use crate::pipeline::{Buffer, BufferPool};
use crate::source::Piece;

/// Bytes in front of a record's content: the word.
pub const RECORD_HEAD: usize = WORD_LEN;
/// The most bytes that follow a chunk in its record: room for a frame that grew, and the tag.
pub const RECORD_TAIL_MAX: usize = FRAME_OVERHEAD_MAX + TAG_LEN;

/// Bytes of a stream that become one record: exactly the chunk size, or less at the stream's end.
#[derive(Debug)]
pub enum Chunk {
    /// In a buffer of the pipeline: can be sealed where it lies.
    Owned(Buffer),
    /// Part of larger bytes that a source gave.
    Shared(Bytes),
}

impl Chunk {
    /// The plaintext.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(buffer) => buffer.filled(),
            Self::Shared(bytes) => bytes,
        }
    }

    /// Looks at the plaintext, if its source wants that.
    pub(crate) fn inspect(&mut self) {
        if let Self::Owned(buffer) = self {
            buffer.inspect();
        }
    }
}

/// Turns pieces of any size into chunks of one size. The same bytes always give the same cuts.
///
/// A full buffer becomes a chunk as it is, and large shared bytes are sliced. Only pieces smaller than a chunk are gathered, with one copy:
/// kept as slices they would pin memory that nobody counts, and libzstd would copy them into its window anyway.
#[derive(Debug)]
pub struct Cutter {
    pool: BufferPool,
    gathered: Option<Buffer>,
    ready: VecDeque<Chunk>,
}

impl Cutter {
    /// A cutter for chunks of the size of `pool`'s buffers.
    pub fn new(pool: BufferPool) -> Self {
        Self { pool, gathered: None, ready: VecDeque::new() }
    }

    /// Takes the next piece of the stream.
    pub fn push(&mut self, piece: Piece) {
        match piece {
            Piece::Buffer(buffer) if self.gathered.is_none() => self.keep(buffer),
            Piece::Buffer(mut buffer) => {
                buffer.inspect();
                self.gather(buffer.filled());
            }
            Piece::Bytes(mut bytes) => {
                let missing = self.gathered.as_ref().map_or(0, |b| b.capacity() - b.len()).min(bytes.len());
                self.gather(&bytes.split_to(missing));
                let chunk_size = self.pool.chunk_size();
                while bytes.len() >= chunk_size {
                    self.ready.push_back(Chunk::Shared(bytes.split_to(chunk_size)));
                }
                self.gather(bytes.chunk());
            }
        }
    }

    /// The next whole chunk, if there is one.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        self.ready.pop_front()
    }

    /// The last, short chunk, if there is one. To be called at the stream's end, after the whole chunks were taken.
    pub fn finish(&mut self) -> Option<Chunk> {
        debug_assert!(self.ready.is_empty());
        self.gathered.take().map(Chunk::Owned)
    }

    fn gather(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let mut buffer = self.gathered.take().unwrap_or_else(|| self.pool.lease());
            let n = buffer.fill_from(data);
            data = &data[n..];
            self.keep(buffer);
        }
    }

    fn keep(&mut self, buffer: Buffer) {
        if buffer.len() == buffer.capacity() {
            self.ready.push_back(Chunk::Owned(buffer));
        } else if !buffer.is_empty() {
            self.gathered = Some(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(pool: &BufferPool, pieces: Vec<Piece>) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new(pool.clone());
        let mut chunks = Vec::new();
        for piece in pieces {
            cutter.push(piece);
            while let Some(chunk) = cutter.next_chunk() {
                chunks.push(chunk.as_slice().to_vec());
            }
        }
        chunks.extend(cutter.finish().map(|chunk| chunk.as_slice().to_vec()));
        chunks
    }

    proptest! {
        #[test]
        fn the_same_bytes_cut_differently_give_the_same_chunks(
            pieces in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..300), any::<bool>()), 0..40)
        ) {
            let pool = BufferPool::new(100);
            let all: Vec<u8> = pieces.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let pieces = pieces
                .into_iter()
                .flat_map(|(bytes, shared)| {
                    if shared {
                        return vec![Piece::Bytes(bytes.into())];
                    }
                    let fill = |part: &[u8]| {
                        let mut buffer = pool.lease();
                        buffer.fill_from(part);
                        Piece::Buffer(buffer)
                    };
                    bytes.chunks(100).map(fill).collect()
                })
                .collect();
            let expected: Vec<Vec<u8>> = all.chunks(100).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(cut(&pool, pieces), expected);
        }
    }

    #[test]
    fn full_buffers_and_large_bytes_are_not_copied() {
        let pool = BufferPool::new(100);
        let mut buffer = pool.lease();
        buffer.fill_from(&[1; 100]);
        let at = buffer.filled().as_ptr();
        let large = Bytes::from(vec![2; 250]);
        let mut cutter = Cutter::new(pool);
        cutter.push(Piece::Buffer(buffer));
        assert_eq!(cutter.next_chunk().unwrap().as_slice().as_ptr(), at);
        cutter.push(Piece::Bytes(large.clone()));
        assert_eq!(cutter.next_chunk().unwrap().as_slice().as_ptr(), large.as_ptr());
        assert_eq!(cutter.next_chunk().unwrap().as_slice().as_ptr(), large[100..].as_ptr());
        assert_eq!(cutter.finish().unwrap().as_slice(), [2; 50]);
    }
}
