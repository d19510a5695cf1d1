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

use super::azure::{self, AzureOptions};
use super::environment::environment;
use super::gcs::{self, GcsOptions};
use super::local::LocalStore;
use super::remote::{RemoteStore, check_storage_class};
use super::s3::{self, S3Options};
use super::storage_error;
use super::uploads::Uploads;
use crate::durable;
use crate::encrypt::signature::Signer;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::http::HttpOptions;

/// The size of parts for stores that are reached over a network: small enough to hold several in memory, large enough
/// that requests cost nothing beside their bytes. With 10,000 parts in an object, which is S3's limit, a volume of 78 GiB.
pub const REMOTE_PART_BYTES: usize = 8 * 1024 * 1024;

/// The size of parts for a local directory, where a write costs a system call and a larger part only memory.
pub const LOCAL_PART_BYTES: usize = 1024 * 1024;

/// Where a repository is: a directory, a bucket, or an object store that an embedder brings.
///
/// Parsed from `/path`, `relative/path`, `file:///path`, `s3://bucket[/prefix]`, `az://container[/prefix]`, `gs://bucket[/prefix]`, or `memory:`
/// (a new, empty store with each parse).
/// Prints as an address, without secrets.
#[derive(Clone)]
pub struct Location {
    place: Place,
    name: String,
    trusted: Vec<Signer>,
    http: HttpOptions,
}

#[derive(Clone)]
enum Place {
    Directory(PathBuf),
    Bucket { bucket: String, prefix: Path, provider: Provider },
    Store { store: Arc<dyn ObjectStore>, part_bytes: usize },
}

/// Whose bucket, or container, it is.
#[derive(Clone)]
enum Provider {
    S3(S3Options),
    Azure(AzureOptions),
    Gcs(GcsOptions),
}

/// A store, ready for requests, and how large its parts should be.
pub(super) struct Connection {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) part_bytes: usize,
    /// Whether completing a multipart upload replaces nothing.
    pub(super) publishes_once: bool,
    /// Uploads that nobody completed, where the store keeps them and is asked for them.
    pub(super) uploads: Option<Uploads>,
}

impl Connection {
    fn remote(store: impl ObjectStore, storage_class: Option<&str>, part_bytes: usize) -> Self {
        let store = Arc::new(RemoteStore::new(store, storage_class.map(str::to_owned)));
        Self { store, part_bytes, publishes_once: false, uploads: None }
    }

    fn bucket(store: impl ObjectStore, prefix: &Path, storage_class: Option<&str>) -> Self {
        if prefix.as_ref().is_empty() {
            return Self::remote(store, storage_class, REMOTE_PART_BYTES);
        }
        Self::remote(PrefixStore::new(store, prefix.clone()), storage_class, REMOTE_PART_BYTES)
    }

    fn with_uploads(self, uploads: Uploads, prefix: &Path) -> Self {
        Self { uploads: Some(uploads.below(prefix)), ..self }
    }
}

impl Location {
    /// A directory; a relative path is taken from the present working directory.
    pub fn directory(path: impl AsRef<FilePath>) -> Result<Self> {
        let path = path.as_ref();
        let path = std::path::absolute(path)
            .map_err(|e| Error::config(format!("'{}' is not a usable path", path.display())).with_source(e))?;
        Ok(Self::at(path.display().to_string(), Place::Directory(path)))
    }

    /// An object store of the caller's own, called `name` in messages. Parts are sent in `part_bytes`, such as [`REMOTE_PART_BYTES`].
    /// Wrap the store in a [`PrefixStore`] when the repository is below a prefix.
    pub fn store(store: Arc<dyn ObjectStore>, name: impl Into<String>, part_bytes: usize) -> Self {
        Self::at(name.into(), Place::Store { store, part_bytes })
    }

    fn at(name: String, place: Place) -> Self {
        Self { place, name, trusted: Vec::new(), http: HttpOptions::default() }
    }

    /// A new, empty store in memory; clones share it.
    pub fn memory() -> Self {
        Self::store(Arc::new(InMemory::new()), "memory:", LOCAL_PART_BYTES)
    }

    /// Replaces how S3 is reached; changes nothing when this is not S3.
    #[must_use]
    pub fn with_s3_options(mut self, s3_options: S3Options) -> Self {
        if let Place::Bucket { provider: Provider::S3(options), .. } = &mut self.place {
            *options = s3_options;
        }
        self
    }

    /// Replaces how Azure Blob Storage is reached; changes nothing when this is not there.
    #[must_use]
    pub fn with_azure_options(mut self, azure_options: AzureOptions) -> Self {
        if let Place::Bucket { provider: Provider::Azure(options), .. } = &mut self.place {
            *options = azure_options;
        }
        self
    }

    /// Replaces how Google Cloud Storage is reached; changes nothing when this is not there.
    #[must_use]
    pub fn with_gcs_options(mut self, gcs_options: GcsOptions) -> Self {
        if let Place::Bucket { provider: Provider::Gcs(options), .. } = &mut self.place {
            *options = gcs_options;
        }
        self
    }

