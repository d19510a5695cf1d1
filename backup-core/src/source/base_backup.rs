//! A whole PostgreSQL cluster, as its server sends it: archives, backup manifest, and the log that makes them consistent.
//!
//! ```text
//! connection 1: BASE_BACKUP ─▶ base, tablespace-…, backup_manifest   (one lane, one after the other)
//!                   ├────────▶ files                                 (index of the archives)
//!                   ╰ start, end of the log that is needed ╮
//! connection 2: START_REPLICATION ◀────────────────────────╯ ─▶ pg_wal
//! ```
//!
//! Where the server's files can be read here, they are copied instead ([`Method`]); all else is the same.
//!
//! The log is streamed while the archives are read, for a temporary slot that is made before the backup begins: so the server keeps it,
//! and what cannot be had (a free slot, a second connection) is found out before anything is read.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::files_index;
use crate::clock::{Clock, SystemClock};
use crate::encrypt::random;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{ClusterEntry, Kind};
use crate::pipeline::{Backup, Findings, Share};
use crate::postgres::wal::{SegmentSize, SystemIdentifier, Timeline};
use crate::postgres::wire::{
    BaseBackupOptions, ConnectOptions, Connection, Mode, NoticeCallback, ServerMessage, WalPosition, sqlstate,
};
use crate::repository::running::RunningCluster;

mod archives;
mod entries;
mod local;
mod wal;

use archives::ArchivesLane;
use local::LocalCluster;
use wal::WalSource;

/// What to say to the user who is to wait.
pub type WarningText = Arc<dyn Fn(&str) + Send + Sync>;

/// A base backup that is to be made: whom to ask, and for what.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// The server.
    pub connect: ConnectOptions,
    /// What to ask it for. `wal` and `wait_for_archive` are set here, by `include_wal`.
    pub request: BaseBackupOptions,
    /// Whether the log from the backup's start to its end is streamed into it, which makes it restorable by itself. Otherwise the archive has
    /// to have it, and the server is asked to wait until it does.
    pub include_wal: bool,
    /// Who reads the files.
    pub method: Method,
    /// Is told what the server warns of; it is a warning of the backup, too.
    pub on_warning: Option<WarningText>,
}

/// How the files of a cluster are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// The server sends them, over the replication protocol.
    #[default]
    Stream,
    /// They are read here, several at once. This takes the server's user, or root; a role that may start a backup
    /// (`pg_backup_start`, `pg_backup_stop`) and know where the data directory is (`pg_read_all_settings`); and a replication slot, with
    /// which the directory is proved to be the server's, with or without WAL.
    Local,
    /// [`Local`](Self::Local) where the data directory of that very server can be read here, and else [`Stream`](Self::Stream).
    Auto,
}

/// A server that is ready to be backed up: connected, with a slot for its log. [`add_to`](Self::add_to) a backup; nothing has been read yet.
#[derive(Debug)]
pub struct ClusterSource {
    facts: Arc<Facts>,
    reading: Reading,
    request: BaseBackupOptions,
    wal: Option<(Connection, String)>,
}

/// Who reads the files.
#[derive(Debug)]
enum Reading {
    Server(Box<Connection>),
    Here(Box<LocalCluster>),
}

/// What is known of the cluster before it is read, and where to report the rest.
#[derive(Debug)]
struct Facts {
    system_identifier: SystemIdentifier,
    server_version_num: u32,
    server_version: String,
    segment_size: SegmentSize,
    /// When this conversation began, by our clock.
    connected: Timestamp,
    wal_included: bool,
    findings: Findings,
    warnings: Warned,
}

/// Where warnings go: into the backup, and to whoever waits for it.
#[derive(Clone)]
struct Warned {
    findings: Findings,
    told: Option<WarningText>,
}

impl ClusterOptions {
    /// A fast checkpoint, everything included.
    pub fn new(connect: ConnectOptions, label: impl Into<String>) -> Self {
        let request = BaseBackupOptions { label: label.into(), ..BaseBackupOptions::default() };
        Self { connect, request, include_wal: true, method: Method::default(), on_warning: None }
    }

