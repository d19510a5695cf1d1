//! Everything that a connection needs to know, resolved once: from a connection string and an [`Environment`].
//!
//! The words and their meaning are libpq's. What cannot be done here, and would make the connection another one or a weaker one if it were
//! ignored, is an error.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::auth::AuthMethods;
use super::connection::Mode;
use super::environment::Environment;
use super::message::NoticeCallback;
use super::passfile::{PasswordFile, Wanted};
use super::settings::{Settings, invalid};
use super::tls_options::TlsOptions;
use crate::error::{Error, Result};
use crate::postgres::ConnInfo;

const PORT_DEFAULT: u16 = 5432;

/// How long each address may take when nothing says it. libpq would wait for ever; a backup that hangs is worse than one that fails.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Where servers put their sockets: distributions, and PostgreSQL as it comes.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Where and how to connect.
///
/// `Debug` hides the password.
#[derive(Clone)]
pub struct ConnectOptions {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) database: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    pub(super) password_file: PasswordFile,
    pub(super) application_name: String,
    pub(super) server_options: Option<String>,
    pub(super) timeout: Option<Duration>,
    pub(super) keepalive: Keepalive,
    pub(super) session: SessionAttrs,
    pub(super) random_order: bool,
    pub(super) require_peer: Option<String>,
    pub(super) methods: AuthMethods,
    pub(super) channel_binding: ChannelBinding,
    pub(super) tls: TlsOptions,
    pub(super) notices: Option<NoticeCallback>,
}

/// One of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) place: Place,
    pub(super) port: u16,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The directory of its socket, or `@` and a name without a file.
    Socket(String),
    /// A name or an address to be looked up.
    Name(String),
    /// An address, and the name that its certificate shall have, if one is known.
    Address(IpAddr, Option<String>),
}

/// TCP keepalives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub(super) off: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    pub(super) user_timeout: Option<Duration>,
}

/// What state a server must be in (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// Whether the authentication has to be tied to the TLS session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

impl ConnectOptions {
    /// Resolves what `conninfo` says, with the service file, the environment and the password file where it says nothing. Reads these files now;
    /// those for TLS are read when they are needed.
    ///
    /// # Errors
    /// `Config` for parameters that libpq does not have or values that it would refuse, for services that are not there, and for what is not
    /// possible here: GSSAPI (`gssencmode=require`), OAuth, protocol 3.2, ready-made SCRAM keys, key files with a passphrase.
    pub fn resolve(conninfo: &ConnInfo, environment: &Environment) -> Result<Self> {
        let settings = Settings::merge(conninfo, environment)?;
        refuse_impossible(&settings)?;
        let user = match settings.filled("user").or_else(|| environment.user()) {
            Some(user) => user.to_owned(),
            None => return Err(Error::config("no user to connect as").with_hint("set user=, or PGUSER")),
        };
        let password_path = match settings.filled("passfile") {
            Some(path) => Some(PathBuf::from(path)),
            None => environment.home().map(|home| home.join(".pgpass")),
        };
        let name = settings.filled("application_name").or_else(|| settings.filled("fallback_application_name"));
        Ok(Self {
            hosts: hosts(&settings)?,
            database: settings.filled("dbname").map(str::to_owned),
            password: settings.filled("password").map(|password| Zeroizing::new(password.to_owned())),
            password_file: PasswordFile::read(password_path),
            application_name: name.unwrap_or("backup").to_owned(),
            server_options: settings.filled("options").map(str::to_owned),
            timeout: timeout(&settings)?,
            keepalive: keepalive(&settings)?,
            session: session(&settings)?,
            random_order: settings
                .word("load_balance_hosts", &[("disable", false), ("random", true)])?
                .unwrap_or(false),
            require_peer: settings.filled("requirepeer").map(str::to_owned),
            methods: AuthMethods::parse(settings.filled("require_auth"))?,
            channel_binding: channel_binding(&settings)?,
            tls: TlsOptions::resolve(&settings, environment)?,
            notices: None,
            user,
        })
    }

    /// Receives notices and warnings, those of the start included.
    #[must_use]
    pub fn on_notice(mut self, callback: NoticeCallback) -> Self {
        self.notices = Some(callback);
        self
    }

    /// Under another name in `pg_stat_activity`, `pg_stat_replication` and `synchronous_standby_names`.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.application_name);
        self
    }

    /// With another time for each address; `None` waits for as long as the network does.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long each address may take until it lets us in (`connect_timeout`); a minute unless something says otherwise, `None` for 0.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Who connects.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Connects to this database where the connection string names none, in the place of the one that is called as the user is.
    #[must_use]
    pub fn with_default_database(mut self, name: &str) -> Self {
        self.database.get_or_insert_with(|| name.to_owned());
        self
    }

    /// The same to another database.
    pub(crate) fn with_database(mut self, name: &str) -> Self {
        self.database = Some(name.to_owned());
        self
    }

    /// Whether one of the hosts can be this very one: a socket, or a loopback address.
    pub(crate) fn may_be_near(&self) -> bool {
        self.hosts.iter().any(|host| match &host.place {
            Place::Socket(_) => true,
            Place::Name(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
            Place::Address(address, _) => address.is_loopback(),
        })
    }

    /// The database: of physical replication always `replication`.
    pub fn database(&self, mode: Mode) -> &str {
        match mode {
            Mode::Replication => "replication",
            _ => self.database.as_deref().unwrap_or(&self.user),
        }
    }

    /// The password for one host.
    pub(super) fn password_for(&self, host: &Host, mode: Mode) -> Option<Zeroizing<String>> {
        let address;
        let name = match &host.place {
            Place::Socket(directory) if SOCKET_DIRECTORIES.contains(&directory.as_str()) => "localhost",
            Place::Socket(name) | Place::Name(name) | Place::Address(_, Some(name)) => name,
            Place::Address(ip, None) => {
                address = ip.to_string();
                &address
            }
        };
        let wanted = Wanted { host: name, port: host.port, database: self.database(mode), user: &self.user };
        self.password.clone().or_else(|| self.password_file.password(wanted))
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("hosts", &self.hosts)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("application_name", &self.application_name)
            .field("timeout", &self.timeout)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.place {
            Place::Socket(directory) => write!(f, "socket {directory}/.s.PGSQL.{port}"),
            Place::Name(name) => write!(f, "host {name} port {port}"),
            Place::Address(ip, Some(name)) => write!(f, "host {name} ({ip}) port {port}"),
            Place::Address(ip, None) => write!(f, "address {ip} port {port}"),
        }
    }
}

