//! The conversation with the server while its files are copied: what it is, and where the backup begins and ends.
//!
//! "Making a Non-Exclusive Low-Level Backup" in PostgreSQL's documentation. One connection is held open from start to stop; when it ends early, the
//! server ends the backup. Standbys are asked in the same way.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::super::changed_timeline;
use super::tablespaces::numbers_in_map;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{Lsn, SegmentSize, SystemIdentifier, Timeline};
use crate::postgres::wire::{Checkpoint, ConnectOptions, Connection, Mode, Row, WalPosition};

/// How long finding out a relation's name may take.
const NAME_DEADLINE: Duration = Duration::from_secs(10);
/// From here on the functions have the names that they have now, and the kind of backup that is exclusive is gone.
const RENAMED_MAJOR: u32 = 15;
/// Since then the server ends sessions that idle, if it is told to.
const IDLE_TIMEOUT_MAJOR: u32 = 14;
/// Since then it ends long transactions, too; each command outside of one counts as its own.
const TRANSACTION_TIMEOUT_MAJOR: u32 = 17;
/// Since then it keeps its statistics in memory.
const NO_STATISTICS_MAJOR: u32 = 15;

/// An ordinary connection to the server that is backed up.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    options: ConnectOptions,
    major: u32,
}

/// What the server says of itself.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) system: SystemIdentifier,
    pub(super) version_num: u32,
    pub(super) version: String,
    pub(super) segment_size: SegmentSize,
    /// `None` when this role may not know.
    pub(super) data_directory: Option<PathBuf>,
    /// Below the data directory, or absolute.
    pub(super) statistics: Option<String>,
    pub(super) page_bytes: u32,
    pub(super) segment_pages: u32,
    pub(super) has_checksums: bool,
    /// From where recovery would begin.
    pub(super) redo: Lsn,
    /// By a Unix socket, or by an address that means this very host.
    pub(super) is_near: bool,
    /// Start a backup, and stop it.
    pub(super) may_back_up: bool,
}

/// What the server says at the end.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) position: WalPosition,
    pub(super) label: String,
    /// The tablespaces that there were when the backup began.
    pub(super) tablespaces: Vec<u32>,
    pub(super) time: Timestamp,
}

impl Session {
    /// Connects. Nothing that ends idle or long-running sessions shall end this one.
    pub(super) async fn connect(options: &ConnectOptions) -> Result<Self> {
        let mut connection = Connection::connect(&options.clone().with_default_database("postgres"), Mode::Sql).await?;
        let major = connection.server_major()?;
        let mut settings = "SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0; \
            SET standard_conforming_strings = on; SET client_encoding = 'UTF8'"
            .to_owned();
        if major >= IDLE_TIMEOUT_MAJOR {
            settings.push_str("; SET idle_session_timeout = 0");
        }
        if major >= TRANSACTION_TIMEOUT_MAJOR {
            settings.push_str("; SET transaction_timeout = 0");
        }
        connection.query(&settings).await?;
        Ok(Self { connection, options: options.clone(), major })
    }

    pub(super) fn major(&self) -> u32 {
        self.major
    }

    pub(super) async fn server(&mut self) -> Result<Server> {
        let settings = self
            .connection
            .query(
                "SELECT name, setting FROM pg_settings WHERE name IN ('data_directory', 'block_size', 'segment_size', \
                 'wal_segment_size', 'data_checksums', 'stats_temp_directory')",
            )
            .await?;
        let setting = |name: &str| {
            let row = settings.iter().find(|row| row.first().is_some_and(|n| n.as_deref() == Some(name)))?;
            row.get(1).cloned().flatten()
        };
        let number = |name: &str| parsed::<u32>(setting(name), name);
        let (start, stop) = self.functions();
        let facts = format!(
            "SELECT (SELECT system_identifier FROM pg_control_system()), (SELECT redo_lsn FROM pg_control_checkpoint()), \
             host(inet_server_addr()), has_function_privilege('{start}', 'EXECUTE') \
             AND has_function_privilege('{stop}', 'EXECUTE')"
        );
        let mut facts = one(self.connection.query(&facts).await?)?.into_iter();
        let mut next = || facts.next().flatten();
        Ok(Server {
            system: SystemIdentifier(parsed(next(), "system_identifier")?),
            redo: parsed(next(), "redo_lsn")?,
            is_near: next().is_none_or(|address| address == "::1" || address.starts_with("127.")),
            may_back_up: next().as_deref() == Some("t"),
            version_num: self.connection.server_version_num()?,
            version: self.connection.parameters().get("server_version").unwrap_or_default().to_owned(),
            segment_size: SegmentSize::new(number("wal_segment_size")?)
                .ok_or_else(|| unexpected("wal_segment_size"))?,
            data_directory: setting("data_directory").map(PathBuf::from),
            statistics: setting("stats_temp_directory").filter(|_| self.major < NO_STATISTICS_MAJOR),
            page_bytes: number("block_size")?,
            segment_pages: number("segment_size")?,
            has_checksums: setting("data_checksums").as_deref() == Some("on"),
        })
    }

