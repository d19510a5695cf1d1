//! S3 and everything that speaks it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key, Checksum};
use url::Url;

use super::aws_profile::Profile;
use super::endpoint::{Endpoint, parse_endpoint};
use super::environment::Environment;
use super::storage_error;
use super::uploads::{Access, Uploads};
use crate::error::{Error, Result};
use crate::http::{self, Connector, HttpOptions};

/// How to reach an S3 store, beside its URL. Credentials are not here: they come the way AWS's own tools find them, from the
/// environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`), web identity
/// (`AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`), static keys of `AWS_PROFILE` in `~/.aws`, a container's or a machine's role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Options {
    /// `https://host[:port]`; an `http://` endpoint is taken as it is. Otherwise `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the
    /// profile's `endpoint_url`, or AWS itself.
    pub endpoint: Option<String>,
    /// The region; otherwise `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's `region`, or `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket's name goes into the path (`host/bucket`) instead of the host (`bucket.host`). Otherwise: into the
    /// path with an endpoint of one's own and for names with dots, which no certificate covers; into the host at AWS.
    pub path_style: Option<bool>,
    /// The profile in `~/.aws` that has the credentials, the region and the endpoint, whatever the environment says: for one of several stores.
    pub profile: Option<String>,
    /// How the store encrypts what it keeps. Otherwise as the bucket is set.
    pub encryption: Option<S3Encryption>,
    /// The class in which volumes of backups are kept, such as `STANDARD_IA`. Otherwise as the bucket is set.
    ///
    /// All else stays as the bucket is set: manifests and documents, which are small and read often, and WAL, which is gone before the least time
    /// for which other classes are paid.
    pub storage_class: Option<String>,
    /// Which checksum comes with each object and part. Otherwise CRC-64/NVME where the store is AWS's or the endpoint has no TLS, unless
    /// `AWS_REQUEST_CHECKSUM_CALCULATION` is `WHEN_REQUIRED`; else none, since there are stores that know none.
    pub checksum: Option<S3Checksum>,
    /// Pays for requests to a bucket whose owner lets others pay.
    pub request_payer: bool,
}

/// Who encrypts what S3 keeps, beside us: with which kind of key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Encryption {
    /// SSE-S3: keys of the store's own.
    Aes256,
    /// SSE-KMS: a key of AWS KMS.
    Kms {
        /// The key's ARN or id; otherwise `aws/s3`, the account's own for S3.
        key_id: Option<String>,
        /// Whether the bucket asks KMS, and not each object; otherwise as the bucket is set.
        bucket_key: Option<bool>,
        /// Twice, independently (DSSE-KMS).
        dual_layer: bool,
    },
}

/// A checksum that S3 compares, and keeps with the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Checksum {
    /// `none`.
    None,
    /// `crc64nvme`: what AWS recommends.
    Crc64Nvme,
    /// `sha256`: for stores that do not know the other; costs more than encrypting.
    Sha256,
}

impl FromStr for S3Checksum {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::None),
            "crc64nvme" => Ok(Self::Crc64Nvme),
            "sha256" => Ok(Self::Sha256),
            _ => Err(Error::config("a checksum for S3 is crc64nvme, sha256 or none")),
        }
    }
}

impl fmt::Display for S3Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Crc64Nvme => "crc64nvme",
            Self::Sha256 => "sha256",
        })
    }
}

