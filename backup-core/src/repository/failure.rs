//! What went wrong in an object store, in this library's terms.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::{Error, ErrorKind, Stage};
use crate::http::{TlsFailure, tls_failure};

/// How much of a store's own message is repeated.
const MESSAGE_LEN_MAX: usize = 200;

/// Translates an object store's error; `what` says what failed, as in "cannot read s3://bucket/app/repository.json". The address in it says whose
/// credentials a hint is about.
///
/// | kind | when | exit code of the command |
/// |---|---|---|
/// | [`NotFound`](ErrorKind::NotFound) | the object does not exist | 10 |
/// | [`Config`](ErrorKind::Config) | credentials or permissions are wrong or missing, no such bucket, wrong region | 2 |
/// | [`Unavailable`](ErrorKind::Unavailable) | time-outs, refused connections, unknown hosts, 5xx, throttling | 11 |
/// | [`Storage`](ErrorKind::Storage) | everything else: the store answered and did not do it, or a disk is full | 11 |
///
/// Only the status, the error code and the message of an answer are repeated: its other fields hold the string
/// that was signed, and the addresses of credential services hold tokens. The stage is [`Stage::Catalog`]; change it with [`Error::at`].
pub fn storage_error(error: object_store::Error, what: impl fmt::Display) -> Error {
    let what = what.to_string();
    let failure = Failure::of(&error);
    let (kind, why, hint) = failure.judge(&error);
    let hint = if hint == Some(CREDENTIALS_HINT) { Some(credentials_hint(&what)) } else { hint };
    let mut out = Error::new(kind, Stage::Catalog, format!("{what}: {why}"));
    if let Some(detail) = failure.detail() {
        out = out.with_source(detail);
    }
    match hint {
        Some(hint) => out.with_hint(hint),
        None => out,
    }
}

/// What an object store's error comes to, in a few words.
pub(super) fn summary(error: &object_store::Error) -> String {
    Failure::of(error).judge(error).1
}

/// Whether the store says that it has no such request, or no such condition on it.
pub(super) fn is_not_implemented(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
        || Failure::of(error).status == Some(501)
}

/// Whether the same request may do later.
pub(super) fn is_passing(error: &object_store::Error) -> bool {
    Failure::of(error).judge(error).0 == ErrorKind::Unavailable
}

/// The parts of an object store's error that tell what happened.
#[derive(Debug, Default)]
struct Failure {
    /// An HTTP answer's status.
    status: Option<u16>,
    /// `<Code>` of an S3 error.
    code: Option<String>,
    /// `<Message>` of an S3 error.
    message: Option<String>,
    transport: Option<HttpErrorKind>,
    tls: Option<TlsFailure>,
    io: Option<(io::ErrorKind, String)>,
    /// The last error of the chain.
    root: String,
    /// The request went to the service that hands out credentials to cloud machines.
    metadata_service: bool,
}

type Judgement = (ErrorKind, String, Option<&'static str>);

const CREDENTIALS_HINT: &str = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or AWS_PROFILE with \
     ~/.aws/credentials; and that they are allowed to list, read and write this prefix";

fn credentials_hint(what: &str) -> &'static str {
    if what.contains("az://") {
        "check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or the identity's \
         role: Storage Blob Data Contributor on the container"
    } else if what.contains("gs://") {
        "check GOOGLE_APPLICATION_CREDENTIALS, or run 'gcloud auth application-default login'; and that the account has the roles Storage Object \
         Creator and Storage Object Viewer on the bucket"
    } else {
        CREDENTIALS_HINT
    }
}

/// Services of cloud machines that hand out credentials.
const METADATA_SERVICES: [&str; 3] =
    ["http://169.254.169.254/", "http://169.254.170.2/", "http://metadata.google.internal/"];

