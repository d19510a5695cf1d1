//! Segments of write-ahead log that no server wrote, and a data directory around them.

use std::path::{Path, PathBuf};

use crate::data::Data;

/// The system identifier of the cluster that never was.
pub const SYSTEM_IDENTIFIER: u64 = 7_412_345_678_901_234_567;
/// Bytes in its segments.
pub const SEGMENT_BYTES: usize = 1 << 20;

/// The name of a segment of timeline 1.
pub fn name(number: u32) -> String {
    format!("00000001{:08X}{:08X}", number / 4096, number % 4096)
}

/// A segment: the header of its first page, and noise.
pub fn segment(number: u32, seed: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEGMENT_BYTES);
    std::io::Read::read_to_end(&mut Data::random(SEGMENT_BYTES as u64, seed), &mut bytes).expect("data can be read");
    let address = u64::from(number) * SEGMENT_BYTES as u64;
    let segment_bytes = u32::try_from(SEGMENT_BYTES).expect("1 MiB");
    let header = [
        &0xD110u16.to_ne_bytes()[..],
        &2u16.to_ne_bytes(),
        &1u32.to_ne_bytes(),
        &address.to_ne_bytes(),
        &[0; 8],
        &SYSTEM_IDENTIFIER.to_ne_bytes(),
        &segment_bytes.to_ne_bytes(),
        &8192u32.to_ne_bytes(),
    ];
    let header = header.concat();
    bytes[..header.len()].copy_from_slice(&header);
    bytes
}

/// A data directory that `backup wal` takes for one.
#[derive(Debug)]
pub struct DataDirectory(PathBuf);

impl DataDirectory {
    /// Makes one at `path`.
    pub fn create(path: PathBuf) -> Self {
        for folder in ["global", "pg_wal/archive_status"] {
            std::fs::create_dir_all(path.join(folder)).expect("a directory");
        }
        let control = [&SYSTEM_IDENTIFIER.to_ne_bytes()[..], &1300u32.to_ne_bytes()].concat();
        std::fs::write(path.join("global/pg_control"), control).expect("a file");
        Self(path)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file of `pg_wal`.
    pub fn pg_wal(&self, name: &str) -> PathBuf {
        self.0.join("pg_wal").join(name)
    }

    /// Writes a segment that waits to be archived; returns its name.
    pub fn add(&self, number: u32, seed: &str) -> String {
        let name = name(number);
        std::fs::write(self.pg_wal(&name), segment(number, seed)).expect("a file");
        std::fs::write(self.pg_wal(&format!("archive_status/{name}.ready")), "").expect("a file");
        name
    }
}
