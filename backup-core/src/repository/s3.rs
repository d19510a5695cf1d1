//! S3 and everything that speaks it.

use std::collections::BTreeMap;
#[cfg(feature = "kms")]
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key, Checksum};
use object_store::{BackoffConfig, Certificate, ClientOptions, HeaderValue, RetryConfig};
use url::Url;

use super::aws_profile::Profile;
use super::storage_error;
use crate::error::{Error, Result};

/// An endpoint that answers takes milliseconds to connect to; a dead one is retried within [`RETRY_TIMEOUT`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may go without a byte of answer, sending its body included: a part of 8 MiB may go at 70 KB/s. There
/// is no limit on a whole request: the default of 30 s breaks large parts on slow links.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// No retry is begun after this time: a restarting store is waited for, and a dead endpoint is reported within 45 s. Their number
/// does not matter: ten, the default, can be over within 3 s.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

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
}

/// The environment as far as it matters here, taken once, so that tests can make one up.
pub(crate) type Environment = BTreeMap<String, String>;

pub(crate) fn environment() -> Environment {
    // Empty is unset: an empty session token would be sent and refused.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| (name.starts_with("AWS_") || name == "HOME") && !value.is_empty())
        .collect()
}

/// A client for `bucket`. No request is made.
pub(super) fn connect(bucket: &str, options: &S3Options, environment: &Environment) -> Result<AmazonS3> {
    // reqwest is built without a provider of its own. An embedder may have installed another; that one will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    builder(bucket, options, environment)?.build().map_err(|e| storage_error(e, format!("cannot set up s3://{bucket}")))
}

/// What the environment says of every store, and not of one that has a profile of its own.
const OF_ALL_STORES: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_SKIP_SIGNATURE",
];

/// The environment of a store with a profile of its own.
fn environment_of(profile: &str, environment: &Environment) -> Environment {
    let mut own = environment.clone();
    own.retain(|name, _| !OF_ALL_STORES.contains(&name.as_str()));
    own.insert("AWS_PROFILE".to_owned(), profile.to_owned());
    own
}

