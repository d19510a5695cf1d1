//! The BLAKE3 of a file, from its chunks in any order, on any thread. No I/O.
//!
//! BLAKE3 is a tree: a chunk whose length is a power of two and at least 1 KiB is a subtree of it, and subtrees can be joined. So both
//! readings of a file can be done in parallel, and the second be compared with the first chunk by chunk.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// What one chunk adds to the digest of its file.
pub(super) type ChunkDigest = [u8; 32];

/// How a file is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Bytes in the file.
    pub(super) len: u64,
    /// Bytes in each chunk but the last: a power of two.
    pub(super) chunk_size: u32,
}

impl Cut {
    /// How many chunks there are.
    pub(super) fn chunks(self) -> u64 {
        self.len.div_ceil(self.chunk_size.into())
    }

    /// Where chunk `index` begins.
    pub(super) fn offset(self, index: u64) -> u64 {
        index * u64::from(self.chunk_size)
    }

    /// Bytes in chunk `index`.
    pub(super) fn chunk_len(self, index: u64) -> usize {
        let rest = self.len.saturating_sub(self.offset(index)).min(self.chunk_size.into());
        usize::try_from(rest).expect("a chunk is at most 2 MiB")
    }

    /// What chunk `index`, which is `bytes`, adds to the digest.
    pub(super) fn digest_of_chunk(self, index: u64, bytes: &[u8]) -> ChunkDigest {
        if self.chunks() <= 1 {
            return *blake3::hash(bytes).as_bytes();
        }
        Hasher::new().set_input_offset(self.offset(index)).update(bytes).finalize_non_root()
    }

    /// The BLAKE3 of the file, of which these are all chunks in order.
    pub(super) fn digest(chunks: &[ChunkDigest]) -> [u8; 32] {
        match chunks {
            [] => *blake3::hash(b"").as_bytes(),
            [only] => *only,
            _ => {
                let (left, right) = chunks.split_at(left_len(chunks.len()));
                *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
            }
        }
    }
}

fn subtree(chunks: &[ChunkDigest]) -> ChunkDigest {
    if let [only] = chunks {
        return *only;
    }
    let (left, right) = chunks.split_at(left_len(chunks.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The left side of the tree is the largest that is full, and leaves something for the right one.
fn left_len(chunks: usize) -> usize {
    chunks.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_chunks(bytes: &[u8], chunk_size: u32) -> [u8; 32] {
        let cut = Cut { len: bytes.len() as u64, chunk_size };
        let chunk = |i| {
            let at = usize::try_from(cut.offset(i)).unwrap();
            cut.digest_of_chunk(i, &bytes[at..at + cut.chunk_len(i)])
        };
        Cut::digest(&(0..cut.chunks()).map(chunk).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn it_is_the_blake3_of_the_whole(len in 0usize..70_000, bits in 10u32..14) {
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut bytes);
            prop_assert_eq!(by_chunks(&bytes, 1 << bits), *blake3::hash(&bytes).as_bytes());
        }
    }

    #[test]
    fn lengths_at_the_edges_of_chunks() {
        for len in [0, 1, 1023, 1024, 1025, 2048, 2049, 4096, 7 * 1024, 8 * 1024, 8 * 1024 + 1] {
            let bytes = vec![7; len];
            assert_eq!(by_chunks(&bytes, 1024), *blake3::hash(&bytes).as_bytes(), "{len}");
        }
    }
}
