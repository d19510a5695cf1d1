//! The one way to speak HTTP: to object stores, to the services that hand out their credentials, and to key services.
//!
//! [`object_store`] builds its own clients and has no setting for versions of TLS, so `Connector` builds them in its place.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, HeaderValue, RetryConfig};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, ClientBuilder, NoProxy, Proxy, tls};
use rustls::AlertDescription;
use url::Url;

use crate::error::{Error, Result};

mod near;

use near::is_near;

const USER_AGENT: &str = concat!("backup/", env!("CARGO_PKG_VERSION"));
/// An endpoint that answers takes milliseconds to connect to; a dead one is retried within [`RETRY_TIMEOUT`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may go without a byte of answer, sending its body included: a part of 8 MiB may go at 70 KB/s. There
/// is no limit on a whole request: the default of 30 s breaks large parts on slow links.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// A service on this host, or next to it. Where there is none, nobody answers.
const METADATA_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const METADATA_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// No retry is begun after this time: a restarting store is waited for, and a dead endpoint is reported within 45 s. Their number
/// does not matter: ten, the default, can be over within 3 s.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// Where the environment names a proxy.
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// How stores and key services are reached over HTTP. The default is what most need: TLS 1.3, the certificates that the system trusts, and
/// the proxy that the environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, but for what `NO_PROXY` lists). What is on this host or on the link
/// next to it, as the services are that hand out a machine's or a container's credentials, is never asked by way of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpOptions {
    /// The least version of TLS that is spoken.
    pub ssl_min_protocol_version: TlsVersion,
    /// A file of certificates in PEM whose holders are trusted beside those whom the system trusts.
    pub ca_file: Option<PathBuf>,
    /// `http://host:port` of a proxy, instead of what the environment names; `NO_PROXY` counts all the same. One that wants a password has it
    /// in the environment, which others cannot see.
    pub proxy: Option<String>,
}

impl HttpOptions {
    /// Reads what they name, and asks nobody.
    ///
    /// # Errors
    /// `Config` when the file cannot be read or holds no certificate, or the proxy's address is none. Blocks.
    pub fn check(&self) -> Result<()> {
        Connector::new(self, None).map(drop)
    }
}

/// A version of TLS. There are no older ones here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// `TLSv1.2`.
    V1_2,
    /// `TLSv1.3`.
    #[default]
    V1_3,
}

/// As PostgreSQL writes them.
impl FromStr for TlsVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            _ if text.eq_ignore_ascii_case("TLSv1.2") => Ok(Self::V1_2),
            _ if text.eq_ignore_ascii_case("TLSv1.3") => Ok(Self::V1_3),
            _ => Err(Error::config("a version of TLS is TLSv1.2 or TLSv1.3")),
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V1_2 => "TLSv1.2",
            Self::V1_3 => "TLSv1.3",
        })
    }
}

/// Builds clients as [`HttpOptions`] say. Its files were read and its addresses parsed: what is wrong with them was told.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    tls_min: TlsVersion,
    certificates: Vec<Certificate>,
    proxy: Option<Url>,
}

impl Connector {
    /// Blocks: it reads files. `ca_bundle` is one more, that the environment names by `AWS_CA_BUNDLE`.
    pub(crate) fn new(options: &HttpOptions, ca_bundle: Option<&str>) -> Result<Self> {
        // reqwest is built without a provider of its own. An embedder may have installed another; that one will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut certificates = Vec::new();
        if let Some(path) = &options.ca_file {
            certificates.extend(read_certificates(path, "the file of certificates to trust")?);
        }
        if let Some(path) = ca_bundle {
            certificates.extend(read_certificates(Path::new(path), "AWS_CA_BUNDLE")?);
        }
        let proxy = options.proxy.as_deref().map(parse_proxy).transpose()?;
        Ok(Self { tls_min: options.ssl_min_protocol_version, certificates, proxy })
    }

    /// Clients of which `set` sets the rest: timeouts, whom to follow.
    pub(crate) fn clients(&self, set: impl Fn(ClientBuilder) -> ClientBuilder) -> Result<Clients, reqwest::Error> {
        let usual = set(self.builder()?).build()?;
        let named_by = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let has_proxy = self.proxy.is_some() || PROXIES.iter().any(named_by);
        let direct = if has_proxy { set(self.builder()?).no_proxy().build()? } else { usual.clone() };
        Ok(Clients { usual, direct })
    }

