//! What PostgreSQL is told about its recovery: lines of `postgresql.auto.conf`, and which signal file to put beside them. No I/O.
//!
//! PostgreSQL 12 and later read recovery settings from their configuration, and recover because `recovery.signal` or `standby.signal`
//! is there; see "Archive Recovery" and "Recovery Target" in the chapter on server configuration of its documentation.

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, Zoned};

use super::conninfo::ConnInfo;
use super::wal::{Lsn, Timeline};
use crate::error::{Error, Result};

mod auto_conf;
mod command;

pub use command::RestoreCommand;

/// The longest name of a restore point in bytes (`MAXFNAMELEN` in `xlog_internal.h`, with its zero byte).
const NAME_LEN_MAX: usize = 63;

/// Since then recovery looks ahead.
const PREFETCH_MAJOR: u32 = 15;

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryTarget {
    /// As soon as the cluster is consistent: at the end of the backup.
    Immediate,
    /// Before the first commit after this moment.
    Time(TargetTime),
    /// At this position of the log.
    Lsn(Lsn),
    /// At the commit or abort of this transaction.
    Xid(u64),
    /// At a restore point that `pg_create_restore_point` made.
    Name(RestorePoint),
}

/// A moment, with the offset in which it was written: people compare it with what their own clocks showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetTime {
    moment: Timestamp,
    offset: Offset,
}

/// The name of a restore point: 1 to 63 bytes in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePoint(String);

/// Along which timeline to recover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetTimeline {
    /// The newest that descends from the backup's.
    #[default]
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Number(Timeline),
}

/// What PostgreSQL does when it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetAction {
    /// Waits, and answers queries meanwhile, until somebody calls `pg_wal_replay_resume()`. PostgreSQL's own default.
    #[default]
    Pause,
    /// Opens for writing, on a new timeline.
    Promote,
    /// Shuts down.
    Shutdown,
}

/// How the restored cluster is to recover when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Where to end; at the end of the log unless set.
    pub target: Option<RecoveryTarget>,
    /// Whether to end just before the target instead of just after it.
    pub exclusive: bool,
    /// Along which timeline. A standby that follows its primary follows it to new ones with [`TargetTimeline::Latest`].
    pub timeline: TargetTimeline,
    /// What then.
    pub action: TargetAction,
    /// Whether to go on as a standby, and never to end by itself.
    pub standby: bool,
    /// From where a standby streams what the archive does not have yet.
    pub primary_conninfo: Option<ConnInfo>,
    /// How files of the archive are fetched.
    pub restore_command: Option<RestoreCommand>,
    /// Whether the cluster must not archive.
    pub archive_off: bool,
    /// The server's major version, where it is known: a restore takes it from what it restores.
    pub server_major: Option<u32>,
}

impl RecoveryTarget {
    /// The setting that names it, and its value.
    fn setting(&self) -> (&'static str, String) {
        match self {
            Self::Immediate => ("recovery_target", "immediate".to_owned()),
            Self::Time(time) => ("recovery_target_time", time.to_string()),
            Self::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Self::Xid(xid) => ("recovery_target_xid", xid.to_string()),
            Self::Name(name) => ("recovery_target_name", name.0.clone()),
        }
    }
}

impl TargetTime {
    /// Reads a time: `2026-11-22 14:30:00+01:00`, with `T` or a blank, with `Z`, with or without seconds and their fractions. Without an
    /// offset it is a time of `zone`, and must then be neither skipped nor ambiguous there.
    ///
    /// # Errors
    /// `Config`.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self> {
        let invalid = |e: jiff::Error| {
            Error::config(format!("'{}' is not a time", text.escape_debug())).with_source(e).with_hint(
                "write it as '2026-11-22 14:30:00+01:00', or without the offset for a time of this host's zone",
            )
        };
        if let Ok(zoned) = text.parse::<Zoned>() {
            return Ok(Self { moment: zoned.timestamp(), offset: zoned.offset() });
        }
        if let Ok(moment) = text.parse::<Timestamp>() {
            return Ok(Self { moment, offset: offset_in(text) });
        }
        let civil: DateTime = text.parse().map_err(invalid)?;
        let zoned = zone.to_ambiguous_zoned(civil).unambiguous().map_err(|_| {
            let message = format!("the clocks of this host's zone show {civil} twice, or never");
            Error::config(message).with_hint("give the offset too, as in '2026-11-22 14:30:00+01:00'")
        })?;
        Ok(Self { moment: zoned.timestamp(), offset: zoned.offset() })
    }

    /// The moment.
    pub fn moment(self) -> Timestamp {
        self.moment
    }
}

/// The offset that a text ends with, which is known to be a timestamp's.
fn offset_in(text: &str) -> Offset {
    let tail = text.rfind(['+', '-']).map_or("", |at| &text[at..]);
    jiff::fmt::strtime::parse("%:z", tail)
        .or_else(|_| jiff::fmt::strtime::parse("%z", tail))
        .or_else(|_| jiff::fmt::strtime::parse("%z", format!("{tail}00")))
        .ok()
        .and_then(|parsed| parsed.offset())
        .unwrap_or(Offset::UTC)
}

