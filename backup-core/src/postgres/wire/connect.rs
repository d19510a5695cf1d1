//! Reaching a server: which host, which address, with or without TLS, and whether it is the one that was wanted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::unistd::{Uid, User};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use ring::rand::{SecureRandom, SystemRandom};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::auth::{Credentials, Over, Refused, authenticate};
use super::channel::{Channel, confused_by};
use super::connection::{Connection, Mode};
use super::frame::Incoming;
use super::message::ServerMessage;
use super::options::{ConnectOptions, Host, Keepalive, Place, SessionAttrs};
use super::passfile::PasswordFile;
use super::session;
use super::socket::Socket;
use super::tls::{self, Tls};
use super::tls_options::SslMode;
use crate::error::{Error, ErrorKind, Result, Stage};

/// A connection that was not made, and what else may be tried.
pub(super) enum Failure {
    /// The next address or host.
    Next(Error),
    /// The same address with TLS instead of without, or the other way round; else the next.
    Encryption(Error),
    /// As [`Encryption`](Self::Encryption), and else nothing: there is a server that does not want us.
    Refused(Error),
    /// Nothing.
    Final(Error),
}

impl Failure {
    /// Whether the server may take us with TLS instead of without, or the other way round.
    fn may_be_encryption(&self) -> bool {
        matches!(self, Self::Encryption(_) | Self::Refused(_))
    }

