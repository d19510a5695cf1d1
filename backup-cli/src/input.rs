//! What is backed up: by the flags of `save`, or as a configured target of `run`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::format::Kind;
use backup_core::pipeline::{Backup, Findings};
use backup_core::postgres::conninfo::ConnInfo;
use backup_core::postgres::dump::DumpOptions;
use backup_core::postgres::wire::{
    BaseBackupOptions, Checkpoint, ConnectOptions, Environment, ManifestChecksums, ServerCompression,
};
use backup_core::repository::layout::TargetName;
use backup_core::source::directory::{DirectoryOptions, DirectorySource};
use backup_core::source::{ClusterOptions, CommandOptions, CommandSource, Method, ReaderSource};
use backup_core::{Error, Result, Stage};
use bytesize::ByteSize;
use serde_json::json;

use crate::App;
use crate::args::{CheckpointName, ChecksumName, MethodName, SaveArgs};
use crate::command::{conninfo, stderr_lines, told};

/// How the flag and the key of the configuration file are called.
const PG_DUMP: &str = "pg_dump";
/// PostgreSQL takes rates in KiB, from 32 to 1,048,576.
const RATE_KIB: std::ops::RangeInclusive<u64> = 32..=1 << 20;

/// Where the data comes from.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Stdin,
    Command(Vec<OsString>),
    Dump(String),
    Directory(PathBuf),
    Cluster(ClusterInput),
}

/// A PostgreSQL cluster, and how it is copied.
#[derive(Debug, Clone)]
pub(crate) struct ClusterInput {
    pub(crate) conninfo: String,
    pub(crate) method: MethodName,
    pub(crate) checkpoint: CheckpointName,
    pub(crate) max_rate: Option<ByteSize>,
    pub(crate) label: Option<String>,
    pub(crate) include_wal: bool,
    pub(crate) verify_checksums: bool,
    pub(crate) manifest_checksums: ChecksumName,
    pub(crate) server_compression: Option<ServerCompression>,
}

impl Input {
    /// What the flags of `save` name.
    pub(crate) fn of_flags(args: &SaveArgs) -> Self {
        let flags = &args.base_backup;
        if let Some(conninfo) = &args.source.base_backup {
            return Self::Cluster(ClusterInput {
                conninfo: conninfo.clone(),
                method: flags.method.unwrap_or_default(),
                checkpoint: flags.checkpoint.unwrap_or_default(),
                max_rate: flags.max_rate,
                label: flags.label.clone(),
                include_wal: !flags.no_wal,
                verify_checksums: !flags.no_verify_checksums,
                manifest_checksums: flags.manifest_checksums.unwrap_or_default(),
                server_compression: flags.server_compression,
            });
        }
        if let Some(conninfo) = &args.source.pg_dump {
            return Self::Dump(conninfo.clone());
        }
        if let Some(path) = &args.source.directory {
            return Self::Directory(path.clone());
        }
        if args.command.is_empty() { Self::Stdin } else { Self::Command(args.command.clone()) }
    }

    /// Opens it, and adds its streams to `backup`.
    pub(crate) async fn add_to(
        &self,
        app: &App,
        target: &TargetName,
        backup: Backup,
        findings: &Findings,
    ) -> Result<Backup> {
        match self {
            Self::Stdin => Ok(backup.kind(Kind::Stream).stream("data".parse()?, ReaderSource::stdin()?)),
            Self::Command(words) => command(app, words, backup),
            Self::Dump(conninfo) => dump(app, conninfo, backup).await,
            Self::Directory(path) => directory(app, path, backup, findings),
            Self::Cluster(cluster) => cluster.add_to(app, target, backup, findings).await,
        }
    }

    /// For people. Shows no secret.
    pub(crate) fn describe(&self) -> String {
        let without_password = |conninfo: &str| {
            ConnInfo::parse(conninfo)
                .map_or_else(|_| "(not a connection string)".to_owned(), |info| info.without_password())
        };
        match self {
            Self::Stdin => "standard input".to_owned(),
            Self::Command(words) => {
                format!("command {}", words.first().map_or("".into(), |word| word.to_string_lossy()))
            }
            Self::Dump(conninfo) => format!("pg_dump {}", without_password(conninfo)),
            Self::Directory(path) => format!("directory {}", path.display()),
            Self::Cluster(cluster) => format!("base_backup {}", without_password(&cluster.conninfo)),
        }
    }