impl fmt::Display for TargetTime {
    /// `2026-11-22 14:30:00+01:00`, always with its offset, and no finer than the microseconds that PostgreSQL knows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zoned = self.moment.to_zoned(self.offset.to_time_zone());
        let micros = zoned.subsec_nanosecond() / 1000;
        let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
        write!(f, "{}{fraction}{}", zoned.strftime("%Y-%m-%d %H:%M:%S"), zoned.strftime("%:z"))
    }
}

impl RestorePoint {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RestorePoint {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let refused =
            |why: &str| Err(Error::config(format!("'{}' names no restore point: {why}", name.escape_debug())));
        match name.len() {
            0 => refused("it is empty"),
            1..=NAME_LEN_MAX if name.contains(char::is_control) => refused("it has control characters"),
            1..=NAME_LEN_MAX => Ok(Self(name.to_owned())),
            _ => refused("such names have at most 63 bytes"),
        }
    }
}

impl FromStr for TargetTimeline {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "latest" => Ok(Self::Latest),
            "current" => Ok(Self::Current),
            number => number.parse().ok().and_then(Timeline::new).map(Self::Number).ok_or_else(|| {
                Error::config(format!("'{}' is not a timeline", text.escape_debug()))
                    .with_hint("a timeline is 'latest', 'current', or a number such as 2")
            }),
        }
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Current => f.write_str("current"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl fmt::Display for TargetAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        })
    }
}

impl Recovery {
    /// The empty file that makes PostgreSQL recover; none when it is to come up with what log is in its directory.
    ///
    /// Without such a file and without an archive, a cluster continues its timeline from the end of the backup, as after a crash.
    pub fn signal(&self) -> Option<&'static str> {
        match (self.standby, &self.restore_command) {
            (true, _) => Some("standby.signal"),
            (false, Some(_)) => Some("recovery.signal"),
            (false, None) => None,
        }
    }

    /// What belongs into the configuration, by name.
    ///
    /// # Errors
    /// `Config` when the settings contradict each other, or cannot be written.
    pub fn settings(&self) -> Result<Vec<(&'static str, String)>> {
        self.check()?;
        let mut settings = Vec::new();
        if let Some(command) = &self.restore_command {
            settings.push(("restore_command", command.to_shell()?));
        }
        if self.signal().is_some() {
            settings.push(("recovery_target_timeline", self.timeline.to_string()));
        }
        if let Some(target) = &self.target {
            settings.push(target.setting());
            if self.can_be_exclusive() {
                settings.push(("recovery_target_inclusive", if self.exclusive { "off" } else { "on" }.to_owned()));
            }
            settings.push(("recovery_target_action", self.action.to_string()));
        }
        if self.target == Some(RecoveryTarget::Immediate)
            && self.server_major.is_some_and(|major| major >= PREFETCH_MAJOR)
        {
            // Or it asks for the log behind the end of the backup before it stops there; and behind an old backup nothing may be kept.
            settings.push(("recovery_prefetch", "off".to_owned()));
        }
        if let Some(conninfo) = &self.primary_conninfo {
            settings.push(("primary_conninfo", conninfo.without_password()));
        }
        if self.archive_off {
            settings.push(("archive_mode", "off".to_owned()));
        }
        Ok(settings)
    }

    /// `postgresql.auto.conf` with these settings in the place of whatever it said about recovery: a cluster that was itself restored to
    /// some moment once must not stop there again.
    ///
    /// # Errors
    /// As [`settings`](Self::settings), or `Config` when a value cannot stand in such a file.
    pub fn write_into(&self, auto_conf: &[u8]) -> Result<Vec<u8>> {
        auto_conf::rewrite(auto_conf, &self.settings()?)
    }

    fn can_be_exclusive(&self) -> bool {
        use RecoveryTarget::{Lsn, Time, Xid};
        matches!(self.target, Some(Time(_) | Lsn(_) | Xid(_)))
    }

    fn check(&self) -> Result<()> {
        if self.exclusive && !self.can_be_exclusive() {
            return Err(Error::config("only a time, an LSN or a transaction can be an exclusive target"));
        }
        if self.target.is_some() && self.signal().is_none() {
            return Err(Error::config("a target needs an archive to recover from"));
        }
        let Some(conninfo) = &self.primary_conninfo else { return Ok(()) };
        if !self.standby {
            return Err(Error::config("only a standby has a primary"));
        }
        if conninfo.password().is_some() || conninfo.other_secrets().next().is_some() {
            return Err(Error::config("the primary's connection string holds a password, and would stand in a file")
                .with_hint("leave it out, and put it into the password file of the user who runs the standby"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
