//! TLS with rustls, as libpq uses OpenSSL: what is checked follows from `sslmode` and from the files that are there.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificate::end_point_hash;
use super::connect::Failure;
use super::options::{Host, Place};
use super::socket::Socket;
use super::tls_options::{Roots, SslMode, SystemRoots, TlsOptions, Versions};
use super::verify::{Trust, Verifier};
use crate::error::{Error, ErrorKind, Result, Stage};

/// What a server answers to `SSLRequest`.
const YES: u8 = b'S';
const NO: u8 = b'N';

/// PostgreSQL's name among the protocols that share TLS (17+).
const ALPN: &[u8] = b"postgresql";

/// Ready to be used with any host.
#[derive(Debug)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    mode: SslMode,
    direct: bool,
}

impl Tls {
    /// Reads certificates and keys. Blocks.
    pub(super) fn load(options: &TlsOptions) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: &[&SupportedProtocolVersion] = match options.versions {
            Versions::From12 => &[&rustls::version::TLS12, &rustls::version::TLS13],
            Versions::Only12 => &[&rustls::version::TLS12],
            Versions::Only13 => &[&rustls::version::TLS13],
        };
        let verifier: Arc<dyn ServerCertVerifier> = Arc::new(Verifier::new(
            trust(options)?,
            options.mode == SslMode::VerifyFull,
            provider.signature_verification_algorithms,
        )?);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match certificate(options)? {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
                Error::config("the client certificate and its key (sslcert, sslkey) do not fit together").with_source(e)
            })?,
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = options.server_name;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Arc::new(config), mode: options.mode, direct: options.direct })
    }
}

/// Turns a fresh connection into one with TLS; returns the hash to which SCRAM can be bound, if there is one. With `prefer`, a server that has no
/// TLS is taken as it is.
pub(super) async fn open(
    tls: &Tls,
    mut socket: TcpStream,
    host: &Host,
    ip: IpAddr,
) -> Result<(Socket, Option<Vec<u8>>), Failure> {
    let name = server_name(tls, host, ip)?;
    if !tls.direct && !ask(&mut socket).await? {
        return match tls.mode {
            SslMode::Allow | SslMode::Prefer => Ok((Socket::Tcp(socket), None)),
            _ => Err(Failure::Encryption(refused("the server has no TLS, which sslmode demands"))),
        };
    }
    let stream = TlsConnector::from(Arc::clone(&tls.config)).connect(name, socket).await.map_err(handshake)?;
    let session = stream.get_ref().1;
    if tls.direct && session.alpn_protocol() != Some(ALPN) {
        return Err(
            refused("what answers there is not PostgreSQL 17 or later, which sslnegotiation=direct needs").into()
        );
    }
    let hash = session.peer_certificates().and_then(<[_]>::first).and_then(|der| end_point_hash(der));
    Ok((Socket::Tls(Box::new(stream)), hash))
}

/// Asks for TLS. Exactly one byte is read: whatever else came before the handshake is not part of the session (CVE-2021-23222).
async fn ask(socket: &mut TcpStream) -> Result<bool, Failure> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let broken = |error: io::Error| {
        let what = "the server closed the connection when asked for TLS";
        Failure::Next(Error::new(ErrorKind::Source, Stage::Source, what).with_source(error))
    };
    socket.write_all(&request).await.map_err(broken)?;
    match socket.read_u8().await.map_err(broken)? {
        YES => Ok(true),
        NO => Ok(false),
        // 'E' begins an error, of a server that is too busy to fork. Nobody has shown yet that the text is the server's.
        b'E' => {
            Err(Failure::Next(Error::new(ErrorKind::Source, Stage::Source, "the server failed when asked for TLS")))
        }
        _ => Err(Failure::Next(super::channel::confused_by("it does not know the question for TLS"))),
    }
}

/// The name that is asked for and, with `verify-full`, looked for in the certificate.
fn server_name(tls: &Tls, host: &Host, ip: IpAddr) -> Result<ServerName<'static>, Failure> {
    let name = match &host.place {
        Place::Name(name) | Place::Address(_, Some(name)) => Some(name),
        Place::Socket(_) | Place::Address(_, None) => None,
    };
    match name.map(|name| ServerName::try_from(name.trim_end_matches('.').to_owned())) {
        Some(Ok(name)) => Ok(name),
        _ if tls.mode < SslMode::VerifyFull => Ok(ServerName::IpAddress(ip.into())),
        Some(Err(error)) => {
            Err(Error::config("the host's name is none that a certificate could have").with_source(error).into())
        }
        None => Err(Error::config("sslmode=verify-full needs the host's name (host), not only its address").into()),
    }
}

