//! Unpacks a tar stream below an open directory, with all that `tar` keeps.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, linkat, unlinkat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::MARKER;
use crate::error::Result;
use crate::restore::tree::{
    Attributes, COPY_BYTES, EndWatch, Tree, as_root, create_file, names, no_tar, open_directory, sync, unsafe_path,
};
use crate::restore::worker::{Incoming, sink_error};
use crate::source::{DirectoryWarning, WarningCallback};

/// Unpacks `incoming` below `root`, removes the marker, and returns when all is on disk.
pub(super) fn unpack(incoming: Incoming, root: OwnedFd, on_warning: WarningCallback) -> Result<()> {
    let mut archive = Archive::new(EndWatch::new(incoming));
    let mut unpacker = Unpacker { tree: Tree::new(root), as_root: as_root(), on_warning };
    let mut buffer = vec![0; COPY_BYTES];
    for entry in archive.entries().map_err(no_tar)? {
        unpacker.add(&mut entry.map_err(no_tar)?, &mut buffer)?;
    }
    archive.into_inner().finish(&mut buffer)?;
    unpacker.finish()
}

struct Unpacker {
    tree: Tree,
    as_root: bool,
    on_warning: WarningCallback,
}

impl Unpacker {
    fn add(&mut self, entry: &mut Entry<'_, EndWatch<Incoming>>, buffer: &mut [u8]) -> Result<()> {
        let path = entry.path().map_err(no_tar)?.into_owned();
        let attributes = self.attributes(entry).map_err(no_tar)?;
        let kind = entry.header().entry_type();
        let failed = |errno: Errno| sink_error(format!("cannot write {}", path.display()), errno);
        let mut names = names(&path)?;
        if kind == EntryType::Directory {
            self.tree.enter(&names).map_err(failed)?.attributes = Some(attributes);
            return Ok(());
        }
        let Some(name) = names.pop() else {
            return Err(unsafe_path(&path));
        };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let file = self.tree.enter(&names).and_then(|parent| create_file(&parent.fd, name)).map_err(failed)?;
                copy(entry, &file, buffer, &path)?;
                attributes.apply(&file).map_err(failed)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let parent = self.tree.enter(&names).map_err(failed)?;
                attributes.apply_symlink(parent, &target, name).map_err(failed)
            }
            EntryType::Link => {
                let target = entry.link_name().map_err(no_tar)?.unwrap_or_default().into_owned();
                self.link(&target, &names, name).map_err(|e| match e {
                    LinkError::Unsafe => unsafe_path(&target),
                    LinkError::System(errno) => failed(errno),
                })
            }
            EntryType::XGlobalHeader => Ok(()),
            other => {
                (self.on_warning)(DirectoryWarning { path, what: left_out(other) });
                Ok(())
            }
        }
    }

    fn link(&mut self, target: &Path, parent: &[&OsStr], name: &OsStr) -> Result<(), LinkError> {
        let mut target = names(target).map_err(|_| LinkError::Unsafe)?;
        let target_name = target.pop().ok_or(LinkError::Unsafe)?;
        let mut from = self.tree.root().try_clone().map_err(|_| LinkError::System(Errno::MFILE))?;
        for name in target {
            from = open_directory(&from, name)?;
        }
        let to = self.tree.enter(parent)?;
        Ok(linkat(&from, target_name, &to.fd, name, AtFlags::empty())?)
    }

    fn attributes(&self, entry: &mut Entry<'_, EndWatch<Incoming>>) -> io::Result<Attributes> {
        let time = modified(entry)?;
        let header = entry.header();
        let mode = header.mode()? & if self.as_root { 0o7777 } else { 0o777 };
        let id = |id: io::Result<u64>| id.and_then(|id| u32::try_from(id).map_err(io::Error::other));
        let owner = match self.as_root {
            true => Some((Uid::from_raw(id(header.uid())?), Gid::from_raw(id(header.gid())?))),
            false => None,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(Attributes { mode: Mode::from_raw_mode(mode), times: Some(times), owner })
    }

    fn finish(mut self) -> Result<()> {
        let failed = |errno: Errno| sink_error("cannot complete the restored directory", errno);
        let root = self.tree.enter(&[]).map_err(failed)?;
        let (fd, attributes) = (&root.fd, &root.attributes);
        sync(fd).map_err(failed)?;
        unlinkat(fd, MARKER, AtFlags::empty()).map_err(failed)?;
        if let Some(attributes) = attributes {
            attributes.apply(fd).map_err(failed)?;
        }
        rustix::fs::fsync(fd).map_err(failed)
    }
}

/// The time of an entry: that of its PAX records, or else its header's.
fn modified(entry: &mut Entry<'_, EndWatch<Incoming>>) -> io::Result<Timespec> {
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if record.key_bytes() == b"mtime" {
            let time = std::str::from_utf8(record.value_bytes()).ok().and_then(pax_time);
            return time.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "malformed time"));
        }
    }
    // GNU tar writes years before 1970 as two's complement.
    Ok(Timespec { tv_sec: entry.header().mtime()?.cast_signed(), tv_nsec: 0 })
}

/// Seconds since 1970, perhaps negative, perhaps with decimals.
fn pax_time(text: &str) -> Option<Timespec> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let nanoseconds = format!("{decimals:0<9}").get(..9)?.parse::<u32>().ok()?.into();
    Some(match whole.starts_with('-') && nanoseconds > 0 {
        true => Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanoseconds },
        false => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    })
}

fn left_out(kind: EntryType) -> String {
    match kind {
        EntryType::Fifo => "is a pipe: left out".into(),
        EntryType::Char | EntryType::Block => "is a device: left out".into(),
        other => format!("is of an unknown kind, {:?}: left out", char::from(other.as_byte())),
    }
}

enum LinkError {
    Unsafe,
    System(Errno),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

fn copy(entry: &mut impl Read, file: &OwnedFd, buffer: &mut [u8], path: &Path) -> Result<()> {
    let failed = |e: io::Error| sink_error(format!("cannot write {}", path.display()), e);
    let mut file = File::from(file.try_clone().map_err(failed)?);
    loop {
        match entry.read(buffer).map_err(no_tar)? {
            0 => return Ok(()),
            n => file.write_all(&buffer[..n]).map_err(failed)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pax_records_are_read() {
        let read = |text| pax_time(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(read("12"), Some((12, 0)));
        assert_eq!(read("12.5"), Some((12, 500_000_000)));
        assert_eq!(read("12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(read("-5"), Some((-5, 0)));
        assert_eq!(read("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(read("-0.25"), Some((-1, 750_000_000)));
        for text in ["", ".", "1.x", "x", "1.é23456789", "-9223372036854775808.5"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
