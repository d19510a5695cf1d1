//! Certificates, made as they are needed.

use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyPair};
use rcgen::{KeyIdMethod, KeyUsagePurpose, RevokedCertParams, SerialNumber, SignatureAlgorithm, date_time_ymd};

pub use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA512};

/// No two certificates have the same number.
static SERIAL: AtomicU64 = AtomicU64::new(1000);

/// Somebody who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub certificate: String,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Its serial number, by which it can be revoked.
    pub serial: u64,
}

impl Authority {
    /// An authority that signs with `algorithm`.
    ///
    /// # Panics
    /// When the algorithm cannot make keys.
    pub fn new(algorithm: &'static SignatureAlgorithm) -> Self {
        Self::with(KeyPair::generate_for(algorithm).expect("a key"))
    }

    /// An authority that signs by RSA, whose keys take too long to make.
    ///
    /// # Panics
    /// When the key that is kept for it is none.
    pub fn by_rsa(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = include_str!("rsa.key");
        Self::with(KeyPair::from_pem_and_sign_algo(key, algorithm).expect("a key"))
    }

    fn with(key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        let name = format!("authority {}", SERIAL.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A certificate for somebody of that common name, with these alternative names.
    ///
    /// # Panics
    /// When a name is none.
    pub fn issue(&self, common_name: &str, names: &[&str]) -> Issued {
        issue(params(common_name, names), |params, key| params.signed_by(key, &self.issuer))
    }

    /// A certificate whose time is over.
    ///
    /// # Panics
    /// When a name is none.
    pub fn issue_expired(&self, common_name: &str, names: &[&str]) -> Issued {
        let mut params = params(common_name, names);
        params.not_after = date_time_ymd(2020, 1, 1);
        issue(params, |params, key| params.signed_by(key, &self.issuer))
    }

    /// A list that revokes some certificates.
    ///
    /// # Panics
    /// When it cannot be signed.
    pub fn revoke(&self, revoked: &[&Issued]) -> String {
        let revoked_certs = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }
}

impl Issued {
    /// A certificate that nobody but itself signs; as `openssl req -x509` makes them, which may sign others.
    ///
    /// # Panics
    /// When a name is none.
    pub fn by_itself(common_name: &str, names: &[&str]) -> Self {
        let mut params = params(common_name, names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        issue(params, |params, key| params.self_signed(key))
    }
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn issue(
    mut params: CertificateParams,
    sign: impl FnOnce(&CertificateParams, &KeyPair) -> Result<rcgen::Certificate, rcgen::Error>,
) -> Issued {
    let key = KeyPair::generate().expect("a key");
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    params.serial_number = Some(SerialNumber::from(serial));
    let certificate = sign(&params, &key).expect("a certificate").pem();
    Issued { certificate, key: key.serialize_pem(), serial }
}
