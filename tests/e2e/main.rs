//! The program with real parts: pipes, processes, PostgreSQL, S3, files.

mod base_backup;
mod clouds;
mod cluster;
mod commands;
mod configuration;
mod copy;
mod decoder;
mod directory;
mod disaster;
mod documented;
mod fixture;
mod iam;
mod keys;
mod local_backup;
mod output;
mod pins;
mod postgres;
mod receive;
mod recovery;
mod restore_cluster;
mod retention;
mod rotation;
mod runs;
mod s3;
mod secrecy;
mod secrets;
mod signatures;
mod streams;
mod transit;
mod wal;
mod wire;

/// The program.
const BACKUP: &str = env!("CARGO_BIN_EXE_backup-under-test");
