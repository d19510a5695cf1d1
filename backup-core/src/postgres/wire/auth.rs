//! Showing who we are ("Message Flow: Start-up").

use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use zeroize::Zeroizing;

use super::channel::{Channel, confused, confused_by};
use super::frame::Incoming;
use super::message::ServerMessage;
use super::options::ChannelBinding;
use crate::error::{Error, ErrorKind, Result, Stage};
use fallible_iterator::FallibleIterator;

/// How often the crate that does SCRAM hashes a password at most.
const ITERATIONS_MAX: u64 = 100_000;

/// The methods by which we are willing to be authenticated (`require_auth`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AuthMethods {
    none: bool,
    password: bool,
    md5: bool,
    scram: bool,
}

/// What we have to show.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<Zeroizing<String>>,
    /// Why a password file was not used.
    pub(super) unused_file: Option<&'a str>,
    pub(super) methods: AuthMethods,
    pub(super) binding: ChannelBinding,
    /// The hash of the server's certificate, over TLS, where it has one that can be bound to.
    pub(super) end_point: Option<Vec<u8>>,
    pub(super) over: Over,
}

/// Who could listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Socket,
    Tcp,
    Tls,
}

/// A login that failed: by the server's word, which may be worth another try in another way, or otherwise.
pub(super) enum Refused {
    Server(ServerMessage),
    Other(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl AuthMethods {
    /// Reads a list of methods, or of methods each with `!` before it.
    pub(super) fn parse(list: Option<&str>) -> Result<Self> {
        let Some(list) = list else { return Ok(Self { none: true, password: true, md5: true, scram: true }) };
        let words: Vec<&str> = list.split(',').map(str::trim).collect();
        let negated = words.iter().filter(|word| word.starts_with('!')).count();
        if negated != 0 && negated != words.len() {
            return Err(Error::config("require_auth mixes methods that are required with some that are refused"));
        }
        let allowed = negated == 0;
        let mut methods = Self { none: !allowed, password: !allowed, md5: !allowed, scram: !allowed };
        for word in words {
            match word.trim_start_matches('!') {
                "none" => methods.none = allowed,
                "password" => methods.password = allowed,
                "md5" => methods.md5 = allowed,
                "scram-sha-256" => methods.scram = allowed,
                // They are never used here.
                "gss" | "sspi" | "oauth" => {}
                other => return Err(super::settings::invalid("require_auth", other)),
            }
        }
        Ok(methods)
    }
}

/// Answers the server's questions until it lets us in.
///
/// The server is not trusted yet: what it may ask is little, and each question comes once.
pub(super) async fn authenticate(channel: &mut Channel, credentials: &Credentials<'_>) -> Result<(), Refused> {
    let (mut asked, mut bound) = (false, false);
    loop {
        let message = next(channel).await?;
        if matches!(message, Message::AuthenticationOk) {
            break;
        }
        if std::mem::replace(&mut asked, true) {
            return Err(confused_by("it asks for a second authentication").into());
        }
        match message {
            Message::AuthenticationCleartextPassword => cleartext(channel, credentials).await?,
            Message::AuthenticationMd5Password(body) => md5(channel, credentials, body.salt()).await?,
            Message::AuthenticationSasl(body) => {
                let mechanisms: Vec<String> =
                    body.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(confused)?;
                bound = scram(channel, credentials, &mechanisms).await?;
            }
            Message::AuthenticationGss | Message::AuthenticationSspi | Message::AuthenticationKerberosV5 => {
                return Err(refuse("it wants to authenticate us by GSSAPI, which is not supported").into());
            }
            _ => return Err(confused_by("it asks for an authentication that PostgreSQL does not have").into()),
        }
    }
    if !asked && !credentials.methods.none {
        return Err(refuse("it does not authenticate us, which require_auth demands").into());
    }
    if !bound && credentials.binding == ChannelBinding::Require {
        return Err(refuse("it lets us in without channel binding, which channel_binding=require demands").into());
    }
    Ok(())
}

async fn next(channel: &mut Channel) -> Result<Message, Refused> {
    match channel.receive().await? {
        Incoming::Message(Message::ErrorResponse(body)) => Err(Refused::Server(ServerMessage::read(body.fields()))),
        Incoming::Message(message) => Ok(message),
        Incoming::CopyBoth => Err(confused_by("it streams before it lets us in").into()),
    }
}

async fn cleartext(channel: &mut Channel, credentials: &Credentials<'_>) -> Result<()> {
    if !credentials.methods.password {
        return Err(refuse("it asks for the password as it is, which require_auth forbids"));
    }
    if credentials.over == Over::Tcp {
        let error = refuse("it asks for the password as it is, over a connection that anybody on the way can read");
        return Err(error.with_hint("use sslmode=verify-full, or scram-sha-256 in the server's pg_hba.conf"));
    }
    refuse_unbound(credentials)?;
    let password = credentials.password()?;
    channel.say(|out| frontend::password_message(password.as_bytes(), out))?;
    channel.send().await;
    Ok(())
}

async fn md5(channel: &mut Channel, credentials: &Credentials<'_>, salt: [u8; 4]) -> Result<()> {
    if !credentials.methods.md5 {
        return Err(refuse("it asks for an MD5 hash of the password, which require_auth forbids"));
    }
    refuse_unbound(credentials)?;
    let hash = Zeroizing::new(md5_hash(credentials.user.as_bytes(), credentials.password()?.as_bytes(), salt));
    channel.say(|out| frontend::password_message(hash.as_bytes(), out))?;
    channel.send().await;
    Ok(())
}

/// SCRAM (RFC 5802, RFC 7677); returns whether it was bound to the TLS session.
async fn scram(channel: &mut Channel, credentials: &Credentials<'_>, offered: &[String]) -> Result<bool, Refused> {
    if !credentials.methods.scram {
        return Err(refuse("it asks for SCRAM, which require_auth forbids").into());
    }
    let (mechanism, binding) = choose(credentials, offered)?;
    let bound = mechanism == sasl::SCRAM_SHA_256_PLUS;
    let password = credentials.password()?;
    let mut exchange = sasl::ScramSha256::new(password.as_bytes(), binding);
    channel.say(|out| frontend::sasl_initial_response(mechanism, exchange.message(), out))?;
    channel.send().await;

    let Message::AuthenticationSaslContinue(body) = next(channel).await? else {
        return Err(confused_by("its SCRAM stops in the middle").into());
    };
    // The server says how often to hash; the crate refuses more than that. Not on a thread that others wait for.
    let challenge = body.data().to_vec();
    if let Some(iterations) = iterations(&challenge).filter(|iterations| *iterations > ITERATIONS_MAX) {
        return Err(Error::config(format!("its SCRAM secret has {iterations} iterations, more than {ITERATIONS_MAX}"))
            .with_hint("set scram_iterations to no more than 100000 on the server, and the role's password once more")
            .into());
    }
    let hashed = tokio::task::spawn_blocking(move || exchange.update(&challenge).map(|()| exchange));
    let mut exchange =
        hashed.await.map_err(|e| Error::internal(Stage::Source, "SCRAM failed").with_source(e))?.map_err(confused)?;
    channel.say(|out| frontend::sasl_response(exchange.message(), out))?;
    channel.send().await;

    let Message::AuthenticationSaslFinal(body) = next(channel).await? else {
        return Err(confused_by("it does not show that it knows the password").into());
    };
    exchange
        .finish(body.data())
        .map_err(|e| refuse("the server does not know the password: it may be another one").with_source(e))?;
    Ok(bound)
}

/// How often a server's first message of SCRAM has the password hashed.
fn iterations(challenge: &[u8]) -> Option<u64> {
    let attributes = std::str::from_utf8(challenge).ok()?;
    attributes.split(',').find_map(|attribute| attribute.strip_prefix("i=")?.parse().ok())
}

/// The strongest mechanism that both have.
fn choose(credentials: &Credentials<'_>, offered: &[String]) -> Result<(&'static str, sasl::ChannelBinding)> {
    let has = |name: &str| offered.iter().any(|mechanism| mechanism == name);
    let tls = credentials.over == Over::Tls;
    let end_point = credentials.end_point.clone().filter(|_| credentials.binding != ChannelBinding::Disable);
    match end_point {
        Some(hash) if has(sasl::SCRAM_SHA_256_PLUS) => {
            Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash)))
        }
        _ if has(sasl::SCRAM_SHA_256_PLUS) && !tls => Err(confused_by("it offers channel binding without TLS")),
        _ if credentials.binding == ChannelBinding::Require => {
            let why = match (tls, has(sasl::SCRAM_SHA_256_PLUS)) {
                (false, _) => "there is no TLS to bind to, which channel_binding=require demands",
                (true, true) => {
                    "its certificate is of a kind that nothing can be bound to, which channel_binding=require demands"
                }
                (true, false) => "it does not offer channel binding, which channel_binding=require demands",
            };
            Err(refuse(why))
        }
        // "We could, but think that you cannot": if somebody in the middle took the offer away, the server finds out.
        Some(_) if has(sasl::SCRAM_SHA_256) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None if has(sasl::SCRAM_SHA_256) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
        _ => Err(refuse("it offers no way to authenticate that is supported")
            .with_hint(format!("it offers {}", offered.join(", ")))),
    }
}

/// Answering would give the password, or its hash, to somebody with whom we will not speak anyway.
fn refuse_unbound(credentials: &Credentials<'_>) -> Result<()> {
    match credentials.binding {
        ChannelBinding::Require => {
            Err(refuse("it asks for a password without channel binding, which channel_binding=require demands"))
        }
        _ => Ok(()),
    }
}

impl Credentials<'_> {
    fn password(&self) -> Result<&str> {
        if let Some(password) = &self.password {
            return Ok(password);
        }
        let error = refuse("it asks for a password, and there is none");
        Err(match self.unused_file {
            Some(why) => error.with_hint(why),
            None => error.with_hint("put it into ~/.pgpass, or set PGPASSWORD"),
        })
    }
}

fn refuse(why: &str) -> Error {
    Error::new(ErrorKind::Config, Stage::Source, why)
}
