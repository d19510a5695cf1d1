//! Exit codes: what a script can tell apart. Documented in `docs/CLI.md`.

use std::process::ExitCode;

use backup_core::ErrorKind;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All was done.
    Done = 0,
    /// It failed in a way that has no code of its own; also a bug.
    Failed = 1,
    /// Wrong flags or configuration; nothing was tried, or the store refused the credentials.
    Usage = 2,
    /// Done, and something needs attention.
    Warnings = 3,
    /// No such backup, stream or repository.
    NotFound = 10,
    /// The object store did not answer, or failed.
    Storage = 11,
    /// No key, a wrong one, or one that cannot be used.
    Key = 12,
    /// Stored data is not what was written.
    Integrity = 13,
    /// Interrupted by SIGINT, SIGTERM or SIGHUP, as a shell would say.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Config => Self::Usage,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Storage | ErrorKind::Unavailable => Self::Storage,
            ErrorKind::Key => Self::Key,
            ErrorKind::Integrity => Self::Integrity,
            ErrorKind::Cancelled => Self::Interrupted,
            // Source, Sink, Internal, and kinds that a later release of the library adds.
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_code() {
        let codes = [
            (ErrorKind::Config, 2),
            (ErrorKind::Source, 1),
            (ErrorKind::Sink, 1),
            (ErrorKind::Storage, 11),
            (ErrorKind::Unavailable, 11),
            (ErrorKind::NotFound, 10),
            (ErrorKind::Integrity, 13),
            (ErrorKind::Key, 12),
            (ErrorKind::Cancelled, 130),
            (ErrorKind::Internal, 1),
        ];
        for (kind, code) in codes {
            assert_eq!(Exit::from(kind) as u8, code, "{kind:?}");
        }
    }
}
