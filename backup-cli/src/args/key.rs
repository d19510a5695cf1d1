//! The flags of `backup key`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::RecipientFlags;
use crate::config::keys::Moment;

pub(super) const EXAMPLES: &str = "\
Once a year:
  backup key generate ~/safe/2027.txt                 # prints the public key
  backup key rotate 2026 --recipient age1… --name 2027
  backup key rewrap                                   # needs the old identity
  backup key status
  backup key retire 2026                              # when its overlap is over

Keys are tables of the configuration file:
  [keys.2026]
  recipient = \"age1…\"
  created = 2026-01-10T09:00:00Z";

#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    pub(crate) action: KeyAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Make an identity file or a signing key, and print its public key
    #[command(
        after_help = "The file is new, and for its owner alone. Keep a copy of an identity elsewhere, and not in the repository. A signing key \
needs no copy: a new one does as well, once readers trust it."
    )]
    Generate(GenerateKeyArgs),

    /// List the configured keys: which is used from when to when
    List(ListKeysArgs),

    /// Show which key is still needed, and for what
    #[command(after_help = "\
Exit code 3 when something needs attention: a key that is about to end without a successor, or backups that no key of today can open. \
Reads the manifest of each backup and the header of each file of WAL, and needs no identity; with --deep, every data key is opened.")]
    Status(StatusKeysArgs),

    /// Bring in the successor of a key, and let the key go on beside it for the overlap
    #[command(after_help = "\
Writes a table [keys.NAME] into the configuration file, and changes nothing else there. Give the new file to every host that backs up; \
then 'backup key rewrap' lets the successor open what is kept.")]
    Rotate(RotateArgs),

    /// Wrap the data keys of what is kept for the recipients of today
    #[command(after_help = "\
Backups and WAL stay as they are: new objects beside them hold their keys. It can be interrupted and run again. Needs an identity that opens \
what is kept. Rewrapping is not revoking: whoever has an old identity can still open what was wrapped for it.")]
    Rewrap(RewrapArgs),

    /// Mark a key that has ended as one that nothing needs any more, once that is proved
    #[command(after_help = "\
Opens the data key of everything that is kept in every configured repository, so it needs an identity; refuses, with exit code 12, while anything could not be opened by \
another key of today. Exit code 3 when unfinished runs may still need it. Then the identity can be destroyed, unless a copy elsewhere needs it.")]
    Retire(RetireArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GenerateKeyArgs {
    /// Where to put the key; must not exist
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,

    /// Make a key to sign with, not one to open backups with
    #[arg(long)]
    pub(crate) signing: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListKeysArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusKeysArgs {
    /// Only what these targets keep [default: all]
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,

    /// Open every data key with the identities at hand: believe nothing that is not proved
    #[arg(long)]
    pub(crate) deep: bool,

    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// The key that gets a successor
    #[arg(value_name = "KEY")]
    pub(crate) predecessor: String,

    /// Public key of the successor
    #[arg(short = 'R', long, value_name = "RECIPIENT")]
    pub(crate) recipient: String,

    /// Name of the successor [default: that of the key, counted on]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// From when on the successor is used, such as 2026-12-01 [default: now]
    #[arg(long, value_name = "TIME")]
    pub(crate) activates: Option<Moment>,

    /// Print the table, and write nothing
    #[arg(long)]
    pub(crate) print: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RewrapArgs {
    /// Only what these targets keep [default: all]
    #[arg(value_name = "TARGET")]
    pub(crate) targets: Vec<String>,

    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    /// Only tell what there is to do
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RetireArgs {
    /// The key
    #[arg(value_name = "KEY")]
    pub(crate) name: String,

    /// Only tell whether it could be
    #[arg(long)]
    pub(crate) dry_run: bool,
}
