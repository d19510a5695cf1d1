//! A token service as AWS has one, in this process and over TLS: session credentials for who proves by a token that it may have a role.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::host::Host;

/// The session's key; [`S3`](crate::s3::S3) takes it together with [`SESSION_TOKEN`] and not without.
pub const SESSION_ACCESS_KEY: &str = "ASIASESSIONEXAMPLE";
/// The secret of [`SESSION_ACCESS_KEY`].
pub const SESSION_SECRET_KEY: &str = "a/secret+of/one/hour";
/// What must come with each request of [`SESSION_ACCESS_KEY`].
pub const SESSION_TOKEN: &str = "a-token-of-one-hour";
/// The proof of who asks, as an orchestrator writes it into a file.
pub const WEB_IDENTITY_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.of.an-orchestrator";
/// The role that may be assumed.
pub const ROLE: &str = "arn:aws:iam::123456789012:role/backup";

/// A running service.
#[derive(Debug)]
pub struct TokenService {
    address: SocketAddr,
    certificate: String,
    asked: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl TokenService {
    /// Starts it, with a certificate that nobody knows yet.
    pub fn start() -> Self {
        let certified = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()]).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .expect("they belong together");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (acceptor, asked) = (TlsAcceptor::from(Arc::new(config)), Arc::default());
        runtime.spawn(accept(listener, acceptor, Arc::clone(&asked)));
        Self { address, certificate: certified.cert.pem(), asked, _runtime: runtime }
    }

    /// Gives `host` a token, a role and no key, as orchestrators do.
    pub fn serve(&self, host: &mut Host, token: &str) {
        host.unset("AWS_ACCESS_KEY_ID");
        host.unset("AWS_SECRET_ACCESS_KEY");
        let (token, certificate) = (host.write("token", token), host.write("ca.pem", &self.certificate));
        host.set("AWS_WEB_IDENTITY_TOKEN_FILE", token);
        host.set("AWS_ROLE_ARN", ROLE);
        host.set("AWS_ENDPOINT_URL_STS", format!("https://{}", self.address));
        host.set("AWS_CA_BUNDLE", certificate);
    }

    /// How often it was asked, since the start or the last call.
    pub fn take_asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, asked: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(stream, acceptor.clone(), Arc::clone(&asked)));
    }
}

async fn converse(stream: TcpStream, acceptor: TlsAcceptor, asked: Arc<AtomicUsize>) {
    // Fails when the client does not trust us, which is its business.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request: Request<_>| {
        asked.fetch_add(1, Ordering::Relaxed);
        let (status, body) = answer(request.uri().query().unwrap_or_default());
        let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
        async move { Ok::<_, Infallible>(response.expect("a plain answer")) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// `AssumeRoleWithWebIdentity` of AWS's Security Token Service, version 2011-06-15.
fn answer(query: &str) -> (u16, String) {
    let asked: HashMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let is = |name: &str, value: &str| asked.get(name).is_some_and(|v| v == value);
    let granted = is("Action", "AssumeRoleWithWebIdentity")
        && is("Version", "2011-06-15")
        && is("RoleArn", ROLE)
        && is("WebIdentityToken", WEB_IDENTITY_TOKEN)
        && asked.get("RoleSessionName").is_some_and(|name| !name.is_empty());
    if !granted {
        return (403, "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>".to_owned());
    }
    let credentials = format!(
        "<AccessKeyId>{SESSION_ACCESS_KEY}</AccessKeyId><SecretAccessKey>{SESSION_SECRET_KEY}</SecretAccessKey>\
         <SessionToken>{SESSION_TOKEN}</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration>"
    );
    let result = "AssumeRoleWithWebIdentityResult";
    let result = format!("<{result}><Credentials>{credentials}</Credentials></{result}>");
    (200, format!("<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResponse>"))
}
