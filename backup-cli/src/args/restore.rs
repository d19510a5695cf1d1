//! The flags of `backup restore`.

use std::path::PathBuf;

use backup_core::postgres::recovery::{RestorePoint, TargetTimeline};
use backup_core::postgres::wal::Lsn;
use backup_core::restore::TablespaceMapping;
use clap::{Args, ValueEnum, ValueHint};

use super::AgeFlag;

pub(super) const EXAMPLES: &str = "\
Examples:
  backup restore app --into 'host=db2 dbname=app'
  backup restore app@2026-11-20 --to /srv/restored
  backup restore cluster --to /var/lib/postgresql/15/main
  backup restore cluster --to /srv/files --only base/16384/16385 --only pg_tblspc/16400
  backup restore cluster --to /srv/main --target-time '2026-11-22 14:30:00'
  set -o pipefail; backup restore app --to-stdout | psql app_copy

What went to standard output before an error cannot be taken back: look at the exit code. A restored cluster recovers when PostgreSQL is \
started: to the target, or, without one, to the end of the archive if there is one, and else to the end of the backup.";

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Which backup: an id, a target, TARGET@DATE or 'latest'
    #[arg(value_name = "REF")]
    pub(crate) reference: String,

    #[command(flatten)]
    pub(crate) destination: DestinationFlags,

    /// Restore this stream instead of the main one; 'backup show' lists them
    #[arg(long, value_name = "NAME")]
    pub(crate) stream: Option<String>,

    /// Of a base backup, restore this file or directory only, by its path in the data directory; repeatable
    #[arg(long, value_name = "PATH", requires = "to", conflicts_with = "stream")]
    pub(crate) only: Vec<PathBuf>,

    /// Leave out ownership and privileges, when the destination lacks the roles
    #[arg(long, conflicts_with_all = ["to", "to_stdout"])]
    pub(crate) no_owner: bool,

    #[command(flatten)]
    pub(crate) age: AgeFlag,

    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
}

/// Where to restore to.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct DestinationFlags {
    /// Directory to restore into; made if missing
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) to: Option<PathBuf>,

    /// Write the stream to standard output
    #[arg(long)]
    pub(crate) to_stdout: bool,

    /// Load a logical dump into this PostgreSQL database; made if missing
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) into: Option<String>,
}

/// What holds for base backups only.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Base backups")]
pub(crate) struct ClusterFlags {
    /// Put the tablespace that was at OLD to NEW; repeatable
    #[arg(short = 'T', long, value_name = "OLD=NEW")]
    pub(crate) tablespace_mapping: Vec<TablespaceMapping>,

    /// Give the files to this user, for root [default: who owns DIR, else the numbers in the backup]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) owner: Option<String>,

    #[command(flatten)]
    pub(crate) target: TargetFlags,

    /// Recover along this timeline: latest, current or a number [default: latest]
    #[arg(long, value_name = "TIMELINE")]
    pub(crate) target_timeline: Option<TargetTimeline>,

    /// End just before the target, not just after it
    #[arg(long)]
    pub(crate) target_exclusive: bool,

    /// What to do at the target: pause, promote or shutdown [default: pause]
    #[arg(long, value_name = "ACTION", value_enum, hide_possible_values = true, requires = "TargetFlags")]
    pub(crate) target_action: Option<TargetActionFlag>,

    /// Make a standby, which follows the archive
    #[arg(long, conflicts_with_all = ["TargetFlags", "target_exclusive"])]
    pub(crate) standby: bool,

    /// From where the standby streams; passwords belong into its password file
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    pub(crate) primary_conninfo: Option<String>,

    /// Whether the restored cluster may archive: off, or preserve what it is set to
    #[arg(long, value_name = "MODE", value_enum, hide_possible_values = true, default_value_t)]
    pub(crate) archive_mode: ArchiveModeFlag,
}

/// Where recovery ends.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub(crate) struct TargetFlags {
    /// Recover to this time; of this host's zone, unless it has an offset
    #[arg(long, value_name = "TIME")]
    pub(crate) target_time: Option<String>,

    /// Recover to this position of the log
    #[arg(long, value_name = "LSN")]
    pub(crate) target_lsn: Option<Lsn>,

    /// Recover to the end of this transaction
    #[arg(long, value_name = "XID")]
    pub(crate) target_xid: Option<u64>,

    /// Recover to this restore point
    #[arg(long, value_name = "NAME")]
    pub(crate) target_name: Option<RestorePoint>,

    /// Recover to the end of the backup and no further
    #[arg(long, value_name = "immediate", value_enum, hide_possible_values = true)]
    pub(crate) target: Option<TargetWord>,
}

/// A target that needs no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetWord {
    /// As soon as the cluster is consistent.
    Immediate,
}

/// What PostgreSQL does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetActionFlag {
    /// Waits.
    Pause,
    /// Opens for writing.
    Promote,
    /// Shuts down.
    Shutdown,
}

/// What becomes of `archive_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ArchiveModeFlag {
    /// Off.
    Off,
    /// As it was.
    #[default]
    Preserve,
}

impl ClusterFlags {
    /// Whether something was asked for that only base backups can give.
    pub(crate) fn any(&self) -> bool {
        let TargetFlags { target_time, target_lsn, target_xid, target_name, target } = &self.target;
        let has_target = target_time.is_some()
            || target_lsn.is_some()
            || target_xid.is_some()
            || target_name.is_some()
            || target.is_some();
        has_target
            || self.target_timeline.is_some()
            || self.target_exclusive
            || self.standby
            || self.owner.is_some()
            || !self.tablespace_mapping.is_empty()
            || self.archive_mode == ArchiveModeFlag::Off
    }
}
