//! Writing a manifest, file by file, as the server does (`src/backend/backup/backup_manifest.c`).

use std::io::Write;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{ManifestFile, WalRange};
use crate::postgres::wal::SystemIdentifier;

/// Since then a manifest says of which cluster it is.
const VERSION_2_MAJOR: u32 = 17;

/// A manifest that is being written. All text goes through it, since it ends with a checksum of itself.
#[derive(Debug, Clone)]
pub struct ManifestWriter {
    hasher: Sha256,
    begun: bool,
    files: u64,
    head: String,
}

impl ManifestWriter {
    /// One for the tools of that major version.
    pub fn new(major: u32, system: SystemIdentifier) -> Self {
        let head = match major >= VERSION_2_MAJOR {
            true => format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system},\n"),
            false => "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n".to_owned(),
        };
        Self { hasher: Sha256::new(), begun: false, files: 0, head: head + "\"Files\": [" }
    }

    /// Appends a file to `out`, and what belongs before it.
    pub fn file(&mut self, file: &ManifestFile, modified: Timestamp, out: &mut Vec<u8>) {
        let from = out.len();
        self.begin(out);
        out.extend_from_slice(if self.files == 0 { b"\n" } else { b",\n" });
        self.files += 1;
        match std::str::from_utf8(&file.path) {
            Ok(path) => write(out, format_args!("{{ \"Path\": {}", serde_json::Value::from(path))),
            Err(_) => write(out, format_args!("{{ \"Encoded-Path\": \"{}\"", HEXLOWER.encode(&file.path))),
        }
        let time = modified.strftime("%Y-%m-%d %H:%M:%S");
        write(out, format_args!(", \"Size\": {}, \"Last-Modified\": \"{time} GMT\"", file.size));
        if let Some(name) = file.algorithm.name() {
            let checksum = HEXLOWER.encode(&file.checksum);
            write(out, format_args!(", \"Checksum-Algorithm\": \"{name}\", \"Checksum\": \"{checksum}\""));
        }
        out.extend_from_slice(b" }");
        self.hasher.update(&out[from..]);
    }

    /// Appends the log that a restore needs, and the end.
    pub fn finish(mut self, ranges: &[WalRange], out: &mut Vec<u8>) {
        let from = out.len();
        self.begin(out);
        out.extend_from_slice(b"\n],\n\"WAL-Ranges\": [\n");
        for (i, range) in ranges.iter().enumerate() {
            let WalRange { timeline, start, end } = range;
            let separator = if i == 0 { "" } else { ",\n" };
            write(
                out,
                format_args!(
                    "{separator}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}"
                ),
            );
        }
        out.extend_from_slice(b"\n],\n");
        self.hasher.update(&out[from..]);
        let checksum = HEXLOWER.encode(&self.hasher.finalize());
        write(out, format_args!("\"Manifest-Checksum\": \"{checksum}\"}}\n"));
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.begun, true) {
            out.extend_from_slice(self.head.as_bytes());
        }
    }
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes what is written");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Algorithm;
    use super::*;
    use crate::postgres::wal::{Lsn, Timeline};

    fn file() -> impl Strategy<Value = ManifestFile> {
        let path =
            prop_oneof![prop::collection::vec(any::<u8>(), 1..40), "[a-z/\"\\\\é]{1,30}".prop_map(String::into_bytes)];
        (path, any::<u64>(), any::<[u8; 4]>()).prop_map(|(path, size, sum)| ManifestFile {
            path,
            size,
            algorithm: Algorithm::Crc32c,
            checksum: sum.to_vec(),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(file(), 0..20), major in 13u32..19) {
            let mut writer = ManifestWriter::new(major, SystemIdentifier(7));
            let mut text = Vec::new();
            for file in &files {
                writer.file(file, Timestamp::UNIX_EPOCH, &mut text);
            }
            let range = WalRange { timeline: Timeline::FIRST, start: Lsn(0x200_0028), end: Lsn(0x1_0000_0100) };
            writer.finish(&[range], &mut text);
            let mut read = Vec::new();
            let summary = super::super::read(&text[..], |file| {
                read.push(file);
                Ok(())
            }).unwrap();
            prop_assert_eq!(read, files);
            prop_assert_eq!(summary.wal_ranges, vec![range]);
        }
    }

    #[test]
    fn it_looks_as_the_servers_do() {
        let mut writer = ManifestWriter::new(17, SystemIdentifier(7));
        let mut text = Vec::new();
        let file = ManifestFile {
            path: b"PG_VERSION".to_vec(),
            size: 3,
            algorithm: Algorithm::Crc32c,
            checksum: vec![1, 2, 3, 0xFF],
        };
        writer.file(&file, Timestamp::from_second(86_400).unwrap(), &mut text);
        writer.finish(&[WalRange { timeline: Timeline::FIRST, start: Lsn(40), end: Lsn(80) }], &mut text);
        let text = String::from_utf8(text).unwrap();
        let (body, checksum) = text.split_once("\"Manifest-Checksum\": ").unwrap();
        assert_eq!(
            body,
            "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [\n\
            { \"Path\": \"PG_VERSION\", \"Size\": 3, \"Last-Modified\": \"1970-01-02 00:00:00 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"010203ff\" }\n\
            ],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/28\", \"End-LSN\": \"0/50\" }\n],\n"
        );
        assert_eq!(checksum.len(), 64 + 4);
    }
}