    fn builder(&self) -> Result<ClientBuilder, reqwest::Error> {
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .tls_version_min(match self.tls_min {
                TlsVersion::V1_2 => tls::Version::TLS_1_2,
                TlsVersion::V1_3 => tls::Version::TLS_1_3,
            })
            .tls_certs_merge(self.certificates.iter().cloned())
            // Should another crate of the program ask reqwest for them: lengths would no longer be those of objects.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate();
        if let Some(proxy) = &self.proxy {
            builder = builder.proxy(Proxy::all(proxy.clone())?.no_proxy(NoProxy::from_env()));
        }
        Ok(builder)
    }

    /// What is left of the options says for whom they are.
    fn clients_for(&self, options: &ClientOptions) -> Result<Clients, reqwest::Error> {
        // HTTP/2 would put all parts on one connection.
        let set = |builder: ClientBuilder| builder.http1_only().https_only(!allows_http(options));
        if is_for_metadata(options) {
            // Nobody but this host can reach it, whatever it is called.
            return self.clients(|builder| {
                set(builder).no_proxy().connect_timeout(METADATA_CONNECT_TIMEOUT).read_timeout(METADATA_READ_TIMEOUT)
            });
        }
        let spread = Arc::new(Spread(AtomicUsize::new(usize::from(std::process::id() as u16))));
        self.clients(|builder| {
            set(builder)
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .dns_resolver(Arc::clone(&spread) as Arc<dyn Resolve>)
        })
    }
}

/// Clients that differ in nothing but that one knows no proxy.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    usual: Client,
    direct: Client,
}

impl Clients {
    /// The one that may ask `host`, a name or an address.
    pub(crate) fn to(&self, host: &str) -> &Client {
        if is_near(host) { &self.direct } else { &self.usual }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let clients = self.clients_for(options);
        let clients = clients.map_err(|e| object_store::Error::Generic { store: "HTTP", source: Box::new(e) })?;
        Ok(HttpClient::new(Service(clients)))
    }
}

/// The options that [`Connector`] looks at, for a store whose endpoint may be spoken to without TLS.
pub(crate) fn client_options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(USER_AGENT))
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_allow_http(allow_http)
}

/// How requests to stores are tried again.
pub(crate) fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(8), ..BackoffConfig::default() },
        max_retries: 1000,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn allows_http(options: &ClientOptions) -> bool {
    options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true")
}

/// `object_store` shortens this time for services of metadata, and says in no other way what a client is for.
fn is_for_metadata(options: &ClientOptions) -> bool {
    let timeout = |options: &ClientOptions| options.get_config_value(&ClientConfigKey::ConnectTimeout);
    timeout(options) != timeout(&client_options(false))
}

fn read_certificates(path: &Path, what: &str) -> Result<Vec<Certificate>> {
    let unusable = || Error::config(format!("{what}: could not use {}", path.display()));
    let pem = std::fs::read(path).map_err(|e| unusable().with_source(e))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| unusable().with_source(e))?;
    if certificates.is_empty() {
        return Err(
            unusable().with_hint("it holds no certificate: -----BEGIN CERTIFICATE----- is what one begins with")
        );
    }
    Ok(certificates)
}

fn parse_proxy(text: &str) -> Result<Url> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // Not repeated: a password may stand there.
    let Some(url) = url else {
        return Err(
            Error::config("the address of the proxy is not a URL").with_hint("it looks like 'http://proxy:3128'")
        );
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::config("the address of the proxy holds a name or a password")
            .with_hint("others can see it there: name such a proxy by HTTPS_PROXY"));
    }
    Ok(url)
}

/// Begins each connection at another address of the endpoint: large stores answer with several, and one is not enough for all parts.
struct Spread(AtomicUsize);

