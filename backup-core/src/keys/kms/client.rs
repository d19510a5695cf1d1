//! Asking KMS, and what its answers mean.

use std::error::Error as StdError;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, Builder, Config, Credentials, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use object_store::aws::AwsCredentialProvider;
use tokio::sync::OnceCell;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::arn::Arn;
use super::http::client;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::http::{HttpOptions, TlsFailure, tls_failure};
use crate::keys::EncryptionContext;
use crate::repository::environment::{Environment, environment};
use crate::repository::s3;

/// How long one request may take, with its retries and the search for credentials. `wal push` has 60 s for all it does.
const DEADLINE: Duration = Duration::from_secs(30);
/// A part of it: a host that is not in AWS may wait for the service of a role that it does not have.
const CREDENTIALS_DEADLINE: Duration = Duration::from_secs(15);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);
/// KMS throttles by account and region, and says so: three pauses of about 1, 2 and 4 s fit into the deadline.
const ATTEMPTS: u32 = 4;

/// KMS in one region, connected to when it is first asked.
pub(super) struct Kms {
    region: String,
    endpoint: Option<Url>,
    http: HttpOptions,
    connected: OnceCell<Connected>,
}

struct Connected {
    client: Client,
    credentials: AwsCredentialProvider,
}

/// What was asked for, for messages.
#[derive(Clone, Copy)]
struct Asked<'a> {
    action: &'static str,
    what: &'static str,
    arn: &'a Arn,
}

impl Kms {
    pub(super) fn new(region: String, endpoint: Option<Url>, http: HttpOptions) -> Self {
        Self { region, endpoint, http, connected: OnceCell::new() }
    }

    /// The ARN of the key that was used, and the ciphertext. Cancel safe.
    pub(super) async fn encrypt(
        &self,
        arn: &Arn,
        plaintext: &[u8],
        context: &EncryptionContext,
    ) -> Result<(Option<String>, Vec<u8>)> {
        let asked = Asked { action: "kms:Encrypt", what: "wrap a data key", arn };
        within_deadline(asked, async {
            let (client, credentials) = self.client().await?;
            let request = client.encrypt().key_id(arn.to_string()).plaintext(Blob::new(plaintext));
            let request =
                request.encryption_context("target", context.target()).encryption_context("purpose", context.purpose());
            let sent = unheard(request.customize().config_override(with(credentials)).send()).await;
            let answer = sent.map_err(|e| explain(e, asked))?;
            let ciphertext = answer.ciphertext_blob.ok_or_else(|| strange(asked, "it gave no ciphertext"))?;
            Ok((answer.key_id, ciphertext.into_inner()))
        })
        .await
    }

    /// The plaintext. Cancel safe.
    pub(super) async fn decrypt(
        &self,
        arn: &Arn,
        ciphertext: Vec<u8>,
        context: &EncryptionContext,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let asked = Asked { action: "kms:Decrypt", what: "unwrap a data key", arn };
        within_deadline(asked, async {
            let (client, credentials) = self.client().await?;
            let request = client.decrypt().key_id(arn.to_string()).ciphertext_blob(Blob::new(ciphertext));
            let request =
                request.encryption_context("target", context.target()).encryption_context("purpose", context.purpose());
            let sent = unheard(request.customize().config_override(with(credentials)).send()).await;
            let answer = sent.map_err(|e| explain(e, asked))?;
            let plaintext = answer.plaintext.ok_or_else(|| strange(asked, "it gave no plaintext"))?;
            Ok(Zeroizing::new(plaintext.into_inner()))
        })
        .await
    }

    /// A client, and credentials that are valid now.
    async fn client(&self) -> Result<(&Client, Credentials)> {
        let connected = self.connected.get_or_try_init(|| self.connect()).await?;
        let none = || {
            // A machine without a role, or a token service that is away.
            Error::new(ErrorKind::Unavailable, Stage::Keys, "could not get AWS credentials for KMS").with_hint(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or see that the role's service answers",
            )
        };
        let found = tokio::time::timeout(CREDENTIALS_DEADLINE, connected.credentials.get_credential()).await;
        let found = found.map_err(|e| none().with_source(e))?.map_err(|e| none().with_source(e))?;
        let token = found.token.clone();
        Ok((&connected.client, Credentials::new(&found.key_id, &found.secret_key, token, None, "backup")))
    }

    async fn connect(&self) -> Result<Connected> {
        let (region, endpoint, http) = (self.region.clone(), self.endpoint.clone(), self.http.clone());
        // Files are read: profiles, certificates.
        let connecting = tokio::task::spawn_blocking(move || connect(region, endpoint, &http, &environment()));
        connecting.await.map_err(|e| Error::internal(Stage::Keys, "could not set up a client of KMS").with_source(e))?
    }
}