    /// Replaces how HTTP is spoken to a bucket; changes nothing for other places.
    #[must_use]
    pub fn with_http_options(mut self, http: HttpOptions) -> Self {
        self.http = http;
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
            Place::Bucket { .. } | Place::Store { .. } => None,
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
                Ok(Connection {
                    store: Arc::new(store),
                    part_bytes: LOCAL_PART_BYTES,
                    publishes_once: true,
                    uploads: None,
                })
            }
            Place::Bucket { bucket, prefix, provider } => {
                self.connect_bucket(bucket, prefix, provider).map_err(|e| e.at(Stage::Setup))
            }
            Place::Store { store, part_bytes } => Ok(Connection::remote(Arc::clone(store), None, *part_bytes)),
        }
    }

    fn connect_bucket(&self, bucket: &str, prefix: &Path, provider: &Provider) -> Result<Connection> {
        let (http, environment) = (&self.http, environment());
        let class = match provider {
            Provider::S3(options) => options.storage_class.as_deref(),
            Provider::Azure(options) => options.storage_class.as_deref(),
            Provider::Gcs(options) => options.storage_class.as_deref(),
        };
        class.map(check_storage_class).transpose()?;
        Ok(match provider {
            Provider::S3(options) => {
                let (store, uploads) = s3::connect(bucket, options, http, &environment)?;
                Connection::bucket(store, prefix, class).with_uploads(uploads, prefix)
            }
            Provider::Azure(options) => {
                Connection::bucket(azure::connect(bucket, options, http, &environment)?, prefix, class)
            }
            Provider::Gcs(options) => {
                let (store, uploads) = gcs::connect(bucket, options, http, &environment)?;
                Connection::bucket(store, prefix, class).with_uploads(uploads, prefix)
            }
        })
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
            Some((scheme @ ("s3" | "az" | "gs"), rest)) => parse_bucket(scheme, rest),
            Some(("file", _)) => parse_file(text),
            Some(("azure" | "abfs" | "abfss" | "adl" | "wasb" | "wasbs", _)) => {
                Err(Error::config("containers of Azure Blob Storage are at az://").with_hint(AZURE.hint()))
            }
            Some(("gcs", _)) => {
                Err(Error::config("buckets of Google Cloud Storage are at gs://").with_hint(GCS.hint()))
            }
            Some(("http" | "https", _)) => Err(Error::config("a repository is not named by its endpoint").with_hint(
                "use s3://bucket/prefix, and give the endpoint by AWS_ENDPOINT_URL or in the configuration",
            )),
            // The scheme alone is repeated: what follows may hold a secret.
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) => {
                Err(Error::config(format!("repositories at '{scheme}://' are not supported"))
                    .with_hint("use a path, file://, s3://, az:// or gs://"))
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

fn parse_file(text: &str) -> Result<Location> {
    let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
    let Some(path) = path else {
        return Err(Error::config("a file:// address needs an absolute path").with_hint("such as file:///var/backups"));
    };
    Location::directory(path)
}

/// What an address of a bucket looks like, for messages.
struct Scheme {
    name: &'static str,
    bucket: &'static str,
    credentials: &'static str,
}

const S3: Scheme =
    Scheme { name: "s3", bucket: "bucket", credentials: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE" };
const AZURE: Scheme = Scheme {
    name: "az",
    bucket: "container",
    credentials: "AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or AZURE_STORAGE_CONNECTION_STRING",
};
const GCS: Scheme = Scheme { name: "gs", bucket: "bucket", credentials: "GOOGLE_APPLICATION_CREDENTIALS" };

impl Scheme {
    fn hint(&self) -> String {
        let Self { name, bucket, .. } = self;
        format!("it looks like {name}://{bucket} or {name}://{bucket}/prefix")
    }
}

fn parse_bucket(name: &str, rest: &str) -> Result<Location> {
    let (scheme, provider) = match name {
        "az" => (AZURE, Provider::Azure(AzureOptions::default())),
        "gs" => (GCS, Provider::Gcs(GcsOptions::default())),
        _ => (S3, Provider::S3(S3Options::default())),
    };
    let Scheme { name, bucket: what, credentials } = scheme;
    if rest.contains(['@', '?', '#']) {
        // Not repeated: a secret may stand there.
        let article = if name == "gs" { "a" } else { "an" };
        let message = format!("{article} {name}:// address holds a {what} and a prefix, nothing else");
        return Err(
            Error::config(message).with_hint(format!("credentials come from {credentials}, never from the address"))
        );
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    // Google's may have dots, and are longer then.
    let len_max = if name == "gs" { 222 } else { 63 };
    if !(3..=len_max).contains(&bucket.len()) || !bucket.chars().all(plain) {
        let message = format!("'{}' cannot name a {what}", bucket.escape_debug());
        return Err(Error::config(message).with_hint(scheme.hint()));
    }
    let prefix = Path::parse(prefix.trim_matches('/'))
        .map_err(|e| Error::config("the prefix cannot be used in a store").with_source(e).with_hint(scheme.hint()))?;
    let address = format!("{name}://{bucket}");
    let address = if prefix.as_ref().is_empty() { address } else { format!("{address}/{prefix}") };
    Ok(Location::at(address, Place::Bucket { bucket: bucket.to_owned(), prefix, provider }))
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
            ("az://container/a/", "az://container/a"),
            ("gs://my.bucket.example", "gs://my.bucket.example"),
            ("memory:", "memory:"),
        ] {
            assert_eq!(text.parse::<Location>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_cannot_be_an_address_is_refused_without_repeating_secrets() {
        for (text, expected) in [
            ("", "empty"),
            ("abfss://container@account.dfs.core.windows.net", "are at az://"),
            ("gcs://bucket", "are at gs://"),
            ("az://hush@container", "a container and a prefix, nothing else"),
            ("az://container?sig=hush", "nothing else"),
            ("gs://hush@bucket", "a gs:// address holds"),
            ("gs://no", "cannot name a bucket"),
            ("az:container", "goes on with '//'"),
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