fn builder(bucket: &str, options: &S3Options, environment: &Environment) -> Result<AmazonS3Builder> {
    let own = options.profile.as_ref().map(|profile| environment_of(profile, environment));
    let environment = own.as_ref().unwrap_or(environment);
    let variable = |name: &str| environment.get(name).cloned();
    let mut builder =
        AmazonS3Builder::new().with_client_options(client_options(variable("AWS_CA_BUNDLE"))?).with_retry(retry());
    for (name, value) in environment {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    let profile = Profile::load(variable)?;
    builder = with_credentials(builder, &profile, environment)?;
    if let Some(region) = options.region.clone().or_else(|| builder.get_config_value(&Key::Region)).or(profile.region) {
        builder = builder.with_region(region);
    }
    let configured = || builder.get_config_value(&Key::S3Endpoint).or_else(|| builder.get_config_value(&Key::Endpoint));
    let endpoint = options.endpoint.clone().or_else(configured).or(profile.endpoint);
    let endpoint = endpoint.map(|text| parse_endpoint(&text)).transpose()?;
    let path_style = options.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
    builder = builder.with_bucket_name(bucket).with_virtual_hosted_style_request(!path_style);
    // Hashing each part costs more than encrypting it. The signature then covers the headers; the body is covered by TLS, or
    // by a checksum where there is no TLS, and in any case by our own authentication.
    builder = builder.with_unsigned_payload(true);
    if wants_checksum(endpoint.as_ref(), environment) {
        builder = builder.with_checksum_algorithm(Checksum::CRC64NVME);
    }
    if let Some(endpoint) = endpoint {
        let url = if path_style { endpoint.clone() } else { with_bucket_in_host(&endpoint, bucket)? };
        builder = builder
            .with_allow_http(endpoint.scheme() == "http")
            // As the specific one, or that of the environment would be preferred.
            .with_config(Key::S3Endpoint, url.as_str().trim_end_matches('/'))
            // Not every store has the request that deletes many at once; all have the one that deletes one.
            .with_disable_bulk_delete(true);
    }
    Ok(builder)
}

/// AWS verifies CRC64NVME and keeps it with the object, which is one more defence. Elsewhere new checksums have broken stores
/// that do not know them, so it is sent only where nothing else protects the body on its way.
fn wants_checksum(endpoint: Option<&Url>, environment: &Environment) -> bool {
    let refused =
        environment.get("AWS_REQUEST_CHECKSUM_CALCULATION").is_some_and(|v| v.eq_ignore_ascii_case("when_required"));
    !refused && endpoint.is_none_or(|url| url.scheme() == "http")
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
    environment: &Environment,
) -> Result<(object_store::aws::AwsCredentialProvider, Option<String>)> {
    let options = S3Options { region: Some(region.to_owned()), ..S3Options::default() };
    // The name of a bucket is needed, and takes no part in it.
    let store = connect("credentials", &options, environment)?;
    let profile = Profile::load(|name| environment.get(name).cloned())?;
    Ok((Arc::clone(store.credentials()), profile.endpoint))
}

fn client_options(ca_bundle: Option<String>) -> Result<ClientOptions> {
    let mut options = ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(concat!("backup/", env!("CARGO_PKG_VERSION"))))
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout_disabled();
    if let Some(path) = ca_bundle {
        let unusable = || Error::config(format!("AWS_CA_BUNDLE: could not use {path}"));
        let pem = std::fs::read(&path).map_err(|e| unusable().with_source(e))?;
        for certificate in Certificate::from_pem_bundle(&pem).map_err(|e| unusable().with_source(e))? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(8), ..BackoffConfig::default() },
        max_retries: 1000,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn parse_endpoint(text: &str) -> Result<Url> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(url) = url else {
        return Err(
            Error::config("the S3 endpoint is not a URL").with_hint("it looks like 'https://s3.example.com:9000'")
        );
    };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(Error::config("the S3 endpoint holds more than a host and a port")
            .with_hint("credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"));
    }
    Ok(url)
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
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn with(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "hush")];

    fn value(options: &S3Options, variables: &[(&str, &str)], key: Key) -> Option<String> {
        builder("bucket", options, &with(&[&KEYS, variables].concat())).unwrap().get_config_value(&key)
    }

    #[test]
    fn an_explicit_endpoint_wins_over_the_environment_and_http_needs_no_further_consent() {
        let options = S3Options { endpoint: Some("http://127.0.0.1:9000/".to_owned()), ..S3Options::default() };
        let variables = [("AWS_ENDPOINT_URL_S3", "https://elsewhere"), ("AWS_ENDPOINT_URL", "https://nowhere")];
        assert_eq!(value(&options, &variables, Key::S3Endpoint).as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(
            value(&options, &variables, Key::Client(object_store::ClientConfigKey::AllowHttp)).as_deref(),
            Some("true")
        );
        assert_eq!(value(&S3Options::default(), &variables, Key::S3Endpoint).as_deref(), Some("https://elsewhere"));
        assert_eq!(value(&S3Options::default(), &variables[1..], Key::S3Endpoint).as_deref(), Some("https://nowhere"));
    }

    #[test]
    fn the_bucket_goes_where_the_store_expects_it() {
        let virtual_host = |endpoint: Option<&str>, path_style| {
            let options = S3Options { endpoint: endpoint.map(str::to_owned), path_style, ..S3Options::default() };
            let host = value(&options, &[], Key::S3Endpoint);
            (value(&options, &[], Key::VirtualHostedStyleRequest).unwrap(), host)
        };
        assert_eq!(virtual_host(None, None), ("true".to_owned(), None));
        assert_eq!(virtual_host(None, Some(true)).0, "false");
        assert_eq!(virtual_host(Some("https://s3.example:9000"), None).0, "false");
        let host = Some("https://bucket.s3.example:9000".to_owned());
        assert_eq!(virtual_host(Some("https://s3.example:9000"), Some(false)), ("true".to_owned(), host));
        let options = S3Options {
            endpoint: Some("http://127.0.0.1".to_owned()),
            path_style: Some(false),
            ..S3Options::default()
        };
        assert_eq!(builder("bucket", &options, &with(&KEYS)).unwrap_err().kind(), ErrorKind::Config);
    }

    #[test]
    fn payloads_are_never_hashed_with_sha256() {
        let checksum = |endpoint: Option<&str>, variables: &[(&str, &str)]| {
            let options = S3Options { endpoint: endpoint.map(str::to_owned), ..S3Options::default() };
            assert_eq!(value(&options, variables, Key::UnsignedPayload).as_deref(), Some("true"));
            value(&options, variables, Key::Checksum)
        };
        assert_eq!(checksum(None, &[]).as_deref(), Some("crc64nvme"));
        assert_eq!(checksum(Some("http://s3.example"), &[]).as_deref(), Some("crc64nvme"));
        assert_eq!(checksum(Some("https://s3.example"), &[]), None);
        let refused = [("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")];
        assert_eq!(checksum(Some("http://s3.example"), &refused), None);
    }

    #[test]
    fn the_environment_s_keys_win_over_a_profile_and_a_profile_without_keys_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("credentials");
        std::fs::write(&file, "[dr]\naws_access_key_id=PROFILE\naws_secret_access_key=hush\naws_session_token=t\n")
            .unwrap();
        let file = file.display().to_string();
        let profile = [
            ("AWS_SHARED_CREDENTIALS_FILE", file.as_str()),
            ("AWS_PROFILE", "dr"),
            ("AWS_CONFIG_FILE", "/nonexistent"),
        ];
        let built = builder("bucket", &S3Options::default(), &with(&profile)).unwrap();
        assert_eq!(built.get_config_value(&Key::AccessKeyId).as_deref(), Some("PROFILE"));
        assert_eq!(built.get_config_value(&Key::Token).as_deref(), Some("t"));
        assert_eq!(value(&S3Options::default(), &profile, Key::AccessKeyId).as_deref(), Some("AKID"));

        // One of several stores has it by name, whatever else is set for all of them.
        let variables =
            [&KEYS[..], &[profile[0], profile[2], ("AWS_SESSION_TOKEN", "other"), ("AWS_REGION", "x")]].concat();
        let own = S3Options { profile: Some("dr".to_owned()), ..S3Options::default() };
        let built = builder("bucket", &own, &with(&variables)).unwrap();
        assert_eq!(built.get_config_value(&Key::AccessKeyId).as_deref(), Some("PROFILE"));
        assert_eq!(built.get_config_value(&Key::Token).as_deref(), Some("t"));
        assert_eq!(built.get_config_value(&Key::Region), None);

        let absent = [profile[0], profile[2], ("AWS_PROFILE", "absent")];
        let error = builder("bucket", &S3Options::default(), &with(&absent)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        let error =
            builder("bucket", &S3Options::default(), &with(&[("AWS_EC2_METADATA_DISABLED", "true")])).unwrap_err();
        assert_eq!(error.to_string(), "no AWS credentials were found");
    }

    #[test]
    fn an_endpoint_with_a_secret_in_it_is_refused_and_not_repeated() {
        for endpoint in ["https://key:hush@s3.example", "https://s3.example/?token=hush", "hush", "ftp://s3.example"] {
            let options = S3Options { endpoint: Some(endpoint.to_owned()), ..S3Options::default() };
            let error = builder("bucket", &options, &with(&KEYS)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }
}
