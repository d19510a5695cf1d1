//! `global/pg_control`: which cluster a data directory holds.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::wal::SystemIdentifier;

/// The system identifier of the cluster in `data_directory`; `None` where there is no cluster. Blocks.
///
/// It is the first field of `ControlFileData` (`src/include/catalog/pg_control.h`), in this machine's byte order, and never changes.
///
/// # Errors
/// When the file is there and cannot be read, or is not what PostgreSQL writes.
pub fn system_identifier(data_directory: &Path) -> io::Result<Option<SystemIdentifier>> {
    let mut file = match File::open(data_directory.join("global/pg_control")) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = [0; 12];
    file.read_exact(&mut bytes)?;
    let [identifier, version] = [&bytes[..8], &bytes[8..]];
    let identifier = u64::from_ne_bytes(identifier.try_into().expect("eight bytes"));
    let version = u32::from_ne_bytes(version.try_into().expect("four bytes"));
    // 1300 in PostgreSQL 13, 1800 in 18. In another byte order it would be far from that.
    if identifier == 0 || !(1000..10_000).contains(&version) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a control file (version {version})")));
    }
    Ok(Some(SystemIdentifier(identifier)))
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
}
