//! Settings: flags over environment over file over default, each with the place that it came from.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use backup_core::compress::{Compression, LEVEL_DEFAULT, LEVEL_MAX, LEVEL_MIN};
use backup_core::encrypt::Suite;
use backup_core::keys::secret::SecretSource;
use backup_core::{Error, Result};
use bytesize::ByteSize;
use clap::ValueEnum;
use serde::{Serialize, Serializer};
use toml::Spanned;

use crate::args::{
    CipherName, CodecName, Command, EncodingFlags, Globals, KeyAction, KeyArgs, RecipientFlags, S3Flags, TargetFlag,
    WalAction, WalArgs, byte_size,
};

pub(crate) mod edit;
pub(crate) mod file;
pub(crate) mod keys;
mod repositories;
pub(crate) mod retention;
mod stores;
mod targets;

use file::ConfigFile;
use keys::Keys;
pub(crate) use repositories::{RepositorySetting, StoreKind};
use repositories::{RepositorySettings, Table};
use retention::Retention;
use stores::Http;
pub(crate) use stores::{Azure, Gcs, Stores};
pub(crate) use targets::Target;

/// Where the file is looked for when neither a flag nor the environment names one.
const DEFAULT_FILES: [&str; 2] = ["backup.toml", "/etc/backup/backup.toml"];
/// The same for commands that PostgreSQL runs in its data directory, which is no place for it.
const DEFAULT_FILES_OF_WAL: [&str; 1] = ["/etc/backup/backup.toml"];

/// From how many per cent on a repository is full enough to say so.
pub(crate) const CAPACITY_WARNING: u8 = 80;

/// Where a value came from. The order is that of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File {
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        line: usize,
    },
    /// An environment variable.
    Env { name: &'static str },
    /// A flag.
    Flag { name: &'static str },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { name } | Self::Flag { name } => f.write_str(name),
        }
    }
}

/// A path need not be UTF-8, and JSON must be.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A value, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// Everything that can be configured, merged.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file that was read, if there was one.
    pub(crate) file: Option<PathBuf>,
    pub(crate) repositories: RepositorySettings,
    /// For repositories that no table of their own says more about.
    pub(crate) stores: Stores,
    /// How many seconds an optional repository may keep the others waiting.
    pub(crate) optional_lag: Option<Setting<u64>>,
    pub(crate) http: Http,
    pub(crate) recipients: Option<Setting<Vec<String>>>,
    /// With [`Origin::Default`], the one file where `init` makes a key: it need not exist.
    pub(crate) identity_files: Option<Setting<Vec<PathBuf>>>,
    /// Keys to open with that are not files: `kms:…`, `pkcs11:…`.
    pub(crate) identities: Option<Setting<Vec<String>>>,
    pub(crate) passphrase: Option<Setting<SecretSource>>,
    pub(crate) signing_key_file: Option<Setting<PathBuf>>,
    /// Whose objects are believed; everybody's unless set.
    pub(crate) trusted_signers: Option<Setting<Vec<String>>>,
    pub(crate) memory: Option<Setting<ByteSize>>,
    pub(crate) workers: Option<Setting<NonZeroUsize>>,
    pub(crate) encoding: Encoding,
    /// Which key is used from when to when.
    pub(crate) keys: Keys,
    /// How long what is kept.
    pub(crate) retention: Retention,
    /// What `run` backs up, by name.
    pub(crate) targets: Vec<Target>,
    /// Whose WAL it is about.
    pub(crate) target: Option<Setting<String>>,
}

/// How S3 is reached.
#[derive(Debug, Clone)]
pub(crate) struct S3 {
    pub(crate) endpoint: Option<Setting<String>>,
    pub(crate) region: Option<Setting<String>>,
    pub(crate) path_style: Option<Setting<bool>>,
    /// The profile in `~/.aws` that has the credentials of this repository.
    pub(crate) profile: Option<Setting<String>>,
    pub(crate) sse: Option<Setting<String>>,
    pub(crate) sse_kms_key_id: Option<Setting<String>>,
    pub(crate) sse_bucket_key: Option<Setting<bool>>,
    pub(crate) storage_class: Option<Setting<String>>,
    pub(crate) checksum: Option<Setting<String>>,
    pub(crate) request_payer: Option<Setting<bool>>,
}

/// How data is compressed and encrypted.
#[derive(Debug)]
pub(crate) struct Encoding {
    pub(crate) level: Setting<i32>,
    pub(crate) codec: Setting<CodecName>,
    pub(crate) cipher: Setting<CipherName>,
}

