//! What can be asked of a base backup, and how each version of PostgreSQL is asked. No I/O.

use super::replication::{OPTIONS_IN_PARENTHESES, literal};
use crate::error::{Error, Result};
use crate::postgres::backup_manifest::Algorithm;

/// What a base backup shall be. [`Default`] is a fast checkpoint, a manifest with CRC-32C, progress, and none of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// What the backup label says, and the server's views.
    pub label: String,
    /// Whether the server hurries with the checkpoint with which the backup starts.
    pub checkpoint: Checkpoint,
    /// The server sends at most so many KiB a second: from 32 to 1,048,576.
    pub max_rate_kib: Option<u32>,
    /// Whether the log that makes the copy consistent comes with it, in `pg_wal` of `base.tar`. It is gathered at the end, so it may be gone
    /// by then; better to stream it meanwhile.
    pub wal: bool,
    /// Whether the server waits at the end until that log is archived: for backups that find it in the archive only.
    pub wait_for_archive: bool,
    /// Whether the server checks the checksums of pages, where the cluster has them.
    pub verify_checksums: bool,
    /// The checksums of files in the backup manifest; `None` for no manifest.
    pub manifest: Option<ManifestChecksums>,
    /// Whether the server estimates sizes beforehand and, since 15, tells how far it is.
    pub progress: bool,
    /// How the server compresses the archives; 15 and later. The manifest is never compressed.
    pub compression: Option<ServerCompression>,
}

/// How a backup starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// At once, with all the writing that this takes.
    #[default]
    Fast,
    /// In the pace of `checkpoint_completion_target`: minutes.
    Spread,
}

/// Checksums of files in a backup manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "their names say it all")]
pub enum ManifestChecksums {
    None,
    #[default]
    Crc32c,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Compression on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerCompression {
    /// The format.
    pub method: CompressionMethod,
    /// Its level; the server's default if `None`.
    pub level: Option<i32>,
    /// Threads that the server may use; for zstd, where it was built so.
    pub workers: Option<u32>,
}

/// A format of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it all")]
pub enum CompressionMethod {
    Gzip,
    Lz4,
    Zstd,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "backup".to_owned(),
            checkpoint: Checkpoint::default(),
            max_rate_kib: None,
            wal: false,
            wait_for_archive: false,
            verify_checksums: true,
            manifest: Some(ManifestChecksums::default()),
            progress: true,
            compression: None,
        }
    }
}

impl ManifestChecksums {
    /// The same in a manifest that we write.
    pub(crate) fn algorithm(self) -> Algorithm {
        match self {
            Self::None => Algorithm::None,
            Self::Crc32c => Algorithm::Crc32c,
            Self::Sha224 => Algorithm::Sha224,
            Self::Sha256 => Algorithm::Sha256,
            Self::Sha384 => Algorithm::Sha384,
            Self::Sha512 => Algorithm::Sha512,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }
}

impl CompressionMethod {
    /// Its name, as PostgreSQL and our details have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl BaseBackupOptions {
    /// The command, in the grammar of that major version.
    pub(super) fn command(&self, major: u32) -> Result<String> {
        if let Some(rate) = self.max_rate_kib.filter(|rate| !(32..=1 << 20).contains(rate)) {
            return Err(Error::config(format!("a rate of {rate} KiB a second is not between 32 and 1048576")));
        }
        match major {
            OPTIONS_IN_PARENTHESES.. => Ok(self.in_parentheses()),
            13 | 14 => self.as_words(major),
            _ => Err(Error::config(format!("PostgreSQL {major} is too old: base backups need 13 or later"))),
        }
    }

    fn in_parentheses(&self) -> String {
        let mut options = vec![format!("LABEL {}", literal(&self.label))];
        let mut add = |option: String| options.push(option);
        if self.progress {
            add("PROGRESS".into());
        }
        add(match self.checkpoint {
            Checkpoint::Fast => "CHECKPOINT 'fast'".into(),
            Checkpoint::Spread => "CHECKPOINT 'spread'".into(),
        });
        if self.wal {
            add("WAL".into());
        }
        add(format!("WAIT {}", self.wait_for_archive));
        if let Some(rate) = self.max_rate_kib {
            add(format!("MAX_RATE {rate}"));
        }
        if let Some(checksums) = self.manifest {
            add("MANIFEST 'yes'".into());
            add(format!("MANIFEST_CHECKSUMS '{}'", checksums.name()));
        }
        if !self.verify_checksums {
            add("VERIFY_CHECKSUMS false".into());
        }
        if let Some(compression) = self.compression {
            add(format!("COMPRESSION '{}'", compression.method.name()));
            let level = compression.level.map(|level| format!("level={level}"));
            let workers = compression.workers.map(|workers| format!("workers={workers}"));
            let detail: Vec<String> = level.into_iter().chain(workers).collect();
            if !detail.is_empty() {
                add(format!("COMPRESSION_DETAIL '{}'", detail.join(",")));
            }
        }
        format!("BASE_BACKUP ({})", options.join(", "))
    }

    fn as_words(&self, major: u32) -> Result<String> {
        if let Some(compression) = self.compression {
            let name = compression.method.name();
            return Err(Error::config(format!(
                "PostgreSQL {major} cannot compress base backups ({name}): that came with 15"
            )));
        }
        let mut command = format!("BASE_BACKUP LABEL {}", literal(&self.label));
        let mut add = |word: &str| {
            command.push(' ');
            command.push_str(word);
        };
        for (wanted, word) in [
            (self.progress, "PROGRESS"),
            (self.checkpoint == Checkpoint::Fast, "FAST"),
            (self.wal, "WAL"),
            (!self.wait_for_archive, "NOWAIT"),
            (!self.verify_checksums, "NOVERIFY_CHECKSUMS"),
        ] {
            if wanted {
                add(word);
            }
        }
        if let Some(rate) = self.max_rate_kib {
            add(&format!("MAX_RATE {rate}"));
        }
        if let Some(checksums) = self.manifest {
            add(&format!("MANIFEST 'yes' MANIFEST_CHECKSUMS '{}'", checksums.name()));
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_in_its_grammar() {
        let options = BaseBackupOptions {
            label: "it's".into(),
            max_rate_kib: Some(32),
            verify_checksums: false,
            ..BaseBackupOptions::default()
        };
        assert_eq!(
            options.command(14).unwrap(),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT NOVERIFY_CHECKSUMS MAX_RATE 32 MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
        assert_eq!(
            options.command(18).unwrap(),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT false, MAX_RATE 32, MANIFEST 'yes', \
             MANIFEST_CHECKSUMS 'CRC32C', VERIFY_CHECKSUMS false)"
        );
    }

    #[test]
    fn what_a_version_lacks_is_refused_by_name() {
        let compression = ServerCompression { method: CompressionMethod::Zstd, level: Some(3), workers: Some(2) };
        let options = BaseBackupOptions { compression: Some(compression), ..BaseBackupOptions::default() };
        assert!(options.command(15).unwrap().contains("COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=3,workers=2'"));
        assert!(options.command(14).unwrap_err().to_string().contains("zstd"));
        assert!(BaseBackupOptions::default().command(12).is_err());
        for rate in [31, (1 << 20) + 1] {
            let options = BaseBackupOptions { max_rate_kib: Some(rate), ..BaseBackupOptions::default() };
            assert!(options.command(15).is_err());
        }
    }
}