/// Parameters that would make the connection another one, or a weaker one, if they were ignored.
fn refuse_impossible(settings: &Settings<'_>) -> Result<()> {
    let gss = [("disable", false), ("allow", false), ("prefer", false), ("require", true)];
    if settings.word("gssencmode", &gss)? == Some(true) {
        return Err(Error::config("gssencmode=require: encryption by GSSAPI is not supported"));
    }
    for key in ["scram_client_key", "scram_server_key", "oauth_issuer", "oauth_client_id"] {
        if settings.filled(key).is_some() {
            return Err(Error::config(format!("the connection parameter {key} is not supported")));
        }
    }
    let version = settings.filled("min_protocol_version").unwrap_or("3.0");
    match version {
        "3.0" => Ok(()),
        "3.2" | "latest" => Err(Error::config("protocol 3.0 is spoken here, less than min_protocol_version demands")),
        other => Err(invalid("min_protocol_version", other)),
    }
}

fn timeout(settings: &Settings<'_>) -> Result<Option<Duration>> {
    Ok(match settings.number::<i64>("connect_timeout")? {
        None => Some(TIMEOUT_DEFAULT),
        Some(seconds) => u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs),
    })
}

fn keepalive(settings: &Settings<'_>) -> Result<Keepalive> {
    let seconds = |key| -> Result<Option<Duration>> {
        Ok(settings.number::<u32>(key)?.filter(|&n| n > 0).map(|n| Duration::from_secs(n.into())))
    };
    Ok(Keepalive {
        off: !settings.switch("keepalives", true)?,
        idle: seconds("keepalives_idle")?,
        interval: seconds("keepalives_interval")?,
        count: settings.number("keepalives_count")?.filter(|&n: &u32| n > 0),
        user_timeout: settings
            .number::<u32>("tcp_user_timeout")?
            .filter(|&n| n > 0)
            .map(|n| Duration::from_millis(n.into())),
    })
}

fn session(settings: &Settings<'_>) -> Result<SessionAttrs> {
    let words = [
        ("any", SessionAttrs::Any),
        ("read-write", SessionAttrs::ReadWrite),
        ("read-only", SessionAttrs::ReadOnly),
        ("primary", SessionAttrs::Primary),
        ("standby", SessionAttrs::Standby),
        ("prefer-standby", SessionAttrs::PreferStandby),
    ];
    Ok(settings.word("target_session_attrs", &words)?.unwrap_or(SessionAttrs::Any))
}

fn channel_binding(settings: &Settings<'_>) -> Result<ChannelBinding> {
    let words = [
        ("disable", ChannelBinding::Disable),
        ("prefer", ChannelBinding::Prefer),
        ("require", ChannelBinding::Require),
    ];
    Ok(settings.word("channel_binding", &words)?.unwrap_or(ChannelBinding::Prefer))
}

/// The hosts, as lists that belong together.
fn hosts(settings: &Settings<'_>) -> Result<Vec<Host>> {
    let list = |key| settings.filled(key).map(|value| value.split(',').map(str::trim).collect::<Vec<_>>());
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port").unwrap_or_else(|| vec![""]));
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    if names.as_ref().is_some_and(|names| names.len() != count) {
        return Err(Error::config("host and hostaddr are lists of different lengths"));
    }
    if ports.len() != 1 && ports.len() != count {
        return Err(Error::config(format!("{} ports for {count} hosts", ports.len())));
    }
    (0..count)
        .map(|index| {
            let of = |list: &Option<Vec<&str>>| list.as_ref().map(|list| list[index].to_owned()).unwrap_or_default();
            let port = port(if ports.len() == 1 { ports[0] } else { ports[index] })?;
            Ok(Host { place: place(of(&names), &of(&addresses), port)?, port })
        })
        .collect()
}

fn port(text: &str) -> Result<u16> {
    match text {
        "" => Ok(PORT_DEFAULT),
        text => text.parse().ok().filter(|&port| port > 0).ok_or_else(|| invalid("port", text)),
    }
}

fn place(name: String, address: &str, port: u16) -> Result<Place> {
    if !address.is_empty() {
        let ip = address.parse().map_err(|_| invalid("hostaddr", address))?;
        return Ok(Place::Address(ip, Some(name).filter(|name| !name.is_empty())));
    }
    if name.is_empty() {
        let exists = |directory: &&str| PathBuf::from(format!("{directory}/.s.PGSQL.{port}")).exists();
        let found = SOCKET_DIRECTORIES.iter().find(|directory| exists(directory)).unwrap_or(&SOCKET_DIRECTORIES[0]);
        return Ok(Place::Socket((*found).to_owned()));
    }
    Ok(if name.starts_with(['/', '@']) { Place::Socket(name) } else { Place::Name(name) })
}

#[cfg(test)]
mod tests;
