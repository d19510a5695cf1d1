//! Does standard output lead anywhere?
//!
//! Rust's runtime opens `/dev/null` in the place of a stream that was closed, so that no other file gets its number; and service managers
//! and other languages give the same to programs that should be silent. The two look alike, so neither is refused, and both are told.

use std::os::fd::AsFd;

use rustix::fs::{OFlags, fcntl_getfl, fstat, stat};

/// Whether standard output was closed, or is a `/dev/null` that nobody typed: `> /dev/null` opens it for writing alone.
pub(crate) fn stdout_leads_nowhere() -> bool {
    leads_nowhere(std::io::stdout())
}

fn leads_nowhere(stream: impl AsFd) -> bool {
    let is_null = match (fstat(&stream), stat("/dev/null")) {
        (Ok(stream), Ok(null)) => stream.st_rdev == null.st_rdev && stream.st_mode == null.st_mode,
        _ => false,
    };
    is_null && fcntl_getfl(&stream).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR)
}
