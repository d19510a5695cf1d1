//! Chunk-sized buffers that are used again and again: no page is faulted in twice, and memory stays where the budget put it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::chunk::{RECORD_HEAD, RECORD_TAIL_MAX};

/// Hands out [`Buffer`]s of one size and takes them back when they are dropped.
#[derive(Clone)]
pub struct BufferPool(Arc<Shared>);

struct Shared {
    chunk_size: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl BufferPool {
    /// A pool of buffers for chunks of `chunk_size` bytes. Nothing is allocated yet.
    pub fn new(chunk_size: usize) -> Self {
        Self(Arc::new(Shared { chunk_size, free: Mutex::new(Vec::new()) }))
    }

    /// An empty buffer. Never waits: how many may be out at once is the pipeline's budget to keep.
    pub fn lease(&self) -> Buffer {
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slab = free.unwrap_or_else(|| vec![0; RECORD_HEAD + self.0.chunk_size + RECORD_TAIL_MAX]);
        Buffer { slab, len: 0, pool: self.clone(), inspection: None }
    }

    /// The most data a buffer holds.
    pub fn chunk_size(&self) -> usize {
        self.0.chunk_size
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("chunk_size", &self.0.chunk_size).finish_non_exhaustive()
    }
}

/// Room for one chunk of plaintext, or for the sealed record made of it.
///
/// Around the data lies the room that a record needs (the word before it, the tag after it), so that with codec `none`
/// what a source has read is sealed where it lies.
pub struct Buffer {
    slab: Vec<u8>,
    len: usize,
    pool: BufferPool,
    inspection: Option<Inspection>,
}

/// Looks at the data of a buffer once, on a compute thread.
pub(crate) type Inspection = Box<dyn FnOnce(&[u8]) + Send>;

impl Buffer {
    /// Bytes of data in the buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer holds no data.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The most data it can hold: one chunk.
    pub fn capacity(&self) -> usize {
        self.pool.0.chunk_size
    }

    /// The data.
    pub fn filled(&self) -> &[u8] {
        &self.slab[RECORD_HEAD..RECORD_HEAD + self.len]
    }

    /// The room behind the data, to be read into; empty when the buffer is full.
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.slab[RECORD_HEAD + self.len..RECORD_HEAD + self.pool.0.chunk_size]
    }

    /// Declares the first `n` bytes of [`spare`](Self::spare) to be data.
    ///
    /// # Panics
    /// When `n` exceeds the spare room.
    pub fn advance(&mut self, n: usize) {
        assert!(self.len + n <= self.capacity(), "advanced past the end of the buffer");
        self.len += n;
    }

    /// Copies as much of `data` as fits behind what is there; returns how much that was.
    pub fn fill_from(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(self.capacity() - self.len);
        self.spare()[..n].copy_from_slice(&data[..n]);
        self.advance(n);
        n
    }

    /// Has the data looked at before it is compressed, while a compute thread has it at hand.
    pub(crate) fn inspect_with(&mut self, inspection: Inspection) {
        self.inspection = Some(inspection);
    }

    /// Looks at the data, if that is still to be done.
    pub(crate) fn inspect(&mut self) {
        if let Some(inspection) = self.inspection.take() {
            inspection(self.filled());
        }
    }

    /// The whole slab: head room, data, tail room. For the stages that make and open records.
    pub(crate) fn slab_mut(&mut self) -> &mut [u8] {
        &mut self.slab
    }

    /// Sets how many bytes behind the head room are data, tail room included.
    pub(crate) fn set_len(&mut self, len: usize) {
        debug_assert!(RECORD_HEAD + len <= self.slab.len());
        self.len = len;
    }

    /// The data as shared bytes; the memory returns to the pool when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Head room and data together: a sealed record.
    pub(crate) fn record(&self) -> &[u8] {
        &self.slab[..RECORD_HEAD + self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.filled()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let slab = std::mem::take(&mut self.slab);
        if !slab.is_empty() {
            self.pool.0.free.lock().unwrap_or_else(PoisonError::into_inner).push(slab);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_returns_to_the_pool_with_the_last_reference() {
        let pool = BufferPool::new(4096);
        let mut buffer = pool.lease();
        assert_eq!(buffer.fill_from(&[7; 5000]), 4096);
        assert!(buffer.spare().is_empty());
        let bytes = buffer.freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert_eq!(pool.0.free.lock().unwrap().len(), 0);
        assert_eq!(slice, [7; 10][..]);
        drop(slice);
        assert_eq!(pool.0.free.lock().unwrap().len(), 1);
        assert!(pool.lease().is_empty());
    }
}
