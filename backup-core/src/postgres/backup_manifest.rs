//! PostgreSQL's own manifest of a base backup: every file with its size and checksum, and the log that a restore needs.
//!
//! Read and written as a stream, one file at a time, whatever the number of files. Described in the chapter "Backup Manifest Format" of PostgreSQL's
//! documentation; `parse_manifest.c` in its sources says what the server's own tools accept. No I/O but reading what is given.

use std::fmt;
use std::io::{self, BufReader, Read};

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use super::wal::{Lsn, Timeline};
use crate::error::{Error, ErrorKind, Result, Stage};

mod checksum;
mod write;

pub use checksum::{Algorithm, Hasher};
pub use write::ManifestWriter;

/// The longest line: a file's path, twice as long in hexadecimal, and what is said of it.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The most ranges of log: one for each timeline that a backup saw.
const RANGES_MAX: usize = 4096;

/// One file of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its path below the data directory, those of a tablespace below `pg_tblspc/OID/`. Bytes: names need not be UTF-8.
    pub path: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
    /// How its checksum was made.
    pub algorithm: Algorithm,
    /// Its checksum; empty with [`Algorithm::None`].
    pub checksum: Vec<u8>,
}

/// Log that a restore must replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// On which timeline.
    pub timeline: Timeline,
    /// From where.
    pub start: Lsn,
    /// To where.
    pub end: Lsn,
}

/// What a manifest says beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many files there are.
    pub files: u64,
    /// The log to replay.
    pub wal_ranges: Vec<WalRange>,
}

/// Reads a manifest, hands every file to `each`, and checks the manifest's checksum of itself.
///
/// # Errors
/// `Integrity` when it is malformed or its checksum differs, `Config` when a later PostgreSQL wrote it, those of `each`, and those that
/// `reader` wraps.
pub fn read(reader: impl Read, each: impl FnMut(ManifestFile) -> Result<()>) -> Result<Summary> {
    let mut stopped = None;
    let mut lines = Lines { inner: reader, hasher: Sha256::new(), last: Vec::new() };
    let parsed = {
        let mut parser = serde_json::Deserializer::from_reader(BufReader::with_capacity(64 << 10, &mut lines));
        let document = Document { each, stopped: &mut stopped };
        document.deserialize(&mut parser).and_then(|parsed| parser.end().map(|()| parsed))
    };
    if let Some(error) = stopped {
        return Err(error);
    }
    let parsed = parsed.map_err(malformed)?;
    match parsed.version {
        Some(1 | 2) => {}
        Some(other) => {
            let message = format!("the backup manifest has version {other}");
            return Err(Error::config(message).with_hint("a newer release may read it"));
        }
        None => return Err(damaged("the backup manifest has no version")),
    }
    if !lines.last.ends_with(b"\n") {
        return Err(damaged("the last line of the backup manifest has no end"));
    }
    let stated = parsed.checksum.and_then(|text| HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok());
    if stated.as_deref() != Some(&lines.hasher.finalize()[..]) {
        return Err(damaged("the backup manifest is not what its own checksum says"));
    }
    Ok(parsed.summary)
}

fn damaged(message: &str) -> Error {
    Error::new(ErrorKind::Integrity, Stage::Catalog, message)
}

fn malformed(error: serde_json::Error) -> Error {
    if !error.is_io() {
        return damaged("the backup manifest is malformed").with_source(error);
    }
    match io::Error::from(error).downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => damaged("the backup manifest cannot be read").with_source(error),
    }
}

/// Hashes all lines but the last, which holds the hash, and bounds their length.
struct Lines<R> {
    inner: R,
    hasher: Sha256,
    last: Vec<u8>,
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(room)?;
        for piece in room[..n].split_inclusive(|byte| *byte == b'\n') {
            if self.last.ends_with(b"\n") {
                self.hasher.update(&self.last);
                self.last.clear();
            }
            if self.last.len() + piece.len() > LINE_BYTES_MAX {
                return Err(io::Error::other(damaged("a line of the backup manifest is too long")));
            }
            self.last.extend_from_slice(piece);
        }
        Ok(n)
    }
}

