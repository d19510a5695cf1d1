//! Positions and names in PostgreSQL's write-ahead log: LSNs, timelines, segments, and the files of an archive. No I/O.
//!
//! Names are those of `src/include/access/xlog_internal.h`. A segment's name holds its timeline, and its number split in two at 4 GiB of
//! log; so which bytes of the log it holds depends on the cluster's segment size ([`SegmentSize`]).

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub mod history;
pub mod page;

pub use history::History;
pub use page::FirstPage;

/// A position in the write-ahead log, in bytes; printed as `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(pub u64);

/// A line of history: 1 in a new cluster, a new one at the end of each recovery that forks. Printed in decimal, as PostgreSQL's settings
/// have it; [`hex`](Self::hex) is the form in names of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(NonZero<u32>);

/// What tells a cluster from all others: chosen by `initdb`, kept by copies, standbys and restores of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemIdentifier(pub u64);

/// Bytes of log in one segment: a power of two from 1 MiB to 1 GiB, 16 MiB unless `initdb --wal-segsize` said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

/// The name of a segment: 24 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that it was written on.
    pub timeline: Timeline,
    /// The high half of the LSNs in it.
    pub log: u32,
    /// Which segment of that half, from 0.
    pub segment: u32,
}

/// A file that PostgreSQL hands to `archive_command`, or asks `restore_command` for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    /// A segment.
    Segment(SegmentName),
    /// The last segment of a timeline that ended in its middle, as a promoted standby archives it.
    Partial(SegmentName),
    /// Where a timeline branched off its ancestors.
    History(Timeline),
    /// The label of a base backup that started in this segment, at this offset.
    BackupLabel(SegmentName, u32),
}

impl Lsn {
    /// Reads what [`Display`](fmt::Display) prints, in digits of any case.
    fn read(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        Some(Self((u64::from(hex(high, 1..=8)?) << 32) | u64::from(hex(low, 1..=8)?)))
    }
}

impl Timeline {
    /// The first timeline of every cluster.
    pub const FIRST: Self = Self(NonZero::<u32>::MIN);

    /// The timeline of that number; 0 is none.
    pub fn new(number: u32) -> Option<Self> {
        NonZero::new(number).map(Self)
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Eight hexadecimal digits, as in names of files.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// Reads [`hex`](Self::hex) back.
    pub fn from_hex(text: &str) -> Option<Self> {
        upper_hex(text).and_then(Self::new)
    }
}

impl SegmentSize {
    /// What `initdb` chooses.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A segment size of so many bytes, if PostgreSQL could have it.
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(Self(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.into()
    }

    /// The first position of the segment that `lsn` lies in.
    pub fn start_of(self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0 - self.offset_of(lsn))
    }

    /// Where in its segment `lsn` lies.
    pub fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes()
    }

    /// The segment that `lsn` lies in. A position at the very end of a segment lies in the next one.
    pub fn segment_at(self, timeline: Timeline, lsn: Lsn) -> SegmentName {
        let [log, segment] = [lsn.0 >> 32, (lsn.0 & 0xFFFF_FFFF) / self.bytes()];
        let half = |number: u64| u32::try_from(number).expect("half of a u64");
        SegmentName { timeline, log: half(log), segment: half(segment) }
    }

    /// Segments for each value of [`SegmentName::log`].
    fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl SegmentName {
    /// The position of its first byte; `None` when a cluster with segments of `size` has no segment of this name.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        let within = u64::from(self.segment) < size.segments_per_log();
        within.then(|| Lsn((u64::from(self.log) << 32) | (u64::from(self.segment) * size.bytes())))
    }

    /// The position behind its last byte.
    pub fn end(self, size: SegmentSize) -> Option<Lsn> {
        self.start(size)?.0.checked_add(size.bytes()).map(Lsn)
    }

    /// The segment behind it on the same timeline.
    pub fn next(self, size: SegmentSize) -> Option<Self> {
        Some(size.segment_at(self.timeline, self.end(size)?))
    }

    /// The segment with the same bytes of log on another timeline.
    #[must_use]
    pub fn on(self, timeline: Timeline) -> Self {
        Self { timeline, ..self }
    }

    fn read(text: &str) -> Option<Self> {
        if text.len() != 24 || !text.is_ascii() {
            return None;
        }
        Some(Self {
            timeline: Timeline::from_hex(&text[..8])?,
            log: upper_hex(&text[8..16])?,
            segment: upper_hex(&text[16..])?,
        })
    }
}

impl WalFile {
    /// The timeline that it belongs to: for a history, the one that it is the history of.
    pub fn timeline(self) -> Timeline {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupLabel(name, _) => name.timeline,
            Self::History(timeline) => timeline,
        }
    }

    fn read(text: &str) -> Option<Self> {
        let Some((stem, rest)) = text.split_once('.') else { return SegmentName::read(text).map(Self::Segment) };
        match rest.strip_suffix(".backup") {
            Some(offset) => Some(Self::BackupLabel(SegmentName::read(stem)?, upper_hex(offset)?)),
            None if rest == "partial" => SegmentName::read(stem).map(Self::Partial),
            None if rest == "history" => Timeline::from_hex(stem).map(Self::History),
            None => None,
        }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.segment))
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::Segment(name) => name.to_string(),
            Self::Partial(name) => format!("{name}.partial"),
            Self::History(timeline) => format!("{}.history", timeline.hex()),
            Self::BackupLabel(name, offset) => format!("{name}.{offset:08X}.backup"),
        })
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| {
            Error::config(format!("'{}' is not an LSN", text.escape_debug())).with_hint("an LSN looks like 16/B374D848")
        })
    }
}