    /// Whether the server has a slot of that name. Everybody may see them, on a standby those of the standby's own.
    pub(super) async fn has_slot(&mut self, name: &str) -> Result<bool> {
        let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'");
        Ok(one(self.connection.query(&slots).await?)?.first().and_then(Option::as_deref) == Some("1"))
    }

    /// Begins the backup, with a checkpoint, or on a standby at its last restart point.
    pub(super) async fn start(&mut self, label: &str, checkpoint: Checkpoint) -> Result<WalPosition> {
        let (label, fast) = (label.replace('\'', "''"), checkpoint == Checkpoint::Fast);
        let start = match self.major >= RENAMED_MAJOR {
            true => format!("SELECT pg_backup_start('{label}', {fast})"),
            false => format!("SELECT pg_start_backup('{label}', {fast}, false)"),
        };
        let row = one(self.connection.query(&start).await.map_err(may_not)?)?;
        let lsn = parsed(row.into_iter().next().flatten(), "the backup's start")?;
        let timeline = self.timeline("timeline_id FROM pg_control_checkpoint()").await?;
        // Otherwise that would be told when all was copied: a standby's backup begins at its last restart point, which may be of its old primary.
        self.is_still_on(timeline).await?;
        Ok(WalPosition { lsn, timeline })
    }

    /// How far the log has come: no page is newer. On a standby that replays what it has received, a page is written before its record counts as
    /// replayed.
    pub(super) async fn reached(&mut self) -> Result<Lsn> {
        let reached = "SELECT CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
            ELSE pg_current_wal_insert_lsn() END";
        let row = one(self.connection.query(reached).await?)?;
        parsed(row.into_iter().next().flatten(), "how far the log has come")
    }

    /// Ends the backup that began at `start`. `wait` is whether the server is to wait until the log is archived.
    pub(super) async fn stop(&mut self, start: WalPosition, wait: bool) -> Result<Stopped> {
        let stop = match self.major >= RENAMED_MAJOR {
            true => format!("pg_backup_stop({wait})"),
            false => format!("pg_stop_backup(false, {wait})"),
        };
        let time = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        let row =
            one(self.connection.query(&format!("SELECT lsn, labelfile, spcmapfile, {time} FROM {stop}")).await?)?;
        let mut row = row.into_iter();
        let mut next = || row.next().flatten();
        let lsn = parsed(next(), "the backup's end")?;
        let label = next().ok_or_else(|| unexpected("the backup's label"))?;
        let tablespaces = numbers_in_map(&next().unwrap_or_default()).ok_or_else(|| unexpected("a tablespace map"))?;
        let time = parsed(next(), "a time")?;
        let began = timeline_of_label(&label).ok_or_else(|| unexpected("the timeline in the backup's label"))?;
        if began != start.timeline {
            return Err(changed_timeline(start.timeline, began));
        }
        self.is_still_on(began).await?;
        Ok(Stopped { position: WalPosition { lsn, timeline: began }, label, tablespaces, time })
    }