/// The environment variables, as they were at the start.
#[derive(Debug, Default)]
pub(crate) struct Environment(BTreeMap<OsString, OsString>);

/// The names by which one setting is known.
struct Names {
    flag: &'static str,
    env: &'static [&'static str],
}

struct Layers<'a> {
    environment: &'a Environment,
    file: Option<&'a ConfigFile>,
}

impl Config {
    /// Finds and reads the file, and merges it with `globals`, the flags of `command` and the environment.
    pub(crate) fn load(globals: &Globals, command: &Command, environment: &Environment) -> Result<Self> {
        let default_files = match command {
            Command::Wal(_) => &DEFAULT_FILES_OF_WAL[..],
            _ => &DEFAULT_FILES,
        };
        let file = find_file(globals.config.as_deref(), environment, default_files)?;
        Self::merge(globals, command, environment, file.as_ref())
    }

    fn merge(
        globals: &Globals,
        command: &Command,
        environment: &Environment,
        file: Option<&ConfigFile>,
    ) -> Result<Self> {
        let layers = Layers { environment, file };
        let (recipients, encoding) = flags_of(command);
        Ok(Self {
            file: file.map(|f| f.path.clone()),
            repositories: RepositorySettings::merge(&layers, globals)?,
            stores: Stores::merge(&layers, globals, Table::Only)?,
            optional_lag: layers.pick(
                &Names { flag: "--optional-lag", env: &["BACKUP_OPTIONAL_LAG"] },
                globals.optional_lag,
                |v| v.parse().map_err(|e| format!("{e}")),
                |f| f.values.optional_lag_seconds.as_ref(),
            )?,
            http: Http::merge(&layers, &globals.http)?,
            recipients: layers.pick(
                &Names { flag: "--recipient", env: &["BACKUP_RECIPIENTS"] },
                recipients.map(|r| r.recipient.clone()).filter(|r| !r.is_empty()),
                list,
                |f| f.values.recipients.as_ref(),
            )?,
            identity_files: layers.identity_files(globals)?,
            identities: layers.pick(
                &Names { flag: "--identity", env: &["BACKUP_IDENTITIES"] },
                Some(globals.identity.clone()).filter(|keys| !keys.is_empty()),
                list,
                |f| f.values.identities.as_ref(),
            )?,
            passphrase: layers.passphrase(globals)?,
            signing_key_file: layers.signing_key_file(globals)?,
            trusted_signers: layers.pick(
                &Names { flag: "--trusted-signer", env: &["BACKUP_TRUSTED_SIGNERS"] },
                Some(globals.trusted_signer.clone()).filter(|signers| !signers.is_empty()),
                |v| Ok(v.split(',').map(|r| r.trim().to_owned()).filter(|r| !r.is_empty()).collect()),
                |f| f.values.trusted_signers.as_ref(),
            )?,
            memory: layers.pick(
                &Names { flag: "--memory", env: &["BACKUP_MEMORY"] },
                globals.memory,
                byte_size,
                |f| f.values.memory.as_ref(),
            )?,
            workers: layers.pick(
                &Names { flag: "--workers", env: &["BACKUP_WORKERS"] },
                globals.workers,
                |v| v.parse().map_err(|e| format!("{e}")),
                |f| f.values.workers.as_ref(),
            )?,
            encoding: Encoding::merge(&layers, encoding)?,
            keys: file.map_or_else(|| Ok(Keys::default()), keys::keys)?,
            retention: file.map_or_else(|| Ok(Retention::default()), retention::retention)?,
            targets: file.map_or_else(|| Ok(Vec::new()), targets::targets)?,
            target: layers.pick(
                &Names { flag: "--target", env: &["BACKUP_TARGET"] },
                target_flag(command).and_then(|f| f.target.clone()),
                text,
                |_| None,
            )?,
        })
    }

    /// The repositories, at least one of which most commands cannot do without.
    pub(crate) fn repositories(&self) -> Result<&[RepositorySetting]> {
        match &self.repositories.all[..] {
            [] => Err(Error::config("no repository is given").with_hint(
                "name one with --repo, BACKUP_REPO or the configuration file: a directory or s3://bucket/prefix",
            )),
            all => Ok(all),
        }
    }

    /// The repository of this name in the file, or else at this address, which is named by `flag`.
    pub(crate) fn repository_at(&self, given: &str, flag: &'static str) -> RepositorySetting {
        let named = self.repositories.of_file.iter().find(|repository| repository.name.as_deref() == Some(given));
        named.cloned().unwrap_or_else(|| RepositorySetting {
            name: None,
            url: Setting { value: given.to_owned(), origin: Origin::Flag { name: flag } },
            required: true,
            stores: self.stores.clone(),
            capacity: None,
            capacity_warning: Setting { value: CAPACITY_WARNING, origin: Origin::Default },
        })
    }
}

