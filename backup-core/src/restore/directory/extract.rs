//! Unpacks a tar stream below an open directory.
//!
//! The crate `tar` reads the headers. Its own unpacking checks paths by name, copies 8 KiB at a time, and keeps all directories
//! until the end; here everything is relative to open directories instead, so that no link can lead outside.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, linkat, mkdirat, openat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::MARKER;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::restore::worker::{Incoming, sink_error};
use crate::source::{DirectoryWarning, WarningCallback};

const COPY_BYTES: usize = 256 << 10;

/// Zeros that a tar stream ends with, at least.
const END_BYTES: usize = 512;

/// Unpacks `incoming` below `root`, removes the marker, and returns when all is on disk.
pub(super) fn unpack(incoming: Incoming, root: OwnedFd, on_warning: WarningCallback) -> Result<()> {
    let mut archive = Archive::new(EndWatch { incoming, zeros: 0 });
    let root = Opened { name: OsString::new(), fd: root, attributes: None };
    let mut tree = Tree { open: vec![root], as_root: as_root(), on_warning };
    let mut buffer = vec![0; COPY_BYTES];
    for entry in archive.entries().map_err(no_tar)? {
        tree.add(&mut entry.map_err(no_tar)?, &mut buffer)?;
    }
    let mut rest = archive.into_inner();
    // The end was verified only when `Incoming` says so, and padding may follow the end of the archive.
    while rest.read(&mut buffer).map_err(no_tar)? > 0 {}
    if rest.zeros < END_BYTES {
        return Err(Error::new(ErrorKind::Sink, Stage::Sink, "the tar stream has no end"));
    }
    tree.finish()
}

/// Remembers whether what was read last were zeros.
struct EndWatch {
    incoming: Incoming,
    zeros: usize,
}

impl Read for EndWatch {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.incoming.read(room)?;
        let zeros = room[..n].iter().rev().take(END_BYTES).take_while(|&&byte| byte == 0).count();
        self.zeros = if zeros == n { (self.zeros + zeros).min(END_BYTES) } else { zeros };
        Ok(n)
    }
}

/// The directories from the root to where the last entry was put.
struct Tree {
    open: Vec<Opened>,
    as_root: bool,
    on_warning: WarningCallback,
}

struct Opened {
    name: OsString,
    fd: OwnedFd,
    /// Set when the directory is left: its time changes, and its mode may forbid, as long as there is work in it.
    attributes: Option<Attributes>,
}

#[derive(Clone)]
struct Attributes {
    mode: Mode,
    times: Timestamps,
    owner: Option<(Uid, Gid)>,
}

