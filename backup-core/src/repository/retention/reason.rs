//! Why a backup is kept.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::Unit;
use crate::repository::layout::BackupId;

/// Why a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Somebody asked for it.
    Pinned {
        /// Why.
        text: String,
        /// Until when; for ever if it does not say.
        until: Option<Timestamp>,
    },
    /// It is the newest good one of its target. No rule takes that.
    LastGood,
    /// It is one of the newest, of which the rules keep some.
    Last,
    /// It is the first good one of a period.
    Period {
        /// Of which kind.
        unit: Unit,
        /// Which one.
        period: String,
    },
    /// It ended in the window of point-in-time recovery.
    Window,
    /// The window of point-in-time recovery begins with it: it is the newest that ended before.
    WindowStart,
    /// Another one that is kept cannot be restored without it.
    RequiredBy {
        /// Which.
        id: BackupId,
    },
    /// Its source was damaged, and no good one is newer.
    NoneBetter,
    /// It was stored a moment ago, by the store's own clock.
    Young,
    /// It says to have begun in the future.
    Future,
    /// It is of a kind that this release does not know.
    UnknownKind {
        /// Which.
        kind: String,
    },
    /// It needs a later release.
    NewerFormat,
    /// Another one of its target needs a later release, and may need this one.
    Held {
        /// Which.
        by: BackupId,
    },
    /// Its manifest cannot be read.
    Unreadable,
    /// None of the trusted signers has signed it.
    Untrusted,
    /// It was to go, and could not be deleted this time.
    NotDeleted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned { text, until: None } => write!(f, "pinned: {text}"),
            Self::Pinned { text, until: Some(until) } => {
                write!(f, "pinned until {}: {text}", until.strftime("%Y-%m-%dT%H:%M:%SZ"))
            }
            Self::LastGood => f.write_str("the newest good one"),
            Self::Last => f.write_str("one of the newest"),
            Self::Period { unit: Unit::Day, period } => write!(f, "daily, of {period}"),
            Self::Period { unit: Unit::Week, period } => write!(f, "weekly, of {period}"),
            Self::Period { unit: Unit::Month, period } => write!(f, "monthly, of {period}"),
            Self::Period { unit: Unit::Year, period } => write!(f, "yearly, of {period}"),
            Self::Window => f.write_str("in the window of point-in-time recovery"),
            Self::WindowStart => f.write_str("the window of point-in-time recovery begins with it"),
            Self::RequiredBy { id } => write!(f, "needed by {id}"),
            Self::NoneBetter => f.write_str("damaged, and no good one is newer"),
            Self::Young => f.write_str("younger than the grace"),
            Self::Future => f.write_str("begun in the future, by a clock that was wrong"),
            Self::UnknownKind { kind } => {
                write!(f, "of the kind '{}', which this release does not know", kind.escape_debug())
            }
            Self::NewerFormat => f.write_str("needs a newer release"),
            Self::Held { by } => write!(f, "may be needed by {by}, which needs a newer release"),
            Self::Unreadable => f.write_str("its manifest cannot be read"),
            Self::Untrusted => f.write_str("not signed by a trusted signer"),
            Self::NotDeleted => f.write_str("it could not be deleted this time"),
        }
    }
}
