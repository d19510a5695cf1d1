//! The flags of `backup wal`.

use std::path::PathBuf;

use backup_core::postgres::wal::{Lsn, SystemIdentifier, WalFile};
use clap::{Args, Subcommand, ValueHint};

use super::{EncodingFlags, RecipientFlags};

pub(super) const EXAMPLES: &str = "\
Examples, in postgresql.conf:
  archive_mode = on
  archive_command = 'backup wal push %p --target app'
  restore_command = 'backup wal fetch %f %p --target app'

PostgreSQL judges these commands by their exit codes: 'backup wal push --help' and 'backup wal fetch --help' tell.";

#[derive(Debug, Args)]
pub(crate) struct WalArgs {
    #[command(subcommand)]
    pub(crate) action: WalAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalAction {
    /// Archive a file of pg_wal: an archive_command
    #[command(after_help = "\
Exit code 0 if and only if the file is durable in every required repository; the same file again is 0, a different one of that name is not, and the \
stored one stays. Every failure is between 1 and 125, so that PostgreSQL counts it and tries again.")]
    Push(PushArgs),

    /// Bring a file back: a restore_command
    #[command(after_help = "\
Exit codes:
  0    the file is at PATH: complete, proved and durable
  1    it is certainly not in the archive, and nothing later of its timeline is: the log ends here
  200  anything else; PostgreSQL then stops instead of starting up with what it has
With --standby, 1 in the place of 200: a standby asks again.")]
    Fetch(FetchArgs),

    /// Receive the WAL of a server as it is written, durable in the repository within seconds
    #[command(after_help = "\
Examples:
  backup wal receive --target app --slot backup --create-slot 'host=db1 user=backup'

The server is told that its WAL is flushed when it is durable in every required repository, and keeps it for the slot until then. Runs until it \
is interrupted, which is exit code 0; connects again by itself when the server, the network or the repository fails. CONNINFO is that of the \
configured target unless it is given.")]
    Receive(ReceiveArgs),

    /// Show what the archive holds, and what it lacks
    #[command(after_help = "Exit code 3 when something is missing, or waits for too long. No key is needed.")]
    Check(CheckArgs),
}

/// Whose WAL.
#[derive(Debug, Args)]
pub(crate) struct TargetFlag {
    /// Target: the name under which the cluster is backed up [env: BACKUP_TARGET]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) target: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The file to archive, as PostgreSQL's %p names it
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) target: TargetFlag,

    /// Archive so many of the segments that wait behind this one, too
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) look_ahead: usize,

    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,

    /// The cluster, when neither the file nor a data directory tells
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) system_identifier: Option<SystemIdentifier>,

    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    #[command(flatten)]
    pub(crate) encoding: EncodingFlags,
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// The file's name, as PostgreSQL's %f names it
    pub(crate) name: WalFile,

    /// Where to put it, as PostgreSQL's %p names it
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) target: TargetFlag,

    /// For a standby, which asks again: exit with 1 when in doubt
    #[arg(long)]
    pub(crate) standby: bool,

    /// Fetch so many segments ahead; 0 for none
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) prefetch: usize,

    /// How many seconds to go on asking when a history file is in doubt
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(crate) patience: u64,

    /// The cluster, when no data directory tells
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) system_identifier: Option<SystemIdentifier>,

    /// Fetch nothing now but the segments behind NAME, which have so many bytes: what this program starts for itself
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(crate) prefetch_behind: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiveArgs {
    /// The server, as a connection string
    pub(crate) conninfo: Option<String>,

    #[command(flatten)]
    pub(crate) target: TargetFlag,

    /// Physical replication slot, for which the server keeps its WAL [default: a temporary one]
    #[arg(short = 'S', long, value_name = "NAME")]
    pub(crate) slot: Option<String>,

    /// Make the slot if it is missing
    #[arg(long, requires = "slot")]
    pub(crate) create_slot: bool,

    /// Make what is new of an unfinished segment durable every so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) flush_interval: u64,

    /// Stop when the WAL is durable up to here
    #[arg(long, value_name = "LSN")]
    pub(crate) until_lsn: Option<Lsn>,

    /// Go on behind WAL that the server has removed: leaves a gap
    #[arg(long)]
    pub(crate) skip_gap: bool,

    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    #[command(flatten)]
    pub(crate) encoding: EncodingFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) target: TargetFlag,

    /// Data directory of the cluster, to see what waits to be archived
    #[arg(short = 'D', long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_directory: Option<PathBuf>,

    /// Ask the server how far its WAL is and what its archiver does; the configured target's unless CONNINFO is given
    #[arg(long, value_name = "CONNINFO", num_args = 0..=1, default_missing_value = "")]
    pub(crate) server: Option<String>,

    /// Warn when a file has waited for so many seconds to be archived, or the archive is behind the server for as long
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) lag_max: u64,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
