//! The command line: flags become plain structs here, and mean nothing yet.
//!
//! Environment variables are not clap's business: [`crate::config`] merges flags, environment and file, and remembers
//! where each value came from.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use backup_core::repository::verify::Sample;
use bytesize::ByteSize;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use serde::{Deserialize, Serialize};

mod age;
mod copy;
mod key;
mod prune;
mod restore;
mod save;
mod stores;
mod wal;

pub(crate) use age::{AgeFlag, AgeLimit};
pub(crate) use copy::CopyArgs;
pub(crate) use key::{
    GenerateKeyArgs, KeyAction, KeyArgs, ListKeysArgs, RetireArgs, RewrapArgs, RotateArgs, StatusKeysArgs,
};
pub(crate) use prune::{PinArgs, PruneArgs, UnpinArgs};
pub(crate) use restore::{ArchiveModeFlag, ClusterFlags, RestoreArgs, TargetActionFlag};
pub(crate) use save::{CheckpointName, ChecksumName, EncodingFlags, MethodName, RunArgs, SaveArgs, server_compression};
pub(crate) use stores::{AzureFlags, GcsFlags, HttpFlags};
pub(crate) use wal::{CheckArgs, FetchArgs, PushArgs, ReceiveArgs, TargetFlag, WalAction, WalArgs};

/// What `backup` was asked to do.
#[derive(Debug, Parser)]
#[command(
    name = "backup",
    version,
    about = "Back up databases to object storage, and prove that they can be restored",
    after_help = FIRST_STEPS,
    after_long_help = ENVIRONMENT,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Parses the arguments of the process, its name first.
    pub(crate) fn parse_all(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.collect();
        let ends_in_dashes = arguments.last().is_some_and(|last| last == "--");
        let cli = Self::try_parse_from(arguments)?;
        match &cli.command {
            // To clap this is no command at all, and we would wait for standard input; to the user a variable was empty.
            Command::Save(save) if save.command.first().map_or(ends_in_dashes, |program| program.is_empty()) => {
                let message = "the command after '--' is empty";
                Err(Self::command().error(clap::error::ErrorKind::MissingRequiredArgument, message))
            }
            _ => Ok(cli),
        }
    }
}

const FIRST_STEPS: &str = "\
First steps:
  export BACKUP_REPO=/var/backups        # or s3://bucket/prefix
  backup init
  backup save app --pg-dump dbname=app
  backup list
  backup restore app --into dbname=app_copy";

const ENVIRONMENT: &str = "\
First steps:
  export BACKUP_REPO=/var/backups        # or s3://bucket/prefix
  backup init
  backup save app --pg-dump dbname=app
  backup list
  backup restore app --into dbname=app_copy

Values come from flags, else from the environment, else from the configuration file, else from defaults; \
'backup config show' tells which. S3 credentials come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, \
AWS_SESSION_TOKEN, or web identity, and those of AWS KMS too; Azure's from AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY and the like; \
Google's from GOOGLE_APPLICATION_CREDENTIALS; PostgreSQL's from libpq's environment, service and password files.

Exit codes:
  0  done                          10  not found
  1  failed                        11  storage unavailable or failing
  2  usage or configuration        12  no key, or a wrong one
  3  done, with warnings           13  stored data is damaged, or not trusted
                                  130  interrupted";

