//! The short commands of the replication protocol ("Streaming Replication Protocol"), and the words in which commands are written.

use bytes::Bytes;

use super::channel::confused_by;
use super::connection::{Connection, text};
use super::message::sqlstate;
use crate::error::{Error, Result};
use crate::postgres::wal::{Lsn, SystemIdentifier, Timeline};

/// The major version that brought options in parentheses, `READ_REPLICATION_SLOT` and compression on the server.
pub(super) const OPTIONS_IN_PARENTHESES: u32 = 15;

/// What `IDENTIFY_SYSTEM` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Of the cluster.
    pub system: SystemIdentifier,
    /// The one that is written, or on a standby replayed.
    pub timeline: Timeline,
    /// How far the log has been flushed, or on a standby replayed.
    pub position: Lsn,
}

/// What `TIMELINE_HISTORY` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// `00000002.history`
    pub file: String,
    /// The content of that file.
    pub content: Bytes,
}

/// Where a physical slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPosition {
    /// The oldest log that the server keeps for it, and on which timeline; `None` when nothing is reserved yet.
    pub restart: Option<(Lsn, Timeline)>,
}

/// Commands for a connection of [`Mode::Replication`](super::Mode) or [`Mode::ReplicationDatabase`](super::Mode). None is cancel safe: the
/// connection cannot be used again when its future is dropped. All fail with `Source` and the server's message, or when the connection breaks.
impl Connection {
    /// Which cluster this is, and where it stands.
    ///
    /// # Errors
    /// See above.
    pub async fn identify_system(&mut self) -> Result<Identity> {
        let row = self.one_row("IDENTIFY_SYSTEM", "IDENTIFY_SYSTEM").await?;
        let [system, timeline, position] = leading(row)?;
        Ok(Identity {
            system: read(system, "a system identifier")?,
            timeline: timeline_of(timeline)?,
            position: read(position, "a position")?,
        })
    }

    /// The value of a setting, as in SQL: `1GB` and the like.
    ///
    /// # Errors
    /// See above; SQLSTATE 42704 when the server has no such setting.
    pub async fn show(&mut self, name: &str) -> Result<String> {
        let row = self.one_row("SHOW", &format!("SHOW {}", identifier(name))).await?;
        let [value] = leading(row)?;
        text(value.unwrap_or_default())
    }

    /// How `timeline` came to be. The first one has no history.
    ///
    /// # Errors
    /// See above; SQLSTATE 58P01 (13+) when the server does not have the file.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<TimelineHistory> {
        let row = self.one_row("TIMELINE_HISTORY", &format!("TIMELINE_HISTORY {timeline}")).await?;
        let [file, content] = leading(row)?;
        let (Some(file), Some(content)) = (file, content) else {
            return Err(confused_by("its answer to TIMELINE_HISTORY has no content"));
        };
        Ok(TimelineHistory { file: text(file)?, content })
    }

    /// Makes a physical slot. A temporary one goes with this connection; one with `reserve_wal` keeps the log from now on, not only from the
    /// first time that it is used.
    ///
    /// # Errors
    /// See above; SQLSTATE 42710 when there is one of that name, 53400 when all `max_replication_slots` are in use.
    pub async fn create_replication_slot(&mut self, name: &str, temporary: bool, reserve_wal: bool) -> Result<()> {
        let mut command = format!("CREATE_REPLICATION_SLOT {}", identifier(name));
        command.push_str(if temporary { " TEMPORARY PHYSICAL" } else { " PHYSICAL" });
        command.push_str(match (reserve_wal, self.server_major()? >= OPTIONS_IN_PARENTHESES) {
            (false, _) => "",
            (true, true) => " (RESERVE_WAL)",
            (true, false) => " RESERVE_WAL",
        });
        self.rows(&format!("cannot create the replication slot {name}"), &command).await.map(drop)
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// See above; SQLSTATE 42704 when there is none of that name, 55006 when it is in use.
    pub async fn drop_replication_slot(&mut self, name: &str) -> Result<()> {
        let command = format!("DROP_REPLICATION_SLOT {}", identifier(name));
        self.rows(&format!("cannot drop the replication slot {name}"), &command).await.map(drop)
    }

    /// Where a physical slot stands; `None` when there is no slot of that name. PostgreSQL 15 and later.
    ///
    /// # Errors
    /// See above; `Config` when the server is older.
    pub async fn read_replication_slot(&mut self, name: &str) -> Result<Option<SlotPosition>> {
        self.demand(OPTIONS_IN_PARENTHESES, "READ_REPLICATION_SLOT")?;
        let what = format!("cannot read the replication slot {name}");
        let row = self.one_row(&what, &format!("READ_REPLICATION_SLOT {}", identifier(name))).await?;
        let [kind, lsn, timeline] = leading(row)?;
        if kind.is_none() {
            return Ok(None);
        }
        let restart = match lsn {
            Some(_) => Some((read(lsn, "a position")?, timeline_of(timeline)?)),
            None => None,
        };
        Ok(Some(SlotPosition { restart }))
    }

    /// Refuses what a server of an older major version does not have.
    pub(super) fn demand(&self, major: u32, what: &str) -> Result<()> {
        let is = self.server_major()?;
        if is >= major {
            return Ok(());
        }
        Err(Error::config(format!("PostgreSQL {is} has no {what}: that came with {major}")))
    }

    async fn one_row(&mut self, what: &str, command: &str) -> Result<Vec<Option<Bytes>>> {
        let mut rows = self.rows(&format!("{what} failed"), command).await?;
        match (rows.pop(), rows.len()) {
            (Some(row), 0) => Ok(row),
            _ => Err(confused_by(format!("its answer to {what} is not one row"))),
        }
    }
}

/// Whether a server refused because it has no such slot, setting or file.
pub fn is_missing(error: &Error) -> bool {
    matches!(sqlstate(error), Some("42704" | "58P01"))
}

/// The first columns of a row, which may have more in a later version.
pub(super) fn leading<const N: usize>(row: Vec<Option<Bytes>>) -> Result<[Option<Bytes>; N]> {
    let leading: Vec<_> = row.into_iter().take(N).collect();
    leading.try_into().map_err(|_| confused_by("a row of its answer has too few columns"))
}

/// A column that holds one value.
pub(super) fn read<T: std::str::FromStr>(value: Option<Bytes>, what: &str) -> Result<T> {
    let parsed = value.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| confused_by(format!("where {what} belongs, its answer has something else")))
}

pub(super) fn timeline_of(value: Option<Bytes>) -> Result<Timeline> {
    let number = read(value, "a timeline")?;
    Timeline::new(number).ok_or_else(|| confused_by("where a timeline belongs, its answer has 0"))
}

/// A name as the replication grammar and SQL read it. Settings with a dot in their names may be quoted as a whole.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as the replication grammar reads it: backslashes are themselves.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_commands_cannot_break_out() {
        assert_eq!(identifier("a\" PHYSICAL; x"), "\"a\"\" PHYSICAL; x\"");
        assert_eq!(literal(r"it's a \ label"), r"'it''s a \ label'");
    }
}