    /// The same, and what came before it as a hint: with TLS or without.
    fn after(self, earlier: Option<(bool, Self)>) -> Self {
        let Some((
            encrypted,
            Self::Next(before) | Self::Encryption(before) | Self::Refused(before) | Self::Final(before),
        )) = earlier
        else {
            return self;
        };
        let how = if encrypted { "with TLS" } else { "without TLS" };
        let add = |error: Error| error.with_hint(format!("{how} it failed too: {}", chain(&before)));
        match self {
            Self::Next(error) => Self::Next(add(error)),
            Self::Encryption(error) => Self::Encryption(add(error)),
            Self::Refused(error) => Self::Refused(add(error)),
            Self::Final(error) => Self::Final(add(error)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Where a socket is to be opened.
#[derive(Debug, Clone)]
enum Address {
    Socket(String),
    Tcp(SocketAddr),
}

pub(super) async fn connect(options: &ConnectOptions, mode: Mode) -> Result<Connection> {
    let tls = load_tls(options).await?;
    let attempt = Attempt { options, mode, tls };
    let passes: &[SessionAttrs] = match &options.session {
        SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        session => std::slice::from_ref(session),
    };
    let mut failures: Vec<Error> = Vec::new();
    for &wanted in passes {
        for index in order(options) {
            let host = &options.hosts[index];
            match attempt.host(host, wanted).await {
                Ok(connection) => return Ok(connection),
                Err(Failure::Next(error) | Failure::Encryption(error)) => failures.push(describe(host, error)),
                Err(Failure::Final(error) | Failure::Refused(error)) => {
                    failures.push(describe(host, error));
                    return Err(summarise(failures));
                }
            }
        }
    }
    Err(summarise(failures))
}

/// The order in which hosts are tried.
fn order(options: &ConnectOptions) -> Vec<usize> {
    let mut order: Vec<usize> = (0..options.hosts.len()).collect();
    if options.random_order {
        let random = SystemRandom::new();
        for last in (1..order.len()).rev() {
            let mut bytes = [0; 8];
            // Without random numbers the order is as good as any other.
            let _ = random.fill(&mut bytes);
            order.swap(last, (u64::from_ne_bytes(bytes) % (last as u64 + 1)) as usize);
        }
    }
    order
}

async fn load_tls(options: &ConnectOptions) -> Result<Option<Arc<Tls>>> {
    let tcp = options.hosts.iter().any(|host| !matches!(host.place, Place::Socket(_)));
    if options.tls.mode == SslMode::Disable || !tcp {
        return Ok(None);
    }
    let tls = options.tls.clone();
    let loaded = tokio::task::spawn_blocking(move || Tls::load(&tls)).await;
    loaded
        .map_err(|e| Error::internal(Stage::Source, "loading certificates failed").with_source(e))?
        .map(Arc::new)
        .map(Some)
}

/// What is the same for all hosts.
struct Attempt<'a> {
    options: &'a ConnectOptions,
    mode: Mode,
    tls: Option<Arc<Tls>>,
}

impl Attempt<'_> {
    /// All addresses of a host.
    async fn host(&self, host: &Host, wanted: SessionAttrs) -> Result<Connection, Failure> {
        let addresses = self.within(addresses(host)).await?;
        let mut last = None;
        for address in addresses {
            match self.within(self.address(host, &address, wanted)).await {
                Err(failure @ (Failure::Next(_) | Failure::Encryption(_))) => last = Some(failure),
                other => return other,
            }
        }
        Err(last.unwrap_or_else(|| Failure::Next(failed("the name has no address", None))))
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, Failure>> + Send) -> Result<T, Failure> {
        let Some(timeout) = self.options.timeout else { return work.await };
        match tokio::time::timeout(timeout, work).await {
            Ok(done) => done,
            Err(_) => Err(Failure::Next(failed(format!("no answer within {} s", timeout.as_secs_f32()), None))),
        }
    }

    /// One address, with and without TLS, as `sslmode` says.
    async fn address(&self, host: &Host, address: &Address, wanted: SessionAttrs) -> Result<Connection, Failure> {
        let encryptions: &[bool] = match (address, self.options.tls.mode) {
            (Address::Socket(_), _) | (_, SslMode::Disable) => &[false],
            (_, SslMode::Allow) => &[false, true],
            (_, SslMode::Prefer) => &[true, false],
            _ => &[true],
        };
        let mut first = None;
        for &encrypted in encryptions {
            match self.encryption(host, address, encrypted).await {
                Ok(connection) => return session::check(connection, wanted, self.mode).await,
                Err(failure) => {
                    let again = failure.may_be_encryption() && first.is_none() && encryptions.len() > 1;
                    match first.take() {
                        None if again => first = Some((encrypted, failure)),
                        earlier => return Err(failure.after(earlier)),
                    }
                }
            }
        }
        Err(Failure::Final(confused_by("no way to connect")))
    }

    async fn encryption(&self, host: &Host, address: &Address, encrypted: bool) -> Result<Connection, Failure> {
        let (socket, end_point) = match address {
            Address::Socket(path) => (self.unix(path).await?, None),
            Address::Tcp(address) => {
                let socket = tcp(*address, self.options.keepalive).await.map_err(|e| Failure::Next(unreachable(e)))?;
                match self.tls.as_deref().filter(|_| encrypted) {
                    Some(tls) => tls::open(tls, socket, host, address.ip()).await?,
                    None => (Socket::Tcp(socket), None),
                }
            }
        };
        self.log_in(host, socket, end_point).await
    }

    async fn unix(&self, path: &str) -> Result<Socket, Failure> {
        let name = match path.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => path.to_owned(),
        };
        let socket = UnixStream::connect(name).await.map_err(|e| Failure::Next(unreachable(e)))?;
        if let Some(wanted) = &self.options.require_peer {
            check_peer(&socket, wanted)?;
        }
        Ok(Socket::Unix(socket))
    }

    async fn log_in(&self, host: &Host, socket: Socket, end_point: Option<Vec<u8>>) -> Result<Connection, Failure> {
        let options = self.options;
        let over = match &socket {
            Socket::Unix(_) => Over::Socket,
            Socket::Tcp(_) => Over::Tcp,
            Socket::Tls(_) => Over::Tls,
        };
        let mut channel = Channel::new(socket, options.notices.clone());
        channel.say(|out| frontend::startup_message(self.parameters(), out))?;
        channel.send().await;
        let credentials = Credentials {
            user: &options.user,
            password: options.password_for(host, self.mode),
            unused_file: match &options.password_file {
                PasswordFile::Refused(why) => Some(why),
                _ => None,
            },
            methods: options.methods,
            binding: options.channel_binding,
            end_point,
            over,
        };
        match authenticate(&mut channel, &credentials).await {
            Ok(()) => {}
            Err(Refused::Server(message)) => return Err(turned_away(message)),
            Err(Refused::Other(error)) => return Err(kind_of_failure(error)),
        }
        ready(&mut channel).await?;
        Ok(Connection::new(channel))
    }

    fn parameters(&self) -> Vec<(&str, &str)> {
        let options = self.options;
        let mut parameters = vec![
            ("user", options.user.as_str()),
            ("database", options.database(self.mode)),
            ("application_name", &options.application_name),
            ("client_encoding", "UTF8"),
        ];
        match self.mode {
            Mode::Sql => {}
            Mode::Replication => parameters.push(("replication", "true")),
            Mode::ReplicationDatabase => parameters.push(("replication", "database")),
        }
        parameters.extend(options.server_options.as_deref().map(|options| ("options", options)));
        parameters
    }
}

/// What follows the login, up to the first `ReadyForQuery`.
async fn ready(channel: &mut Channel) -> Result<(), Failure> {
    let mut keys = 0;
    loop {
        match channel.receive().await.map_err(kind_of_failure)? {
            Incoming::Message(Message::ReadyForQuery(_)) => break,
            Incoming::Message(Message::BackendKeyData(_)) if keys == 0 => keys += 1,
            Incoming::Message(Message::ErrorResponse(body)) => {
                return Err(turned_away(ServerMessage::read(body.fields())));
            }
            _ => return Err(confused_by("it does not get ready").into()),
        }
    }
    channel.logged_in();
    Ok(())
}

/// The server's refusal. A wrong password stays wrong with or without TLS.
fn turned_away(message: ServerMessage) -> Failure {
    let (password, starting) = (message.sqlstate == "28P01", message.sqlstate == "57P03");
    let error = message.into_error("the server refused the connection");
    match (password, starting) {
        (true, _) => Failure::Final(error),
        (_, true) => Failure::Next(error),
        _ => Failure::Refused(error),
    }
}

/// A connection that breaks may be better elsewhere; what is wrong on our side is wrong everywhere.
fn kind_of_failure(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::Source => Failure::Next(error),
        _ => Failure::Final(error),
    }
}