/// Flags that every command takes.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Repository: a directory, s3://, az:// or gs://bucket/prefix, or a configured name; repeatable [env: BACKUP_REPO, comma separated]
    #[arg(short, long, global = true, value_name = "URL")]
    pub(crate) repo: Vec<String>,

    /// How many seconds an optional repository may keep the others waiting [env: BACKUP_OPTIONAL_LAG] [default: 30; of wal 10]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) optional_lag: Option<u64>,

    /// Configuration file [env: BACKUP_CONFIG] [default: ./backup.toml, but for WAL, then /etc/backup/backup.toml]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// File with age identities (secret keys); repeatable [env: BACKUP_IDENTITY_FILE] [default: ~/.config/backup/identity.txt]
    #[arg(short, long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) identity_file: Vec<PathBuf>,

    /// Key to open with that is not a file: kms:arn:… or pkcs11:…; repeatable [env: BACKUP_IDENTITIES, comma separated]
    #[arg(long, global = true, value_name = "KEY", hide_short_help = true)]
    pub(crate) identity: Vec<String>,

    /// File with a passphrase to encrypt to and to open with [env: BACKUP_PASSPHRASE_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "passphrase_command")]
    pub(crate) passphrase_file: Option<PathBuf>,

    /// Shell command that prints the passphrase [env: BACKUP_PASSPHRASE_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND", hide_short_help = true)]
    pub(crate) passphrase_command: Option<String>,

    /// File with the key to sign with what is written [env: BACKUP_SIGNING_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    pub(crate) signing_key_file: Option<PathBuf>,

    /// Believe only what this signer wrote, ed25519:…; repeatable [env: BACKUP_TRUSTED_SIGNERS, comma separated]
    #[arg(long, global = true, value_name = "KEY", hide_short_help = true)]
    pub(crate) trusted_signer: Vec<String>,

    /// The most memory to use for data, such as 64MiB [env: BACKUP_MEMORY]
    #[arg(long, global = true, value_name = "SIZE", hide_short_help = true, value_parser = byte_size, allow_negative_numbers = true)]
    pub(crate) memory: Option<ByteSize>,

    /// Threads that compress and encrypt [env: BACKUP_WORKERS] [default: one for each core, at most 4]
    #[arg(long, global = true, value_name = "N", hide_short_help = true, allow_negative_numbers = true)]
    pub(crate) workers: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) s3: S3Flags,

    #[command(flatten)]
    pub(crate) azure: AzureFlags,

    #[command(flatten)]
    pub(crate) gcs: GcsFlags,

    #[command(flatten)]
    pub(crate) http: HttpFlags,

    /// Print only errors and warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Say more; -vv for debugging [env: BACKUP_LOG, a tracing filter]
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Show no progress
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) no_progress: bool,

    /// When to colour messages: auto, always or never; NO_COLOR is honoured
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        help_heading = "Global options",
        hide_short_help = true
    )]
    pub(crate) color: ColorWhen,
}

/// Where the S3 service is, when it is not the one that the URL and the region imply.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct S3Flags {
    /// Address of an S3-compatible service [env: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL]
    #[arg(long, global = true, value_name = "URL", value_hint = ValueHint::Url, hide_short_help = true)]
    pub(crate) s3_endpoint: Option<String>,

    /// S3 region [env: AWS_REGION, AWS_DEFAULT_REGION] [default: the AWS profile's, or us-east-1]
    #[arg(long, global = true, value_name = "REGION", hide_short_help = true)]
    pub(crate) s3_region: Option<String>,

    /// Whether the bucket stands in the path, not in the host name [default: true with an endpoint of your own]
    #[arg(long, global = true, value_name = "BOOL", hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_short_help = true)]
    pub(crate) s3_path_style: Option<bool>,

    /// How S3 encrypts what it keeps: AES256, aws:kms or aws:kms:dsse [default: as the bucket is set]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) sse: Option<String>,

    /// Key of AWS KMS that S3 encrypts with [default: aws/s3]
    #[arg(long, global = true, value_name = "KEY", hide_short_help = true)]
    pub(crate) sse_kms_key_id: Option<String>,

    /// Class or tier in which the store keeps volumes of backups, such as STANDARD_IA [default: as the bucket is set]
    #[arg(long, global = true, value_name = "CLASS", hide_short_help = true)]
    pub(crate) storage_class: Option<String>,
}

/// Parses a size; `bytesize` does not say what it would have liked.
pub(crate) fn byte_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "a size looks like 64MiB".to_owned())
}

/// Parses a share in percent.
fn share(text: &str) -> Result<Sample, String> {
    let percent = text.trim_end_matches('%').trim_end().parse().map_err(|_| "a share looks like 10%".to_owned())?;
    Sample::percent(percent).map_err(|e| e.to_string())
}

/// When to colour messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the repository and, if none is configured, a key
    #[command(after_help = "\
Examples:
  backup init --repo /var/backups
  backup init --repo s3://bucket/prefix --recipient age1…    # a host that can write and not read

With no recipient, no passphrase and no --identity, a key is made in ~/.config/backup/identity.txt, unless it is there already. \
Running it again changes nothing.")]
    Init(InitArgs),

    /// Back up standard input, a command's output, a database, a cluster or a directory
    #[command(after_help = "\
Examples:
  pg_dump app | backup save app
  backup save app --pg-dump 'host=db1 dbname=app'
  backup save db1 --base-backup 'host=db1 user=backup'
  backup save etc --directory /etc
  backup save users --level 9 -- mysqldump --single-transaction users

The new backup's id is printed on standard output, and nothing else is. A command or pg_dump that fails makes \
no backup; in 'a | backup save', the shell hides the failure of 'a' from us: prefer '-- COMMAND'. The command's own standard input is empty; in 'a | backup save NAME -- COMMAND', nobody reads what 'a' \
writes. PostgreSQL's password comes from PGPASSFILE or a service, not from CONNINFO, which others see in the list of processes.")]
    Save(SaveArgs),

    /// Back up the configured targets
    #[command(after_help = "\
