//! What a server says of its own log: how far it is, and what its archiver does.

use std::time::Duration;

use jiff::Timestamp;

use super::inventory::ReadyFiles;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{Lsn, SegmentSize, SystemIdentifier, Timeline};
use crate::postgres::wire::{ConnectOptions, Connection, Mode, Row, sqlstate};

/// SQLSTATE `insufficient_privilege`.
const DENIED: &str = "42501";

const QUESTION: &str = "
SELECT (SELECT system_identifier FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) ELSE pg_current_wal_lsn() END,
  pg_is_in_recovery(), current_setting('archive_mode'), current_setting('wal_segment_size'),
  (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
  archived_count, last_archived_wal, (extract(epoch FROM last_archived_time) * 1000000)::bigint,
  failed_count, last_failed_wal, (extract(epoch FROM last_failed_time) * 1000000)::bigint
FROM pg_stat_archiver";

const READY: &str = "
SELECT count(*), (array_agg(name ORDER BY modification))[1], extract(epoch FROM clock_timestamp() - min(modification))::bigint
FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

/// How far a server's log is, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerWal {
    /// Which cluster it is of.
    pub system_identifier: SystemIdentifier,
    /// The timeline that it writes or, a standby, has begun to replay.
    pub timeline: Timeline,
    /// The position behind the last byte that it has written, received or replayed.
    pub lsn: Lsn,
    /// Whether it is a standby, or recovers.
    pub in_recovery: bool,
    /// `off`, `on` or `always`.
    pub archive_mode: String,
    /// The cluster's.
    pub segment_size: SegmentSize,
    /// What its clock shows; the times below are by it.
    pub now: Timestamp,
    /// What `archive_command` did since the statistics were reset.
    pub archived: ArchiverCount,
    /// What it failed to do.
    pub failed: ArchiverCount,
    /// What waits to be archived; `None` for a user who may not see it (`pg_monitor` may).
    pub ready: Option<ReadyFiles>,
}

/// How often something became of a file, and when it last did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ArchiverCount {
    /// How often.
    pub count: u64,
    /// The last file.
    pub file: Option<String>,
    /// When.
    pub time: Option<Timestamp>,
}

impl ServerWal {
    /// Asks a server, by SQL: in the database of the options, or `postgres`.
    ///
    /// # Errors
    /// Those of [`Connection::connect`] and [`Connection::query`]. Cancel safe.
    pub async fn read(options: &ConnectOptions) -> Result<Self> {
        let options = options.clone().with_default_database("postgres");
        let mut connection = Connection::connect(&options, Mode::Sql).await?;
        let mut server = connection.query(QUESTION).await?.pop().and_then(|row| Self::of(&row)).ok_or_else(confused)?;
        server.ready = match connection.query(READY).await {
            Ok(mut rows) => Some(rows.pop().and_then(|row| waiting(&row)).ok_or_else(confused)?),
            Err(error) if sqlstate(&error) == Some(DENIED) => None,
            Err(error) => return Err(error),
        };
        // It has said all that it was asked for.
        let _ = connection.close().await;
        Ok(server)
    }

    fn of(row: &Row) -> Option<Self> {
        let mut columns = row.iter().map(Option::as_deref);
        let mut next = || columns.next().flatten();
        let server = Self {
            system_identifier: next()?.parse().ok()?,
            timeline: Timeline::new(next()?.parse().ok()?)?,
            lsn: next()?.parse().ok()?,
            in_recovery: next()? == "t",
            archive_mode: next()?.to_owned(),
            segment_size: SegmentSize::of_setting(next()?).ok()?,
            now: time(next()?)?,
            archived: count(next()?, next(), next())?,
            failed: count(next()?, next(), next())?,
            ready: None,
        };
        Some(server)
    }

    /// Whether what the archiver did last is that it failed.
    pub fn is_failing(&self) -> bool {
        self.failed.time.is_some() && self.failed.time > self.archived.time
    }
}

fn count(count: &str, file: Option<&str>, at: Option<&str>) -> Option<ArchiverCount> {
    Some(ArchiverCount { count: count.parse().ok()?, file: file.map(str::to_owned), time: at.and_then(time) })
}

fn time(microseconds: &str) -> Option<Timestamp> {
    Timestamp::from_microsecond(microseconds.parse().ok()?).ok()
}

fn waiting(row: &Row) -> Option<ReadyFiles> {
    let mut columns = row.iter().map(Option::as_deref);
    let (count, file, age) = (columns.next()??, columns.next()?, columns.next()?);
    let file = file.and_then(|name| name.strip_suffix(".ready")?.parse().ok());
    let age = age.map(|seconds| Duration::from_secs(seconds.parse().unwrap_or(0)));
    Some(ReadyFiles { count: count.parse().ok()?, oldest: file.zip(age) })
}

fn confused() -> Error {
    Error::new(ErrorKind::Source, Stage::Source, "the server does not say how far its log is")
}
