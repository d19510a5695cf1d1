//! The parameters of a connection, each from where it is said first: the connection string, the service file, the environment.

use std::fmt;
use std::str::FromStr;

use super::environment::Environment;
use super::service;
use crate::error::{Error, Result};
use crate::postgres::ConnInfo;

/// All parameters that libpq has (`PQconninfoOptions` in `fe-connect.c`, PostgreSQL 18), and the variables that stand for them.
pub(super) const KNOWN: &[(&str, &str)] = &[
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("dbname", "PGDATABASE"),
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("client_encoding", "PGCLIENTENCODING"),
    ("options", "PGOPTIONS"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslcompression", "PGSSLCOMPRESSION"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslpassword", ""),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslsni", "PGSSLSNI"),
    ("sslkeylogfile", ""),
    ("requirepeer", "PGREQUIREPEER"),
    ("require_auth", "PGREQUIREAUTH"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("krbsrvname", "PGKRBSRVNAME"),
    ("gsslib", "PGGSSLIB"),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("replication", ""),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("scram_client_key", ""),
    ("scram_server_key", ""),
    ("oauth_issuer", ""),
    ("oauth_client_id", ""),
    ("oauth_client_secret", ""),
    ("oauth_scope", ""),
];

/// The parameters, and where one that the string lacks comes from.
pub(super) struct Settings<'a> {
    merged: ConnInfo,
    environment: &'a Environment,
}

impl<'a> Settings<'a> {
    /// Merges the three, reading the service file if a service is named.
    pub(super) fn merge(conninfo: &ConnInfo, environment: &'a Environment) -> Result<Self> {
        if let Some((unknown, _)) = conninfo.params().find(|(key, _)| !is_known(key)) {
            return Err(Error::config(format!("libpq has no connection parameter \"{}\"", unknown.escape_debug())));
        }
        let mut settings = Self { merged: conninfo.clone(), environment };
        if let Some(name) = settings.get("service").map(str::to_owned) {
            for (key, value) in service::find(&name, settings.get("servicefile"), environment)? {
                if settings.merged.get(&key).is_none() {
                    settings.merged.set(&key, &value);
                }
            }
        }
        Ok(settings)
    }

    /// The value of a parameter, which may be empty.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let variable =
            || KNOWN.iter().find(|(known, _)| *known == key).and_then(|(_, name)| self.environment.get(name));
        self.merged.get(key).or_else(variable)
    }

    /// The value of a parameter for which an empty one is none.
    pub(super) fn filled(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// The value of a parameter that is one of some words.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                Err(invalid(key, value).with_hint(format!("it is one of {}", known.join(", "))))
            }
        }
    }

    /// The value of a parameter that is a number.
    pub(super) fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>> {
        let parse = |value: &str| value.trim().parse().map_err(|_| invalid(key, value));
        self.filled(key).map(parse).transpose()
    }

    /// A switch: 0 or 1.
    pub(super) fn switch(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.number::<i64>(key)?.map_or(default, |value| value != 0))
    }
}

pub(super) fn is_known(key: &str) -> bool {
    KNOWN.iter().any(|(known, _)| *known == key)
}

/// None of the parameters that end here is secret.
pub(super) fn invalid(key: &str, value: impl fmt::Display) -> Error {
    Error::config(format!("\"{}\" is not a value of the connection parameter {key}", value.to_string().escape_debug()))
}