Targets are tables of the configuration file:
  [targets.app]
  base_backup = \"host=db1 user=backup\"
  [targets.orders]
  pg_dump = \"host=db1 dbname=orders\"

They are backed up one after the other; that one fails does not stop the others.")]
    Run(RunArgs),

    /// List backups by target, the latest last
    List(ListArgs),

    /// Show what is known about one backup
    #[command(after_help = REFERENCES)]
    Show(ShowArgs),

    /// Restore a backup to a directory, standard output or a database
    #[command(after_help = restore::EXAMPLES)]
    Restore(RestoreArgs),

    /// Check stored backups; with --deep, decrypt and decompress all of them
    #[command(after_help = "\
Without --deep no key is needed: all objects must be there, with their sizes and digests. With --deep every byte is \
decrypted, authenticated and decompressed; archives must be whole, and the files of a base backup those of PostgreSQL's own manifest. Of a base \
backup, the log must lead to where it is consistent.")]
    Verify(VerifyArgs),

    /// Bring another repository up to date, without keys
    #[command(after_help = copy::EXAMPLES)]
    Copy(CopyArgs),
    /// Remove backups and log that no rule keeps, and leftovers of runs that died
    #[command(after_help = prune::EXAMPLES)]
    Prune(PruneArgs),

    /// Keep a backup whatever the rules say
    #[command(after_help = REFERENCES)]
    Pin(PinArgs),

    /// Remove all pins of a backup
    #[command(after_help = REFERENCES)]
    Unpin(UnpinArgs),

    /// Archive PostgreSQL's write-ahead log, and bring it back
    #[command(after_help = wal::EXAMPLES)]
    Wal(WalArgs),

    /// Look after keys: who can read what, until when, and what comes next
    #[command(after_help = key::EXAMPLES)]
    Key(KeyArgs),

    /// Check or show the configuration
    Config(ConfigArgs),

    /// Print manual pages or shell completions
    #[command(after_help = "\
Examples:
  backup generate bash > /etc/bash_completion.d/backup
  backup generate man --dir /usr/local/share/man/man1")]
    Generate(GenerateArgs),
}

const REFERENCES: &str = "\
A backup is named by its id or a unique part of the id's beginning or of its random half; by its target's name, \
which means that target's latest; by TARGET@DATE, the latest of that day or before; or by 'latest', if the repository holds \
one target.";

/// Whom to encrypt to.
#[derive(Debug, Args)]
pub(crate) struct RecipientFlags {
    /// Key to encrypt to: age1…, kms:arn:… or pkcs11:…; repeatable [env: BACKUP_RECIPIENTS, comma separated] [default: those of the identities]
    #[arg(short = 'R', long, value_name = "KEY")]
    pub(crate) recipient: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) recipients: RecipientFlags,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How chunks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CodecName {
    /// Zstandard.
    #[default]
    Zstd,
    /// Stored as they are.
    None,
}

/// How chunks are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize, Serialize)]
pub(crate) enum CipherName {
    /// The default.
    #[default]
    #[value(name = "aes-256-gcm")]
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// For machines without AES instructions.
    #[value(name = "chacha20-poly1305")]
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only backups of this target
    pub(crate) target: Option<String>,

    /// List what was done instead: runs of the last 30 days, with who did it
    #[arg(long)]
    pub(crate) runs: bool,

    /// Show how much is stored, by target and kind, and how much room there is
    #[arg(long, conflicts_with = "runs")]
    pub(crate) usage: bool,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Which backup: an id, a target, TARGET@DATE or 'latest'
    #[arg(value_name = "REF")]
    pub(crate) reference: String,

    #[command(flatten)]
    pub(crate) age: AgeFlag,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Which backup: an id, a target, TARGET@DATE or 'latest'
    #[arg(value_name = "REF", default_value = "latest", conflicts_with = "all")]
    pub(crate) reference: String,

    /// Check every backup in the repository, and all WAL
    #[arg(long)]
    pub(crate) all: bool,

    /// Decrypt and decompress too; needs an identity or the passphrase
    #[arg(long)]
    pub(crate) deep: bool,

    /// Read only this share of the objects, chosen at random, such as 10%; of all others check presence, and size where it is recorded
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "deep")]
    pub(crate) sample: Option<Sample>,

    #[command(flatten)]
    pub(crate) age: AgeFlag,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Check the configuration without touching the repository
    Check,
    /// Show each setting and where its value came from
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What to print
    pub(crate) what: Artifact,

    /// Write manual pages for all commands into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

/// What `backup generate` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Artifact {
    /// Manual pages.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
}
