//! The flags of `backup save` and `backup run`.

use std::ffi::OsString;
use std::path::PathBuf;

use backup_core::postgres::wire::{CompressionMethod, ServerCompression};
use bytesize::ByteSize;
use clap::{Args, ValueEnum, ValueHint};
use serde::Deserialize;

use super::{CipherName, CodecName, RecipientFlags, byte_size};

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Target: what this is a backup of, such as 'app'
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) source: SourceFlags,

    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    #[command(flatten)]
    pub(crate) encoding: EncodingFlags,

    /// Print JSON in the place of the id, with what became of it in each repository
    #[arg(long)]
    pub(crate) json: bool,

    /// Command whose standard output to back up
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments, conflicts_with = "source")]
    pub(crate) command: Vec<OsString>,

    // Last: its heading would stand over what follows.
    #[command(flatten)]
    pub(crate) base_backup: BaseBackupFlags,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Configured targets to back up [default: all of them]
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,

    /// Print JSON in the place of each id: one document for each target
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    #[command(flatten)]
    pub(crate) encoding: EncodingFlags,
}

/// What to back up, when it is neither standard input nor a command.
#[derive(Debug, Args)]
#[group(id = "source", multiple = false)]
pub(crate) struct SourceFlags {
    /// Copy a whole PostgreSQL cluster, with the WAL that makes it consistent
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) base_backup: Option<String>,

    /// Dump a PostgreSQL database with pg_dump
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) pg_dump: Option<String>,

    /// Back up a directory as a tar stream
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Option<PathBuf>,
}

/// How a cluster is copied.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --base-backup")]
pub(crate) struct BaseBackupFlags {
    /// How files are read: local (here, in parallel), stream (the server sends them), or auto: local where that is possible [default: auto]
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true, requires = "base_backup")]
    pub(crate) method: Option<MethodName>,

    /// How the backup starts: fast (all writing at once) or spread (over some minutes) [default: fast]
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true, requires = "base_backup")]
    pub(crate) checkpoint: Option<CheckpointName>,

    /// The most that is read of the cluster in a second, such as 100MiB
    #[arg(long, value_name = "SIZE", value_parser = byte_size, requires = "base_backup")]
    pub(crate) max_rate: Option<ByteSize>,

    /// What PostgreSQL's backup label says [default: the target's name]
    #[arg(long, value_name = "TEXT", requires = "base_backup")]
    pub(crate) label: Option<String>,

    /// Leave the WAL out: restoring takes an archive then
    #[arg(long, requires = "base_backup")]
    pub(crate) no_wal: bool,

    /// Do not check the checksums of pages
    #[arg(long, requires = "base_backup", hide_short_help = true)]
    pub(crate) no_verify_checksums: bool,

    /// Checksums of files in PostgreSQL's backup manifest: crc32c, sha224, sha256, sha384, sha512 or none [default: crc32c]
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        hide_possible_values = true,
        requires = "base_backup",
        hide_short_help = true
    )]
    pub(crate) manifest_checksums: Option<ChecksumName>,

    /// Have the server compress, where the network is slow: gzip, lz4 or zstd, with a level as in zstd:3
    #[arg(long, value_name = "METHOD", value_parser = server_compression, requires = "base_backup", hide_short_help = true)]
    pub(crate) server_compression: Option<ServerCompression>,
}

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MethodName {
    #[default]
    Auto,
    Local,
    Stream,
}

/// How a base backup starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckpointName {
    #[default]
    Fast,
    Spread,
}

/// Checksums in the backup manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChecksumName {
    None,
    #[default]
    Crc32c,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// How to encode what is backed up.
#[derive(Debug, Args)]
pub(crate) struct EncodingFlags {
    /// Compression level of zstd, -7 to 19 [env: BACKUP_LEVEL] [default: 3; for WAL 1]
    #[arg(short = 'z', long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) level: Option<i32>,

    /// Compression: zstd or none [env: BACKUP_CODEC] [default: zstd]
    #[arg(long, value_name = "CODEC", value_enum, hide_possible_values = true)]
    pub(crate) codec: Option<CodecName>,

    /// Cipher: aes-256-gcm or chacha20-poly1305 [env: BACKUP_CIPHER] [default: aes-256-gcm]
    #[arg(long, value_name = "CIPHER", value_enum, hide_possible_values = true)]
    pub(crate) cipher: Option<CipherName>,
}

/// `zstd`, or with a level `zstd:3`.
pub(crate) fn server_compression(text: &str) -> Result<ServerCompression, String> {
    let (method, level) = text.split_once(':').map_or((text, None), |(method, level)| (method, Some(level)));
    let method = match method {
        "gzip" => CompressionMethod::Gzip,
        "lz4" => CompressionMethod::Lz4,
        "zstd" => CompressionMethod::Zstd,
        _ => return Err("the server compresses with gzip, lz4 or zstd, such as zstd:3".to_owned()),
    };
    let level = level.map(str::parse).transpose().map_err(|_| "the level is a number, as in zstd:3".to_owned())?;
    Ok(ServerCompression { method, level, workers: None })
}