/// Of whom certificates are accepted.
fn trust(options: &TlsOptions) -> Result<Trust> {
    let roots = match &options.roots {
        Roots::System => system_roots(&options.system_roots)?,
        Roots::File(file) => match file.present() {
            Some(path) => read_pem::<CertificateDer<'static>>(path, "root certificate", "sslrootcert")?,
            None if options.mode >= SslMode::VerifyCa => {
                let place = if file.path.as_os_str().is_empty() {
                    "~/.postgresql/root.crt".into()
                } else {
                    file.path.display().to_string()
                };
                return Err(Error::config(format!("there is no root certificate to verify the server with: {place}"))
                    .with_hint("name one by sslrootcert, or sslrootcert=system for those of this machine"));
            }
            None => return Ok(Trust::Anybody),
        },
    };
    let crls = match options.crl.as_ref().and_then(|file| file.present()) {
        Some(path) => read_pem::<CertificateRevocationListDer<'static>>(path, "revocation list", "sslcrl")?,
        None => Vec::new(),
    };
    Ok(Trust::Roots { roots, crls })
}

/// The roots of this machine, found as OpenSSL finds them.
fn system_roots(place: &SystemRoots) -> Result<Vec<CertificateDer<'static>>> {
    let named = place.file.is_some() || place.directory.is_some();
    let found = match named {
        true => rustls_native_certs::load_certs_from_paths(place.file.as_deref(), place.directory.as_deref()),
        false => rustls_native_certs::load_native_certs(),
    };
    match (found.certs.is_empty(), found.errors.into_iter().next()) {
        (false, _) => Ok(found.certs),
        (true, Some(error)) => {
            Err(Error::config("the root certificates of this machine cannot be read").with_source(error))
        }
        (true, None) => Err(Error::config("this machine has no root certificates")
            .with_hint("install ca-certificates, or set SSL_CERT_FILE")),
    }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The certificate by which we show who we are.
fn certificate(options: &TlsOptions) -> Result<Option<Identity>> {
    let Some((certificate, key)) = &options.certificate else { return Ok(None) };
    let Some(path) = certificate.present() else { return Ok(None) };
    let chain = read_pem::<CertificateDer<'static>>(path, "client certificate", "sslcert")?;
    let named_engine = key.path.to_str().is_some_and(|path| path.contains(':') && !path.starts_with('/'));
    if key.named && named_engine && !key.path.exists() {
        return Err(Error::config("keys in hardware (sslkey=engine:key) are not supported"));
    }
    check_key_file(&key.path)?;
    let read = PrivateKeyDer::from_pem_file(&key.path).map_err(|error| {
        let failed = Error::config(format!("there is no private key in {} (sslkey)", key.path.display()));
        match error {
            pem::Error::NoItemsFound => {
                failed.with_hint("keys with a passphrase (sslpassword) are not supported: decrypt it")
            }
            error => failed.with_source(error),
        }
    })?;
    Ok(Some((chain, read)))
}

/// A key that others may read is none (`pg_ssl` in `fe-secure-openssl.c`).
fn check_key_file(path: &Path) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        Error::config(format!("the client certificate's private key {} cannot be read", path.display()))
            .with_source(error)
    })?;
    if !metadata.is_file() {
        return Err(Error::config(format!("the private key {} is not a plain file", path.display())));
    }
    let mode = metadata.permissions().mode() & 0o777;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match mode & forbidden {
        0 => Ok(()),
        _ => Err(Error::config(format!("others may read the private key {}: its mode is {mode:04o}", path.display()))
            .with_hint("its mode must be 0600 or less, or if root owns it 0640 or less")),
    }
}

/// All items of one kind in a PEM file; at least one.
fn read_pem<T: PemObject>(path: &Path, what: &str, parameter: &str) -> Result<Vec<T>> {
    let cannot = || format!("there is no {what} in {} ({parameter})", path.display());
    let items: Vec<T> = T::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| Error::config(cannot()).with_source(error))?;
    if items.is_empty() { Err(Error::config(cannot())) } else { Ok(items) }
}

fn handshake(error: io::Error) -> Failure {
    let hint = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).and_then(super::verify::hint);
    let failed = Error::new(ErrorKind::Config, Stage::Source, "no TLS session with the server").with_source(error);
    Failure::Encryption(match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    })
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Config, Stage::Source, why)
}

fn unusable(error: rustls::Error) -> Error {
    Error::config("TLS cannot be set up as it is asked for").with_source(error)
}
