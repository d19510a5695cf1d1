//! What has to be known of a certificate beyond what webpki tells. No I/O.

use ring::digest::{self, Algorithm};
use rustls::CertificateError;
use rustls::pki_types::{ServerName, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Reader, TagMode, TagNumber};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::{AlgorithmIdentifierOwned, AlgorithmIdentifierRef};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// The hash that each signature algorithm, or with RSASSA-PSS its hash algorithm, makes the one of `tls-server-end-point`; MD5 and SHA-1 count
/// as SHA-256 (RFC 5929 section 4.1).
const HASHES: &[(&str, &Algorithm)] = &[
    ("1.2.840.113549.1.1.4", &digest::SHA256),  // md5WithRSAEncryption
    ("1.2.840.113549.1.1.5", &digest::SHA256),  // sha1WithRSAEncryption
    ("1.2.840.113549.1.1.11", &digest::SHA256), // sha256WithRSAEncryption
    ("1.2.840.113549.1.1.12", &digest::SHA384),
    ("1.2.840.113549.1.1.13", &digest::SHA512),
    ("1.2.840.10045.4.1", &digest::SHA256), // ecdsa-with-SHA1
    ("1.2.840.10045.4.3.2", &digest::SHA256),
    ("1.2.840.10045.4.3.3", &digest::SHA384),
    ("1.2.840.10045.4.3.4", &digest::SHA512),
    ("1.3.14.3.2.26", &digest::SHA256), // SHA-1
    ("2.16.840.1.101.3.4.2.1", &digest::SHA256),
    ("2.16.840.1.101.3.4.2.2", &digest::SHA384),
    ("2.16.840.1.101.3.4.2.3", &digest::SHA512),
];

/// What SCRAM is bound to; `None` for signatures without a hash of their own, such as Ed25519, for which nobody has defined it.
pub(super) fn end_point_hash(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(der).ok()?;
    let algorithm = hash_of(&certificate.signature_algorithm)?;
    Some(digest::digest(algorithm, der).as_ref().to_vec())
}

fn hash_of(signature: &AlgorithmIdentifierOwned) -> Option<&'static Algorithm> {
    let oid = match signature.oid {
        RSASSA_PSS => pss_hash(signature)?.to_string(),
        oid => oid.to_string(),
    };
    HASHES.iter().find(|(known, _)| *known == oid).map(|(_, algorithm)| *algorithm)
}

/// `RSASSA-PSS-params` (RFC 4055): the hash comes first, and is SHA-1 when it is left out.
fn pss_hash(signature: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let parameters = AnyRef::from(signature.parameters.as_ref()?);
    let hash = parameters.sequence(|reader| {
        let hash: Option<AlgorithmIdentifierRef<'_>> = reader.context_specific(TagNumber::N0, TagMode::Explicit)?;
        reader.read_slice(reader.remaining_len())?;
        Ok(hash.map(|hash| hash.oid))
    });
    Some(hash.ok()?.unwrap_or(ObjectIdentifier::new_unwrap("1.3.14.3.2.26")))
}

/// Whom a certificate is about, and when.
pub(super) struct Subject {
    certificate: Certificate,
    names: Option<SubjectAltName>,
}

impl Subject {
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let names = certificate.tbs_certificate.get::<SubjectAltName>().ok()?.map(|(_, names)| names);
        Some(Self { certificate, names })
    }

    /// Whether it names hosts where today's certificates do.
    pub(super) fn has_alternative_names(&self) -> bool {
        let names = self.names.iter().flat_map(|names| &names.0);
        names.into_iter().any(|name| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_)))
    }

    pub(super) fn check_time(&self, now: UnixTime) -> Result<(), CertificateError> {
        let validity = &self.certificate.tbs_certificate.validity;
        let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
        if now.as_secs() < seconds(validity.not_before) {
            return Err(CertificateError::NotValidYet);
        }
        if now.as_secs() > seconds(validity.not_after) {
            return Err(CertificateError::Expired);
        }
        Ok(())
    }

    /// Looks for the name in the subject, as was done before there were alternative names: the last common name counts.
    pub(super) fn check_common_name(&self, wanted: &ServerName<'_>) -> Result<(), CertificateError> {
        let mut attributes = self.certificate.tbs_certificate.subject.0.iter().flat_map(|set| set.0.iter());
        let name = attributes.rfind(|attribute| attribute.oid == COMMON_NAME).map(|attribute| attribute.value.value());
        match name.is_some_and(|name| fits(name, &wanted.to_str())) {
            true => Ok(()),
            false => Err(CertificateError::NotValidForName),
        }
    }
}

/// Whether a common name is a host's; `*.` stands for exactly one label.
fn fits(pattern: &[u8], host: &str) -> bool {
    let Ok(pattern) = std::str::from_utf8(pattern) else { return false };
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(domain), Some((label, rest))) => {
            !domain.is_empty()
                && !label.is_empty()
                && host.parse::<std::net::IpAddr>().is_err()
                && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash for an `AlgorithmIdentifier`, in hexadecimal DER without its outermost header.
    fn hash(der: &str) -> Option<&'static Algorithm> {
        let body = data_encoding::HEXLOWER.decode(der.replace(' ', "").as_bytes()).unwrap();
        let der = [&[0x30, u8::try_from(body.len()).unwrap()][..], &body].concat();
        hash_of(&AlgorithmIdentifierOwned::from_der(&der).unwrap())
    }

    #[test]
    fn what_is_bound_to_follows_from_the_signature() {
        const PSS: &str = "0609 2a864886f70d01010a";
        let named = |algorithm: Option<&'static Algorithm>| algorithm.map(|algorithm| algorithm.output_len() * 8);
        for (der, bits) in [
            ("0609 2a864886f70d010105 0500", Some(256)), // RSA, SHA-1
            ("0609 2a864886f70d01010b 0500", Some(256)),
            ("0609 2a864886f70d01010d 0500", Some(512)),
            ("0608 2a8648ce3d040303", Some(384)), // ECDSA, SHA-384
            ("0603 2b6570", None),                // Ed25519
            (&format!("{PSS} 3000"), Some(256)),  // the default, SHA-1
            (&format!("{PSS} 3011 a00f 300d 0609 608648016503040203 0500"), Some(512)),
            (&format!("{PSS} 3016 a00f 300d 0609 608648016503040202 0500 a203 020130"), Some(384)),
            (PSS, None),
        ] {
            assert_eq!(named(hash(der)), bits, "{der}");
        }
        assert_eq!(end_point_hash(b"no certificate"), None);
    }

    #[test]
    fn a_wildcard_is_one_label() {
        for (pattern, host, fit) in [
            ("db.example.org", "DB.example.org", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "a.db.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.", "db.", false),
            ("*", "db", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("db.example.org\0.evil.org", "db.example.org", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), host), fit, "{pattern} {host}");
        }
    }
}
