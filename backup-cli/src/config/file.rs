//! The configuration file: TOML, every key known, every value with its line.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use backup_core::small_file::SmallFile;
use backup_core::{Error, Result};
use bytesize::ByteSize;
use serde::Deserialize;
use toml::Spanned;

use super::keys::KeyTables;
use super::retention::RetentionTable;
use super::targets::TargetTables;
use crate::args::{CipherName, CodecName};

/// The longest file in bytes; what is longer is something else.
const FILE_LEN_MAX: usize = 1 << 20;

/// Two names are taken for a slip of the finger from this similarity on (1 is equal).
const SIMILAR_ENOUGH: f64 = 0.8;

/// What one file says.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) values: Values,
    text: String,
}

/// The keys of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Values {
    #[serde(default)]
    pub(crate) repository: Repository,
    #[serde(default)]
    pub(crate) repositories: BTreeMap<String, Spanned<Repository>>,
    pub(crate) optional_lag_seconds: Option<Spanned<u64>>,
    pub(crate) recipients: Option<Spanned<Vec<String>>>,
    pub(crate) identity_files: Option<Spanned<Vec<PathBuf>>>,
    pub(crate) identities: Option<Spanned<Vec<String>>>,
    pub(crate) passphrase_file: Option<Spanned<PathBuf>>,
    pub(crate) passphrase_command: Option<Spanned<String>>,
    pub(crate) signing_key_file: Option<Spanned<PathBuf>>,
    pub(crate) trusted_signers: Option<Spanned<Vec<String>>>,
    pub(crate) memory: Option<Spanned<ByteSize>>,
    pub(crate) workers: Option<Spanned<NonZeroUsize>>,
    pub(crate) level: Option<Spanned<i32>>,
    pub(crate) codec: Option<Spanned<CodecName>>,
    pub(crate) cipher: Option<Spanned<CipherName>>,
    #[serde(default)]
    pub(crate) targets: TargetTables,
    #[serde(default)]
    pub(crate) keys: KeyTables,
    #[serde(default)]
    pub(crate) http: Http,
    #[serde(default)]
    pub(crate) retention: RetentionTable,
}

/// `[repository]`, or one of `[repositories.NAME]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table: [repository] with url = \"…\"")]
pub(crate) struct Repository {
    pub(crate) url: Option<Spanned<String>>,
    /// Only of one among several.
    pub(crate) required: Option<Spanned<bool>>,
    pub(crate) capacity: Option<Spanned<ByteSize>>,
    pub(crate) capacity_warning: Option<Spanned<u8>>,
    #[serde(default)]
    pub(crate) s3: S3,
    #[serde(default)]
    pub(crate) azure: Azure,
    #[serde(default)]
    pub(crate) gcs: Gcs,
}

/// `[repository.s3]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct S3 {
    pub(crate) endpoint: Option<Spanned<String>>,
    pub(crate) region: Option<Spanned<String>>,
    pub(crate) path_style: Option<Spanned<bool>>,
    pub(crate) profile: Option<Spanned<String>>,
    pub(crate) sse: Option<Spanned<String>>,
    pub(crate) sse_kms_key_id: Option<Spanned<String>>,
    pub(crate) sse_bucket_key: Option<Spanned<bool>>,
    pub(crate) storage_class: Option<Spanned<String>>,
    pub(crate) checksum: Option<Spanned<String>>,
    pub(crate) request_payer: Option<Spanned<bool>>,
}

/// `[repository.azure]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Azure {
    pub(crate) account: Option<Spanned<String>>,
    pub(crate) endpoint: Option<Spanned<String>>,
    pub(crate) storage_class: Option<Spanned<String>>,
}

/// `[repository.gcs]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gcs {
    pub(crate) endpoint: Option<Spanned<String>>,
    pub(crate) storage_class: Option<Spanned<String>>,
}

/// `[http]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) ssl_min_protocol_version: Option<Spanned<String>>,
    pub(crate) ca_file: Option<Spanned<PathBuf>>,
    pub(crate) proxy: Option<Spanned<String>>,
}

