//! Leaving the page cache as it was, as far as can be told: the server's pages stay in it, and what only we have read goes out again.
//!
//! Before a window of a file is read, one byte in its middle is asked for without waiting. Is it not in memory, then the server had no use for
//! what is around it, and the window is dropped after it was read. The middle, since the window's beginning may have come with the read-ahead of
//! the one before.

use std::os::fd::BorrowedFd;

/// As much of a file is judged, and dropped, at once.
const WINDOW_BYTES: u64 = 8 << 20;
/// Larger files are announced to the kernel's read-ahead.
const SEQUENTIAL_BYTES: u64 = 256 << 10;

/// Where a file is being read, and what was in memory before.
#[derive(Debug)]
pub(super) struct Window {
    start: u64,
    end: u64,
    size: u64,
    cold: bool,
}

impl Window {
    /// For a file of `size` bytes that is read from its beginning to its end.
    pub(super) fn new(file: BorrowedFd<'_>, size: u64) -> Self {
        if size >= SEQUENTIAL_BYTES {
            announce(file);
        }
        Self { start: 0, end: 0, size, cold: false }
    }

    /// To be called before what lies at `at` is read, and at the end.
    pub(super) fn advance(&mut self, file: BorrowedFd<'_>, at: u64) {
        if at < self.end && at < self.size {
            return;
        }
        if self.cold && self.end > self.start {
            drop_pages(file, self.start, self.end - self.start);
        }
        (self.start, self.end) = (at, self.size.min(at + WINDOW_BYTES));
        self.cold = self.end > self.start && !in_memory(file, self.start + (self.end - self.start) / 2);
    }
}

#[cfg(target_os = "linux")]
fn announce(file: BorrowedFd<'_>) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
}

#[cfg(target_os = "linux")]
fn drop_pages(file: BorrowedFd<'_>, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZero::new(len), rustix::fs::Advice::DontNeed);
}

/// Where the file system cannot tell, everything counts as the server's.
#[cfg(target_os = "linux")]
fn in_memory(file: BorrowedFd<'_>, at: u64) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    let mut byte = [0];
    let read = preadv2(file, &mut [std::io::IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
    read != Err(Errno::AGAIN)
}

#[cfg(not(target_os = "linux"))]
fn announce(_: BorrowedFd<'_>) {}

#[cfg(not(target_os = "linux"))]
fn drop_pages(_: BorrowedFd<'_>, _: u64, _: u64) {}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: BorrowedFd<'_>, _: u64) -> bool {
    true
}