/// What was parsed.
#[derive(Default)]
struct Parsed {
    version: Option<u64>,
    checksum: Option<String>,
    summary: Summary,
}

/// The whole manifest.
struct Document<'a, F> {
    each: F,
    /// Why `each` ended it.
    stopped: &'a mut Option<Error>,
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> DeserializeSeed<'de> for Document<'_, F> {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> Visitor<'de> for Document<'_, F> {
    type Value = Parsed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a backup manifest")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Parsed, A::Error> {
        let mut parsed = Parsed::default();
        let (mut has_files, mut has_ranges) = (false, false);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "PostgreSQL-Backup-Manifest-Version" => parsed.version.replace(map.next_value()?).is_some(),
                "Manifest-Checksum" => parsed.checksum.replace(map.next_value()?).is_some(),
                "Files" => {
                    let files = Files { each: &mut self.each, stopped: self.stopped };
                    parsed.summary.files = map.next_value_seed(files)?;
                    std::mem::replace(&mut has_files, true)
                }
                "WAL-Ranges" => {
                    parsed.summary.wal_ranges = map.next_value_seed(Ranges)?;
                    std::mem::replace(&mut has_ranges, true)
                }
                _ => map.next_value::<IgnoredAny>().map(|_| false)?,
            };
            if twice {
                return Err(A::Error::custom(format_args!("{key} stands twice")));
            }
        }
        match has_files && has_ranges {
            true => Ok(parsed),
            false => Err(A::Error::custom("there are no files, or no ranges of log")),
        }
    }
}

struct Files<'a, F> {
    each: &'a mut F,
    stopped: &'a mut Option<Error>,
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> DeserializeSeed<'de> for Files<'_, F> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(ManifestFile) -> Result<()>> Visitor<'de> for Files<'_, F> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<u64, A::Error> {
        let mut count = 0;
        while let Some(file) = seq.next_element::<RawFile>()? {
            let file = file.check().map_err(A::Error::custom)?;
            if let Err(error) = (self.each)(file) {
                *self.stopped = Some(error);
                return Err(A::Error::custom("stopped"));
            }
            count += 1;
        }
        Ok(count)
    }
}

#[derive(serde::Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm", default)]
    algorithm: Algorithm,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

impl RawFile {
    fn check(self) -> Result<ManifestFile, String> {
        let hex = |text: &str| HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|e| e.to_string());
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(hexadecimal)) => hex(&hexadecimal)?,
            _ => return Err("a file has no path, or two".to_owned()),
        };
        let checksum = hex(self.checksum.as_deref().unwrap_or_default())?;
        if checksum.len() != self.algorithm.checksum_bytes() {
            return Err(format!("a checksum has {} bytes", checksum.len()));
        }
        Ok(ManifestFile { path, size: self.size, algorithm: self.algorithm, checksum })
    }
}

struct Ranges;

impl<'de> DeserializeSeed<'de> for Ranges {
    type Value = Vec<WalRange>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<WalRange>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Ranges {
    type Value = Vec<WalRange>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of ranges of log")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<WalRange>, A::Error> {
        let mut ranges = Vec::new();
        while let Some(range) = seq.next_element::<WalRange>()? {
            if ranges.len() == RANGES_MAX || range.start > range.end {
                return Err(A::Error::custom("too many ranges of log, or one that ends before it begins"));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }
}

impl<'de> Deserialize<'de> for WalRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Raw {
            #[serde(rename = "Timeline")]
            timeline: u32,
            #[serde(rename = "Start-LSN")]
            start: Lsn,
            #[serde(rename = "End-LSN")]
            end: Lsn,
        }
        let Raw { timeline, start, end } = Raw::deserialize(deserializer)?;
        let timeline = Timeline::new(timeline).ok_or_else(|| D::Error::custom("there is no timeline 0"))?;
        Ok(Self { timeline, start, end })
    }
}

#[cfg(test)]
mod tests;
