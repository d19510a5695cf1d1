//! Where a repository is.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use url::Url;

use super::local::LocalStore;
use super::s3::{self, S3Options};
use super::storage_error;
use crate::durable;
use crate::encrypt::signature::Signer;
use crate::error::{Error, ErrorKind, Result, Stage};

/// The size of parts for stores that are reached over a network: small enough to hold several in memory, large enough
/// that requests cost nothing beside their bytes. With 10,000 parts in an object, which is S3's limit, a volume of 78 GiB.
pub const REMOTE_PART_BYTES: usize = 8 * 1024 * 1024;

/// The size of parts for a local directory, where a write costs a system call and a larger part only memory.
pub const LOCAL_PART_BYTES: usize = 1024 * 1024;

/// Where a repository is: a directory, a bucket, or an object store that an embedder brings.
///
/// Parsed from `/path`, `relative/path`, `file:///path`, `s3://bucket[/prefix]`, or `memory:` (a new, empty store with each parse).
/// Prints as an address, without secrets.
#[derive(Clone)]
pub struct Location {
    place: Place,
    name: String,
    trusted: Vec<Signer>,
}

#[derive(Clone)]
enum Place {
    Directory(PathBuf),
    S3 { bucket: String, prefix: Path, options: S3Options },
    Store { store: Arc<dyn ObjectStore>, part_bytes: usize },
}

/// A store, ready for requests, and how large its parts should be.
pub(super) struct Connection {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) part_bytes: usize,
    /// Whether completing a multipart upload replaces nothing.
    pub(super) publishes_once: bool,
}

impl Connection {
    fn remote(store: Arc<dyn ObjectStore>, part_bytes: usize) -> Self {
        Self { store, part_bytes, publishes_once: false }
    }
}

impl Location {
    /// A directory; a relative path is taken from the present working directory.
    pub fn directory(path: impl AsRef<FilePath>) -> Result<Self> {
        let path = path.as_ref();
        let path = std::path::absolute(path)
            .map_err(|e| Error::config(format!("'{}' is not a usable path", path.display())).with_source(e))?;
        Ok(Self { name: path.display().to_string(), place: Place::Directory(path), trusted: Vec::new() })
    }

    /// An object store of the caller's own, called `name` in messages. Parts are sent in `part_bytes`, such as [`REMOTE_PART_BYTES`].
    /// Wrap the store in a [`PrefixStore`] when the repository is below a prefix.
    pub fn store(store: Arc<dyn ObjectStore>, name: impl Into<String>, part_bytes: usize) -> Self {
        Self { place: Place::Store { store, part_bytes }, name: name.into(), trusted: Vec::new() }
    }

    /// A new, empty store in memory; clones share it.
    pub fn memory() -> Self {
        Self::store(Arc::new(InMemory::new()), "memory:", LOCAL_PART_BYTES)
    }

    /// Replaces how S3 is reached; changes nothing when this is not S3.
    #[must_use]
    pub fn with_s3_options(mut self, s3_options: S3Options) -> Self {
        if let Place::S3 { options, .. } = &mut self.place {
            *options = s3_options;
        }
        self
    }

    /// Whose manifests and WAL are believed of what is there: as [`Repository::trusting`](super::Repository::trusting), for whoever opens it.
    #[must_use]
    pub fn trusting(mut self, signers: impl IntoIterator<Item = Signer>) -> Self {
        self.trusted = signers.into_iter().collect();
        self
    }

    pub(super) fn trusted(&self) -> &[Signer] {
        &self.trusted
    }

    /// The directory, when it is one.
    pub fn as_directory(&self) -> Option<&FilePath> {
        match &self.place {
            Place::Directory(path) => Some(path),
            Place::S3 { .. } | Place::Store { .. } => None,
        }
    }

    /// A connection to what must be there already: a directory is never made, or one that is not mounted would look like an empty repository.
    pub(super) fn connect(&self) -> Result<Connection> {
        match &self.place {
            Place::Directory(path) => {
                let missing = || {
                    Error::new(
                        ErrorKind::NotFound,
                        Stage::Setup,
                        format!("the directory {} does not exist", path.display()),
                    )
                    .with_hint("mount its file system, or run 'backup init' to make a new repository")
                };
                match path.metadata() {
                    Ok(metadata) if metadata.is_dir() => Ok(()),
                    Ok(_) => Err(Error::config(format!("{} is not a directory", path.display()))),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(missing()),
                    Err(e) => Err(unusable(path, e)),
                }?;
                let store = LocalStore::open(path)
                    .map_err(|e| storage_error(e, format!("cannot open {}", path.display())).at(Stage::Setup))?;
                Ok(Connection { store: Arc::new(store), part_bytes: LOCAL_PART_BYTES, publishes_once: true })
            }
            Place::S3 { bucket, prefix, options } => {
                let s3 = s3::connect(bucket, options, &s3::environment()).map_err(|e| e.at(Stage::Setup))?;
                let store: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() {
                    Arc::new(s3)
                } else {
                    Arc::new(PrefixStore::new(s3, prefix.clone()))
                };
                Ok(Connection::remote(store, REMOTE_PART_BYTES))
            }
            Place::Store { store, part_bytes } => Ok(Connection::remote(Arc::clone(store), *part_bytes)),
        }
    }