impl Failure {
    fn of(error: &object_store::Error) -> Self {
        let mut out = Self { tls: tls_failure(error), ..Self::default() };
        let mut next: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // The store's own error types for answers are private: their text is all there is. A test holds it in place.
            if let Some(answer) = text.strip_prefix("Server returned non-2xx status code: ") {
                out.status = answer.get(..3).and_then(|status| status.parse().ok());
                out.read_body(answer);
            } else if let Some(body) = text.strip_prefix("Server returned error response: ") {
                out.status = Some(500);
                out.read_body(body);
            }
            if let Some(e) = error.downcast_ref::<HttpError>() {
                out.transport = Some(e.kind());
            }
            if let Some(e) = error.downcast_ref::<io::Error>() {
                out.io = Some((e.kind(), text.clone()));
            }
            out.metadata_service |= METADATA_SERVICES.iter().any(|address| text.contains(address));
            out.root = text;
            next = error.source();
        }
        out
    }

    fn read_body(&mut self, body: &str) {
        let element = |name: &str| {
            let (_, rest) = body.split_once(&format!("<{name}>"))?;
            let (text, _) = rest.split_once(&format!("</{name}>"))?;
            Some(plain(text))
        };
        self.code = element("Code");
        self.message = element("Message");
    }

    fn judge(&self, error: &object_store::Error) -> Judgement {
        use object_store::Error as E;
        let answer = || match (self.status, &self.code) {
            (Some(status), Some(code)) => format!("{status} {code}"),
            (Some(status), None) => status.to_string(),
            (None, _) => "refused".to_owned(),
        };
        if self.metadata_service {
            return (ErrorKind::Config, "no credentials were found".to_owned(), Some(CREDENTIALS_HINT));
        }
        match self.code.as_deref() {
            Some("NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted") => {
                let hint = "create the bucket first, or correct its name, the region or the endpoint";
                return (ErrorKind::Config, "the bucket does not exist".to_owned(), Some(hint));
            }
            Some(
                "SlowDown" | "RequestTimeout" | "ServiceUnavailable" | "InternalError" | "ServerBusy"
                | "OperationTimedOut",
            ) => {
                return (ErrorKind::Unavailable, format!("the store is overloaded ({})", answer()), None);
            }
            Some("InvalidStorageClass") => {
                let hint = "correct storage_class in the configuration, or --storage-class: classes are those of the store's provider";
                return (ErrorKind::Config, format!("the store has no such storage class ({})", answer()), Some(hint));
            }
            Some("RequestTimeTooSkewed") => {
                let hint = "set this machine's clock: signatures are only good for some minutes";
                return (ErrorKind::Config, format!("the store refused the time ({})", answer()), Some(hint));
            }
            Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
                let hint = "set the bucket's own region: AWS_REGION, or 'region' in the configuration";
                return (ErrorKind::Config, format!("wrong region ({})", answer()), Some(hint));
            }
            _ => {}
        }
        if self.wants_checksum() {
            let hint =
                "set checksum = \"crc64nvme\", or \"sha256\" for stores that do not know that, in [repository.s3]";
            let why = format!("the bucket demands a checksum, as with Object Lock ({})", answer());
            return (ErrorKind::Config, why, Some(hint));
        }
        match (error, self.status) {
            (_, Some(401 | 403)) | (E::PermissionDenied { .. } | E::Unauthenticated { .. }, _) => {
                let what = format!("the store refused the credentials or lacks the permission ({})", answer());
                return (ErrorKind::Config, what, Some(CREDENTIALS_HINT));
            }
            (_, Some(408 | 429 | 500 | 502..=599)) => {
                return (ErrorKind::Unavailable, format!("the store cannot serve it now ({})", answer()), None);
            }
            (E::NotFound { .. }, _) => return (ErrorKind::NotFound, "it does not exist".to_owned(), None),
            (_, Some(_)) => return (ErrorKind::Storage, format!("the store refused it ({})", answer()), None),
            _ => {}
        }
        if self.root.starts_with("Received redirect without LOCATION") {
            let hint = "set the bucket's own region: AWS_REGION, or 'region' in the configuration";
            return (ErrorKind::Config, "redirected, which means a wrong region".to_owned(), Some(hint));
        }
        if let Some(tls) = self.tls {
            let (why, hint) = tls.explain();
            return (ErrorKind::Config, why.to_owned(), Some(hint));
        }
        if let Some(kind) = self.transport {
            return Self::judge_transport(kind);
        }
        match &self.io {
            Some((kind, text)) => judge_io(*kind, text),
            None => (ErrorKind::Storage, "the store failed".to_owned(), None),
        }
    }

    /// Buckets with a default retention take no object whose digest does not come with it.
    fn wants_checksum(&self) -> bool {
        let message = self.message.as_deref().unwrap_or_default();
        self.status == Some(400) && ["Content-MD5", "x-amz-checksum"].iter().any(|header| message.contains(header))
    }

    fn judge_transport(kind: HttpErrorKind) -> Judgement {
        let what = match kind {
            HttpErrorKind::Connect => "could not connect",
            HttpErrorKind::Timeout => "no answer in time",
            _ => "the connection failed",
        };
        (
            ErrorKind::Unavailable,
            what.to_owned(),
            Some("check the endpoint and the network; the same command can be tried again"),
        )
    }

    /// The next level of the chain, in a few words.
    fn detail(&self) -> Option<Detail> {
        let text = match (&self.message, self.status) {
            (Some(message), _) => message.clone(),
            (None, Some(_)) => return None,
            (None, None) => plain(&self.root),
        };
        (!text.is_empty()).then_some(Detail(text))
    }
}

