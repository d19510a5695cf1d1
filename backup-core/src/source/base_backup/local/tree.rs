//! The directories of a cluster, and what there is to copy in them.
//!
//! Everything is opened relative to the root that it belongs to. Memory is needed for the names in the directories on the way down, not for the
//! tree: there may be millions of files.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::postgres::data_directory::{Place, WAL_DIRECTORIES};

/// The data directory, or a tablespace.
#[derive(Debug)]
pub(super) struct Root {
    /// That of the tablespace.
    pub(super) oid: Option<u32>,
    pub(super) fd: OwnedFd,
    /// Where it is, for messages.
    pub(super) location: PathBuf,
}

/// Something to copy, by its path below its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    File(Vec<u8>),
    /// Whatever it is there, it is to be a directory in the copy, with the attributes of what it leads to.
    Directory(Vec<u8>),
    Link(Vec<u8>),
    /// It is nothing that a cluster can need, as the server sees it too.
    Special(Vec<u8>),
}

/// Which entries of the roots are taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    pub(super) major: u32,
    /// Where a server up to 14 keeps statistics that it rewrites all the time, if that is in the data directory.
    pub(super) statistics: Option<String>,
    /// Tablespaces whose links are copied.
    pub(super) linked: Vec<u32>,
    /// Device and inode of the tablespaces: one that lies in the data directory is not copied twice.
    pub(super) foreign: HashSet<(u64, u64)>,
    /// The directory of this server in each tablespace, such as `PG_15_202209061`.
    pub(super) version_directory: String,
}

impl Root {
    pub(super) fn open(oid: Option<u32>, path: &Path) -> rustix::io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { oid, fd, location: path.to_owned() })
    }

    /// Device and inode, which tell it from all others.
    #[expect(clippy::unnecessary_cast, reason = "the width of these fields differs between systems")]
    pub(super) fn identity(&self) -> rustix::io::Result<(u64, u64)> {
        fstat(&self.fd).map(|stat| (stat.st_dev as u64, stat.st_ino as u64))
    }

    /// Opens a file of it. Non-blocking, in case it has become a pipe.
    pub(super) fn open_file(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.fd, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)
    }

    fn open_directory(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.fd, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    /// `follow` is for directories that an administrator may have put elsewhere, such as `pg_wal`: of these only attributes are copied.
    pub(super) fn stat(&self, path: &[u8], follow: bool) -> rustix::io::Result<Stat> {
        if follow {
            return statat(&self.fd, path, AtFlags::empty());
        }
        self.in_parent(path, |directory, name| statat(directory, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    pub(super) fn read_link(&self, path: &[u8]) -> rustix::io::Result<CString> {
        self.in_parent(path, |directory, name| readlinkat(directory, name, Vec::new()))
    }

    fn in_parent<T>(
        &self,
        path: &[u8],
        work: impl FnOnce(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => work(self.open_directory(&path[..at])?.as_fd(), &path[at + 1..]),
            None => work(self.fd.as_fd(), path),
        }
    }

    /// The name of something in it in the whole cluster, as PostgreSQL's manifest has it.
    pub(super) fn full_path(&self, path: &[u8]) -> Vec<u8> {
        match self.oid {
            Some(oid) => [format!("pg_tblspc/{oid}/").as_bytes(), path].concat(),
            None => path.to_vec(),
        }
    }

    /// The same for messages.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        String::from_utf8_lossy(&self.full_path(path)).into_owned()
    }

    /// Where it is, for messages about this host.
    pub(super) fn located(&self, path: &[u8]) -> PathBuf {
        self.location.join(OsStr::from_bytes(path))
    }
}

/// Opens what is below a directory, and follows no link on the way: whoever may write to the directory must not lead us, who may be root, elsewhere.
fn open_beneath(directory: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(directory, path, flags, Mode::empty(), resolve) {
            // Older than 5.6, or kept from us by a container that does not know it.
            Err(Errno::NOSYS | Errno::PERM) => {}
            opened => return opened,
        }
    }
    open_step_by_step(directory, path, flags)
}

/// The same where the kernel cannot do it at once.
fn open_step_by_step(directory: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut names = path.split(|&byte| byte == b'/').peekable();
    let mut above: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        if name.is_empty() || name == b".." {
            return Err(Errno::INVAL);
        }
        let step = if names.peek().is_some() { OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC } else { flags };
        let opened = openat(above.as_ref().unwrap_or(directory), name, step | OFlags::NOFOLLOW, Mode::empty())?;
        above = Some(opened);
    }
    above.ok_or(Errno::INVAL)
}

/// Goes through a root, directory by directory, each in the order of its names.
#[derive(Debug)]
pub(super) struct Walk {
    levels: Vec<Level>,
    /// What comes before the next name.
    ready: Vec<Item>,
}

