//! Where a cluster goes: its data directory, and a directory for each of its tablespaces.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};

use super::layout::{Root, Tablespace};
use super::place::{self, Place};
use crate::error::{Error, Result};
use crate::restore::worker::sink_error;

const HINT: &str = "restore into a new or an empty directory";

/// Where a tablespace goes: `OLD=NEW`, two absolute paths. A `=` in a path is written `\=`, as for `pg_basebackup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapping {
    /// Where it was.
    pub old: PathBuf,
    /// Where it goes.
    pub new: PathBuf,
}

impl FromStr for TablespaceMapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::config(format!("'{}' maps no tablespace: {why}", text.escape_debug()))
                .with_hint("write OLD=NEW with two absolute paths, and '=' in a path as '\\='")
        };
        let (mut sides, mut current) = (Vec::new(), String::new());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' if chars.peek() == Some(&'=') => current.extend(chars.next()),
                '=' => sides.push(std::mem::take(&mut current)),
                c => current.push(c),
            }
        }
        sides.push(current);
        let [old, new] = &sides[..] else { return Err(invalid("it needs one '='")) };
        // Without trailing and double slashes, as PostgreSQL keeps them.
        let absolute =
            |side: &String| Some(side).filter(|s| s.starts_with('/')).map(|s| Path::new(s).components().collect());
        match (absolute(old), absolute(new)) {
            (Some(old), Some(new)) => Ok(Self { old, new }),
            _ => Err(invalid("a path is not absolute")),
        }
    }
}

/// The directories that are filled, all taken.
#[derive(Debug)]
pub(super) struct Destination {
    data: Place,
    tablespaces: Vec<(u32, Place)>,
    /// Tablespaces that lie in the data directory.
    in_place: Vec<u32>,
}

impl Destination {
    /// Takes the directories, or none of them. Blocks.
    pub(super) fn take(data: &Path, tablespaces: &[Tablespace], mappings: &[TablespaceMapping]) -> Result<Self> {
        let linked = resolve(tablespaces, mappings)?;
        check_apart(data, &linked)?;
        Place::check(data, HINT)?;
        for (old, (_, path)) in linked_locations(tablespaces).zip(&linked) {
            let elsewhere = format!("put the tablespace elsewhere: --tablespace-mapping {}=NEW", old.display());
            Place::check(path, if old == path { &elsewhere } else { HINT })?;
        }
        let mut taken = Self { data: Place::take(data)?, tablespaces: Vec::new(), in_place: Vec::new() };
        for (oid, path) in &linked {
            match Place::take(path) {
                Ok(place) => taken.tablespaces.push((*oid, place)),
                Err(error) => {
                    return Err(match taken.give_up() {
                        Ok(()) => error,
                        Err(cleanup) => error.with_cleanup(cleanup),
                    });
                }
            }
        }
        taken.in_place = tablespaces.iter().filter(|t| t.is_in_place()).map(|t| t.oid).collect();
        Ok(taken)
    }

    /// The data directory.
    pub(super) fn data(&self) -> &Path {
        self.data.path()
    }

    /// The tablespaces that links lead to.
    pub(super) fn tablespaces(&self) -> Vec<(u32, PathBuf)> {
        self.tablespaces.iter().map(|(oid, place)| (*oid, place.path().to_owned())).collect()
    }

    /// The OIDs of those that lie in the data directory.
    pub(super) fn in_place(&self) -> &[u32] {
        &self.in_place
    }

    /// Their OIDs.
    pub(super) fn linked(&self) -> Vec<u32> {
        self.tablespaces.iter().map(|(oid, _)| *oid).collect()
    }

    /// The path of a file, by its name in PostgreSQL's manifest.
    pub(super) fn locate(&self, path: &Path) -> PathBuf {
        for (oid, place) in &self.tablespaces {
            if let Ok(below) = path.strip_prefix(Path::new("pg_tblspc").join(oid.to_string())) {
                return place.path().join(below);
            }
        }
        self.data.path().join(path)
    }

    /// Opens the directory of a root, and makes it where it is missing. Blocks.
    pub(super) fn open(&self, root: Root) -> Result<OwnedFd> {
        let path = match root {
            Root::Data => self.data.path().to_owned(),
            Root::Wal => self.data.path().join("pg_wal"),
            Root::Tablespace(oid) => match self.tablespaces.iter().find(|(other, _)| *other == oid) {
                Some((_, place)) => place.path().to_owned(),
                None => self.data.path().join("pg_tblspc").join(oid.to_string()),
            },
        };
        let failed = |e: std::io::Error| sink_error(format!("cannot open {}", path.display()), e);
        let parent = path.parent().filter(|_| root != Root::Data);
        for directory in parent.into_iter().chain([path.as_path()]) {
            use std::os::unix::fs::DirBuilderExt;
            match fs::DirBuilder::new().mode(0o700).create(directory) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
                _ => {}
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| failed(e.into()))
    }

    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.data).chain(self.tablespaces.iter().map(|(_, place)| place))
    }

    /// Flushes everything to disk. Blocks.
    pub(super) fn sync(&self) -> Result<()> {
        place::sync(self.places()).map_err(|e| sink_error("cannot write the restored cluster to disk", e))
    }

    /// Removes everything again. Blocks.
    pub(super) fn give_up(&self) -> Result<()> {
        let failures = self.places().filter_map(|place| place.give_up().err().map(|e| place.stays(e)));
        failures.reduce(Error::with_cleanup).map_or(Ok(()), Err)
    }
}

