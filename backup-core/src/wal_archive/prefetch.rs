//! Fetching ahead: while PostgreSQL replays one segment, the next ones come.
//!
//! PostgreSQL starts a process for each segment and waits for its end, so this is for a process of its own, which nobody waits for. It
//! takes no part in any answer: what it fetched is proved again when it is taken, and what it did not fetch is fetched when it is asked
//! for. It never says that something is absent.

use std::path::Path as FilePath;

use futures::{StreamExt, stream};

use super::fetcher::{Fetcher, blocking};
use super::prefetched::{Prefetched, tidy};
use super::stored::StoredFile;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{SegmentName, SegmentSize, WalFile};
use crate::repository::Repository;
use crate::repository::layout::WalPath;

/// Segments on their way at once.
const PARALLEL: usize = 3;
/// What may wait at most, in bytes: segments can be large.
const WAITING_BYTES_MAX: u64 = 512 << 20;

impl Fetcher {
    /// Fetches the segments behind `after`, each of `size`, for later calls of [`fetch`](Self::fetch) with the same path `to`; returns how
    /// many. Ends at the first that is not there, when the disk gets full, and at once where another process is doing the same.
    ///
    /// Cancel safe: what is complete stays.
    pub async fn prefetch(&self, after: WalFile, size: SegmentSize, to: &FilePath) -> Result<usize> {
        let WalFile::Segment(after) = after else { return Ok(0) };
        let archive = self.archive_for(to).await?;
        let repository = self.first().await?;
        let prefetched = Prefetched::beside(to, repository, &archive);
        let (folder, now) = (prefetched.clone(), self.0.options.clock.now());
        let lock = blocking(move || {
            tidy(folder.pg_wal(), now);
            folder.forget_up_to(after);
            folder.lock()
        });
        let Some(_lock) = lock.await? else { return Ok(0) };
        let mut fetched = 0;
        let segments = behind(after, size).take(self.waiting_max(size));
        let mut segments =
            stream::iter(segments.map(|segment| self.prefetch_one(repository, &archive, &prefetched, segment, size)))
                .buffered(PARALLEL);
        while let Some(done) = segments.next().await {
            if !done? {
                break;
            }
            fetched += 1;
        }
        Ok(fetched)
    }

    /// Whether `segment` waits now.
    async fn prefetch_one(
        &self,
        repository: &Repository,
        archive: &WalPath,
        prefetched: &Prefetched,
        segment: SegmentName,
        size: SegmentSize,
    ) -> Result<bool> {
        let failed = |e| Error::new(ErrorKind::Sink, Stage::Sink, "cannot write a segment ahead").with_source(e);
        let folder = prefetched.clone();
        if blocking(move || folder.find(segment)).await?.is_some() {
            return Ok(true);
        }
        let file = WalFile::Segment(segment);
        let Some(found) = StoredFile::find(repository, archive, file).await? else { return Ok(false) };
        let folder = prefetched.clone();
        let begun = blocking(move || {
            // Before it is too late: this disk is the one that PostgreSQL needs.
            if folder.has_room(size) { folder.begin(segment) } else { Err(std::io::ErrorKind::StorageFull.into()) }
        });
        let temporary = begun.await?.map_err(failed)?;
        let digest = found.plaintext.blake3;
        self.write(found, archive, file, &temporary).await?;
        let folder = prefetched.clone();
        blocking(move || folder.keep(segment, temporary, &digest)).await?.map_err(failed)?;
        Ok(true)
    }

    /// The segment size, if segments behind `file` should be fetched now: fewer than half of those that may wait do, and nobody is at it.
    pub(super) async fn prefetch_due(&self, file: WalFile, to: &FilePath) -> Option<SegmentSize> {
        let WalFile::Segment(segment) = file else { return None };
        if self.0.options.prefetch == 0 {
            return None;
        }
        let archive = self.archive_for(to).await.ok()?;
        let repository = self.first().await.ok()?;
        let (prefetched, to) = (Prefetched::beside(to, repository, &archive), to.to_owned());
        let this = self.clone();
        let due = blocking(move || {
            let size = SegmentSize::new(u32::try_from(to.metadata().ok()?.len()).ok()?)?;
            let most = this.waiting_max(size);
            let waiting = behind(segment, size).take(most).filter(|next| prefetched.find(*next).is_some()).count();
            (waiting < most.div_ceil(2) && prefetched.has_room(size) && prefetched.lock().is_some()).then_some(size)
        });
        due.await.ok()?
    }

    fn waiting_max(&self, size: SegmentSize) -> usize {
        let fit = usize::try_from(WAITING_BYTES_MAX / size.bytes()).unwrap_or(usize::MAX);
        self.0.options.prefetch.min(fit)
    }
}

/// The segments behind `after` on its timeline.
fn behind(after: SegmentName, size: SegmentSize) -> impl Iterator<Item = SegmentName> {
    std::iter::successors(after.next(size), move |segment| segment.next(size))
}