impl Resolve for Spread {
    fn resolve(&self, name: Name) -> Resolving {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            // The port is that of the URL.
            let mut addresses: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let begin = turn % addresses.len().max(1);
            addresses.rotate_left(begin);
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[derive(Debug)]
struct Service(Clients);

/// The method is that of the trait, spelled as its `async_trait` has it.
impl HttpService for Service {
    fn call<'a, 'f>(&'a self, request: HttpRequest) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        'a: 'f,
    {
        Box::pin(async move {
            let client = self.0.to(request.uri().host().unwrap_or_default());
            let answer = HttpService::call(client, request).await;
            // Who does not speak the same TLS today will not in a moment either: this kind is not tried again.
            answer.map_err(|e| if tls_failure(&e).is_some() { HttpError::new(HttpErrorKind::Unknown, e) } else { e })
        })
    }
}

/// Why two could not agree on TLS. Trying again does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsFailure {
    /// We do not trust the server's certificate.
    Certificate,
    /// No version or cipher that both have.
    Version,
    /// What answered is not TLS.
    NoTls,
}

impl TlsFailure {
    fn of(error: &rustls::Error) -> Option<Self> {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(_) => Some(Self::Certificate),
            E::PeerIncompatible(_) => Some(Self::Version),
            E::AlertReceived(alert) => matches!(
                *alert,
                AlertDescription::ProtocolVersion
                    | AlertDescription::HandshakeFailure
                    | AlertDescription::InsufficientSecurity
            )
            .then_some(Self::Version),
            E::InvalidMessage(_) => Some(Self::NoTls),
            _ => None,
        }
    }

    /// What happened, and what can be done.
    pub(crate) fn explain(self) -> (&'static str, &'static str) {
        match self {
            Self::Certificate => (
                "the server's certificate is not trusted",
                "the endpoint's certificate must be issued, for its name, by an authority that this machine trusts; 'ca_file' in [http], or \
                 --ca-file, names one more",
            ),
            Self::Version => (
                "the server speaks no TLS that is taken here",
                "TLS 1.3 is the least; ssl_min_protocol_version = \"TLSv1.2\" in [http], or --ssl-min-protocol-version TLSv1.2, takes 1.2, too",
            ),
            Self::NoTls => ("what answered does not speak TLS", "check scheme and port of the endpoint, and the proxy"),
        }
    }
}

/// Looks for the failure to agree on TLS below an error.
pub(crate) fn tls_failure(error: &(dyn StdError + 'static)) -> Option<TlsFailure> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return TlsFailure::of(error);
    }
    // What it wraps is not its source: its source is that of what it wraps.
    if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return tls_failure(inner);
    }
    error.source().and_then(tls_failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_postgresql_writes_them() {
        assert_eq!("tlsv1.2".parse::<TlsVersion>().unwrap(), TlsVersion::V1_2);
        assert_eq!(TlsVersion::default().to_string(), "TLSv1.3");
        for wrong in ["", "1.2", "TLSv1", "TLSv1.1", "SSLv3"] {
            assert!(wrong.parse::<TlsVersion>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_proxy_s_password_is_refused_and_not_repeated() {
        for proxy in ["http://me:hush@proxy:3128", "http://hush@proxy", "hush", "socks4://hush"] {
            let options = HttpOptions { proxy: Some(proxy.to_owned()), ..HttpOptions::default() };
            let error = Connector::new(&options, None).unwrap_err();
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }

    #[test]
    fn files_without_certificates_are_told_by_their_names() {
        let temp = tempfile::tempdir().unwrap();
        let empty = temp.path().join("empty.pem");
        std::fs::write(&empty, "no certificate\n").unwrap();
        for path in [empty, temp.path().join("absent.pem")] {
            let options = HttpOptions { ca_file: Some(path.clone()), ..HttpOptions::default() };
            let error = Connector::new(&options, None).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            let error = Connector::new(&HttpOptions::default(), path.to_str()).unwrap_err();
            assert!(error.to_string().starts_with("AWS_CA_BUNDLE"), "{error}");
        }
    }

    #[test]
    fn services_of_metadata_are_told_from_stores() {
        assert!(!is_for_metadata(&client_options(true)) && !allows_http(&client_options(false)));
        let shortened = client_options(true).with_connect_timeout(Duration::from_secs(1));
        assert!(is_for_metadata(&shortened) && allows_http(&shortened));
    }
}