impl FromStr for SystemIdentifier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        plain.then(|| text.parse().ok()).flatten().map(Self).ok_or_else(|| {
            Error::config(format!("'{}' is not the system identifier of a cluster", text.escape_debug()))
                .with_hint("pg_controldata shows it: a number of about 19 digits")
        })
    }
}

impl FromStr for WalFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::read(text).ok_or_else(|| {
            Error::config(format!("'{}' is not the name of a WAL file", text.escape_debug()))
                .with_hint("such names look like 000000010000000A000000FF, or like 00000002.history")
        })
    }
}

/// In JSON they are texts: numbers above 2^53 lose digits in many readers.
macro_rules! text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

text!(Lsn, SystemIdentifier);

impl TryFrom<u32> for SegmentSize {
    type Error = Error;

    fn try_from(bytes: u32) -> Result<Self> {
        Self::new(bytes).ok_or_else(|| Error::config(format!("no cluster has WAL segments of {bytes} bytes")))
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

/// Hexadecimal digits of any case, so many of them, and nothing else.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Eight digits, in capitals: names of files have one spelling.
fn upper_hex(text: &str) -> Option<u32> {
    hex(text, 8..=8).filter(|_| !text.bytes().any(|b| b.is_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20u32..=30).prop_map(|bits| SegmentSize::new(1 << bits).unwrap())
    }

    fn segment(name: &str) -> SegmentName {
        match name.parse().unwrap() {
            WalFile::Segment(name) => name,
            other => panic!("{other} is no segment"),
        }
    }

    proptest! {
        #[test]
        fn positions_are_read_as_printed(lsn: u64) {
            prop_assert_eq!(Lsn(lsn).to_string().parse::<Lsn>().unwrap(), Lsn(lsn));
        }

        #[test]
        fn every_position_lies_in_its_segment(lsn: u64, timeline in 1u32.., size in sizes()) {
            let name = size.segment_at(Timeline::new(timeline).unwrap(), Lsn(lsn));
            prop_assert_eq!(segment(&name.to_string()), name);
            let start = name.start(size).unwrap();
            prop_assert_eq!(start, size.start_of(Lsn(lsn)));
            prop_assert_eq!(start.0 + size.offset_of(Lsn(lsn)), lsn);
            match name.end(size) {
                Some(end) => {
                    prop_assert!(start.0 <= lsn && lsn < end.0);
                    prop_assert_eq!(name.next(size).unwrap().start(size), Some(end));
                }
                None => prop_assert!(name.next(size).is_none() && start.0 + (size.bytes() - 1) == u64::MAX),
            }
        }

        #[test]
        fn whatever_is_read_has_one_spelling(name in "[0-9A-Fa-f]{8,25}(\\.partial|\\.history|\\.[0-9A-F]{8}\\.backup|)") {
            if let Ok(file) = name.parse::<WalFile>() {
                prop_assert_eq!(file.to_string(), name);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = (text.parse::<WalFile>().is_ok(), text.parse::<Lsn>().is_ok(), text.parse::<SystemIdentifier>().is_ok());
        }
    }

    #[test]
    fn names_are_those_of_postgresql() {
        // SELECT pg_walfile_name('16/B374D848') on a cluster with segments of 16 MiB.
        let (lsn, first) = (Lsn(0x16_B374_D848), Timeline::FIRST);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(SegmentSize::DEFAULT.segment_at(first, lsn).to_string(), "0000000100000016000000B3");
        let small = SegmentSize::new(1 << 20).unwrap();
        assert_eq!(small.segment_at(first, lsn).to_string(), "000000010000001600000B37");
        let last = segment("0000000A00000016000000FF");
        assert_eq!(last.next(SegmentSize::DEFAULT).unwrap().to_string(), "0000000A0000001700000000");
        assert_eq!(
            last.next(SegmentSize::new(64 << 20).unwrap()),
            None,
            "no such segment in a cluster with larger ones"
        );
    }

    #[test]
    fn every_file_of_an_archive_is_told_apart() {
        let name = segment("000000020000000300000004");
        for (text, file) in [
            ("000000020000000300000004", WalFile::Segment(name)),
            ("000000020000000300000004.partial", WalFile::Partial(name)),
            ("00000002.history", WalFile::History(name.timeline)),
            ("000000020000000300000004.00000028.backup", WalFile::BackupLabel(name, 0x28)),
        ] {
            assert_eq!(text.parse::<WalFile>().unwrap(), file);
            assert_eq!((file.to_string().as_str(), file.timeline().get()), (text, 2));
        }
        for text in [
            "",
            "00000002",
            "000000000000000300000004",
            "00000002000000030000000g",
            "0000000a0000000300000004",
            "000000020000000300000004.backup",
            "000000020000000300000004.28.backup",
            "000000020000000300000004.history",
            "00000000.history",
            "00000002.partial",
            "../00000002.history",
            "RECOVERYHISTORY",
        ] {
            assert!(text.parse::<WalFile>().is_err(), "{text}");
        }
    }

    #[test]
    fn segment_sizes_are_powers_of_two() {
        for bytes in [0, 1, 1 << 19, (16 << 20) + 1, 3 << 20, 1 << 31] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
    }
}
