//! Whether a server's certificate will do, by libpq's rules.
//!
//! The chain is checked whenever there are root certificates, whatever `sslmode` says; the name with `verify-full` alone. Two kinds of
//! certificate that PostgreSQL's own manual shows how to make, and webpki knows nothing of, are accepted as libpq accepts them: a self-signed
//! one that itself is in the file of roots, and one that has its name in the subject's common name only.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

use super::certificate::Subject;
use crate::error::{Error, Result};

/// Of whom certificates are accepted.
pub(super) enum Trust {
    /// There is nothing to check with.
    Anybody,
    Roots {
        roots: Vec<CertificateDer<'static>>,
        crls: Vec<CertificateRevocationListDer<'static>>,
    },
}

#[derive(Debug)]
pub(super) struct Verifier {
    roots: Option<Roots>,
    name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    /// Checks revocation besides, where there are lists.
    revocation: Option<Arc<WebPkiServerVerifier>>,
}

impl Verifier {
    pub(super) fn new(trust: Trust, name: bool, algorithms: WebPkiSupportedAlgorithms) -> Result<Self> {
        let roots = match trust {
            Trust::Anybody => None,
            Trust::Roots { roots, crls } => Some(Roots::new(roots, crls)?),
        };
        Ok(Self { roots, name, algorithms })
    }
}

impl Roots {
    fn new(
        certificates: Vec<CertificateDer<'static>>,
        crls: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self> {
        let mut store = RootCertStore::empty();
        // Machines have roots that nobody can use; those are left out.
        let (usable, _) = store.add_parsable_certificates(certificates.iter().cloned());
        if usable == 0 {
            return Err(Error::config("none of the root certificates can be used"));
        }
        let store = Arc::new(store);
        let revocation = match crls.is_empty() {
            true => None,
            false => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let builder = WebPkiServerVerifier::builder_with_provider(Arc::clone(&store), provider).with_crls(crls);
                Some(
                    builder
                        .build()
                        .map_err(|e| Error::config("the revocation lists (sslcrl) cannot be used").with_source(e))?,
                )
            }
        };
        Ok(Self { certificates, store, revocation })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let subject = Subject::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        if roots.certificates.iter().any(|root| root == end_entity) {
            subject.check_time(now)?;
        } else {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots.store, intermediates, now, algorithms)?;
            if let Some(revocation) = &roots.revocation {
                // It looks at names too, after the chain: that is decided below.
                match revocation.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                    Ok(_) => {}
                    Err(TlsError::InvalidCertificate(
                        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                    )) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if self.name {
            match subject.has_alternative_names() {
                true => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?,
                false => subject.check_common_name(server_name)?,
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What can be done about it.
pub(super) fn hint(error: &TlsError) -> Option<&'static str> {
    let why = match error {
        TlsError::InvalidCertificate(why) => why,
        TlsError::AlertReceived(AlertDescription::ProtocolVersion) | TlsError::PeerIncompatible(_) => {
            return Some("does the server know TLS 1.2 at most? ssl_min_protocol_version=TLSv1.2 allows it");
        }
        _ => return None,
    };
    match why {
        CertificateError::UnknownIssuer => {
            Some("is sslrootcert the certificate of the authority that signed the server's?")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Some("connect by a name that the certificate has (host, with hostaddr for where that is)")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some("the server needs a new certificate; is this machine's clock right?")
        }
        _ => None,
    }
}