impl S3Encryption {
    /// From the name that S3 has for it, `AES256`, `aws:kms` or `aws:kms:dsse`, and what goes with it.
    ///
    /// # Errors
    /// `Config` when there is no such name, and when a key is named that it has no use for.
    pub fn new(name: &str, key_id: Option<String>, bucket_key: Option<bool>) -> Result<Self> {
        let dual_layer = name == "aws:kms:dsse";
        match name {
            "AES256" if key_id.is_some() || bucket_key.is_some() => Err(Error::config(
                "encryption AES256 is that with keys of the store's own, and a key of KMS is named for it",
            )
            .with_hint("aws:kms is the encryption with a key of KMS")),
            "AES256" => Ok(Self::Aes256),
            // Each object's own key is what the second layer is for.
            "aws:kms:dsse" if bucket_key.is_some() => Err(Error::config("encryption aws:kms:dsse has no bucket keys")),
            "aws:kms" | "aws:kms:dsse" => Ok(Self::Kms { key_id, bucket_key, dual_layer }),
            _ => Err(Error::config("encryption by an S3 store is AES256, aws:kms or aws:kms:dsse").with_hint(
                "keys that are sent with each request (SSE-C) are not supported: data is sealed before it is sent",
            )),
        }
    }

    fn apply(&self, builder: AmazonS3Builder) -> Result<AmazonS3Builder> {
        let mut settings = Vec::new();
        match self {
            Self::Aes256 => settings.push(("aws_server_side_encryption", "AES256".to_owned())),
            Self::Kms { key_id, bucket_key, dual_layer } => {
                let name = if *dual_layer { "aws:kms:dsse" } else { "aws:kms" };
                settings.push(("aws_server_side_encryption", name.to_owned()));
                settings.extend(key_id.clone().map(|id| ("aws_sse_kms_key_id", id)));
                settings.extend(bucket_key.map(|is| ("aws_sse_bucket_key_enabled", is.to_string())));
            }
        }
        settings.into_iter().try_fold(builder, |builder, (name, value)| {
            // The keys have a type that cannot be named.
            let key = name.parse::<Key>().map_err(|e| storage_error(e, "cannot set the store's encryption"))?;
            Ok(builder.with_config(key, value))
        })
    }
}

const S3: Endpoint = Endpoint {
    of: "S3",
    example: "https://s3.example.com:9000",
    credentials: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
};

/// A client for `bucket`, and what lists the uploads into it. No request is made.
pub(super) fn connect(
    bucket: &str,
    options: &S3Options,
    http: &HttpOptions,
    environment: &Environment,
) -> Result<(AmazonS3, Uploads)> {
    let connector = Connector::new(http, environment.get("AWS_CA_BUNDLE").map(String::as_str))?;
    let builder = builder(bucket, options, environment)?.with_http_connector(connector.clone());
    let failed = |e| storage_error(e, format!("cannot set up s3://{bucket}"));
    let store = builder.clone().build().map_err(failed)?;
    let uploads = uploads(bucket, &builder, &store, connector)?;
    Ok((store, uploads))
}

/// The uploads into `bucket`, asked for as `store`, which `builder` built, asks for everything else.
fn uploads(bucket: &str, builder: &AmazonS3Builder, store: &AmazonS3, connector: Connector) -> Result<Uploads> {
    let is_set = |key| builder.get_config_value(&key).as_deref() == Some("true");
    let access = if is_set(Key::SkipSignature) {
        Access::Anonymous
    } else {
        Access::Aws {
            credentials: Arc::clone(store.credentials()),
            region: region_of(builder),
            request_payer: is_set(Key::RequestPayer),
        }
    };
    Ok(Uploads::new(store.clone(), connector, bucket_url(bucket, builder)?, access))
}

fn region_of(builder: &AmazonS3Builder) -> String {
    builder.get_config_value(&Key::Region).unwrap_or_else(|| "us-east-1".to_owned())
}

/// Where the client that `builder` builds has the bucket; it does not tell. A test compares.
fn bucket_url(bucket: &str, builder: &AmazonS3Builder) -> Result<Url> {
    let in_host = builder.get_config_value(&Key::VirtualHostedStyleRequest).as_deref() == Some("true");
    let url = match (builder.get_config_value(&Key::S3Endpoint), in_host) {
        (Some(endpoint), true) => endpoint,
        (Some(endpoint), false) => format!("{endpoint}/{bucket}"),
        (None, true) => format!("https://{bucket}.s3.{}.amazonaws.com", region_of(builder)),
        (None, false) => format!("https://s3.{}.amazonaws.com/{bucket}", region_of(builder)),
    };
    Url::parse(&url).map_err(|e| Error::config(format!("cannot set up s3://{bucket}")).with_source(e))
}