impl ConfigFile {
    /// Reads and parses the file at `path`, which the user named, and so trusts.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let file = SmallFile::open(path).map_err(|e| unreadable(path, e))?;
        Self::read(path, file)
    }

    /// Reads and parses the file at `path`, where one is. Nobody named it, so it must be one that nobody else can have put there: it
    /// says which commands are run, and where backups go.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>> {
        let elsewhere = "name a file with --config or BACKUP_CONFIG";
        let found = SmallFile::find(path).map_err(|e| unreadable(path, e).with_hint(elsewhere))?;
        let Some(file) = found else { return Ok(None) };
        let refused = |why: &str, command: &str| {
            let path = path.display();
            Error::config(format!("the configuration file {path} {why}"))
                .with_hint(format!("{command} {path}, if you trust what it says, or {elsewhere}"))
        };
        if !file.is_ours() {
            return Err(refused("belongs to another user", "chown"));
        }
        match file.mode() {
            Some(mode) if mode & 0o022 == 0 => Self::read(path, file).map(Some),
            Some(mode) => Err(refused(&format!("can be changed by other users (mode {mode:04o})"), "chmod go-w")),
            None => Err(Error::config(format!("{} is not a regular file", path.display())).with_hint(elsewhere)),
        }
    }

    fn read(path: &Path, file: SmallFile) -> Result<Self> {
        let text = file.read(FILE_LEN_MAX).map_err(|e| unreadable(path, e))?;
        Self::parse(path, text.to_string())
    }

    /// Parses the text of the file at `path`.
    pub(crate) fn parse(path: &Path, text: String) -> Result<Self> {
        match toml::from_str(&text) {
            Ok(values) => Ok(Self { path: path.to_owned(), values, text }),
            Err(e) => Err(explain(path, &text, &e)),
        }
    }

    /// The line on which a value stands, counted from 1.
    pub(crate) fn line_of<T>(&self, value: &Spanned<T>) -> usize {
        line_at(&self.text, value.span().start)
    }

    /// A path in the file is relative to the file's own directory.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::config(format!("could not read the configuration file {}", path.display())).with_source(error)
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn explain(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| line_at(text, span.start));
    let at = format!("{}:{line}", path.display());
    // The message of serde's `deny_unknown_fields`: unknown field `x`, expected one of `a`, `b`.
    if let Some(rest) = error.message().strip_prefix("unknown field `") {
        let mut names = rest.split('`').step_by(2);
        let unknown = names.next().unwrap_or_default();
        let known: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
        return Error::config(format!("{at}: unknown key '{unknown}'")).with_hint(suggest(unknown, &known));
    }
    // `bytesize` does not say what it would have liked.
    let message = error.message().trim_end().replace('\n', ", ").replace("parsable string", "a size such as \"64MiB\"");
    Error::config(format!("{at}: {message}"))
}

fn suggest(unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity >= SIMILAR_ENOUGH);
    match nearest {
        Some((_, name)) => format!("did you mean '{name}'?"),
        None => format!("known keys here are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = ConfigFile::parse(Path::new("backup.toml"), text.to_owned()).unwrap_err();
        format!("{error} | {}", error.hint().unwrap_or("-"))
    }

    #[test]
    fn values_are_read_with_their_lines() {
        let text = "level = 9\n\n# comment\nmemory = \"64MiB\"\n[repository]\nurl = \"s3://b/p\"\n[repository.s3]\npath_style = true\n";
        let file = ConfigFile::parse(Path::new("/etc/backup/backup.toml"), text.into()).unwrap();
        let memory = file.values.memory.as_ref().unwrap();
        assert_eq!((memory.as_ref().as_u64(), file.line_of(memory)), (64 << 20, 4));
        let style = file.values.repository.s3.path_style.as_ref().unwrap();
        assert_eq!((*style.as_ref(), file.line_of(style)), (true, 8));
        assert_eq!(file.resolve(Path::new("key.txt")), Path::new("/etc/backup/key.txt"));
        assert_eq!(file.resolve(Path::new("/key.txt")), Path::new("/key.txt"));
    }

    #[test]
    fn a_file_that_others_can_change_is_refused_unless_it_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("backup.toml");
        assert!(ConfigFile::find(&path).unwrap().is_none());
        std::fs::write(&path, "passphrase_command = \"evil\"\n").unwrap();
        for (mode, trusted) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let found = ConfigFile::find(&path);
            assert_eq!(found.is_ok(), trusted, "{mode:o}");
            if let Err(e) = found {
                assert!(e.hint().unwrap().starts_with("chmod go-w"), "{e}");
            }
            ConfigFile::load(&path).unwrap();
        }
        // As after `sudo`, or in /tmp: the other user is nobody.
        let foreign = std::os::unix::fs::chown(&path, Some(65534), None).is_ok();
        if foreign && rustix::process::geteuid().is_root() {
            assert!(ConfigFile::find(&path).unwrap_err().to_string().ends_with("belongs to another user"));
        }
    }

    #[test]
    fn unknown_keys_are_errors_with_the_nearest_name() {
        assert_eq!(
            refused("codec = \"zstd\"\nlevl = 3\n"),
            "backup.toml:2: unknown key 'levl' | did you mean 'level'?"
        );
        assert_eq!(
            refused("[repository.s3]\nend_point = \"x\"\n"),
            "backup.toml:2: unknown key 'end_point' | did you mean 'endpoint'?"
        );
        assert_eq!(
            refused("[repository]\nzzz = 1\n"),
            "backup.toml:2: unknown key 'zzz' | known keys here are url, required, capacity, capacity_warning, s3, azure, gcs"
        );
    }

    #[test]
    fn wrong_values_name_their_line() {
        insta::assert_snapshot!(
            [
                "level = \"high\"\n",
                "\nworkers = 0\n",
                "memory = \"lots\"\n",
                "codec = \"gzip\"\n",
                "repository = \"/var/backups\"\n",
                "level = 1\nlevel = 2\n",
                "level 3\n",
            ]
            .map(refused)
            .join("\n")
        );
    }
}
