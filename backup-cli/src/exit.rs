//! Exit codes: what a script can tell apart. Documented in `docs/CLI.md`.

use std::ffi::{OsStr, OsString};

use backup_core::ErrorKind;

use crate::args::{Command, WalAction};

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
    /// `wal fetch`: certainly not in the archive. Never seen as such.
    Absent = 254,
    /// Help or the version was asked for and printed. Never seen as such.
    Told = 255,
}

impl Exit {
    /// The worse of two ends, where several things were done: what somebody must look at first. Damage comes before a missing key, that before a store
    /// that failed, and so on; the least of all that is not well is a warning.
    pub(crate) fn or_worse(self, other: Self) -> Self {
        if other.severity() > self.severity() { other } else { self }
    }

    fn severity(self) -> u8 {
        match self {
            Self::Done | Self::Told => 0,
            Self::Warnings => 1,
            Self::Failed => 2,
            Self::Usage => 3,
            Self::NotFound | Self::Absent => 4,
            Self::Storage => 5,
            Self::Key => 6,
            Self::Integrity => 7,
            Self::Interrupted => 8,
        }
    }
}

/// What an exit code means to whoever started this program. PostgreSQL has a mind of its own about those of its commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Law {
    /// The codes of [`Exit`].
    Ours,
    /// An `archive_command`: 0 is "durable". Anything else must be below 126, or the archiver dies and does not count the failure.
    Archive,
    /// A `restore_command`: 0 is "restored", 1 to 125 is "the log ends here, start up", so doubt must be above that; and not 126, 127 or
    /// above 128 by 1 to 37, which mean that no shell, no command or a signal was the reason.
    Restore,
    /// A `restore_command` of a standby, which does not start up but asks again: doubt is 1, too.
    RestoreOfStandby,
}

/// The code of a `restore_command` in doubt.
const DOUBT: u8 = 200;

impl Law {
    /// By which law a process with these arguments is judged, before they are parsed: should that fail, or panic, the code must be right, too.
    ///
    /// What could be meant for a `restore_command` is one: nobody is hurt by a 200 where a 2 was expected.
    pub(crate) fn guess(arguments: &[OsString]) -> Self {
        let before_dashes = || arguments.iter().skip(1).take_while(|argument| *argument != "--");
        let has = |word: &str| before_dashes().any(|argument| argument == OsStr::new(word));
        let harmless = || ["push", "receive", "check", "-h", "--help"].iter().any(|word| has(word));
        if has("fetch") || (has("wal") && !harmless()) {
            return if has("--standby") { Self::RestoreOfStandby } else { Self::Restore };
        }
        if has("push") { Self::Archive } else { Self::Ours }
    }

    /// By which law a command is judged.
    pub(crate) fn of(command: &Command) -> Self {
        let Command::Wal(args) = command else { return Self::Ours };
        match &args.action {
            WalAction::Push(_) => Self::Archive,
            WalAction::Fetch(args) if args.standby => Self::RestoreOfStandby,
            WalAction::Fetch(_) => Self::Restore,
            WalAction::Receive(_) | WalAction::Check(_) => Self::Ours,
        }
    }

    /// The code for how it ended.
    pub(crate) fn code(self, exit: Exit) -> u8 {
        match (self, exit) {
            (_, Exit::Done) => 0,
            (Self::Ours, Exit::Told) => 0,
            (Self::Ours, Exit::Absent) => Exit::NotFound as u8,
            (Self::Ours, exit) => exit as u8,
            (Self::Archive, Exit::Interrupted | Exit::Told | Exit::Absent) => 1,
            (Self::Archive, exit) => exit as u8,
            (Self::Restore, Exit::Absent) => 1,
            (Self::Restore, _) => DOUBT,
            (Self::RestoreOfStandby, _) => 1,
        }
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

    const ALL: [Exit; 11] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Warnings,
        Exit::NotFound,
        Exit::Storage,
        Exit::Key,
        Exit::Integrity,
        Exit::Interrupted,
        Exit::Absent,
        Exit::Told,
    ];

    fn law(line: &str) -> Law {
        Law::guess(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn postgresql_is_told_nothing_but_what_it_understands() {
        for exit in ALL {
            let archive = Law::Archive.code(exit);
            assert_eq!(archive == 0, exit == Exit::Done, "{exit:?}");
            assert!(archive <= 125, "{exit:?}");
            let restore = Law::Restore.code(exit);
            let expected = match exit {
                Exit::Done => 0,
                Exit::Absent => 1,
                _ => 200,
            };
            assert_eq!(restore, expected, "{exit:?}");
            assert_eq!(Law::RestoreOfStandby.code(exit), u8::from(exit != Exit::Done), "{exit:?}");
        }
    }

    #[test]
    fn a_restore_command_is_known_as_one_whatever_is_wrong_with_it() {
        for line in [
            "backup wal fetch f p",
            "backup --repo x wal fetch f p --bad-flag",
            "backup wal --target app fetch",
            "backup wal",
            "backup wal fecth f p",
            "backup wla fetch f p",
            "backup fetch f p",
            "backup wal fetch --help",
        ] {
            assert_eq!(law(line), Law::Restore, "{line}");
            assert_eq!(law(&format!("{line} --standby")), Law::RestoreOfStandby, "{line}");
        }
        for line in ["backup wal push p", "backup -r x wal push --bad", "backup push p"] {
            assert_eq!(law(line), Law::Archive, "{line}");
        }
        for line in [
            "backup",
            "backup list",
            "backup wal check",
            "backup wal receive --bad",
            "backup wal -h",
            "backup save app -- wal fetch",
        ] {
            assert_eq!(law(line), Law::Ours, "{line}");
        }
    }

    #[test]
    fn the_worst_of_several_ends_is_told_whichever_came_last() {
        let order = [0, 3, 1, 2, 10, 11, 12, 13, 130];
        let of_code = |code: u8| ALL.into_iter().find(|exit| *exit as u8 == code).unwrap();
        for (i, worse) in order.into_iter().enumerate() {
            for better in &order[..i] {
                let (better, worse) = (of_code(*better), of_code(worse));
                assert_eq!((better.or_worse(worse), worse.or_worse(better)), (worse, worse));
            }
        }
    }

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
