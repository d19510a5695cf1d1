//! `global/pg_control`: which cluster a data directory holds, and how far it has come.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::wal::{Lsn, SystemIdentifier};

/// Where the file is in a data directory.
pub const PG_CONTROL: &str = "global/pg_control";
/// Bytes of the file: far more than it needs, so that a disk writes what matters at once.
pub const PG_CONTROL_BYTES: usize = 8192;

/// What is needed of a control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// The version of the system catalogue, which the directories of tablespaces have in their names.
    pub catalog_version: u32,
    /// From where recovery would begin: the redo position of the last checkpoint, or restart point.
    pub redo: Lsn,
}

impl ControlFile {
    /// Reads the beginning of a file: `ControlFileData` and in it `CheckPoint` (`src/include/catalog/pg_control.h`), in this machine's byte order,
    /// the same from 13 to 18.
    ///
    /// # Errors
    /// When that is not what PostgreSQL writes.
    pub fn read(bytes: &[u8]) -> io::Result<Self> {
        let (identifier, version) = identifier_and_version(bytes)?;
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, format!("not a control file (version {version})"));
        let catalog = bytes.get(12..16).ok_or_else(malformed)?;
        let redo = bytes.get(40..48).ok_or_else(malformed)?;
        Ok(Self {
            system_identifier: identifier,
            catalog_version: u32::from_ne_bytes(catalog.try_into().expect("four bytes")),
            redo: Lsn(u64::from_ne_bytes(redo.try_into().expect("eight bytes"))),
        })
    }

    /// That of the cluster in `data_directory`. Blocks.
    ///
    /// # Errors
    /// When there is none, or none that can be read.
    pub fn of(data_directory: &Path) -> io::Result<Self> {
        Self::read(&std::fs::read(data_directory.join(PG_CONTROL))?)
    }
}

/// Whether a copy of the file was not made while the server wrote it: its checksum is the CRC-32C of all before it.
///
/// Where it stands differs between versions: behind everything else, before zeros up to the file's end.
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some(last) = bytes.iter().rposition(|&byte| byte != 0) else { return false };
    // A checksum may end with zeros itself.
    (last.saturating_sub(3)..=last).filter(|at| at % 4 == 0 && *at > 0).any(|at| {
        let stated = bytes.get(at..at + 4).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")));
        stated == Some(crc32c::crc32c(&bytes[..at]))
    })
}

/// The system identifier of the cluster in `data_directory`; `None` where there is no cluster. Blocks.
///
/// It is the first field of the control file, and never changes.
///
/// # Errors
/// When the file is there and cannot be read, or is not what PostgreSQL writes.
pub fn system_identifier(data_directory: &Path) -> io::Result<Option<SystemIdentifier>> {
    let mut file = match File::open(data_directory.join(PG_CONTROL)) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = [0; 12];
    file.read_exact(&mut bytes)?;
    identifier_and_version(&bytes).map(|(identifier, _)| Some(identifier))
}

fn identifier_and_version(bytes: &[u8]) -> io::Result<(SystemIdentifier, u32)> {
    let head = bytes.first_chunk::<12>().ok_or(io::ErrorKind::UnexpectedEof)?;
    let identifier = u64::from_ne_bytes(head[..8].try_into().expect("eight bytes"));
    let version = u32::from_ne_bytes(head[8..].try_into().expect("four bytes"));
    // 1300 in PostgreSQL 13, 1800 in 18. In another byte order it would be far from that.
    if identifier == 0 || !(1000..10_000).contains(&version) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a control file (version {version})")));
    }
    Ok((SystemIdentifier(identifier), version))
}

/// Where the data directory may be that a file of `pg_wal` belongs to, the likeliest first.
///
/// PostgreSQL hands out paths below its data directory, in which it also runs the command; and `pg_wal` may be a symbolic link, so the
/// path is first taken as it is written.
pub fn data_directories_of(wal_file: &Path) -> Vec<PathBuf> {
    let here = PathBuf::from(".");
    let mut found = Vec::new();
    if let Some(pg_wal) = wal_file.parent() {
        let pg_wal = if pg_wal.as_os_str().is_empty() { &here } else { pg_wal };
        match pg_wal.parent() {
            Some(data) if data.as_os_str().is_empty() => found.push(here.clone()),
            Some(data) if pg_wal != here => found.push(data.to_owned()),
            _ => {}
        }
        if let Some(data) = pg_wal.canonicalize().ok().as_deref().and_then(Path::parent) {
            found.push(data.to_owned());
        }
    }
    found.push(here);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_found_through_a_linked_pg_wal() {
        let temp = tempfile::tempdir().unwrap();
        let (data, disk) = (temp.path().join("data"), temp.path().join("disk"));
        std::fs::create_dir_all(data.join("global")).unwrap();
        std::fs::create_dir_all(disk.join("wal")).unwrap();
        std::os::unix::fs::symlink(disk.join("wal"), data.join("pg_wal")).unwrap();
        let control = [&7u64.to_ne_bytes()[..], &1300u32.to_ne_bytes()].concat();
        std::fs::write(data.join("global/pg_control"), control).unwrap();
        let found = |path: &Path| {
            let mut places = data_directories_of(path).into_iter();
            places.find_map(|place| system_identifier(&place).unwrap())
        };
        assert_eq!(found(&data.join("pg_wal/000000010000000000000001")), Some(SystemIdentifier(7)));
        assert_eq!(found(&disk.join("wal/000000010000000000000001")), None);
        assert_eq!(data_directories_of(Path::new("pg_wal/x"))[0], Path::new("."));
        assert_eq!(data_directories_of(Path::new("/x")).last().unwrap(), Path::new("."));
    }

    #[test]
    fn what_is_no_control_file_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("global")).unwrap();
        assert_eq!(system_identifier(temp.path()).unwrap(), None);
        for bytes in [&b"short"[..], &[0; 12], &[0xFF; 12]] {
            std::fs::write(temp.path().join("global/pg_control"), bytes).unwrap();
            assert!(system_identifier(temp.path()).is_err());
        }
    }

    #[test]
    fn a_control_file_that_was_read_while_it_was_written_is_not_whole() {
        let mut bytes = vec![0; PG_CONTROL_BYTES];
        bytes[..16].copy_from_slice(
            &[&7u64.to_ne_bytes()[..], &1300u32.to_ne_bytes(), &202_007_201u32.to_ne_bytes()].concat(),
        );
        bytes[40..48].copy_from_slice(&0x200_0028u64.to_ne_bytes());
        assert!(!is_whole(&bytes));
        let sum = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&sum.to_ne_bytes());
        assert!(is_whole(&bytes));
        let read = ControlFile::read(&bytes).unwrap();
        assert_eq!((read.system_identifier, read.redo), (SystemIdentifier(7), Lsn(0x200_0028)));
        assert_eq!(read.catalog_version, 202_007_201);
        bytes[41] ^= 1;
        assert!(!is_whole(&bytes));
        assert!(!is_whole(&[0; 64]));
        assert!(ControlFile::read(&bytes[..20]).is_err());
    }
}
