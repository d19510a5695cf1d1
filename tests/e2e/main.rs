//! The program with real parts: pipes, processes, PostgreSQL, S3, files.

mod base_backup;
mod commands;
mod configuration;
mod decoder;
mod directory;
mod keys;
mod output;
mod postgres;
mod recovery;
mod s3;
mod secrecy;
mod streams;
mod wal;

/// The program.
const BACKUP: &str = env!("CARGO_BIN_EXE_backup-under-test");
