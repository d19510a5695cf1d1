//! PostgreSQL: connection strings, and logical dumps out of and into a server by its own client programs.

pub mod archive;
pub mod backup_manifest;
pub mod choose;
pub mod conninfo;
pub mod control;
pub mod data_directory;
pub mod dump;
pub mod load;
mod loading;
pub mod page;
mod programs;
pub mod recovery;
mod sql;
pub mod wal;
pub mod wire;

pub use conninfo::ConnInfo;
pub use dump::{DumpDetails, DumpOptions, DumpSource};
pub use load::{LoadOptions, LoadSink};
