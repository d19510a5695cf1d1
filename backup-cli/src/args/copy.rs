//! What can be given to `copy`.

use clap::Args;

pub(crate) const EXAMPLES: &str = "\
Examples:
  backup copy --to s3://second-site/backups
  backup copy --from s3://primary/backups --to /mnt/safe --target app
  backup copy --to /mnt/usb app@2026-11-20

Copies what the other repository lacks, as it is stored: no key is needed, and none is used. What is there already is compared and left; \
nothing is replaced or removed. Both repositories must exist: 'backup init' makes one.";

#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// Only these backups, and what they cannot be restored without: an id, a target's latest, TARGET@DATE
    #[arg(value_name = "REF", conflicts_with = "target")]
    pub(crate) references: Vec<String>,

    /// The repository to copy from, by its address or configured name [default: the configured one]
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,

    /// The repository to bring up to date, by its address or configured name
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,

    /// Only what this target keeps: its backups, their pins, its WAL, its rewrapped keys; repeatable
    #[arg(short, long, value_name = "NAME")]
    pub(crate) target: Vec<String>,

    /// Take what is there with the same size for the same, and do not compare digests
    #[arg(long)]
    pub(crate) quick: bool,

    /// Only tell what there is to do
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