/// The tablespaces that have directories of their own, with where these will be.
fn resolve(tablespaces: &[Tablespace], mappings: &[TablespaceMapping]) -> Result<Vec<(u32, PathBuf)>> {
    let clean = |path: &Path| path.components().collect::<PathBuf>();
    for (i, mapping) in mappings.iter().enumerate() {
        let old = mapping.old.display();
        if mappings[..i].iter().any(|other| other.old == mapping.old) {
            return Err(Error::config(format!("the tablespace at {old} is mapped twice")));
        }
        if !linked_locations(tablespaces).any(|location| clean(location) == mapping.old) {
            let there: Vec<String> = linked_locations(tablespaces).map(|l| l.display().to_string()).collect();
            let hint = match there.is_empty() {
                true => "the backup has no tablespace of its own directory".to_owned(),
                false => format!("the backup has tablespaces at: {}", there.join(", ")),
            };
            return Err(Error::config(format!("no tablespace is at {old}")).with_hint(hint));
        }
    }
    let linked = tablespaces.iter().filter(|t| !t.is_in_place());
    Ok(linked
        .map(|t| {
            let location = clean(&t.location);
            let mapped = mappings.iter().find(|m| m.old == location).map(|m| m.new.clone());
            (t.oid, mapped.unwrap_or(location))
        })
        .collect())
}

fn linked_locations(tablespaces: &[Tablespace]) -> impl Iterator<Item = &Path> {
    tablespaces.iter().filter(|t| !t.is_in_place()).map(|t| t.location.as_path())
}

/// Directories within each other could not be told apart when they are emptied.
fn check_apart(data: &Path, tablespaces: &[(u32, PathBuf)]) -> Result<()> {
    let all: Vec<&Path> = std::iter::once(data).chain(tablespaces.iter().map(|(_, path)| path.as_path())).collect();
    for (i, a) in all.iter().enumerate() {
        for b in &all[i + 1..] {
            if a.starts_with(b) || b.starts_with(a) {
                let message =
                    format!("{} and {} are the same directory, or one in the other", a.display(), b.display());
                return Err(
                    Error::config(message).with_hint("--tablespace-mapping OLD=NEW puts a tablespace elsewhere")
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> Result<TablespaceMapping> {
        text.parse()
    }

    #[test]
    fn mappings_are_read_as_pg_basebackup_reads_them() {
        let is = |text: &str, old: &str, new: &str| {
            assert_eq!(mapping(text).unwrap(), TablespaceMapping { old: old.into(), new: new.into() }, "{text}");
        };
        is("/a=/b", "/a", "/b");
        is("/a//c/=/b/", "/a/c", "/b");
        is(r"/a\=c=/b\=d", "/a=c", "/b=d");
        is(r"/a\b=/c", r"/a\b", "/c");
        for text in ["", "/a", "/a=", "=/b", "a=/b", "/a=b", "/a=/b=/c"] {
            assert!(mapping(text).unwrap_err().hint().unwrap().contains("OLD=NEW"), "{text}");
        }
    }

    #[test]
    fn every_mapping_must_hit_and_no_two_directories_may_meet() {
        let at = |oid, location: &str| Tablespace { oid, location: location.into() };
        let tablespaces = [at(1, "/srv/a"), at(2, "/srv/b"), at(3, "pg_tblspc/3")];
        let resolved = resolve(&tablespaces, &[mapping("/srv/b/=/new").unwrap()]).unwrap();
        assert_eq!(resolved, [(1, PathBuf::from("/srv/a")), (2, "/new".into())]);
        let missed = resolve(&tablespaces, &[mapping("/srv/c=/new").unwrap()]).unwrap_err();
        assert_eq!(missed.hint(), Some("the backup has tablespaces at: /srv/a, /srv/b"));
        resolve(&tablespaces, &vec![mapping("/srv/a=/new").unwrap(); 2]).unwrap_err();
        for (data, ok) in [("/srv/data", true), ("/srv", false), ("/srv/a", false), ("/srv/a/data", false)] {
            assert_eq!(check_apart(Path::new(data), &[(1, "/srv/a".into())]).is_ok(), ok, "{data}");
        }
    }
}
