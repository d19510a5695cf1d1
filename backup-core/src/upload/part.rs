//! Parts: the pieces of one size in which an object is uploaded.
//!
//! A part either gathers copies of small records in a buffer of the right size (slices of them would each pin the buffer of a whole chunk: at
//! a ratio of 10, a part of 8 MiB would hold 80 MiB), or lists records that are as large as their chunks anyway.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::PutPayload;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::race::{Ticket, Waiting};
use crate::error::{Error, Result, Stage};

/// The parts that any stream of a backup may fill, beyond the one that each has for itself.
#[derive(Debug, Clone)]
pub(crate) struct SharedParts {
    permits: Arc<Semaphore>,
    spent: Spent,
    waiting: Waiting,
}

impl SharedParts {
    /// So many parts.
    pub(crate) fn new(parts: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(parts)), spent: Spent::default(), waiting: Waiting::default() }
    }

    /// Who waits for one.
    pub(crate) fn waiting(&self) -> &Waiting {
        &self.waiting
    }
}

/// How many parts of one stream may exist at once: one of its own, and what is left of the shared ones.
#[derive(Debug, Clone)]
pub(crate) struct PartBudget {
    own: Arc<Semaphore>,
    shared: SharedParts,
}

impl PartBudget {
    /// The budget of one more stream.
    pub(crate) fn new(shared: &SharedParts) -> Self {
        Self { own: Arc::new(Semaphore::new(1)), shared: shared.clone() }
    }

    /// Waits for a part. The one of its own comes back as soon as its upload ends, so this never waits for another stream.
    async fn acquire(&self, part_bytes: usize) -> Result<(Copied, OwnedSemaphorePermit)> {
        let _waits = self.shared.waiting.enter();
        let permit = tokio::select! {
            biased;
            permit = Arc::clone(&self.own).acquire_owned() => permit,
            permit = Arc::clone(&self.shared.permits).acquire_owned() => permit,
        }
        .map_err(|_| Error::internal(Stage::Upload, "the budget of parts was closed"))?;
        let memory = self.shared.spent.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = memory.unwrap_or_else(|| Vec::with_capacity(part_bytes));
        Ok((Copied { bytes, spent: self.shared.spent.clone() }, permit))
    }
}

/// Memory of parts that were sent, to be filled again by any stream: there is never more of it than there were permits at once.
#[derive(Debug, Clone, Default)]
struct Spent(Arc<Mutex<Vec<Vec<u8>>>>);

struct Copied {
    bytes: Vec<u8>,
    spent: Spent,
}

impl AsRef<[u8]> for Copied {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.spent.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

/// A part to be sent, and the memory it was admitted to.
///
/// The permits end with the sending, and not with the bytes: a store in memory keeps those, and its memory is its own affair. A backup into it
/// would otherwise wait for ever.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) payload: PutPayload,
    /// Shared by all repositories that it goes to.
    pub(crate) permits: Arc<Vec<OwnedSemaphorePermit>>,
    /// Held until it is sent.
    pub(crate) ticket: Option<Ticket>,
}

impl Part {
    /// The same part, for one more repository: its memory is free when the last of them has it.
    pub(crate) fn share(&self) -> Self {
        Self { payload: self.payload.clone(), permits: Arc::clone(&self.permits), ticket: None }
    }
}

/// Fills parts, one after the other.
pub(crate) struct Parts {
    part_bytes: usize,
    filling: Filling,
}

enum Filling {
    Copies { budget: PartBudget, part: Option<(Copied, OwnedSemaphorePermit)> },
    Rope { records: Vec<Bytes>, permits: Vec<OwnedSemaphorePermit>, len: usize },
}

impl Parts {
    /// Parts that copy what they are given, within `budget`.
    pub(crate) fn of_copies(part_bytes: usize, budget: PartBudget) -> Self {
        Self { part_bytes, filling: Filling::Copies { budget, part: None } }
    }

    /// Parts that hold on to what they are given.
    pub(crate) fn of_records(part_bytes: usize) -> Self {
        Self { part_bytes, filling: Filling::Rope { records: Vec::new(), permits: Vec::new(), len: 0 } }
    }