    /// Connects. What the server warns of while it is read goes to `findings`, which the backup must have too.
    ///
    /// Cancel safe: dropping the future closes the connections, and with them goes the slot.
    ///
    /// # Errors
    /// `Config` or `Source` with the server's words: it cannot be reached, refuses us, has no WAL sender or slot left.
    pub async fn connect(self, findings: &Findings) -> Result<ClusterSource> {
        let Self { connect, request, include_wal, method, on_warning } = self;
        let warnings = Warned { findings: findings.clone(), told: on_warning };
        let options = connect.on_notice(warnings.of_notices());
        // Log that is not in the backup must be in the archive before the backup counts.
        let request = BaseBackupOptions { wal: false, wait_for_archive: !include_wal, ..request };
        if method != Method::Stream {
            match local(&options, &request, include_wal, method, &warnings).await {
                Ok(source) => return Ok(source),
                Err(error) if method == Method::Auto => {
                    let error = &error as &dyn std::error::Error;
                    tracing::info!(error, "the cluster's files are not copied here: the server sends them");
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = Connection::connect(&options, Mode::Replication).await?;
        let system = connection.identify_system().await?;
        let segment_size = SegmentSize::of_setting(&connection.show("wal_segment_size").await?)?;
        let facts = Facts {
            system_identifier: system.system,
            server_version_num: connection.server_version_num()?,
            server_version: connection.parameters().get("server_version").unwrap_or_default().to_owned(),
            segment_size,
            connected: SystemClock.now(),
            wal_included: include_wal,
            findings: findings.clone(),
            warnings,
        };
        let wal = match include_wal {
            true => Some(wal_connection(&options, &facts).await?),
            false => None,
        };
        Ok(ClusterSource { facts: Arc::new(facts), reading: Reading::Server(Box::new(connection)), request, wal })
    }
}

/// The same for a server whose files are here.
async fn local(
    options: &ConnectOptions,
    request: &BaseBackupOptions,
    include_wal: bool,
    method: Method,
    warnings: &Warned,
) -> Result<ClusterSource> {
    let mut cluster = LocalCluster::find(options, request, method == Method::Auto).await?;
    let facts = cluster.facts(include_wal, SystemClock.now(), warnings);
    // The slot is the proof that the directory is this server's. Without WAL it is there for nothing else, and goes with its connection.
    let (connection, slot) = wal_connection(options, &facts).await?;
    cluster.prove(&slot).await?;
    if let Err(error) = cluster.sees_tablespaces().await {
        if method == Method::Auto {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "not all of the cluster's files can be read here: the server sends them");
        }
        return Err(error);
    }
    let wal = match include_wal {
        true => Some((connection, slot)),
        false => {
            // It has done what it was for, even if it cannot be closed in order.
            let _ = connection.close().await;
            None
        }
    };
    let (facts, reading) = (Arc::new(facts), Reading::Here(Box::new(cluster)));
    Ok(ClusterSource { facts, reading, request: request.clone(), wal })
}

/// A second connection, with a slot of its own that ends with it.
async fn wal_connection(options: &ConnectOptions, facts: &Facts) -> Result<(Connection, String)> {
    let lacking = |error, setting| lacking(error, setting, facts.wal_included);
    let connected = Connection::connect(options, Mode::Replication).await;
    let mut connection = connected.map_err(|e| lacking(e, "max_wal_senders"))?;
    let system = connection.identify_system().await?;
    if system.system != facts.system_identifier {
        return Err(Error::config("two connections led to two different clusters").with_hint("name one host"));
    }
    let slot = format!("backup_{}", data_encoding::HEXLOWER.encode(&random::bytes::<8>()));
    let created = connection.create_replication_slot(&slot, true, true).await;
    created.map_err(|e| lacking(e, "max_replication_slots"))?;
    Ok((connection, slot))
}

/// What the first connection could be given and the second not.
fn lacking(error: Error, setting: &str, wal_included: bool) -> Error {
    let scarce = sqlstate(&error).is_some_and(|state| state.starts_with("53") || state == "55000");
    match (scarce, wal_included) {
        (false, _) => error,
        (true, true) => error
            .with_hint(format!("raise {setting}: the WAL is streamed beside the backup; or leave it out (--no-wal)")),
        // Only then is there such a connection all the same.
        (true, false) => error.with_hint(format!(
            "raise {setting}: a slot proves that the files are the server's; or copy over the replication protocol (--method stream)"
        )),
    }
}

/// A standby was promoted, or follows another primary: its files and its log would be of two histories.
fn changed_timeline(from: Timeline, to: Timeline) -> Error {
    let message = format!("the server went from timeline {from} to {to} during the backup");
    Error::new(ErrorKind::Source, Stage::Source, message).with_hint(
        "it was promoted, or follows another primary: begin the backup again; that of a standby, after its primary's next checkpoint",
    )
}

impl ClusterSource {
    /// The cluster.
    pub fn system_identifier(&self) -> SystemIdentifier {
        self.facts.system_identifier
    }

    /// The server's version, such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub fn server_version(&self) -> &str {
        &self.facts.server_version
    }

    /// How its files will be read; never [`Method::Auto`].
    pub fn method(&self) -> Method {
        match self.reading {
            Reading::Server(_) => Method::Stream,
            Reading::Here(_) => Method::Local,
        }
    }

    /// Adds the cluster's streams to a backup, and what is to be said of it. Set the backup's limits before.
    pub fn add_to(self, backup: Backup) -> Result<Backup> {
        let mut backup = backup.kind(Kind::BaseBackup).details(self.details());
        let Self { facts, reading, request, wal } = self;
        let (started, start) = oneshot::channel();
        let (ended, end) = watch::channel(None);
        let wal = wal.map(|(connection, slot)| WalSource::new(Arc::clone(&facts), connection, slot, start, end));
        backup = match reading {
            Reading::Here(cluster) => cluster.add_to(backup, facts, request, started, ended)?,
            Reading::Server(connection) => {
                // What the server has compressed is stored as it came: where its files lie in it nobody knows.
                let (index, files) = match request.compression {
                    None => Some(files_index::channel()).unzip(),
                    Some(_) => (None, None),
                };
                let archives = ArchivesLane::new(facts, *connection, request, index, started, ended);
                let backup = backup.lane(Share::Full, archives);
                match files {
                    Some(files) => backup.thin_stream("files".parse()?, files),
                    None => backup,
                }
            }
        };
        if let Some(wal) = wal {
            backup = backup.thin_stream("pg_wal".parse()?, wal);
        }
        Ok(backup)
    }

    fn details(&self) -> Value {
        let mut details = json!({
            "method": self.method().name(),
            "server_version": self.facts.server_version,
            "label": self.request.label,
        });
        if let Some(compression) = self.request.compression {
            details["compression"] = compression.method.name().into();
        }
        details
    }
}

impl Method {
    /// Its name, as our details have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Local => "local",
            Self::Auto => "auto",
        }
    }
}

