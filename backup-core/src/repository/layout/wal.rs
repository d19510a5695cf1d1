//! Where the write-ahead log of a cluster is.

use object_store::path::Path;

use super::{TargetName, VOLUME_SUFFIX};
use crate::encrypt::random;
use crate::format::ObjectName;
use crate::postgres::wal::{SystemIdentifier, Timeline, WalFile};

const WAL: &str = "wal";

/// The archive of one cluster. The system identifier keeps a cluster that was made anew, or upgraded, from colliding with its own past.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WalPath {
    /// The target whose log it is.
    pub target: TargetName,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
}

impl TargetName {
    /// The folder of its WAL, one folder for each cluster inside.
    pub fn wal(&self) -> Path {
        Path::from_iter([self.as_str(), WAL])
    }

    /// The archive of a cluster.
    pub fn wal_of(&self, system_identifier: SystemIdentifier) -> WalPath {
        WalPath { target: self.clone(), system_identifier }
    }
}

impl WalPath {
    /// The folder of the archive, one folder for each timeline inside.
    pub fn prefix(&self) -> Path {
        self.path(&[])
    }

    /// The folder of one timeline.
    pub fn timeline(&self, timeline: Timeline) -> Path {
        self.path(&[&timeline.hex()])
    }

    /// The object of a file.
    pub fn file(&self, file: WalFile) -> Path {
        self.path(&[&file.timeline().hex(), &format!("{file}{VOLUME_SUFFIX}")])
    }

    /// A new name for the object of a large file, to be used where a store cannot create such objects once.
    pub fn large_file(&self, file: WalFile) -> Path {
        let random = data_encoding::HEXLOWER.encode(&random::bytes::<16>());
        self.path(&[&file.timeline().hex(), &format!("{file}.{random}{VOLUME_SUFFIX}")])
    }

    /// The name that the object of a file answers to.
    pub fn name(&self, file: WalFile) -> ObjectName {
        ObjectName::Wal {
            target: self.target.to_string(),
            system_identifier: self.system_identifier.to_string(),
            timeline: file.timeline().hex(),
            file: file.to_string(),
        }
    }

    /// The file that an object of this archive holds, by the last part of its path; `None` when it is something else.
    pub fn parse_file(name: &str) -> Option<WalFile> {
        name.strip_suffix(VOLUME_SUFFIX)?.parse().ok()
    }

    fn path(&self, parts: &[&str]) -> Path {
        let system = self.system_identifier.to_string();
        [self.target.as_str(), WAL, &system].into_iter().chain(parts.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_design() {
        let archive = "app".parse::<TargetName>().unwrap().wal_of(SystemIdentifier(7_412_345_678_901_234_567));
        let path = |name: &str| archive.file(name.parse().unwrap());
        assert_eq!(archive.target.wal().as_ref(), "app/wal");
        assert_eq!(archive.prefix().as_ref(), "app/wal/7412345678901234567");
        assert_eq!(
            path("00000002000000030000000A").as_ref(),
            "app/wal/7412345678901234567/00000002/00000002000000030000000A.vol"
        );
        assert_eq!(path("0000000A.history").as_ref(), "app/wal/7412345678901234567/0000000A/0000000A.history.vol");
        for name in ["00000002000000030000000A", "0000000A.history", "00000002000000030000000A.00000028.backup"] {
            let file: WalFile = name.parse().unwrap();
            assert_eq!(WalPath::parse_file(archive.file(file).filename().unwrap()), Some(file));
        }
        assert_eq!(WalPath::parse_file("00000002000000030000000A.tail"), None);
        let large = archive.large_file("00000002000000030000000A".parse().unwrap());
        assert_eq!(WalPath::parse_file(large.filename().unwrap()), None, "{large}");
    }
}
