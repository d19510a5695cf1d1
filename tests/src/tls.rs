//! TLS before a server that has none.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Issued;

/// All that a door speaks: TLS 1.2.
pub const ONLY_1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
/// All that a door speaks: TLS 1.3.
pub const ONLY_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A port where TLS is spoken, and which leads to another where it is not.
#[derive(Debug)]
pub struct TlsDoor {
    address: SocketAddr,
    _runtime: Runtime,
}

impl TlsDoor {
    /// A door to `server`, with a certificate of its own.
    ///
    /// # Panics
    /// When the certificate is none.
    pub fn to(server: SocketAddr, certificate: &Issued, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let chain = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("they belong together");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, acceptor.clone()));
            }
        });
        Self { address, _runtime: runtime }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }
}

async fn pass(client: TcpStream, server: SocketAddr, acceptor: TlsAcceptor) {
    // Fails when the client wants another version, or does not trust us, which is its business.
    let Ok(mut client) = acceptor.accept(client).await else { return };
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let _ = copy_bidirectional(&mut client, &mut server).await;
}
