//! Whom the restored files belong to.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat, fchown};

use crate::error::{Error, Result};
use crate::restore::tree::as_root;

/// A user and a group, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// How owners are found. Only root can give files away; and PostgreSQL does not run as root.
#[derive(Debug)]
pub(super) struct Ownership {
    as_root: bool,
    /// The one who was asked for, or whom the directory belonged to already.
    fixed: Option<Owner>,
    /// The owner of the first file in the backup.
    in_backup: OnceLock<Owner>,
}

impl Ownership {
    /// For what `asked` says, or else the owner of an existing `directory` that is not root's, or else what the backup says.
    ///
    /// # Errors
    /// `Config` when an owner is asked for who is not this process's user, and that is not root.
    pub(super) fn new(asked: Option<Owner>, directory: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let as_root = as_root();
        if let Some(owner) = asked.filter(|_| !as_root)
            && owner.uid != rustix::process::geteuid().as_raw()
        {
            return Err(Error::config("only root can give files to another user")
                .with_hint("run this as root, or as the user who runs the server"));
        }
        let found = std::fs::metadata(directory).ok().map(|of| Owner { uid: of.uid(), gid: of.gid() });
        let fixed = asked.or(found.filter(|owner| owner.uid != 0)).filter(|_| as_root);
        Ok(Self { as_root, fixed, in_backup: OnceLock::new() })
    }

    /// The owner of a file that belongs to this user and group in the backup; `None` leaves it as it is.
    pub(super) fn of(&self, uid: u32, gid: u32) -> Option<(Uid, Gid)> {
        if !self.as_root {
            return None;
        }
        let in_backup = Owner { uid, gid };
        let owner = self.fixed.unwrap_or(in_backup);
        self.in_backup.get_or_init(|| in_backup);
        Some((Uid::from_raw(owner.uid), Gid::from_raw(owner.gid)))
    }

    /// The owner of what we make ourselves.
    pub(super) fn own(&self) -> Option<Owner> {
        self.fixed.or_else(|| self.in_backup.get().copied()).filter(|_| self.as_root)
    }

    /// Gives away an open file or directory of ours.
    pub(super) fn apply(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        self.own().map_or(Ok(()), |o| fchown(fd, Some(Uid::from_raw(o.uid)), Some(Gid::from_raw(o.gid))))
    }

    /// Gives away a path of ours, and not what it leads to.
    pub(super) fn apply_path(&self, path: &Path) -> rustix::io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        self.own().map_or(Ok(()), |o| chownat(CWD, path, Some(Uid::from_raw(o.uid)), Some(Gid::from_raw(o.gid)), flags))
    }
}