    /// Whether what can be judged without asking anybody is sound.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Dump(text) => conninfo(PG_DUMP, text).map(drop),
            Self::Cluster(cluster) => cluster.connect_options().and_then(|_| cluster.request().map(drop)),
            _ => Ok(()),
        }
    }
}

fn command(app: &App, words: &[OsString], backup: Backup) -> Result<Backup> {
    let (program, arguments) = words.split_first().ok_or_else(|| Error::config("the command is empty"))?;
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let mut options = CommandOptions::default();
    options.stderr = stderr_lines(&app.output);
    let source = CommandSource::spawn_with(command, options)?;
    // The arguments are not remembered: people put passwords there.
    let details = json!({ "program": program.to_string_lossy() });
    Ok(backup.kind(Kind::Command).details(details).stream("data".parse()?, source))
}

async fn dump(app: &App, text: &str, backup: Backup) -> Result<Backup> {
    let options = DumpOptions::new(conninfo(PG_DUMP, text)?);
    let details = serde_json::to_value(options.details().await?)
        .map_err(|e| Error::internal(Stage::Setup, "could not describe the database").with_source(e))?;
    let source = options.source(stderr_lines(&app.output))?;
    Ok(backup.kind(Kind::PgDump).details(details).stream("dump".parse()?, source))
}

fn directory(app: &App, path: &Path, backup: Backup, findings: &Findings) -> Result<Backup> {
    let mut options = DirectoryOptions::default();
    options.on_warning = Some(told(&app.output, findings.warnings()));
    let (tar, index) = DirectorySource::new(path, options)?;
    let details = json!({ "directory": path.to_string_lossy() });
    let backup = backup.kind(Kind::Directory).details(details);
    Ok(backup.stream("data".parse()?, tar).thin_stream("files".parse()?, index))
}

impl ClusterInput {
    async fn add_to(&self, app: &App, target: &TargetName, backup: Backup, findings: &Findings) -> Result<Backup> {
        let label = self.label.clone().unwrap_or_else(|| target.to_string());
        let mut options = ClusterOptions::new(self.connect_options()?, label.clone());
        options.request = BaseBackupOptions { label, ..self.request()? };
        options.include_wal = self.include_wal;
        options.method = match self.method {
            MethodName::Auto => Method::Auto,
            MethodName::Local => Method::Local,
            MethodName::Stream => Method::Stream,
        };
        let output = app.output.clone();
        options.on_warning = Some(Arc::new(move |text| output.warning(text)));
        options.connect(findings).await?.add_to(backup)
    }

    fn connect_options(&self) -> Result<ConnectOptions> {
        ConnectOptions::resolve(&ConnInfo::parse(&self.conninfo)?, &Environment::of_process())
    }

    fn request(&self) -> Result<BaseBackupOptions> {
        let max_rate_kib = self.max_rate.map(|rate| match rate.as_u64() / 1024 {
            kib if RATE_KIB.contains(&kib) => Ok(u32::try_from(kib).unwrap_or(u32::MAX)),
            _ => Err(Error::config(format!("a rate of {rate} a second is not between 32 KiB and 1 GiB"))),
        });
        Ok(BaseBackupOptions {
            checkpoint: match self.checkpoint {
                CheckpointName::Fast => Checkpoint::Fast,
                CheckpointName::Spread => Checkpoint::Spread,
            },
            max_rate_kib: max_rate_kib.transpose()?,
            verify_checksums: self.verify_checksums,
            manifest: Some(match self.manifest_checksums {
                ChecksumName::None => ManifestChecksums::None,
                ChecksumName::Crc32c => ManifestChecksums::Crc32c,
                ChecksumName::Sha224 => ManifestChecksums::Sha224,
                ChecksumName::Sha256 => ManifestChecksums::Sha256,
                ChecksumName::Sha384 => ManifestChecksums::Sha384,
                ChecksumName::Sha512 => ManifestChecksums::Sha512,
            }),
            compression: self.server_compression,
            ..BaseBackupOptions::default()
        })
    }
}