async fn addresses(host: &Host) -> Result<Vec<Address>, Failure> {
    match &host.place {
        Place::Socket(directory) => Ok(vec![Address::Socket(format!("{directory}/.s.PGSQL.{}", host.port))]),
        Place::Address(ip, _) => Ok(vec![Address::Tcp(SocketAddr::new(*ip, host.port))]),
        Place::Name(name) => match name.parse::<IpAddr>() {
            Ok(ip) => Ok(vec![Address::Tcp(SocketAddr::new(ip, host.port))]),
            Err(_) => {
                let found = tokio::net::lookup_host((name.as_str(), host.port)).await;
                let found = found.map_err(|e| Failure::Next(failed("the name cannot be resolved", Some(e))))?;
                Ok(found.map(Address::Tcp).collect())
            }
        },
    }
}

async fn tcp(address: SocketAddr, keepalive: Keepalive) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let raw = SockRef::from(&socket);
    if !keepalive.off {
        let mut wanted = TcpKeepalive::new();
        if let Some(idle) = keepalive.idle {
            wanted = wanted.with_time(idle);
        }
        if let Some(interval) = keepalive.interval {
            wanted = wanted.with_interval(interval);
        }
        if let Some(count) = keepalive.count {
            wanted = wanted.with_retries(count);
        }
        raw.set_keepalive(true)?;
        raw.set_tcp_keepalive(&wanted)?;
    }
    #[cfg(target_os = "linux")]
    raw.set_tcp_user_timeout(keepalive.user_timeout)?;
    Ok(socket)
}

/// Whether the server runs as the user that was named (`requirepeer`).
fn check_peer(socket: &UnixStream, wanted: &str) -> Result<(), Failure> {
    let uid = socket.peer_cred().map_err(|e| Failure::Next(unreachable(e)))?.uid();
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    match name {
        Some(name) if name == wanted => Ok(()),
        name => {
            let is = name.unwrap_or_else(|| uid.to_string());
            let error =
                Error::new(ErrorKind::Config, Stage::Source, format!("the server runs as {is}, not as {wanted}"));
            Err(Failure::Final(error.with_hint("requirepeer demands it")))
        }
    }
}

fn unreachable(error: io::Error) -> Error {
    failed("no server can be reached there", Some(error))
}

fn failed(what: impl Into<String>, cause: Option<io::Error>) -> Error {
    let error = Error::new(ErrorKind::Source, Stage::Source, what);
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

/// Says where it was.
fn describe(host: &Host, error: Error) -> Error {
    let (kind, hint) = (error.kind(), error.hint().map(str::to_owned));
    let described = Error::new(kind, Stage::Source, format!("cannot connect to PostgreSQL: {host}")).with_source(error);
    match hint {
        Some(hint) => described.with_hint(hint),
        None => described,
    }
}

/// The last failure, which names those before it.
fn summarise(mut failures: Vec<Error>) -> Error {
    let Some(last) = failures.pop() else { return Error::config("no host to connect to") };
    if failures.is_empty() {
        return last;
    }
    let before: Vec<String> = failures.iter().map(chain).collect();
    let (kind, hint) = (last.kind(), last.hint().map(str::to_owned));
    let text = format!("no host can be used, of {}; before the last: {}", failures.len() + 1, before.join("; "));
    let error = Error::new(kind, Stage::Source, text).with_source(last);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
