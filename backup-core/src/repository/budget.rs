//! Memory for bytes that are on their way from a store: who wants more than there is waits for somebody else's to be free.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result, Stage};

/// What is counted: a semaphore's numbers end at four thousand million.
const UNIT: usize = 1024;

/// Buffers from this size on are used again. Allocators keep such large pieces of memory when they are freed by another thread than the one that
/// asked for them, which would double what a copy takes.
const POOLED_BYTES: usize = 1 << 20;

/// So many bytes, for whoever shares them. Given out in the order in which they were asked for, so that large pieces do not wait for ever.
#[derive(Debug, Clone)]
pub(crate) struct ByteBudget {
    units: Arc<Semaphore>,
    all: u32,
    pool: Pool,
}

/// Buffers that were used: never more than there were at once.
#[derive(Debug, Clone, Default)]
struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// Memory to read into. It goes back when nobody needs its bytes any more.
#[derive(Debug)]
pub(crate) struct Pooled {
    bytes: Vec<u8>,
    pool: Pool,
}

impl ByteBudget {
    /// A budget of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let all = u32::try_from((bytes / UNIT).max(1)).unwrap_or(u32::MAX);
        Self { units: Arc::new(Semaphore::new(all as usize)), all, pool: Pool::default() }
    }

    /// Waits for `bytes`; who wants more than there is at all gets all of it. They are free again when the permit is dropped. Cancel safe.
    pub(crate) async fn take(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT as u64)).unwrap_or(u32::MAX).clamp(1, self.all);
        let permit = Arc::clone(&self.units).acquire_many_owned(units).await;
        permit.map_err(|_| Error::internal(Stage::Fetch, "a budget of memory was closed"))
    }

    /// An empty buffer for `len` bytes, which were [taken](Self::take).
    pub(crate) fn buffer(&self, len: usize) -> Pooled {
        let used = if len < POOLED_BYTES { None } else { self.pool.lock().pop() };
        let bytes = used.unwrap_or_else(|| Vec::with_capacity(len));
        Pooled { bytes, pool: self.pool.clone() }
    }
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pooled {
    /// To be filled.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What it was filled with.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.bytes.capacity() >= POOLED_BYTES {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            self.pool.lock().push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_asked_for_waits_until_it_is_there_and_never_for_more_than_all() {
        let budget = ByteBudget::new(10 * UNIT);
        let most = budget.take(9 * UNIT as u64).await.unwrap();
        assert!(futures::FutureExt::now_or_never(budget.take(2 * UNIT as u64)).is_none());
        drop(most);
        drop(budget.take(u64::MAX).await.unwrap());
        drop(budget.take(10 * UNIT as u64).await.unwrap());
    }

    #[test]
    fn large_buffers_are_used_again_and_come_back_empty() {
        let budget = ByteBudget::new(8 << 20);
        let mut first = budget.buffer(2 << 20);
        first.bytes().extend_from_slice(b"some");
        let place = first.as_ref().as_ptr();
        let bytes = first.freeze();
        let other = budget.buffer(2 << 20);
        assert_eq!((&bytes[..], other.as_ref()), (&b"some"[..], &b""[..]));
        drop(bytes);
        let again = budget.buffer(2 << 20);
        assert_eq!((again.as_ref().as_ptr(), again.as_ref()), (place, &b""[..]));
        drop(budget.buffer(100));
        assert!(budget.pool.lock().is_empty(), "small ones are not worth it");
    }
}