impl S3 {
    fn merge(layers: &Layers<'_>, flags: &S3Flags, table: Table<'_>) -> Result<Self> {
        let profile = layers.in_table(table, |t| t.s3.profile.as_ref());
        // Whose credentials are its own has the rest from there, too.
        let env = |names: &'static [&'static str]| if profile.is_some() { &[][..] } else { names };
        Ok(Self {
            endpoint: layers.pick_of(
                table,
                &Names { flag: "--s3-endpoint", env: env(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]) },
                flags.s3_endpoint.clone(),
                text,
                |t| t.s3.endpoint.as_ref(),
            )?,
            region: layers.pick_of(
                table,
                &Names { flag: "--s3-region", env: env(&["AWS_REGION", "AWS_DEFAULT_REGION"]) },
                flags.s3_region.clone(),
                text,
                |t| t.s3.region.as_ref(),
            )?,
            path_style: layers.pick_of(
                table,
                &Names { flag: "--s3-path-style", env: &[] },
                flags.s3_path_style,
                |v| v.parse().map_err(|e| format!("{e}")),
                |t| t.s3.path_style.as_ref(),
            )?,
            profile,
            sse: layers.plain_of(table, "--sse", flags.sse.clone(), |t| t.s3.sse.as_ref())?,
            sse_kms_key_id: layers
                .plain_of(table, "--sse-kms-key-id", flags.sse_kms_key_id.clone(), |t| t.s3.sse_kms_key_id.as_ref())?,
            sse_bucket_key: layers.in_table(table, |t| t.s3.sse_bucket_key.as_ref()),
            storage_class: layers
                .plain_of(table, "--storage-class", flags.storage_class.clone(), |t| t.s3.storage_class.as_ref())?,
            checksum: layers.in_table(table, |t| t.s3.checksum.as_ref()),
            request_payer: layers.in_table(table, |t| t.s3.request_payer.as_ref()),
        })
    }
}

impl Encoding {
    fn merge(layers: &Layers<'_>, flags: Option<&EncodingFlags>) -> Result<Self> {
        let encoding = Self {
            level: layers
                .pick(
                    &Names { flag: "--level", env: &["BACKUP_LEVEL"] },
                    flags.and_then(|f| f.level),
                    |v| v.parse().map_err(|e| format!("{e}")),
                    |f| f.values.level.as_ref(),
                )?
                .unwrap_or(Setting { value: LEVEL_DEFAULT, origin: Origin::Default }),
            codec: layers
                .pick(
                    &Names { flag: "--codec", env: &["BACKUP_CODEC"] },
                    flags.and_then(|f| f.codec),
                    |v| CodecName::from_str(v, false),
                    |f| f.values.codec.as_ref(),
                )?
                .unwrap_or(Setting { value: CodecName::default(), origin: Origin::Default }),
            cipher: layers
                .pick(
                    &Names { flag: "--cipher", env: &["BACKUP_CIPHER"] },
                    flags.and_then(|f| f.cipher),
                    |v| CipherName::from_str(v, false),
                    |f| f.values.cipher.as_ref(),
                )?
                .unwrap_or(Setting { value: CipherName::default(), origin: Origin::Default }),
        };
        encoding.check_level()?;
        Ok(encoding)
    }

    fn check_level(&self) -> Result<()> {
        let Setting { value, origin } = &self.level;
        if (LEVEL_MIN..=LEVEL_MAX).contains(value) {
            return Ok(());
        }
        Err(Error::config(format!("{origin}: level {value} is not between {LEVEL_MIN} and {LEVEL_MAX}")))
    }

    /// For the pipeline.
    pub(crate) fn compression(&self) -> Compression {
        match self.codec.value {
            CodecName::Zstd => Compression::Zstd(self.level.value),
            CodecName::None => Compression::None,
        }
    }

    /// For the pipeline.
    pub(crate) fn suite(&self) -> Suite {
        match self.cipher.value {
            CipherName::Aes256Gcm => Suite::Aes256Gcm,
            CipherName::ChaCha20Poly1305 => Suite::ChaCha20Poly1305,
        }
    }
}

