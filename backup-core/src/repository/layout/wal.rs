//! Where the write-ahead log of a cluster is.

use std::fmt;

use object_store::path::Path;

use super::{TargetName, VOLUME_SUFFIX};
use crate::encrypt::random;
use crate::format::ObjectName;
use crate::postgres::wal::{SegmentName, SystemIdentifier, Timeline, WalFile};

const WAL: &str = "wal";
const TAIL_SUFFIX: &str = ".tail";

/// The archive of one cluster. The system identifier keeps a cluster that was made anew, or upgraded, from colliding with its own past.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WalPath {
    /// The target whose log it is.
    pub target: TargetName,
    /// The cluster.
    pub system_identifier: SystemIdentifier,
}

/// A piece of a segment that is still being received: which bytes of the segment, and which run of a receiver wrote them. Several runs may
/// have written the same bytes; a piece is never replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailPiece {
    /// Where in the segment its first byte lies.
    pub start: u32,
    /// Where the byte behind its last one lies.
    pub end: u32,
    /// Sixteen hexadecimal digits, random.
    pub run: String,
}

impl TailPiece {
    /// Reads the last part of the path of an object; `None` when it is no piece.
    pub fn parse(name: &str) -> Option<Self> {
        let (range, run) = name.strip_suffix(VOLUME_SUFFIX)?.split_once('.')?;
        let (start, end) = range.split_once('-')?;
        let digits =
            |text: &str, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let offset = |text: &str| u32::from_str_radix(text, 16).ok().filter(|_| digits(text, 8));
        let piece = Self { start: offset(start)?, end: offset(end)?, run: run.to_owned() };
        (digits(run, 16) && piece.start < piece.end).then_some(piece)
    }
}

impl fmt::Display for TailPiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}.{}", self.start, self.end, self.run)
    }
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
        self.large_file_of(file, &random::bytes())
    }

    /// The name of such an object with these bytes in it: whoever copies the same object twice gives it the same name.
    pub fn large_file_of(&self, file: WalFile, bytes: &[u8; 16]) -> Path {
        let random = data_encoding::HEXLOWER.encode(bytes);
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

    /// The folder with what is stored of a segment that is still being received.
    pub fn tail(&self, segment: SegmentName) -> Path {
        self.path(&[&segment.timeline.hex(), &format!("{segment}{TAIL_SUFFIX}")])
    }

    /// The object of one piece of it.
    pub fn tail_piece(&self, segment: SegmentName, piece: &TailPiece) -> Path {
        self.tail(segment).join(format!("{piece}{VOLUME_SUFFIX}"))
    }

    /// The name that such an object answers to.
    pub fn tail_piece_name(&self, segment: SegmentName, piece: &TailPiece) -> ObjectName {
        ObjectName::Wal {
            target: self.target.to_string(),
            system_identifier: self.system_identifier.to_string(),
            timeline: segment.timeline.hex(),
            file: format!("{segment}{TAIL_SUFFIX}/{piece}"),
        }
    }

    /// The file that an object of this archive holds, by the last part of its path; `None` when it is something else.
    pub fn parse_file(name: &str) -> Option<WalFile> {
        name.strip_suffix(VOLUME_SUFFIX)?.parse().ok()
    }

    /// The file that a large object holds, by the last part of its path; `None` when it is something else.
    pub fn parse_large_file(name: &str) -> Option<WalFile> {
        let (file, random) = name.strip_suffix(VOLUME_SUFFIX)?.rsplit_once('.')?;
        let digits = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (random.len() == 32 && digits(random)).then(|| file.parse().ok())?
    }

    /// The object that refers to a large file, by the path of that one; `None` when it is something else.
    pub fn reference_to(object: &Path) -> Option<Path> {
        let (folder, name) = object.as_ref().rsplit_once('/')?;
        let file = Self::parse_large_file(name)?;
        Some(Path::from(format!("{folder}/{file}{VOLUME_SUFFIX}")))
    }

    /// The segment that an object holds a piece of, by its path, and which; `None` when it is something else.
    pub fn parse_tail(object: &Path) -> Option<(SegmentName, TailPiece)> {
        let mut parts = object.as_ref().rsplit('/');
        let (piece, folder) = (parts.next()?, parts.next()?);
        let WalFile::Segment(segment) = folder.strip_suffix(TAIL_SUFFIX)?.parse().ok()? else { return None };
        Some((segment, TailPiece::parse(piece)?))
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
        let WalFile::Segment(segment) = "00000002000000030000000A".parse().unwrap() else { panic!() };
        let piece = TailPiece { start: 0x12000, end: 0x1A0B0, run: "0123456789abcdef".to_owned() };
        let path = archive.tail_piece(segment, &piece);
        assert_eq!(
            path.as_ref(),
            "app/wal/7412345678901234567/00000002/00000002000000030000000A.tail/00012000-0001a0b0.0123456789abcdef.vol"
        );
        assert_eq!(WalPath::parse_tail(&path), Some((segment, piece)));
        assert_eq!(WalPath::parse_tail(&archive.file(WalFile::Segment(segment))), None);
        for name in [
            "00012000-0001a0b0.vol",
            "12000-1a0b0.0123456789abcdef.vol",
            "00012000-0001A0B0.0123456789abcdef.vol",
            "+0012000-0001a0b0.0123456789abcdef.vol",
            "00012000-00012000.0123456789abcdef.vol",
        ] {
            assert_eq!(TailPiece::parse(name), None, "{name}");
        }
        let large = archive.large_file("00000002000000030000000A".parse().unwrap());
        assert_eq!(WalPath::parse_file(large.filename().unwrap()), None, "{large}");
        assert_eq!(WalPath::parse_large_file(large.filename().unwrap()), "00000002000000030000000A".parse().ok());
        for name in [
            "00000002000000030000000A.vol",
            "00000002000000030000000A.0123.vol",
            "x.0123456789abcdef0123456789abcdef.vol",
        ] {
            assert_eq!(WalPath::parse_large_file(name), None, "{name}");
        }
    }
}
