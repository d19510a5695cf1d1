//! The flags of `backup prune`, `backup pin` and `backup unpin`.

use clap::Args;

use crate::config::keys::Moment;
use crate::config::retention::Grace;

pub(super) const EXAMPLES: &str = "\
Examples:
  backup prune --dry-run --explain       # why each backup stays or goes
  backup prune

Rules are in the configuration file, [retention] and [targets.NAME.retention]; by default the first backup of each day is kept for \
30 days, of each week for 90 days, of each month for a year, and log for 7 days. The newest good backup always stays. No key is \
needed.";

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only these targets
    pub(crate) targets: Vec<String>,

    /// Remove nothing, and tell what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,

    /// Tell of every backup, and of the log, why it stays or goes
    #[arg(long)]
    pub(crate) explain: bool,

    /// How long unfinished runs and new backups are left alone, at least 1h [default: 24h, or retention.grace]
    #[arg(long, value_name = "SPAN")]
    pub(crate) grace: Option<Grace>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    /// Which backup: an id, a target, TARGET@DATE or 'latest'
    #[arg(value_name = "REF")]
    pub(crate) reference: String,

    /// Why it is to be kept
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,

    /// Until when: a time such as 2027-11-22T02:00:00Z, or a day, which begins at midnight in UTC [default: for ever]
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Moment>,
}

#[derive(Debug, Args)]
pub(crate) struct UnpinArgs {
    /// Which backup: an id, a target, TARGET@DATE or 'latest'
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
}