fn connect(region: String, endpoint: Option<Url>, http: &HttpOptions, environment: &Environment) -> Result<Connected> {
    let variable = |name: &str| environment.get(name).map(String::as_str);
    let is_set = |name: &str| variable(name).is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let (credentials, profile_endpoint) = s3::credentials(&region, http, environment)?;
    let configured = || variable("AWS_ENDPOINT_URL_KMS").or_else(|| variable("AWS_ENDPOINT_URL"));
    let endpoint = match (endpoint, configured().or(profile_endpoint.as_deref())) {
        (Some(own), _) => Some(own),
        (None, Some(text)) => Some(parse_endpoint(text)?),
        (None, None) => None,
    };
    let mut config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(region))
        .use_fips(is_set("AWS_USE_FIPS_ENDPOINT"))
        .use_dual_stack(is_set("AWS_USE_DUALSTACK_ENDPOINT"))
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build())
        .http_client(client(http, variable("AWS_CA_BUNDLE"))?);
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint.as_str());
    }
    Ok(Connected { client: Client::from_conf(config.build()), credentials })
}

fn with(credentials: Credentials) -> Builder {
    Config::builder().credentials_provider(credentials)
}

async fn within_deadline<T>(asked: Asked<'_>, answer: impl Future<Output = Result<T>>) -> Result<T> {
    let answer = tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| {
        let seconds = DEADLINE.as_secs();
        Err(asked.error(ErrorKind::Unavailable, &format!("KMS did not answer within {seconds} s")))
    });
    tracing::debug!(action = asked.action, key = %asked.arn, succeeded = answer.is_ok(), "asked KMS");
    answer
}

/// The SDK traces requests and answers with their bodies: data keys, in base64. Nobody may hear that, whatever level is set.
fn unheard<T>(request: impl Future<Output = T>) -> impl Future<Output = T> {
    request.with_subscriber(NoSubscriber::default())
}

/// Reads the URL of an endpoint.
pub(super) fn parse_endpoint(text: &str) -> Result<Url> {
    let refused = |why: &str| {
        Error::config(format!("the endpoint of KMS {why}"))
            .with_hint("it looks like 'https://vpce-1234.kms.eu-central-1.vpce.amazonaws.com'")
    };
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or_else(|| refused("is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(refused("holds more than a host and a port"));
    }
    let is_here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "http" && !is_here {
        return Err(refused("has no TLS: data keys would cross the network in the clear"));
    }
    Ok(url)
}

impl Asked<'_> {
    fn error(self, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, Stage::Keys, format!("could not {} with {}: {why}", self.what, self.arn))
    }
}

fn strange(asked: Asked<'_>, why: &str) -> Error {
    asked.error(ErrorKind::Unavailable, &format!("what answered is not KMS: {why}"))
}

fn explain<E>(error: SdkError<E, HttpResponse>, asked: Asked<'_>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let unavailable =
        "see that this host can reach the endpoint of KMS in the key's region; AWS_ENDPOINT_URL_KMS names another";
    match &error {
        SdkError::ServiceError(refusal) => {
            let failed = refusal.raw().status().is_server_error();
            let (code, message) = (refusal.err().code().unwrap_or("no code"), refusal.err().message());
            // Its own chain of causes says the same three times.
            return refused(refusal.err(), failed, asked)
                .with_source(format!("{code}: {}", message.unwrap_or("no message")));
        }
        SdkError::DispatchFailure(_) if tls_failure(&error).is_some() => {
            let (why, hint) = tls_failure(&error).map_or(("", ""), TlsFailure::explain);
            asked.error(ErrorKind::Config, why).with_hint(hint)
        }
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => {
            asked.error(ErrorKind::Unavailable, "KMS could not be reached").with_hint(unavailable)
        }
        SdkError::ResponseError(_) => strange(asked, "its answer cannot be read").with_hint(unavailable),
        _ => asked.error(ErrorKind::Internal, "the request could not be made"),
    }
    .with_source(error)
}

/// What the codes of <https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html> and of the two requests ask the caller to do.
fn refused(refusal: &impl ProvideErrorMetadata, failed: bool, asked: Asked<'_>) -> Error {
    let action = asked.action;
    let code = refusal.code().unwrap_or_default();
    let key = |why: &str| asked.error(ErrorKind::Key, why);
    match code {
        "AccessDeniedException" => key("KMS denies it").with_hint(format!(
            "the policy of the key, or of the caller, has to allow {action} with this encryption context"
        )),
        "NotFoundException" => key("there is no such key"),
        "DisabledException" => key("the key is disabled").with_hint("enable it, or use another recipient's identity"),
        "KMSInvalidStateException" => key("the key is in a state that does not allow it")
            .with_hint("if its deletion is pending, cancel that while it can be cancelled"),
        "InvalidKeyUsageException" => key("the key is not one that encrypts")
            .with_hint("a symmetric key is needed, with the usage ENCRYPT_DECRYPT"),
        "IncorrectKeyException" => key("it was wrapped with another key"),
        "InvalidCiphertextException" => {
            asked.error(ErrorKind::Integrity, "the wrapped key is damaged, or was made for another target")
        }
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "MissingAuthenticationToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "OptInRequired" => asked.error(ErrorKind::Config, "KMS does not accept the AWS credentials").with_hint(
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the profile, and this host's clock",
        ),
        "KMSInternalException" | "DependencyTimeoutException" | "KeyUnavailableException" => {
            asked.error(ErrorKind::Unavailable, "KMS failed, and went on failing")
        }
        code if failed || code.contains("Throttl") || code == "LimitExceededException" || code.is_empty() => {
            asked.error(ErrorKind::Unavailable, "KMS does not serve the request now")
        }
        code => key(&format!("KMS refuses with {code}")),
    }
}