impl Facts {
    /// Says, while the backup runs, from where on it will need the log.
    fn report_start(&self, start: WalPosition) {
        self.findings.set_start(RunningCluster {
            system_identifier: self.system_identifier,
            timeline: start.timeline,
            start_lsn: start.lsn,
        });
    }

    /// What the manifest says of the cluster, when the backup has ended.
    fn report(&self, start: WalPosition, stop: WalPosition, stopped: Timestamp) {
        self.findings.set_cluster(ClusterEntry {
            system_identifier: self.system_identifier,
            server_version_num: self.server_version_num,
            wal_segment_bytes: self.segment_size,
            timeline: start.timeline,
            start_lsn: start.lsn,
            stop_lsn: stop.lsn,
            stopped,
            wal_included: self.wal_included,
        });
    }
}

impl Warned {
    fn push(&self, text: String) {
        if let Some(told) = &self.told {
            told(&text);
        }
        self.findings.warnings().push(text);
    }

    /// What the server warns of becomes a warning of the backup; what it merely remarks is logged.
    fn of_notices(&self) -> NoticeCallback {
        let warnings = self.clone();
        Arc::new(move |notice: &ServerMessage| match notice.severity == "WARNING" {
            true => warnings.push(notice.to_string()),
            false => tracing::info!(severity = notice.severity, "{notice}"),
        })
    }
}

impl fmt::Debug for Warned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warned").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterOptions")
            .field("connect", &self.connect)
            .field("request", &self.request)
            .field("include_wal", &self.include_wal)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}
