//! What a connection string says about TLS.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::settings::{Settings, invalid};
use crate::error::{Error, Result};

/// What TLS has to be, and from which files.
#[derive(Debug, Clone)]
pub(super) struct TlsOptions {
    pub(super) mode: SslMode,
    /// TLS from the first byte, without asking (17+).
    pub(super) direct: bool,
    pub(super) roots: Roots,
    pub(super) crl: Option<FileOption>,
    pub(super) certificate: Option<(FileOption, FileOption)>,
    pub(super) server_name: bool,
    pub(super) versions: Versions,
    pub(super) system_roots: SystemRoots,
}

/// Whether TLS is used, and what of the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    Disable,
    /// Only if the server does not take us without.
    Allow,
    /// Unless the server cannot.
    Prefer,
    Require,
    /// Its certificate is signed by somebody whom we trust.
    VerifyCa,
    /// And it is the host's that we meant.
    VerifyFull,
}

/// Whom we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    File(FileOption),
    System,
}

/// A file that somebody named, or one at the usual place, which need not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileOption {
    pub(super) path: PathBuf,
    pub(super) named: bool,
}

/// Protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versions {
    From12,
    Only12,
    Only13,
}

/// Where the system's roots are, if a variable says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SystemRoots {
    pub(super) file: Option<PathBuf>,
    pub(super) directory: Option<PathBuf>,
}

const MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl TlsOptions {
    pub(super) fn resolve(settings: &Settings<'_>, environment: &Environment) -> Result<Self> {
        let usual = |name: &str| environment.home().map(|home| home.join(".postgresql").join(name));
        let file = |key: &str, name: &str| match settings.filled(key) {
            Some(path) => Some(FileOption { path: path.into(), named: true }),
            None => usual(name).map(|path| FileOption { path, named: false }),
        };
        let roots = match settings.filled("sslrootcert") {
            Some("system") => Roots::System,
            _ => file("sslrootcert", "root.crt")
                .map_or_else(|| Roots::File(FileOption { path: PathBuf::new(), named: false }), Roots::File),
        };
        let mode = mode(settings, environment, &roots)?;
        if settings.filled("sslcrldir").is_some() {
            let error = Error::config("sslcrldir is not supported");
            return Err(error.with_hint("put the revocation lists into one file and name it by sslcrl"));
        }
        let direct = settings.word("sslnegotiation", &[("postgres", false), ("direct", true)])?.unwrap_or(false);
        if direct && mode < SslMode::Require {
            return Err(Error::config("sslnegotiation=direct needs sslmode=require or stronger"));
        }
        let key = file("sslkey", "postgresql.key");
        let environment_path = |name| environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Self {
            mode,
            direct,
            roots,
            crl: file("sslcrl", "root.crl"),
            certificate: file("sslcert", "postgresql.crt").zip(key).filter(|_| certificate_wanted(settings)),
            server_name: settings.switch("sslsni", true)?,
            versions: versions(settings, mode)?,
            system_roots: SystemRoots {
                file: environment_path("SSL_CERT_FILE"),
                directory: environment_path("SSL_CERT_DIR"),
            },
        })
        .and_then(|options| refuse_certificate_mode(settings).map(|()| options))
    }
}

fn mode(settings: &Settings<'_>, environment: &Environment, roots: &Roots) -> Result<SslMode> {
    let mut mode = settings.word("sslmode", &MODES)?;
    if mode.is_none() && environment.get("PGREQUIRESSL").is_some_and(|value| value.starts_with('1')) {
        mode = Some(SslMode::Require);
    }
    match (roots, mode) {
        (Roots::System, None) => Ok(SslMode::VerifyFull),
        // Anybody can get a certificate from one of the public authorities.
        (Roots::System, Some(weak)) if weak != SslMode::VerifyFull => {
            Err(Error::config("sslrootcert=system needs sslmode=verify-full"))
        }
        _ => Ok(mode.unwrap_or(SslMode::Prefer)),
    }
}

fn certificate_wanted(settings: &Settings<'_>) -> bool {
    settings.get("sslcertmode") != Some("disable")
}

fn refuse_certificate_mode(settings: &Settings<'_>) -> Result<()> {
    match settings.word("sslcertmode", &[("disable", true), ("allow", true), ("require", false)])? {
        Some(false) => Err(Error::config("sslcertmode=require is not supported")),
        _ => Ok(()),
    }
}

/// Where TLS is demanded, it is TLS 1.3 unless less is asked for; where none would do, 1.2 is better than none. libpq's own default is 1.2. rustls
/// has nothing below; whoever allows less gets more.
fn versions(settings: &Settings<'_>, mode: SslMode) -> Result<Versions> {
    let rank = |key, default| match settings.filled(key) {
        None => Ok(default),
        Some(value) => ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
            .iter()
            .position(|known| known.eq_ignore_ascii_case(value))
            .ok_or_else(|| invalid(key, value)),
    };
    let most = rank("ssl_max_protocol_version", 3)?;
    let least = if mode >= SslMode::Require { most.max(2) } else { 2 };
    match (rank("ssl_min_protocol_version", least)?, most) {
        (least, most) if least > most => {
            Err(Error::config("ssl_min_protocol_version is above ssl_max_protocol_version"))
        }
        (_, ..2) => Err(Error::config("ssl_max_protocol_version is below TLSv1.2, the least that is supported")),
        (3, _) => Ok(Versions::Only13),
        (_, 2) => Ok(Versions::Only12),
        _ => Ok(Versions::From12),
    }
}

impl FileOption {
    /// Its path, if it has to be there or is.
    pub(super) fn present(&self) -> Option<&Path> {
        (self.named || self.path.is_file()).then_some(self.path.as_path())
    }
}