fn flags_of(command: &Command) -> (Option<&RecipientFlags>, Option<&EncodingFlags>) {
    match command {
        Command::Init(args) => (Some(&args.recipients), None),
        Command::Save(args) => (Some(&args.recipients), Some(&args.encoding)),
        Command::Run(args) => (Some(&args.recipients), Some(&args.encoding)),
        Command::Key(KeyArgs { action: KeyAction::Status(args) }) => (Some(&args.recipients), None),
        Command::Key(KeyArgs { action: KeyAction::Rewrap(args) }) => (Some(&args.recipients), None),
        Command::Wal(WalArgs { action: WalAction::Push(args) }) => (Some(&args.recipients), Some(&args.encoding)),
        Command::Wal(WalArgs { action: WalAction::Receive(args) }) => (Some(&args.recipients), Some(&args.encoding)),
        _ => (None, None),
    }
}

fn target_flag(command: &Command) -> Option<&TargetFlag> {
    let Command::Wal(args) = command else { return None };
    Some(match &args.action {
        WalAction::Push(args) => &args.target,
        WalAction::Fetch(args) => &args.target,
        WalAction::Receive(args) => &args.target,
        WalAction::Check(args) => &args.target,
    })
}

fn text(value: &str) -> Result<String, String> {
    Ok(value.to_owned())
}

/// Where a comma is part of a value, it is written `%2C`.
fn list(value: &str) -> Result<Vec<String>, String> {
    Ok(value.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
}

fn path(value: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(value))
}

fn find_file(flag: Option<&Path>, environment: &Environment, default_files: &[&str]) -> Result<Option<ConfigFile>> {
    if let Some(path) = flag {
        return ConfigFile::load(path).map(Some);
    }
    if let Some(path) = environment.text("BACKUP_CONFIG")? {
        return ConfigFile::load(Path::new(&path)).map(Some);
    }
    for path in default_files {
        if let Some(file) = ConfigFile::find(Path::new(path))? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

impl Layers<'_> {
    /// The value of the highest layer that has one.
    fn pick<T: Clone>(
        &self,
        names: &Names,
        flag: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
        in_file: impl Fn(&ConfigFile) -> Option<&Spanned<T>>,
    ) -> Result<Option<Setting<T>>> {
        if let Some(value) = flag {
            return Ok(Some(Setting { value, origin: Origin::Flag { name: names.flag } }));
        }
        for name in names.env {
            if let Some(value) = self.environment.text(name)? {
                let value =
                    parse(&value).map_err(|e| Error::config(format!("{name}: invalid value '{value}': {e}")))?;
                return Ok(Some(Setting { value, origin: Origin::Env { name } }));
            }
        }
        Ok(self.in_file(in_file))
    }

    /// A text that no variable of the environment holds.
    fn plain(
        &self,
        flag_name: &'static str,
        flag: Option<String>,
        in_file: impl Fn(&ConfigFile) -> Option<&Spanned<String>>,
    ) -> Result<Option<Setting<String>>> {
        self.pick(&Names { flag: flag_name, env: &[] }, flag, text, in_file)
    }

    /// The same of a repository's table.
    fn plain_of(
        &self,
        table: Table<'_>,
        flag_name: &'static str,
        flag: Option<String>,
        in_table: impl Fn(&file::Repository) -> Option<&Spanned<String>>,
    ) -> Result<Option<Setting<String>>> {
        self.pick_of(table, &Names { flag: flag_name, env: &[] }, flag, text, in_table)
    }

    /// What only a repository's table says.
    fn in_table<T: Clone>(
        &self,
        table: Table<'_>,
        in_table: impl Fn(&file::Repository) -> Option<&Spanned<T>>,
    ) -> Option<Setting<T>> {
        self.in_file(|file| in_table(table.of(file)?))
    }

    /// What only the file says.
    fn in_file<T: Clone>(&self, in_file: impl Fn(&ConfigFile) -> Option<&Spanned<T>>) -> Option<Setting<T>> {
        let file = self.file?;
        let value = in_file(file)?;
        let origin = Origin::File { path: file.path.clone(), line: file.line_of(value) };
        Some(Setting { value: value.as_ref().clone(), origin })
    }

    /// The same of a repository's table. What the table of one among several says wins over the environment, which is the same for all of them.
    fn pick_of<T: Clone>(
        &self,
        table: Table<'_>,
        names: &Names,
        flag: Option<T>,
        parse: impl Fn(&str) -> Result<T, String>,
        in_table: impl Fn(&file::Repository) -> Option<&Spanned<T>>,
    ) -> Result<Option<Setting<T>>> {
        let own = self.file.filter(|_| table.is_named()).and_then(|file| table.of(file));
        let names = match own {
            Some(own) if in_table(own).is_some() => &Names { flag: names.flag, env: &[] },
            _ => names,
        };
        self.pick(names, flag, parse, |file| in_table(table.of(file)?))
    }

    fn identity_files(&self, globals: &Globals) -> Result<Option<Setting<Vec<PathBuf>>>> {
        let names = Names { flag: "--identity-file", env: &["BACKUP_IDENTITY_FILE"] };
        let flag = Some(globals.identity_file.clone()).filter(|files| !files.is_empty());
        let picked = self.pick(&names, flag, |v| Ok(vec![PathBuf::from(v)]), |f| f.values.identity_files.as_ref())?;
        match (picked, self.file) {
            (Some(Setting { value, origin: origin @ Origin::File { .. } }), Some(file)) => {
                let value = value.iter().map(|path| file.resolve(path)).collect();
                Ok(Some(Setting { value, origin }))
            }
            (Some(picked), _) => Ok(Some(picked)),
            (None, _) => {
                let default = self.environment.default_identity_file()?;
                Ok(default.map(|path| Setting { value: vec![path], origin: Origin::Default }))
            }
        }
    }

    fn signing_key_file(&self, globals: &Globals) -> Result<Option<Setting<PathBuf>>> {
        let names = Names { flag: "--signing-key-file", env: &["BACKUP_SIGNING_KEY_FILE"] };
        let flag = globals.signing_key_file.clone();
        let mut picked = self.pick(&names, flag, path, |f| f.values.signing_key_file.as_ref())?;
        if let (Some(Setting { value, origin: Origin::File { .. } }), Some(file)) = (&mut picked, self.file) {
            *value = file.resolve(value);
        }
        Ok(picked)
    }

    /// A file and a command can both be named, on different layers: the higher layer wins.
    fn passphrase(&self, globals: &Globals) -> Result<Option<Setting<SecretSource>>> {
        let names = Names { flag: "--passphrase-file", env: &["BACKUP_PASSPHRASE_FILE"] };
        let from_file =
            self.pick(&names, globals.passphrase_file.clone(), path, |f| f.values.passphrase_file.as_ref())?.map(|s| {
                let resolved = match (&s.origin, self.file) {
                    (Origin::File { .. }, Some(file)) => file.resolve(&s.value),
                    _ => s.value,
                };
                Setting { value: SecretSource::File(resolved), origin: s.origin }
            });
        let names = Names { flag: "--passphrase-command", env: &["BACKUP_PASSPHRASE_COMMAND"] };
        let from_command = self
            .pick(&names, globals.passphrase_command.clone(), text, |f| f.values.passphrase_command.as_ref())?
            .map(|s| Setting { value: SecretSource::Command(s.value), origin: s.origin });
        match (from_file, from_command) {
            (Some(a), Some(b)) if a.origin.layer() == b.origin.layer() => Err(Error::config(format!(
                "a passphrase file and a passphrase command are both given ({} and {})",
                a.origin, b.origin
            ))),
            (Some(a), Some(b)) => Ok(Some(if a.origin.layer() > b.origin.layer() { a } else { b })),
            (a, b) => Ok(a.or(b)),
        }
    }
}

impl Origin {
    fn layer(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Env { .. } => 2,
            Self::Flag { .. } => 3,
        }
    }
}

