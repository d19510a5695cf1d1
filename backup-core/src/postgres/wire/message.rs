//! What a server says about trouble: errors and notices.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use postgres_protocol::message::backend::ErrorFields;

use crate::error::{Error, ErrorKind, Stage};

/// An error or a notice of the server, field by field.
///
/// The source of an [`Error`](crate::Error) that a server caused; [`sqlstate`] finds it there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ServerMessage {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, `NOTICE`, `DEBUG`, `INFO` or `LOG`: never translated.
    pub severity: String,
    /// Five characters that tell what happened ("PostgreSQL Error Codes").
    pub sqlstate: String,
    /// One line, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server proposes.
    pub hint: Option<String>,
    /// Where it happened ("CONTEXT").
    pub context: Option<String>,
}

/// Receives notices and warnings as they arrive. It must not block.
pub type NoticeCallback = Arc<dyn Fn(&ServerMessage) + Send + Sync>;

/// The SQLSTATE with which a server caused `error`, if one did.
pub fn sqlstate(error: &Error) -> Option<&str> {
    server_message(error).map(|message| message.sqlstate.as_str())
}

/// What a server said to cause `error`, if one did.
pub fn server_message(error: &Error) -> Option<&ServerMessage> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(message) = error.downcast_ref() {
            return Some(message);
        }
        next = error.source();
    }
    None
}

impl ServerMessage {
    /// Reads the fields of `ErrorResponse` and `NoticeResponse`. They are text in the server's encoding until it knows ours: what is no UTF-8 is
    /// replaced.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Self {
        use postgres_protocol::message::backend::ErrorField;
        let mut message = Self::default();
        let text = |field: &ErrorField<'_>| String::from_utf8_lossy(field.value_bytes()).into_owned();
        while let Ok(Some(field)) = fallible_iterator::FallibleIterator::next(&mut fields) {
            match field.type_() {
                b'V' => message.severity = text(&field),
                b'S' if message.severity.is_empty() => message.severity = text(&field),
                b'C' => message.sqlstate = text(&field),
                b'M' => message.message = text(&field),
                b'D' => message.detail = Some(text(&field)),
                b'H' => message.hint = Some(text(&field)),
                b'W' => message.context = Some(text(&field)),
                _ => {}
            }
        }
        message
    }

    /// Whether it is about the state of the server or of the connection, so that the same may work later: shutting down, starting up, too many
    /// connections, out of memory or disk.
    pub fn is_transient(&self) -> bool {
        let class = self.sqlstate.get(..2).unwrap_or_default();
        matches!(class, "08" | "53" | "58") || self.sqlstate.starts_with("57P")
    }

    /// The error that this is the cause of; `what` says what failed.
    pub(super) fn into_error(self, what: impl Into<String>) -> Error {
        // Wrong password, not in pg_hba.conf, no such role; no such database.
        let refused = self.sqlstate.starts_with("28") || self.sqlstate == "3D000";
        let kind = if refused { ErrorKind::Config } else { ErrorKind::Source };
        let hint = self.hint.clone();
        let error = Error::new(kind, Stage::Source, what).with_source(self);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

impl fmt::Display for ServerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        write!(f, " (SQLSTATE {})", self.sqlstate)
    }
}

impl StdError for ServerMessage {}
