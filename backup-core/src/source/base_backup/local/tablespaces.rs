//! The tablespaces of a local copy: all that the server has must be seen here.
//!
//! Their links are in the data directory, and what they lead to need not be there where this runs: a container may have been given one volume and
//! not the other.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::damage::pause;
use super::job::{UNREADABLE, cannot};
use super::tree::Root;
use crate::error::{Error, Result};

const LINKS: &str = "pg_tblspc";
/// Whether a link still stands is looked at so often, with a pause before each time but the first: whoever drops a tablespace removes its
/// directory first (`destroy_tablespace_directories`).
const LOOKS: u32 = 10;

/// A tablespace, and where it is.
#[derive(Debug)]
pub(super) struct Tablespace {
    pub(super) root: Root,
    /// As the link says, which a restore will want to know.
    pub(super) location: PathBuf,
    pub(super) is_link: bool,
}

/// This server's directory in each tablespace, such as `PG_15_202209061`. It is made before the link (`create_tablespace_directories`).
pub(super) fn version_directory(major: u32, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// The tablespaces that there are, by the links to them, as the server itself finds them.
///
/// # Errors
/// `Config` for one whose files cannot be seen here, though its link stands.
pub(super) fn tablespaces(data: &Arc<Root>, version_directory: &str) -> Result<Vec<Tablespace>> {
    let failed = |errno: Errno| cannot("read", data, LINKS.as_bytes(), errno);
    let directory = data.open_file(LINKS.as_bytes()).map_err(failed)?;
    let mut found = Vec::new();
    for entry in Dir::read_from(&directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(oid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let path = link(oid);
        let kind = data.stat(path.as_bytes(), false).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let location = match kind {
            Ok(FileType::Symlink) => match data.read_link(path.as_bytes()) {
                Ok(target) => PathBuf::from(OsString::from_vec(target.into_bytes())),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(cannot("read", data, path.as_bytes(), errno)),
            },
            // Tablespaces in the data directory itself are for those who develop PostgreSQL.
            Ok(FileType::Directory) => PathBuf::from(&path),
            _ => continue,
        };
        let is_link = kind == Ok(FileType::Symlink);
        match open(data, oid, version_directory) {
            Ok(Some(root)) => found.push(Tablespace { root, location, is_link }),
            Ok(None) => {}
            Err(errno) => return Err(unseen(oid, &location, errno)),
        }
    }
    found.sort_by_key(|tablespace| tablespace.root.oid);
    Ok(found)
}

/// Opens a tablespace; `None` for one that has just been dropped.
fn open(data: &Root, oid: u32, version_directory: &str) -> rustix::io::Result<Option<Root>> {
    let mut look = 1;
    loop {
        let root = Root::open(Some(oid), &data.location.join(link(oid)));
        let opened = root.and_then(|root| root.open_file(version_directory.as_bytes()).map(|_| root));
        match opened {
            Ok(root) => return Ok(Some(root)),
            Err(Errno::NOENT) if !stands(data, oid)? => return Ok(None),
            Err(Errno::NOENT) if look < LOOKS => pause(),
            Err(errno) => return Err(errno),
        }
        look += 1;
    }
}

/// Fails if any of those with which the backup began is not among the `copied`, unless it has been dropped since.
pub(super) fn all_copied(data: &Root, began_with: &[u32], copied: &[u32]) -> Result<()> {
    for &oid in began_with.iter().filter(|oid| !copied.contains(oid)) {
        if stands(data, oid).map_err(|errno| cannot("look at", data, link(oid).as_bytes(), errno))? {
            return Err(unseen(oid, Path::new(&link(oid)), Errno::NOENT));
        }
    }
    Ok(())
}

/// The numbers in a `tablespace_map`: a line for each, with backslashes before what would end a line in the name of a directory.
pub(super) fn numbers_in_map(map: &str) -> Option<Vec<u32>> {
    let mut lines = vec![String::new()];
    let mut chars = map.chars();
    while let Some(next) = chars.next() {
        match next {
            '\\' => drop(chars.next()),
            '\n' => lines.push(String::new()),
            next => lines.last_mut()?.push(next),
        }
    }
    let lines = lines.iter().filter(|line| !line.is_empty());
    lines.map(|line| line.split_once(' ')?.0.parse().ok()).collect()
}

fn link(oid: u32) -> String {
    format!("{LINKS}/{oid}")
}

fn stands(data: &Root, oid: u32) -> rustix::io::Result<bool> {
    match data.stat(link(oid).as_bytes(), false) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn unseen(oid: u32, location: &Path, errno: Errno) -> Error {
    let message = format!("the files of tablespace {oid}, {}, cannot be read here", location.display());
    let hint = match errno {
        Errno::ACCESS => UNREADABLE,
        _ => "run this where all of the server's files are, or copy over the replication protocol (--method stream)",
    };
    Error::config(message).with_hint(hint).with_source(io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const VERSION: &str = "PG_15_1";

    fn data() -> (tempfile::TempDir, Arc<Root>) {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("data/pg_tblspc")).unwrap();
        let data = Root::open(None, &temp.path().join("data")).unwrap();
        (temp, Arc::new(data))
    }

    fn oids(data: &Arc<Root>) -> Result<Vec<Option<u32>>> {
        Ok(tablespaces(data, VERSION)?.iter().map(|tablespace| tablespace.root.oid).collect())
    }

    #[test]
    fn a_tablespace_that_is_not_here_is_no_tablespace_that_was_dropped() {
        let (temp, data) = data();
        let (volume, link) = (temp.path().join("fast"), temp.path().join("data/pg_tblspc/16385"));
        symlink(&volume, &link).unwrap();
        for text in [oids(&data).unwrap_err(), {
            // What it is mounted on is there, and empty.
            fs::create_dir(&volume).unwrap();
            oids(&data).unwrap_err()
        }]
        .map(|error| error.to_string())
        {
            assert!(text.contains("tablespace 16385, ") && text.contains("fast, cannot be read here"), "{text}");
        }
        fs::create_dir(volume.join(VERSION)).unwrap();
        assert_eq!(oids(&data).unwrap(), [Some(16385)]);
        fs::remove_dir(volume.join(VERSION)).unwrap();
        let dropping = std::thread::spawn(move || {
            pause();
            fs::remove_file(link)
        });
        assert!(oids(&data).unwrap().is_empty(), "its directory goes before its link");
        dropping.join().unwrap().unwrap();
    }

    #[test]
    fn what_the_backup_began_with_was_copied_or_has_been_dropped() {
        let (temp, data) = data();
        symlink("/elsewhere", temp.path().join("data/pg_tblspc/16385")).unwrap();
        assert!(all_copied(&data, &[16385, 16386], &[16385]).is_ok());
        let missing = all_copied(&data, &[16385, 16386], &[16386]).unwrap_err();
        assert!(missing.to_string().contains("tablespace 16385"), "{missing}");
    }

    #[test]
    fn maps_may_name_any_directory() {
        let numbers = |map| numbers_in_map(map);
        assert_eq!(numbers(""), Some(Vec::new()));
        assert_eq!(numbers("16385 /srv/a b\n16386 /srv/\\\n17 x\\\\\n16387 /c\n").unwrap(), [16385, 16386, 16387]);
        assert_eq!(numbers("fast /srv\n"), None);
    }
}