#[cfg(test)]
impl Environment {
    /// One that is made up.
    pub(crate) fn of(variables: &[(&str, &str)]) -> Self {
        Self(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect())
    }
}

impl Environment {
    /// That of this process, with the home directory from the user database where `HOME` is not set.
    pub(crate) fn of_process() -> Self {
        let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        if let (false, Some(home)) = (variables.contains_key(OsStr::new("HOME")), std::env::home_dir()) {
            variables.insert("HOME".into(), home.into_os_string());
        }
        Self(variables)
    }

    /// The value of `name`; an empty one counts as none.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>> {
        match self.0.get(OsStr::new(name)) {
            None => Ok(None),
            Some(value) => {
                let value = value.to_str().ok_or_else(|| Error::config(format!("{name} is not valid UTF-8")))?;
                Ok(Some(value.to_owned()).filter(|v| !v.is_empty()))
            }
        }
    }

    /// Whether `name` is set, to whatever it may be.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(OsStr::new(name)).is_some_and(|value| !value.is_empty())
    }

    fn default_identity_file(&self) -> Result<Option<PathBuf>> {
        let base = match self.text("XDG_CONFIG_HOME")? {
            Some(base) => Some(PathBuf::from(base)),
            None => self.text("HOME")?.map(|home| Path::new(&home).join(".config")),
        };
        Ok(base.map(|base| base.join("backup/identity.txt")))
    }
}

#[cfg(test)]
mod tests;