impl Tree {
    fn add(&mut self, entry: &mut Entry<'_, EndWatch>, buffer: &mut [u8]) -> Result<()> {
        let path = entry.path().map_err(no_tar)?.into_owned();
        let attributes = self.attributes(entry).map_err(no_tar)?;
        let kind = entry.header().entry_type();
        let failed = |errno: Errno| sink_error(format!("cannot write {}", path.display()), errno);
        let mut names = names(&path)?;
        if kind == EntryType::Directory {
            self.enter(&names).map_err(failed)?.attributes = Some(attributes);
            return Ok(());
        }
        let Some(name) = names.pop() else {
            return Err(unsafe_path(&path));
        };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let file = self.enter(&names).and_then(|parent| create_file(parent, name)).map_err(failed)?;
                copy(entry, &file, buffer, &path)?;
                attributes.apply(&file).map_err(failed)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let parent = self.enter(&names).map_err(failed)?;
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

    /// Makes `names` the current directory, leaving others and creating what is missing.
    fn enter(&mut self, names: &[&OsStr]) -> rustix::io::Result<&mut Opened> {
        let common = self.open[1..].iter().zip(names).take_while(|(open, name)| open.name == **name).count();
        while self.open.len() > common + 1 {
            self.leave()?;
        }
        for name in &names[common..] {
            let parent = &self.current().fd;
            match mkdirat(parent, *name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let fd = open_directory(parent, name)?;
            self.open.push(Opened { name: name.to_os_string(), fd, attributes: None });
        }
        Ok(self.current())
    }

    fn current(&mut self) -> &mut Opened {
        self.open.last_mut().expect("the root is never left before the end")
    }

    fn leave(&mut self) -> rustix::io::Result<()> {
        match self.open.pop() {
            Some(Opened { fd, attributes: Some(attributes), .. }) => attributes.apply(&fd),
            _ => Ok(()),
        }
    }

    fn link(&mut self, target: &Path, parent: &[&OsStr], name: &OsStr) -> Result<(), LinkError> {
        let mut target = names(target).map_err(|_| LinkError::Unsafe)?;
        let target_name = target.pop().ok_or(LinkError::Unsafe)?;
        let mut from = self.open[0].fd.try_clone().map_err(|_| LinkError::System(Errno::MFILE))?;
        for name in target {
            from = open_directory(&from, name)?;
        }
        let to = self.enter(parent)?;
        Ok(linkat(&from, target_name, &to.fd, name, AtFlags::empty())?)
    }

    fn attributes(&self, entry: &mut Entry<'_, EndWatch>) -> io::Result<Attributes> {
        let time = modified(entry)?;
        let header = entry.header();
        let mode = header.mode()? & if self.as_root { 0o7777 } else { 0o777 };
        let id = |id: io::Result<u64>| id.and_then(|id| u32::try_from(id).map_err(io::Error::other));
        let owner = match self.as_root {
            true => Some((Uid::from_raw(id(header.uid())?), Gid::from_raw(id(header.gid())?))),
            false => None,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(Attributes { mode: Mode::from_raw_mode(mode), times, owner })
    }

    fn finish(mut self) -> Result<()> {
        let failed = |errno: Errno| sink_error("cannot complete the restored directory", errno);
        self.enter(&[]).map_err(failed)?;
        let Opened { fd, attributes, .. } = self.current();
        sync(fd).map_err(failed)?;
        unlinkat(&*fd, MARKER, AtFlags::empty()).map_err(failed)?;
        if let Some(attributes) = attributes {
            attributes.apply(fd).map_err(failed)?;
        }
        rustix::fs::fsync(&*fd).map_err(failed)
    }
}

/// The time of an entry: that of its PAX records, or else its header's.
fn modified(entry: &mut Entry<'_, EndWatch>) -> io::Result<Timespec> {
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

impl Attributes {
    fn apply(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(fd, Some(uid), Some(gid))?;
        }
        // After the owner, whose change takes set-id bits away.
        fchmod(fd, self.mode)?;
        futimens(fd, &self.times)
    }

    fn apply_symlink(&self, parent: &Opened, target: &[u8], name: &OsStr) -> rustix::io::Result<()> {
        symlinkat(target, &parent.fd, name)?;
        if let Some((uid, gid)) = self.owner {
            chownat(&parent.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        utimensat(&parent.fd, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }
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

fn open_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn create_file(parent: &mut Opened, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&parent.fd, name, flags, Mode::RUSR | Mode::WUSR)
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

/// The names that a path consists of, if it stays below its root.
fn names(path: &Path) -> Result<Vec<&OsStr>> {
    path.components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(unsafe_path(path)),
        })
        .collect()
}

fn unsafe_path(path: &Path) -> Error {
    let message = format!("the archive names a path outside of itself: {}", path.display());
    Error::new(ErrorKind::Sink, Stage::Sink, message)
}

fn no_tar(error: io::Error) -> Error {
    // What the other thread said travels inside an I/O error through the crate `tar`.
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => sink_error("the stream is no intact tar archive", error),
    }
}

fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One call for the whole file system, where there is one: a million calls of fsync would take hours.
fn sync(root: &OwnedFd) -> rustix::io::Result<()> {
    #[cfg(target_os = "linux")]
    return rustix::fs::syncfs(root);
    #[cfg(not(target_os = "linux"))]
    {
        rustix::fs::sync();
        rustix::fs::fsync(root)
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