fn judge_io(kind: io::ErrorKind, text: &str) -> Judgement {
    let (error, what, hint) = match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::Storage, "no space is left", Some("free some space, or remove old backups"))
        }
        io::ErrorKind::FileTooLarge => {
            (ErrorKind::Storage, "a file may not become so large there", Some("raise the limit: 'ulimit -f' shows it"))
        }
        io::ErrorKind::ReadOnlyFilesystem => (ErrorKind::Storage, "the file system is read-only", None),
        io::ErrorKind::PermissionDenied => {
            (ErrorKind::Config, "permission denied", Some("run as the user who owns the repository's directory"))
        }
        // link(2) publishes a file without replacing another.
        io::ErrorKind::Unsupported => (
            ErrorKind::Storage,
            "the file system cannot do it",
            Some("a local repository needs a file system with hard links"),
        ),
        io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::HostUnreachable => {
            (ErrorKind::Unavailable, "the file system does not answer", None)
        }
        _ => (ErrorKind::Storage, text, None),
    };
    (error, what.to_owned(), hint)
}

/// One line, without control characters, of bounded length: what a server says is shown on terminals.
fn plain(text: &str) -> String {
    let words: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = words.trim();
    match words.char_indices().nth(MESSAGE_LEN_MAX) {
        Some((cut, _)) => format!("{}…", &words[..cut]),
        None => words.to_owned(),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Detail(String);

#[cfg(test)]
mod tests {
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt, RetryConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What `storage_error` makes of one answer over HTTP.
    async fn after_answer(status: &str, body: &str) -> Error {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let client = async {
            storage_error(store(&address.to_string()).get(&Path::from("x")).await.unwrap_err(), "cannot read x")
        };
        tokio::select! { () = server => unreachable!(), error = client => error }
    }

    fn store(address: &str) -> impl ObjectStore {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        object_store::aws::AmazonS3Builder::new()
            .with_bucket_name("bucket")
            .with_endpoint(format!("http://{address}"))
            .with_allow_http(true)
            .with_access_key_id("AKIDEXAMPLE")
            .with_secret_access_key("wJalrXUtnFEMI")
            .with_retry(retry)
            .build()
            .unwrap()
    }

    fn xml(code: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Because\nof it.</Message>\
             <StringToSign>AWS4-HMAC-SHA256 secret stuff</StringToSign></Error>"
        )
    }

    #[tokio::test]
    async fn answers_are_sorted_by_what_the_user_can_do() {
        for (status, code, kind, what) in [
            ("403 Forbidden", "SignatureDoesNotMatch", ErrorKind::Config, "403 SignatureDoesNotMatch"),
            ("403 Forbidden", "InvalidAccessKeyId", ErrorKind::Config, "403 InvalidAccessKeyId"),
            ("401 Unauthorized", "AccessDenied", ErrorKind::Config, "401 AccessDenied"),
            ("404 Not Found", "NoSuchKey", ErrorKind::NotFound, "does not exist"),
            ("404 Not Found", "NoSuchBucket", ErrorKind::Config, "the bucket does not exist"),
            ("503 Service Unavailable", "SlowDown", ErrorKind::Unavailable, "503 SlowDown"),
            ("500 Internal Server Error", "Oops", ErrorKind::Unavailable, "500 Oops"),
            ("429 Too Many Requests", "Oops", ErrorKind::Unavailable, "429 Oops"),
            ("501 Not Implemented", "NotImplemented", ErrorKind::Storage, "501 NotImplemented"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", ErrorKind::Config, "wrong region"),
            ("301 Moved", "PermanentRedirect", ErrorKind::Config, "wrong region"),
        ] {
            let error = after_answer(status, &xml(code)).await;
            assert_eq!(error.kind(), kind, "{status} {code}: {error}");
            assert!(error.to_string().starts_with("cannot read x: "), "{error}");
            assert!(error.to_string().contains(what), "{error}");
            let everything = format!("{error:?}");
            assert!(!everything.contains("StringToSign") && !everything.contains("wJalr"), "{everything}");
            if kind == ErrorKind::Config && status.starts_with('4') && code != "NoSuchBucket" {
                assert!(error.hint().unwrap().contains("AWS_"));
            }
        }
        let error = after_answer("403 Forbidden", &xml("AccessDenied")).await;
        assert_eq!(error.source().unwrap().to_string(), "Because of it.");
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_reached_is_unavailable_and_the_cause_is_named() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = store(&port.to_string()).get(&Path::from("x")).await.unwrap_err();
        let error = storage_error(error, "cannot read x");
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unavailable, true));
        assert!(error.source().unwrap().to_string().contains("refused"), "{error:?}");
        let error =
            storage_error(store("no-such-host.invalid").get(&Path::from("x")).await.unwrap_err(), "cannot read x");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }

    #[tokio::test]
    async fn each_provider_s_errors_are_understood_and_its_own_variables_named() {
        for (status, code, kind, what) in [
            ("404 Not Found", "ContainerNotFound", ErrorKind::Config, "the bucket does not exist"),
            ("503 Busy", "ServerBusy", ErrorKind::Unavailable, "503 ServerBusy"),
            ("403 Forbidden", "AuthorizationPermissionMismatch", ErrorKind::Config, "403 AuthorizationPermission"),
        ] {
            let error = after_answer(status, &xml(code)).await;
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
        for (what, variable) in [("write az://c/x", "AZURE_"), ("write gs://b/x", "GOOGLE_"), ("write s3://b", "AWS_")]
        {
            let source = "no".into();
            let error = storage_error(object_store::Error::PermissionDenied { path: "x".to_owned(), source }, what);
            assert!(error.hint().unwrap().contains(variable), "{error:?}");
        }
        let body = "<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object \
                    requests with Object Lock parameters</Message></Error>";
        let error = after_answer("400 Bad Request", body).await;
        assert!(error.kind() == ErrorKind::Config && error.hint().unwrap().contains("checksum"), "{error:?}");
    }

    #[test]
    fn a_full_disk_is_told_from_a_missing_permission() {
        for (os, kind, what) in [
            (28, ErrorKind::Storage, "no space is left"),
            (122, ErrorKind::Storage, "no space is left"),
            (13, ErrorKind::Config, "permission denied"),
            (5, ErrorKind::Storage, "os error 5"),
        ] {
            let source = Box::new(io::Error::from_raw_os_error(os));
            let error = storage_error(object_store::Error::Generic { store: "test", source }, "cannot write x");
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn what_a_server_says_is_cut_and_cleaned() {
        assert_eq!(plain("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(plain(&"ä".repeat(300)).chars().count(), MESSAGE_LEN_MAX + 1);
    }
}
