//! What can go wrong, made to go wrong: damaged objects, kills, signals, full disks, stores that fail and stores that lie.

mod base_backup;
mod copy;
mod damage;
mod disk;
mod interrupted;
mod killed;
mod prune;
mod recovery;
mod rewrap;
mod scale;
mod several;
mod store;
mod verify;
mod wal;

/// The program.
const BACKUP: &str = env!("CARGO_BIN_EXE_backup-under-test");