    /// Adds from the front of `data`; returns a part when one became full. To be called until `data` is empty.
    ///
    /// `permit` is the memory of `data`: it is taken if that is kept, when all of it is.
    ///
    /// Not cancel safe: what was taken from `data` stays here.
    pub(crate) async fn fill(
        &mut self,
        data: &mut Bytes,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Option<Part>> {
        let part_bytes = self.part_bytes;
        let len = match &mut self.filling {
            Filling::Copies { budget, part } => {
                let (Copied { bytes, .. }, _) = match part {
                    Some(part) => part,
                    None => part.insert(budget.acquire(part_bytes).await?),
                };
                let n = data.len().min(part_bytes - bytes.len());
                bytes.extend_from_slice(&data.split_to(n));
                bytes.len()
            }
            Filling::Rope { records, permits, len } => {
                let n = data.len().min(part_bytes - *len);
                records.push(data.split_to(n));
                if data.is_empty() {
                    permits.extend(permit.take());
                }
                *len += n;
                *len
            }
        };
        Ok((len == part_bytes).then(|| self.take()))
    }

    /// What was filled so far, as a part; empty if nothing was.
    pub(crate) fn take(&mut self) -> Part {
        match &mut self.filling {
            Filling::Copies { part, .. } => match part.take() {
                Some((copied, permit)) => {
                    let permits = Arc::new(vec![permit]);
                    Part { payload: Bytes::from_owner(copied).into(), permits, ticket: None }
                }
                None => Part::default(),
            },
            Filling::Rope { records, permits, len } => {
                *len = 0;
                let payload = std::mem::take(records).into_iter().collect();
                Part { payload, permits: Arc::new(std::mem::take(permits)), ticket: None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_parts_but_the_last_have_one_size_however_they_are_filled() {
        for rope in [false, true] {
            let shared = SharedParts::new(2);
            let mut parts = if rope { Parts::of_records(100) } else { Parts::of_copies(100, PartBudget::new(&shared)) };
            let mut sent = Vec::new();
            for len in [1, 99, 100, 250, 30] {
                let mut data = Bytes::from(vec![7; len]);
                while !data.is_empty() {
                    sent.extend(parts.fill(&mut data, &mut None).await.unwrap().map(|p| p.payload.content_length()));
                }
            }
            sent.push(parts.take().payload.content_length());
            assert_eq!(sent, [100, 100, 100, 100, 80]);
        }
    }

    #[tokio::test]
    async fn a_stream_waits_for_its_own_part_and_for_nobody_elses() {
        let shared = SharedParts::new(0);
        let mut parts = Parts::of_copies(10, PartBudget::new(&shared));
        let part = parts.fill(&mut Bytes::from_static(b"0123456789"), &mut None).await.unwrap().unwrap();
        let mut more = Bytes::from_static(b"more");
        {
            let mut permit = None;
            let mut next = std::pin::pin!(parts.fill(&mut more, &mut permit));
            assert!(futures::poll!(&mut next).is_pending());
            drop(part.permits);
            assert!(next.await.unwrap().is_none(), "what was sent is free again, though the store keeps the bytes");
        }
        assert!(more.is_empty());
    }

    #[tokio::test]
    async fn a_record_that_two_parts_share_keeps_its_permit_until_the_second_is_sent() {
        let slots = Arc::new(Semaphore::new(1));
        let mut permit = Some(Arc::clone(&slots).try_acquire_owned().unwrap());
        let mut parts = Parts::of_records(10);
        let mut record = Bytes::from_static(b"0123456789abc");
        let first = parts.fill(&mut record, &mut permit).await.unwrap().unwrap();
        assert!(parts.fill(&mut record, &mut permit).await.unwrap().is_none());
        assert!(permit.is_none());
        drop(first);
        assert_eq!(slots.available_permits(), 0);
        drop(parts.take());
        assert_eq!(slots.available_permits(), 1);
    }
}