#[derive(Debug)]
struct Level {
    place: Place,
    /// Below the root; empty, or with a slash at its end.
    path: Vec<u8>,
    names: Names,
}

impl Walk {
    /// Begins in the data directory, or in this server's directory of a tablespace.
    pub(super) fn new(root: &Root, choice: &Choice) -> rustix::io::Result<Self> {
        let mut walk = Self { levels: Vec::new(), ready: Vec::new() };
        match root.oid {
            None => walk.enter(root, Vec::new(), Place::Data)?,
            Some(_) => {
                let name = choice.version_directory.clone().into_bytes();
                match walk.enter(root, [&name[..], b"/"].concat(), Place::Version) {
                    Ok(()) => walk.ready.push(Item::Directory(name)),
                    // Dropped since it was opened. If not, that shows in the end.
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(walk)
    }

    /// Whether there was anything to begin in.
    pub(super) fn has_begun(&self) -> bool {
        !self.levels.is_empty()
    }

    /// The next entry. An error names what it is about.
    pub(super) fn next(&mut self, root: &Root, choice: &Choice) -> Option<Result<Item, (Vec<u8>, Errno)>> {
        loop {
            if let Some(item) = self.ready.pop() {
                return Some(Ok(item));
            }
            let level = self.levels.last_mut()?;
            let Some(entry) = level.names.next() else {
                self.levels.pop();
                continue;
            };
            let (name, kind) = (level.names.of(entry), entry.kind);
            if level.place.leaves_out(name, |other| level.names.contains(other)) {
                continue;
            }
            let (path, name) = ([&level.path[..], name].concat(), name.to_vec());
            match self.take(root, choice, path.clone(), &name, kind) {
                Ok(Some(item)) => return Some(Ok(item)),
                // It went away, as things do in a running cluster.
                Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Some(Err((path, errno))),
            }
        }
    }

    fn take(
        &mut self,
        root: &Root,
        choice: &Choice,
        path: Vec<u8>,
        name: &[u8],
        kind: FileType,
    ) -> rustix::io::Result<Option<Item>> {
        let Some(place) = self.levels.last().map(|level| level.place) else { return Ok(None) };
        let kind = match kind {
            FileType::Unknown => FileType::from_raw_mode(root.stat(&path, false)?.st_mode),
            kind => kind,
        };
        let statistics = choice.statistics.as_deref();
        if matches!(kind, FileType::Directory | FileType::Symlink) && place.is_emptied(name, statistics) {
            if name == b"pg_wal" {
                let inside = WAL_DIRECTORIES.iter().rev().filter(|(_, since)| choice.major >= *since);
                self.ready.extend(inside.map(|(path, _)| Item::Directory(path.as_bytes().to_vec())));
            }
            return Ok(Some(Item::Directory(path)));
        }
        match kind {
            FileType::RegularFile => Ok(Some(Item::File(path))),
            FileType::Directory => {
                #[expect(clippy::unnecessary_cast, reason = "the width of these fields differs between systems")]
                let identity = root.stat(&path, false).map(|stat| (stat.st_dev as u64, stat.st_ino as u64))?;
                // A tablespace in the data directory, or in another, is a root of its own.
                if !choice.foreign.contains(&identity) {
                    self.enter(root, [&path[..], b"/"].concat(), place.child(name))?;
                }
                Ok(Some(Item::Directory(path)))
            }
            FileType::Symlink if place == Place::Tablespaces => {
                let oid = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                Ok(oid.is_some_and(|oid| choice.linked.contains(&oid)).then_some(Item::Link(path)))
            }
            // The server's own, most likely.
            FileType::Socket => Ok(None),
            _ => Ok(Some(Item::Special(path))),
        }
    }

    fn enter(&mut self, root: &Root, path: Vec<u8>, place: Place) -> rustix::io::Result<()> {
        let name = if path.is_empty() { &b"."[..] } else { &path };
        let directory = root.open_directory(name.strip_suffix(b"/").unwrap_or(name))?;
        let names = Names::read(&directory)?;
        self.levels.push(Level { place, path, names });
        Ok(())
    }
}

/// The names in one directory, sorted; all in one allocation.
#[derive(Debug)]
struct Names {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    next: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    from: u32,
    to: u32,
    kind: FileType,
}

impl Names {
    fn read(directory: &OwnedFd) -> rustix::io::Result<Self> {
        let mut names = Self { bytes: Vec::new(), entries: Vec::new(), next: 0 };
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let at = |n: usize| u32::try_from(n).map_err(|_| Errno::OVERFLOW);
            let from = at(names.bytes.len())?;
            names.bytes.extend_from_slice(name);
            names.entries.push(Entry { from, to: at(names.bytes.len())?, kind: entry.file_type() });
        }
        let bytes = &names.bytes;
        names.entries.sort_unstable_by(|a, b| name_of(bytes, *a).cmp(name_of(bytes, *b)));
        Ok(names)
    }

    fn next(&mut self) -> Option<Entry> {
        let entry = self.entries.get(self.next).copied();
        self.next += 1;
        entry
    }

    fn of(&self, entry: Entry) -> &[u8] {
        name_of(&self.bytes, entry)
    }

    fn contains(&self, name: &[u8]) -> bool {
        self.entries.binary_search_by(|entry| self.of(*entry).cmp(name)).is_ok()
    }
}

fn name_of(bytes: &[u8], entry: Entry) -> &[u8] {
    &bytes[entry.from as usize..entry.to as usize]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn walked(root: &Root, choice: &Choice) -> Vec<String> {
        let mut walk = Walk::new(root, choice).unwrap();
        let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
        std::iter::from_fn(|| walk.next(root, choice))
            .map(|item| match item.unwrap() {
                Item::File(path) => text(&path),
                Item::Directory(path) => text(&path) + "/",
                Item::Link(path) => text(&path) + "@",
                Item::Special(path) => text(&path) + "!",
            })
            .collect()
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        for file in files {
            let path = temp.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        temp
    }

    #[test]
    fn a_directory_that_has_become_a_link_leads_nowhere() {
        let (secret, temp) = (tree(&["1"]), tree(&["base/4/1"]));
        let swapped = temp.path().join("base/5");
        for to in [secret.path(), Path::new("4"), Path::new("/")] {
            std::os::unix::fs::symlink(to, &swapped).unwrap();
            let root = Root::open(None, temp.path()).unwrap();
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let errors = [
                root.open_file(b"base/5/1").err(),
                root.open_file(b"base/5").err(),
                open_step_by_step(&root.fd, b"base/5/1", flags).err(),
                open_step_by_step(&root.fd, b"base/5", flags).err(),
                root.open_directory(b"base/5").err(),
                root.stat(b"base/5/1", false).err(),
                root.read_link(b"base/5/1").err(),
            ];
            // As of what has gone, to whoever copies.
            assert!(errors.iter().all(|e| matches!(e, Some(Errno::LOOP | Errno::NOTDIR))), "{to:?}: {errors:?}");
            assert!(root.read_link(b"base/5").is_ok() && root.open_file(b"base/4/1").is_ok());
            assert!(open_step_by_step(&root.fd, b"base/4/1", flags).is_ok());
            fs::remove_file(&swapped).unwrap();
        }
        let root = Root::open(None, &temp.path().join("base")).unwrap();
        assert!(root.open_file(b"../base/4/1").is_err());
        assert!(open_step_by_step(&root.fd, b"../base/4/1", OFlags::RDONLY).is_err());
    }

    #[test]
    fn a_cluster_is_walked_as_the_server_does_it() {
        let temp = tree(&[
            "PG_VERSION",
            "postmaster.pid",
            "global/pg_control",
            "global/1262",
            "global/pg_internal.init",
            "base/5/1259",
            "base/5/16384",
            "base/5/16384_init",
            "base/5/16384_fsm",
            "base/5/t3_16390",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x.done",
            "pg_replslot/s/state",
            "pg_xact/0000",
            "pg_stat/pgstat.stat",
            "ts/PG_15_1/5/1",
        ]);
        fs::create_dir(temp.path().join("pg_tblspc")).unwrap();
        for (oid, to) in [("16385", "../ts"), ("16386", "/elsewhere")] {
            std::os::unix::fs::symlink(to, temp.path().join("pg_tblspc").join(oid)).unwrap();
        }
        std::os::unix::fs::symlink("/etc/hosts", temp.path().join("hosts")).unwrap();
        let root = Root::open(None, temp.path()).unwrap();
        let tablespace = Root::open(Some(16385), &temp.path().join("ts")).unwrap();
        let choice = Choice {
            major: 17,
            linked: vec![16385],
            foreign: HashSet::from([tablespace.identity().unwrap()]),
            version_directory: "PG_15_1".to_owned(),
            ..Choice::default()
        };
        assert_eq!(
            walked(&root, &choice),
            [
                "PG_VERSION",
                "base/",
                "base/5/",
                "base/5/1259",
                "base/5/16384_init",
                "global/",
                "global/1262",
                "hosts!",
                "pg_replslot/",
                "pg_stat/",
                "pg_stat/pgstat.stat",
                "pg_tblspc/",
                "pg_tblspc/16385@",
                "pg_wal/",
                "pg_wal/archive_status/",
                "pg_wal/summaries/",
                "pg_xact/",
                "pg_xact/0000",
                "ts/",
            ]
        );
        assert_eq!(walked(&tablespace, &choice), ["PG_15_1/", "PG_15_1/5/", "PG_15_1/5/1"]);
        let other = Choice { version_directory: "PG_16_1".to_owned(), ..choice };
        assert_eq!(walked(&tablespace, &other), Vec::<String>::new());
    }
}