    /// A connection for `init`: makes the directory, with mode 0700, since names of targets are not for everybody.
    pub(super) fn create(&self) -> Result<Connection> {
        if let Place::Directory(path) = &self.place
            && !path.exists()
        {
            durable::create_private_dir(path).map_err(|e| unusable(path, e))?;
        }
        self.connect()
    }
}

fn unusable(path: &FilePath, error: std::io::Error) -> Error {
    let source = Box::new(error);
    storage_error(
        object_store::Error::Generic { store: "local", source },
        format!("cannot use the directory {}", path.display()),
    )
    .at(Stage::Setup)
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(scheme @ ("s3" | "file" | "az" | "gs" | "http" | "https")) = text.split(':').next()
            && text[scheme.len()..].starts_with(':')
            && !text[scheme.len()..].starts_with("://")
        {
            // As a path it would be a new directory here, and the backups not where they are thought to be.
            return Err(Error::config(format!("after '{scheme}:', the address of a repository goes on with '//'"))
                .with_hint(format!("such as s3://bucket/prefix; a directory of that name is ./{scheme}:…")));
        }
        match text.split_once("://") {
            Some(("s3", rest)) => parse_s3(rest),
            Some(("file", _)) => parse_file(text),
            Some(("az" | "azure" | "abfs" | "abfss", _)) => Err(not_built("Azure Blob Storage")),
            Some(("gs" | "gcs", _)) => Err(not_built("Google Cloud Storage")),
            Some(("http" | "https", _)) => Err(Error::config("a repository is not named by its endpoint").with_hint(
                "use s3://bucket/prefix, and give the endpoint by AWS_ENDPOINT_URL or in the configuration",
            )),
            // The scheme alone is repeated: what follows may hold a secret.
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) => {
                Err(Error::config(format!("repositories at '{scheme}://' are not supported"))
                    .with_hint("use a path, file:// or s3://"))
            }
            _ if text == "memory:" => Ok(Self::memory()),
            // A shell expands it only where it stands first and bare; here it would be a new directory of that name.
            _ if text == "~" || text.starts_with("~/") => {
                Err(Error::config("the '~' of the repository's address was not expanded")
                    .with_hint("write $HOME, or the path in full; a directory of that name is ./~"))
            }
            _ if text.is_empty() => Err(Error::config("the repository's address is empty")),
            _ => Self::directory(text),
        }
    }
}

fn not_built(what: &str) -> Error {
    Error::config(format!("this build has no support for {what}")).with_hint("use a path, file:// or s3://")
}

fn parse_file(text: &str) -> Result<Location> {
    let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
    let Some(path) = path else {
        return Err(Error::config("a file:// address needs an absolute path").with_hint("such as file:///var/backups"));
    };
    Location::directory(path)
}

fn parse_s3(rest: &str) -> Result<Location> {
    let hint = "it looks like s3://bucket or s3://bucket/prefix";
    if rest.contains(['@', '?', '#']) {
        // Not repeated: a secret may stand there.
        return Err(Error::config("an s3:// address holds a bucket and a prefix, nothing else").with_hint(
            "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, never from the address",
        ));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(plain) {
        return Err(Error::config(format!("'{}' cannot name a bucket", bucket.escape_debug())).with_hint(hint));
    }
    let prefix = Path::parse(prefix.trim_matches('/'))
        .map_err(|e| Error::config("the prefix cannot be used in a store").with_source(e).with_hint(hint))?;
    let name = if prefix.as_ref().is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
    Ok(Location {
        place: Place::S3 { bucket: bucket.to_owned(), prefix, options: S3Options::default() },
        name,
        trusted: Vec::new(),
    })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        let here = std::env::current_dir().unwrap();
        for (text, name) in [
            ("/var/backups", "/var/backups"),
            ("file:///var/back%20ups", "/var/back ups"),
            ("./x", &here.join("x").display().to_string()),
            ("x", &here.join("x").display().to_string()),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_cannot_be_an_address_is_refused_without_repeating_secrets() {
        for (text, expected) in [
            ("", "empty"),
            ("az://container", "no support for Azure"),
            ("gs://bucket", "no support for Google"),
            ("https://s3.example/bucket", "endpoint"),
            ("sftp://user:hush@host", "'sftp://' are not supported"),
            ("file://relative/hush", "absolute path"),
            ("s3:/bucket", "goes on with '//'"),
            ("s3:bucket", "goes on with '//'"),
            ("file:/var/backups", "goes on with '//'"),
            ("s3://key:hush@bucket", "nothing else"),
            ("s3://bucket?secret=hush", "nothing else"),
            ("s3://", "cannot name a bucket"),
            ("s3://a b", "cannot name a bucket"),
            ("s3://bucket/a/../b", "cannot be used"),
        ] {
            let error = text.parse::<Location>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(expected), "{text}: {error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn only_init_makes_a_directory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let location = Location::directory(&path).unwrap();
        assert_eq!(location.connect().err().unwrap().kind(), ErrorKind::NotFound);
        assert!(!path.exists());
        location.create().unwrap();
        location.connect().unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        let file = Location::directory(temp.path().join("file")).unwrap();
        assert_eq!(file.create().err().unwrap().kind(), ErrorKind::Config);
    }
}