/// Variables that are taken as they are; of no other does the client learn, whatever names it has for its settings. They are for every store but one
/// that has a profile of its own.
const VARIABLES: [(&str, Key); 15] = [
    ("AWS_ACCESS_KEY_ID", Key::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", Key::SecretAccessKey),
    ("AWS_SESSION_TOKEN", Key::Token),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", Key::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", Key::RoleArn),
    ("AWS_ROLE_SESSION_NAME", Key::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", Key::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Key::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Key::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Key::ContainerAuthorizationTokenFile),
    ("AWS_SKIP_SIGNATURE", Key::SkipSignature),
    ("AWS_REGION", Key::Region),
    ("AWS_DEFAULT_REGION", Key::DefaultRegion),
    ("AWS_ENDPOINT_URL_S3", Key::S3Endpoint),
    ("AWS_ENDPOINT_URL", Key::Endpoint),
];

/// The environment of a store with a profile of its own.
fn environment_of(profile: &str, environment: &Environment) -> Environment {
    let mut own = environment.clone();
    own.retain(|name, _| VARIABLES.iter().all(|(variable, _)| variable != name));
    own.insert("AWS_PROFILE".to_owned(), profile.to_owned());
    own
}

fn builder(bucket: &str, options: &S3Options, environment: &Environment) -> Result<AmazonS3Builder> {
    let own = options.profile.as_ref().map(|profile| environment_of(profile, environment));
    let environment = own.as_ref().unwrap_or(environment);
    let mut builder = AmazonS3Builder::new().with_retry(http::retry());
    for (name, key) in VARIABLES {
        if let Some(value) = environment.get(name) {
            builder = builder.with_config(key, value);
        }
    }
    let profile = Profile::load(|name| environment.get(name).cloned())?;
    builder = with_credentials(builder, &profile, environment)?;
    if let Some(region) = options.region.clone().or_else(|| builder.get_config_value(&Key::Region)).or(profile.region) {
        builder = builder.with_region(region);
    }
    let configured = || builder.get_config_value(&Key::S3Endpoint).or_else(|| builder.get_config_value(&Key::Endpoint));
    let endpoint = options.endpoint.clone().or_else(configured).or(profile.endpoint);
    let endpoint = endpoint.map(|text| parse_endpoint(&text, &S3)).transpose()?;
    let path_style = options.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
    builder = builder.with_bucket_name(bucket).with_virtual_hosted_style_request(!path_style);
    // Hashing each part costs more than encrypting it. The signature then covers the headers; the body is covered by TLS, or
    // by a checksum where there is no TLS, and in any case by our own authentication.
    builder = builder.with_unsigned_payload(true);
    builder = match options.checksum.unwrap_or_else(|| usual_checksum(endpoint.as_ref(), environment)) {
        S3Checksum::None => builder,
        S3Checksum::Crc64Nvme => builder.with_checksum_algorithm(Checksum::CRC64NVME),
        S3Checksum::Sha256 => builder.with_checksum_algorithm(Checksum::SHA256),
    };
    if let Some(encryption) = &options.encryption {
        builder = encryption.apply(builder)?;
    }
    if options.request_payer {
        builder = builder.with_config(Key::RequestPayer, "true");
    }
    // After the environment's variables, which would reach into the client's options.
    builder =
        builder.with_client_options(http::client_options(endpoint.as_ref().is_some_and(|u| u.scheme() == "http")));
    if let Some(endpoint) = endpoint {
        let url = if path_style { endpoint } else { with_bucket_in_host(&endpoint, bucket)? };
        builder = builder
            // As the specific one, or that of the environment would be preferred.
            .with_config(Key::S3Endpoint, url.as_str().trim_end_matches('/'))
            // Not every store has the request that deletes many at once; all have the one that deletes one.
            .with_disable_bulk_delete(true);
    }
    Ok(builder)
}

/// AWS verifies CRC64NVME and keeps it with the object, which is one more defence. Elsewhere new checksums have broken stores
/// that do not know them, so it is sent only where nothing else protects the body on its way.
fn usual_checksum(endpoint: Option<&Url>, environment: &Environment) -> S3Checksum {
    let refused =
        environment.get("AWS_REQUEST_CHECKSUM_CALCULATION").is_some_and(|v| v.eq_ignore_ascii_case("when_required"));
    let wanted = !refused && endpoint.is_none_or(|url| url.scheme() == "http");
    if wanted { S3Checksum::Crc64Nvme } else { S3Checksum::None }
}

fn with_credentials(builder: AmazonS3Builder, profile: &Profile, environment: &Environment) -> Result<AmazonS3Builder> {
    let set = |key| builder.get_config_value(&key).is_some();
    let from_environment = set(Key::AccessKeyId)
        || set(Key::SecretAccessKey)
        || (set(Key::WebIdentityTokenFile) && set(Key::RoleArn))
        || environment.get("AWS_SKIP_SIGNATURE").is_some_and(|v| v == "true");
    if from_environment {
        if !set(Key::AccessKeyId)
            && let Some(file) = builder.get_config_value(&Key::WebIdentityTokenFile)
        {
            // Later it would look like a failure of the store.
            std::fs::File::open(&file).map_err(|e| {
                Error::config(format!("cannot read the token file {file}"))
                    .with_source(e)
                    .with_hint("AWS_WEB_IDENTITY_TOKEN_FILE names it")
            })?;
        }
        return Ok(builder);
    }
    if let Some(keys) = &profile.keys {
        let builder = builder.with_access_key_id(&keys.id).with_secret_access_key(&keys.secret);
        return Ok(match &keys.token {
            Some(token) => builder.with_token(token),
            None => builder,
        });
    }
    if let Some(name) = environment.get("AWS_PROFILE") {
        return Err(Error::config(format!("the AWS profile '{name}' has no access key"))
            .with_hint("of profiles, only static keys are read; for others: eval \"$(aws configure export-credentials --format env)\""));
    }
    let metadata_disabled =
        environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if metadata_disabled && !set(Key::ContainerCredentialsRelativeUri) && !set(Key::ContainerCredentialsFullUri) {
        return Err(Error::config("no AWS credentials were found")
            .with_hint("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"));
    }
    Ok(builder)
}

/// Credentials for another service of AWS, found as those for S3 are; and the endpoint that the profile names for all services.
#[cfg(feature = "kms")]
pub(crate) fn credentials(
    region: &str,
    http: &HttpOptions,
    environment: &Environment,
) -> Result<(object_store::aws::AwsCredentialProvider, Option<String>)> {
    let options = S3Options { region: Some(region.to_owned()), ..S3Options::default() };
    // The name of a bucket is needed, and takes no part in it.
    let (store, _) = connect("credentials", &options, http, environment)?;
    let profile = Profile::load(|name| environment.get(name).cloned())?;
    Ok((Arc::clone(store.credentials()), profile.endpoint))
}

fn with_bucket_in_host(endpoint: &Url, bucket: &str) -> Result<Url> {
    let mut url = endpoint.clone();
    let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
    match url.domain().is_some().then(|| url.set_host(Some(&host))) {
        Some(Ok(())) => Ok(url),
        _ => {
            Err(Error::config(format!("'{bucket}' cannot be part of the endpoint's host name"))
                .with_hint("use path style"))
        }
    }
}

#[cfg(test)]
mod tests;
