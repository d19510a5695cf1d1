//! A client of PostgreSQL's protocol, for what no client program does: base backups and the write-ahead log, streamed.
//!
//! Built on `postgres-protocol`. Connects as libpq does, from the same strings, variables and files ([`ConnectOptions`], [`Environment`]):
//! several hosts, `target_session_attrs`, TLS, SCRAM with channel binding. What a server sends is bounded before anything is allocated, so a hostile
//! one can cost neither memory nor, with [`ConnectOptions::timeout`], time.
//!
//! ```no_run
//! use backup_core::postgres::ConnInfo;
//! use backup_core::postgres::wire::{BackupEvent, BaseBackupOptions, ConnectOptions, Connection, Environment, Mode};
//!
//! # async fn run() -> backup_core::Result<()> {
//! let options = ConnectOptions::resolve(&ConnInfo::parse("host=db1 user=backup")?, &Environment::of_process())?;
//! let connection = Connection::connect(&options, Mode::Replication).await?;
//! let mut backup = connection.base_backup(&BaseBackupOptions::default()).await?;
//! let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
//! while let Some(event) = backup.next().await? {
//!     if let BackupEvent::Archive { .. } = event {
//!         while let read @ 1.. = backup.read(&mut buffer).await? {
//!             bytes += read;
//!         }
//!     }
//! }
//! # Ok(()) }
//! ```

mod auth;
mod backup_options;
mod base_backup;
mod certificate;
mod channel;
mod connect;
mod connection;
mod environment;
mod frame;
mod message;
mod options;
mod parameters;
mod passfile;
mod replication;
mod service;
mod session;
mod settings;
mod socket;
mod tls;
mod tls_options;
mod verify;
mod wal_stream;

pub use backup_options::{BaseBackupOptions, Checkpoint, CompressionMethod, ManifestChecksums, ServerCompression};
pub use base_backup::{BackupEvent, BaseBackup, Tablespace, WalPosition};
pub use connection::{Connection, Mode, RESULT_BYTES_MAX, Row};
pub use environment::Environment;
pub use frame::{COPY_DATA_BYTES_MAX, ROW_BYTES_MAX};
pub use message::{NoticeCallback, ServerMessage, server_message, sqlstate};
pub use options::ConnectOptions;
pub use parameters::Parameters;
pub use replication::{Identity, SlotPosition, TimelineHistory, is_missing};
pub use wal_stream::{StandbyStatus, WalMessage, WalStream};
