//! A cluster whose files are on this host: copied in parallel, instead of being asked of the server one after the other.
//!
//! ```text
//! session: pg_backup_start ─▶ queue of files ─▶ lane 1: tablespace-…, base    ─▶ everything copied: pg_control,
//!                                          ├──▶ lane 2: tablespace-…, base-01 ─╯ pg_backup_stop ─▶ backup_label ─▶ base
//!                                          ╰──▶ index: files · backup_manifest
//! ```
//!
//! What is copied, and what is left out, is what the server itself would send ([`crate::postgres::data_directory`]); the log comes beside it, as for
//! a backup over the replication protocol. That the directory is the running server's is proved and not assumed: paths mean little across
//! containers, and a clone has the same identifier.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::{Facts, Warned};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::{Backup, Share};
use crate::postgres::control::ControlFile;
use crate::postgres::wire::{BaseBackupOptions, ConnectOptions, WalPosition};
use crate::source::files_index;
use crate::source::lines;

mod cache;
mod closing;
mod copy;
mod damage;
mod job;
mod lane;
mod queue;
mod rate;
mod session;
mod start;
mod tablespaces;
mod tree;

use job::UNREADABLE;
use lane::{MainLane, SideLane};
use session::{Server, Session};
use start::Ready;
use tree::Root;

/// As many lanes read at once. Two keep several compute threads busy, and let a restore write twice as fast as one.
const LANES: usize = 2;
/// Beside them, slowly: the index, PostgreSQL's manifest and the log.
const THIN_LANES: usize = 3;

/// A server whose data directory is here. Nothing has been read yet.
#[derive(Debug)]
pub(super) struct LocalCluster {
    session: Session,
    server: Server,
    data: Arc<Root>,
}

impl LocalCluster {
    /// Asks the server where its files are, and looks whether they are here. `near` demands a connection that cannot have left this host.
    ///
    /// # Errors
    /// `Config` with what stands against it; those of connecting.
    pub(super) async fn find(options: &ConnectOptions, request: &BaseBackupOptions, near: bool) -> Result<Self> {
        if request.compression.is_some() {
            return Err(Error::config("the server compresses only what it sends itself"));
        }
        if near && !options.may_be_near() {
            return Err(Error::config("the server is on another host"));
        }
        let mut session = Session::connect(options).await?;
        let server = session.server().await?;
        if near && !server.is_near {
            return Err(Error::config("the server is on another host"));
        }
        if !server.may_back_up {
            let (start, stop) = session.functions();
            return Err(Error::config("this role may not start a backup, or not stop it")
                .with_hint(format!("GRANT EXECUTE ON FUNCTION pg_catalog.{start}, pg_catalog.{stop} TO the role")));
        }
        let Some(path) = server.data_directory.clone() else {
            return Err(Error::config("this role may not know where the server's data directory is")
                .with_hint("GRANT pg_read_all_settings TO the role"));
        };
        let (system, redo) = (server.system, server.redo);
        let data = blocking(move || {
            let root = Root::open(None, &path).map_err(|errno| unreadable(&path, errno.into()))?;
            let control = ControlFile::of(&path).map_err(|e| unreadable(&path, e))?;
            if control.system_identifier != system || control.redo < redo {
                return Err(not_this(&path, "holds another cluster, or an older copy of this one"));
            }
            Ok(root)
        })
        .await?;
        Ok(Self { session, server, data: Arc::new(data) })
    }

    /// What is known of the cluster.
    pub(super) fn facts(&self, wal_included: bool, connected: jiff::Timestamp, warnings: &Warned) -> Facts {
        Facts {
            system_identifier: self.server.system,
            server_version_num: self.server.version_num,
            server_version: self.server.version.clone(),
            segment_size: self.server.segment_size,
            connected,
            wal_included,
            findings: warnings.findings.clone(),
            warnings: warnings.clone(),
        }
    }

    /// Whether the directory is the one of the server that has just made a slot of that name: even a temporary one has a directory there. And
    /// whether that is the server with which the backup is agreed: the slot was made over another connection, which may have led elsewhere.
    pub(super) async fn prove(&mut self, slot: &str) -> Result<()> {
        if !self.session.has_slot(slot).await? {
            return Err(Error::config("two connections led to two different servers").with_hint("name one host"));
        }
        let (data, slot) = (Arc::clone(&self.data), format!("pg_replslot/{slot}"));
        // An administrator may have put the directory of slots elsewhere.
        blocking(move || match data.stat(slot.as_bytes(), true) {
            Ok(_) => Ok(()),
            Err(errno) => Err(not_this(&data.location, "is not that of the server that runs")
                .with_source(std::io::Error::from(errno))),
        })
        .await
    }

    /// Looks whether the tablespaces are here too.
    pub(super) async fn sees_tablespaces(&self) -> Result<()> {
        let (data, major) = (Arc::clone(&self.data), self.session.major());
        blocking(move || {
            let control = ControlFile::of(&data.location).map_err(|e| unreadable(&data.location, e))?;
            tablespaces::tablespaces(&data, &tablespaces::version_directory(major, control.catalog_version)).map(drop)
        })
        .await
    }

    /// Adds the cluster's streams to a backup.
    pub(super) fn add_to(
        self,
        backup: Backup,
        facts: Arc<Facts>,
        request: BaseBackupOptions,
        started: oneshot::Sender<WalPosition>,
        ended: watch::Sender<Option<WalPosition>>,
    ) -> Result<Backup> {
        let (index, files) = files_index::channel();
        let (manifest, manifest_source) = lines::channel("the cluster's files were not copied to their end");
        let lanes = backup.lanes_that_fit(LANES, THIN_LANES);
        let Self { session, server, data } = self;
        let ready = Ready { facts, server, session, data, request, lanes, index, manifest, started, ended };
        let (begun, job) = watch::channel(None);
        let mut backup = backup.lane(Share::Full, MainLane::new(Box::new(ready), begun));
        for _ in 1..lanes {
            backup = backup.lane(Share::Full, SideLane::new(job.clone()));
        }
        Ok(backup.thin_stream("files".parse()?, files).thin_stream("backup_manifest".parse()?, manifest_source))
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    let message = format!("the server's data directory, {}, cannot be read here", path.display());
    let error = Error::config(message).with_source(error);
    if denied { error.with_hint(UNREADABLE) } else { error }
}

fn not_this(path: &Path, why: &str) -> Error {
    let message = format!("{} {why}", path.display());
    Error::new(ErrorKind::Config, Stage::Source, message)
        .with_hint("run this where the server's files are, or copy over the replication protocol (--method stream)")
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal(Stage::Source, "a blocking task panicked").with_source(e)))
}
