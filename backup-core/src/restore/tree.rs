//! Directories below an open one, made and left in the order of a tar stream.
//!
//! The crate `tar` reads the headers. Its own unpacking checks paths by name, copies 8 KiB at a time, and keeps all directories
//! until the end; here everything is relative to open directories instead, so that no link can lead outside.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timestamps, Uid, chownat, fchmod, fchown, futimens, mkdirat, openat, symlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::worker::sink_error;
use crate::error::{Error, ErrorKind, Result, Stage};

/// How much of a file is copied at once.
pub(super) const COPY_BYTES: usize = 256 << 10;

/// Zeros that a tar stream ends with, at least.
const END_BYTES: usize = 512;

/// Remembers whether what was read last were zeros.
pub(super) struct EndWatch<R> {
    incoming: R,
    zeros: usize,
}

impl<R: Read> EndWatch<R> {
    pub(super) fn new(incoming: R) -> Self {
        Self { incoming, zeros: 0 }
    }

    /// Reads to the end, which was verified only when the stream says so; padding may follow the end of the archive.
    pub(super) fn finish(mut self, buffer: &mut [u8]) -> Result<()> {
        while self.read(buffer).map_err(no_tar)? > 0 {}
        if self.zeros < END_BYTES {
            return Err(Error::new(ErrorKind::Sink, Stage::Sink, "the tar stream has no end"));
        }
        Ok(())
    }
}

impl<R: Read> Read for EndWatch<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.incoming.read(room)?;
        let zeros = room[..n].iter().rev().take(END_BYTES).take_while(|&&byte| byte == 0).count();
        self.zeros = if zeros == n { (self.zeros + zeros).min(END_BYTES) } else { zeros };
        Ok(n)
    }
}

/// The directories from the root to where the last entry was put.
pub(super) struct Tree {
    open: Vec<Opened>,
}

pub(super) struct Opened {
    name: OsString,
    pub(super) fd: OwnedFd,
    /// Set when the directory is left: its time changes, and its mode may forbid, as long as there is work in it.
    pub(super) attributes: Option<Attributes>,
}

#[derive(Clone)]
pub(super) struct Attributes {
    pub(super) mode: Mode,
    pub(super) times: Option<Timestamps>,
    pub(super) owner: Option<(Uid, Gid)>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { open: vec![Opened { name: OsString::new(), fd: root, attributes: None }] }
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.open[0].fd
    }

    /// Makes `names` the current directory, leaving others and creating what is missing.
    pub(super) fn enter(&mut self, names: &[&OsStr]) -> rustix::io::Result<&mut Opened> {
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
}

impl Attributes {
    pub(super) fn apply(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(fd, Some(uid), Some(gid))?;
        }
        // After the owner, whose change takes set-id bits away.
        fchmod(fd, self.mode)?;
        self.times.as_ref().map_or(Ok(()), |times| futimens(fd, times))
    }

    pub(super) fn apply_symlink(&self, parent: &Opened, target: &[u8], name: &OsStr) -> rustix::io::Result<()> {
        symlinkat(target, &parent.fd, name)?;
        if let Some((uid, gid)) = self.owner {
            chownat(&parent.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let times = self.times.as_ref();
        times.map_or(Ok(()), |times| utimensat(&parent.fd, name, times, AtFlags::SYMLINK_NOFOLLOW))
    }
}

pub(super) fn open_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// A file that was not there before, for its owner only.
pub(super) fn create_file(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
}

/// The names that a path consists of, if it stays below its root.
pub(super) fn names(path: &Path) -> Result<Vec<&OsStr>> {
    path.components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(unsafe_path(path)),
        })
        .collect()
}

pub(super) fn unsafe_path(path: &Path) -> Error {
    let message = format!("the archive names a path outside of itself: {}", path.display());
    Error::new(ErrorKind::Sink, Stage::Sink, message)
}

pub(super) fn no_tar(error: io::Error) -> Error {
    // What the other thread said travels inside an I/O error through the crate `tar`.
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => sink_error("the stream is no intact tar archive", error),
    }
}

pub(super) fn as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// One call for the whole file system, where there is one: a million calls of fsync would take hours.
pub(super) fn sync(root: &OwnedFd) -> rustix::io::Result<()> {
    #[cfg(target_os = "linux")]
    return rustix::fs::syncfs(root);
    #[cfg(not(target_os = "linux"))]
    {
        rustix::fs::sync();
        rustix::fs::fsync(root)
    }
}
