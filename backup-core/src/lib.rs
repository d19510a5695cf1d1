//! Streaming database backups: compressed, encrypted, kept in object stores, and proved to be restorable.
//!
//! ```text
//! source ─▶ compress ─▶ chunk ─▶ encrypt ─▶ multipart upload ─▶ repository
//!                                (bounded memory, backpressure end to end)
//! ```
//!
//! This library is all of the command `backup` but its command line; other programs are its equal users. The modules stand in the order in
//! which data flows. [`pipeline`] is where to begin: it knows every stage, and [`pipeline::Backup`] starts a backup.
//!
//! # Backing up
//!
//! A [`Source`](source::Source) goes in: bytes, a reader, a command, a directory, a `pg_dump`, or one's own. When
//! [`wait`](pipeline::BackupHandle::wait) returns `Ok`, every byte is durable and the backup can be found; before that nothing is visible,
//! and on failure nothing is left.
//!
//! ```
//! use std::sync::Arc;
//! use backup_core::{clock::SystemClock, keys::age::AgeIdentity, pipeline::Backup, repository::Repository, source::ReaderSource};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().to_str().unwrap();
//! let (repository, _) = Repository::init(&path.parse()?, &SystemClock).await?; // or "s3://bucket/prefix"
//! let identity = AgeIdentity::generate(); // kept elsewhere: this host needs its public half only
//!
//! let manifest = Backup::new(repository, "app".parse()?)
//!     .recipient(Arc::new(identity.recipients().remove(0)))
//!     .stream("dump".parse()?, ReaderSource::new(std::io::Cursor::new("1\tteapot\n"))?)
//!     .start()?
//!     .wait()
//!     .await?;
//! println!("{} took {}", manifest.id, manifest.started.duration_until(manifest.finished));
//! # Ok::<(), backup_core::Error>(()) }).unwrap();
//! ```
//!
//! # Restoring
//!
//! Into a [`Sink`](restore::Sink): memory, a writer, a directory, a database, or one's own. It is finished only after the end of the
//! stream was verified. Any byte range can be read alone.
//!
//! ```
//! use std::sync::Arc;
//! use backup_core::{keys::{Identity, age::AgeIdentity}, repository::Repository, restore::{MemorySink, OpenBackup}};
//!
//! async fn read(repository: &Repository, identity: AgeIdentity) -> backup_core::Result<Vec<u8>> {
//!     let found = repository.resolve("app").await?; // its latest; or an id, or the beginning of one
//!     let identities: [Arc<dyn Identity>; 1] = [Arc::new(identity)];
//!     let backup = OpenBackup::open(repository, &found.path, &identities).await?;
//!     let sink = MemorySink::new(1 << 20);
//!     backup.restore("dump")?.into(sink.clone()).wait().await?;
//!     Ok(sink.take().unwrap_or_default())
//! }
//! # use backup_core::{pipeline::Backup, source::BytesSource};
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let (repository, identity) = (Repository::in_memory().await?, AgeIdentity::generate());
//! # let backup = Backup::new(repository.clone(), "app".parse()?).recipient(Arc::new(identity.recipients().remove(0)));
//! # backup.stream("dump".parse()?, BytesSource::new("1\tteapot\n")).start()?.wait().await?;
//! # assert_eq!(read(&repository, identity).await?, b"1\tteapot\n");
//! # Ok::<(), backup_core::Error>(()) }).unwrap();
//! ```
//!
//! # Looking after backups
//!
//! Listing and checking digests need no key, so a host that cannot read backups can watch over them.
//!
//! ```
//! use backup_core::{pipeline::Counters, repository::{Listed, Repository, verify::{self, KeylessOptions}}};
//! use futures::TryStreamExt;
//!
//! async fn check_all(repository: &Repository) -> backup_core::Result<u64> {
//!     let mut sound = 0;
//!     let mut listing = repository.list(None);
//!     while let Some(listed) = listing.try_next().await? {
//!         let Listed::Backup(found) = listed else { continue }; // unfinished, or not to be read
//!         let checked = verify::keyless(repository, &found.path, &KeylessOptions::new(repository), &Counters::default()).await?;
//!         sound += u64::from(checked.findings.is_empty());
//!     }
//!     Ok(sound)
//! }
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # assert_eq!(check_all(&Repository::in_memory().await?).await?, 0);
//! # Ok::<(), backup_core::Error>(()) }).unwrap();
//! ```
//!
//! # Memory and threads
//!
//! [`Limits`](pipeline::Limits) holds one figure for memory, from which all else derives; it bounds a run whatever the stream's length, and
//! what cannot fit is refused before anything is read. Compression and encryption run on a [`ComputePool`](pipeline::ComputePool) that several
//! runs can share. A tokio runtime with its I/O and time drivers must be there; nothing blocks its threads.
//!
//! # Cancel safety
//!
//! Nothing is cancel safe unless its documentation says so; what only lists or reads is, and says it. Runs are tasks behind a handle.
//! Dropping the handle cancels the run, which then removes what it had written; to know when that is over, cancel by
//! [`BackupHandle::cancel`](pipeline::BackupHandle::cancel) or by a token, and go on waiting.
//!
//! # Errors
//!
//! One [`Error`], whose [`kind`](Error::kind) tells what the caller can do. The first cause wins; a failed clean-up is
//! [attached](Error::cleanup) to it. A panic inside is an error of kind [`Internal`](ErrorKind::Internal), not a hang.
//!
//! # Features
//!
//! - `kms`: keys of AWS KMS (`keys::kms`).
//! - `pkcs11`: keys on PKCS#11 tokens (`keys::pkcs11`); modules are loaded at run time.
//!
//! Both are off unless asked for. Local directories, S3, Azure Blob, Google Cloud Storage and memory are always there, with TLS by rustls and no OpenSSL. Any other
//! [`ObjectStore`](object_store::ObjectStore) can be brought along ([`Location::store`](repository::Location::store)).
//!
//! # Stability
//!
//! What a release has written, every later one reads: the [`format`](mod@format) has a version and a description of its own, `docs/FORMAT.md`, from which
//! others can read it too. The Rust interface may change between minor versions until 1.0; the change log names what did. Crates whose types
//! appear in it are re-exported, and a new major version of one is a breaking change here.

pub mod chunk;
pub mod clock;
pub mod compress;
mod durable;
pub mod encrypt;
pub mod error;
pub mod format;
pub mod http;
pub mod keys;
pub mod pipeline;
pub mod postgres;
mod process;
pub mod repository;
pub mod restore;
pub mod small_file;
pub mod source;
#[cfg(test)]
mod tests;
mod upload;
pub mod wal_archive;

pub use error::{Error, ErrorKind, Result, Stage};
pub use {bytes, futures, jiff, object_store, serde_json, tokio_util};