    /// Refuses a standby that has gone to another timeline, of which the log that is needed would lie on both. A primary stays where it is.
    async fn is_still_on(&mut self, timeline: Timeline) -> Result<()> {
        let in_recovery = one(self.connection.query("SELECT pg_is_in_recovery()").await?)?;
        if in_recovery.first().and_then(Option::as_deref) != Some("t") {
            return Ok(());
        }
        match self.timeline("min_recovery_end_timeline FROM pg_control_recovery()").await? {
            now if now == timeline => Ok(()),
            now => Err(changed_timeline(timeline, now)),
        }
    }

    /// What a relation is called: by tablespace, database and its own number. `None` when that cannot be found out, as of one that is gone.
    ///
    /// Over connections of its own: the one that the backup hangs on is not risked for a name.
    pub(super) async fn name_of(&self, numbers: (u32, Option<u32>, u32)) -> Option<String> {
        match tokio::time::timeout(NAME_DEADLINE, self.look_up(numbers)).await {
            Ok(Ok(name)) => name,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a relation cannot be named");
                None
            }
            Err(_) => None,
        }
    }

    async fn look_up(&self, (tablespace, database, number): (u32, Option<u32>, u32)) -> Result<Option<String>> {
        let name = format!("SELECT pg_catalog.pg_filenode_relation({tablespace}, {number})");
        let options = self.options.clone().with_default_database("postgres");
        let Some(oid) = database else { return value(&options, &name).await };
        let of = format!("SELECT datname FROM pg_catalog.pg_database WHERE oid OPERATOR(pg_catalog.=) {oid}");
        let Some(database) = value(&options, &of).await? else { return Ok(None) };
        // Names are those of one database, and a connection is to one.
        let found = value(&options.with_database(&database), &name).await?;
        Ok(found.map(|name| format!("{name} in the database {database}")))
    }

    /// Takes leave.
    pub(super) async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "left without taking leave");
        }
    }

    async fn timeline(&mut self, what: &str) -> Result<Timeline> {
        let row = one(self.connection.query(&format!("SELECT {what}")).await?)?;
        let number = parsed(row.into_iter().next().flatten(), "a timeline")?;
        Timeline::new(number).ok_or_else(|| unexpected("a timeline"))
    }

    /// Start and stop, as privileges call them.
    pub(super) fn functions(&self) -> (&'static str, &'static str) {
        match self.major >= RENAMED_MAJOR {
            true => ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
            false => ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"),
        }
    }
}

/// One value, over a connection of its own.
async fn value(options: &ConnectOptions, sql: &str) -> Result<Option<String>> {
    let mut connection = Connection::connect(options, Mode::Sql).await?;
    let rows = connection.query(sql).await;
    connection.close().await?;
    Ok(rows?.pop().and_then(|row| row.into_iter().next().flatten()))
}

fn may_not(error: Error) -> Error {
    match crate::postgres::wire::sqlstate(&error) {
        Some("42501") => error.with_hint("the role needs EXECUTE on the functions that start and stop a backup"),
        Some("55000") => error.with_hint("a backup needs wal_level = replica, or logical"),
        _ => error,
    }
}

fn timeline_of_label(label: &str) -> Option<Timeline> {
    let line = label.lines().rev().find_map(|line| line.strip_prefix("START TIMELINE: "))?;
    line.trim().parse().ok().and_then(Timeline::new)
}

fn one(mut rows: Vec<Row>) -> Result<Row> {
    match (rows.pop(), rows.len()) {
        (Some(row), 0) => Ok(row),
        _ => Err(unexpected("one row")),
    }
}

fn parsed<T: std::str::FromStr>(value: Option<String>, what: &str) -> Result<T> {
    value.and_then(|text| text.parse().ok()).ok_or_else(|| unexpected(what))
}

fn unexpected(what: &str) -> Error {
    Error::new(ErrorKind::Source, Stage::Source, format!("the server's answer does not have {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_stands_in_the_label() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000020000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
            BACKUP METHOD: streamed\nBACKUP FROM: standby\nSTART TIME: 2026-11-22 02:00:00 UTC\nLABEL: x\nSTART TIMELINE: 2\n";
        assert_eq!(timeline_of_label(label), Timeline::new(2));
        assert_eq!(timeline_of_label("LABEL: x\n"), None);
    }
}
