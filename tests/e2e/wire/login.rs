//! Passwords, TLS and certificates against real servers.

use std::os::unix::fs::PermissionsExt;

use backup_core::postgres::ConnInfo;
use backup_core::postgres::wire::{BaseBackupOptions, ConnectOptions, Connection, Environment, Mode, sqlstate};
use backup_core::{Error, ErrorKind};
use backup_tests::certificates::{
    Authority, Issued, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA512,
};
use backup_tests::postgres::{NewServer, Server};

use super::commands::{receive, whole};

const HBA: &str = "
local   all,replication postgres                trust
local   all             clear                   password
local   all             all                     scram-sha-256
host    all             open      127.0.0.1/32  trust
hostssl all             certified 127.0.0.1/32  cert
host    all             clear     127.0.0.1/32  password
host    all             hashed    127.0.0.1/32  md5
hostssl all             tls       127.0.0.1/32  scram-sha-256
host    all,replication strong    127.0.0.1/32  scram-sha-256
";

const ROLES: &str = "
SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 's3cret';
SET password_encryption = 'scram-sha-256';
CREATE ROLE open LOGIN; CREATE ROLE certified LOGIN; CREATE ROLE clear LOGIN PASSWORD 's3cret';
CREATE ROLE tls LOGIN PASSWORD 's3cret'; CREATE ROLE strong LOGIN REPLICATION PASSWORD 's3cret'";

/// A server with a certificate, which takes client certificates of `clients`.
async fn server(major: u32, issued: &Issued, clients: &Authority) -> Server {
    server_with(major, issued, clients, &[]).await
}

async fn server_with(major: u32, issued: &Issued, clients: &Authority, settings: &[(&str, &str)]) -> Server {
    let server = NewServer::of_major(major)
        .setting("ssl", "on")
        .setting("ssl_cert_file", "server.crt")
        .setting("ssl_key_file", "server.key")
        .setting("ssl_ca_file", "clients.crt")
        .file("server.crt", &issued.certificate)
        .file("server.key", &issued.key)
        .file("clients.crt", &clients.certificate)
        .file("pg_hba.conf", HBA);
    let server = settings.iter().fold(server, |server, (name, value)| server.setting(name, value)).start();
    server.sql(ROLES).await;
    server
}

/// Somebody with files of their own, who connects by TCP to `localhost`.
struct Client<'a> {
    server: &'a Server,
    home: tempfile::TempDir,
}

impl<'a> Client<'a> {
    fn of(server: &'a Server) -> Self {
        Self { server, home: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, contents: &str, mode: u32) -> String {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    }

    fn options(&self, parameters: &str) -> ConnectOptions {
        let environment = Environment::empty()
            .with_home(self.home.path())
            .with("PGHOST", "localhost")
            .with("PGHOSTADDR", "127.0.0.1")
            .with("PGPORT", &self.server.port().to_string())
            .with("PGDATABASE", "postgres")
            .with("PGPASSWORD", "s3cret");
        ConnectOptions::resolve(&ConnInfo::parse(parameters).unwrap(), &environment).unwrap()
    }

    async fn connect(&self, parameters: &str) -> Result<Connection, Error> {
        Connection::connect(&self.options(parameters), Mode::Sql).await
    }

    /// Connects; returns the version of TLS, if it is there.
    async fn tls(&self, parameters: &str) -> Option<String> {
        let mut connection = self.connect(parameters).await.unwrap_or_else(|e| panic!("{parameters}: {e:?}"));
        let sql = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        connection.query(sql).await.unwrap().remove(0).remove(0)
    }

    /// Does not connect; returns why.
    async fn refused(&self, parameters: &str) -> Error {
        match self.connect(parameters).await {
            Ok(connection) => panic!("{parameters}: {connection:?}"),
            Err(error) => error,
        }
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

fn authority() -> Authority {
    Authority::new(&PKCS_ECDSA_P256_SHA256)
}

#[tokio::test]
async fn passwords_are_shown_to_whom_they_may_be_shown() {
    let clients = authority();
    let server = server(15, &authority().issue("localhost", &["localhost"]), &clients).await;
    let client = Client::of(&server);
    for parameters in
        ["user=strong sslmode=disable", "user=hashed sslmode=disable", "user=clear sslmode=require", "user=open"]
    {
        client.connect(parameters).await.unwrap_or_else(|e| panic!("{parameters}: {e:?}"));
    }
    let socket = format!("host={} hostaddr='' user=clear", server.directory().display());
    client.connect(&socket).await.expect("nobody listens at a socket");
    let error = client.refused("user=clear sslmode=disable").await;
    assert!(chain(&error).contains("anybody on the way can read"), "{error:?}");
    assert!(error.hint().unwrap().contains("sslmode=verify-full"), "{error:?}");

    for user in ["strong", "hashed", "clear"] {
        let error = client.refused(&format!("user={user} password=wrong")).await;
        assert_eq!((error.kind(), sqlstate(&error)), (ErrorKind::Config, Some("28P01")), "{error:?}");
        let text = chain(&error);
        assert!(text.contains("password authentication failed") && text.contains("28P01"), "{text}");
        assert!(!format!("{error:?}").contains("s3cret"));
        let error = client.refused(&format!("user={user} password=''")).await;
        assert!(error.hint().unwrap().contains(".pgpass"), "{error:?}");
    }

    // "replication" is the database of physical replication, in the password file too.
    client.file(".pgpass", "localhost:*:postgres:strong:wrong\nlocalhost:*:replication:strong:s3cret\n", 0o600);
    let options = client.options("user=strong password=''");
    Connection::connect(&options, Mode::Replication).await.unwrap().identify_system().await.unwrap();
    let error = client.refused("user=strong password=''").await;
    assert_eq!(sqlstate(&error), Some("28P01"));
    client.file(".pgpass", "*:*:*:*:s3cret\n", 0o644);
    let error = client.refused("user=strong password=''").await;
    assert!(error.hint().unwrap().contains("chmod 0600"), "{error:?}");
}

#[tokio::test]
async fn a_base_backup_arrives_whole_by_tls_and_by_tcp() {
    let server = server(15, &authority().issue("localhost", &["localhost"]), &authority()).await;
    server.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 300000) g").await;
    let client = Client::of(&server);
    for mode in ["require", "disable"] {
        let options = client.options(&format!("user=strong sslmode={mode}"));
        let connection = Connection::connect(&options, Mode::Replication).await.unwrap();
        let mut backup = connection.base_backup(&BaseBackupOptions::default()).await.unwrap();
        let (received, result) = receive(&mut backup).await;
        result.unwrap();
        whole(&received);
    }
}

#[tokio::test]
async fn only_the_methods_that_were_allowed_are_used() {
    let server = server(15, &authority().issue("localhost", &["localhost"]), &authority()).await;
    let client = Client::of(&server);
    for (parameters, works) in [
        ("user=strong require_auth=scram-sha-256", true),
        ("user=strong require_auth=password,md5", false),
        ("user=strong require_auth=!password,!md5", true),
        ("user=hashed require_auth=!md5", false),
        ("user=clear require_auth=!password", false),
        ("user=open require_auth=none", true),
        ("user=open require_auth=scram-sha-256", false),
        ("user=open require_auth=!none", false),
    ] {
        let result = client.connect(parameters).await;
        assert_eq!(result.is_ok(), works, "{parameters}: {result:?}");
        if let Err(error) = result {
            assert!(chain(&error).contains("require_auth"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_secret_of_more_iterations_than_are_done_is_named() {
    let server = server(18, &authority().issue("localhost", &["localhost"]), &authority()).await;
    server.sql("SET scram_iterations = 200000; ALTER ROLE strong PASSWORD 's3cret'").await;
    let error = Client::of(&server).connect("user=strong").await.unwrap_err();
    assert!(chain(&error).contains("200000 iterations"), "{error:?}");
    assert!(chain(&error).contains("scram_iterations") || error.hint().is_some_and(|h| h.contains("scram_iterations")));
}

#[tokio::test]
async fn sslmode_means_what_libpq_means() {
    let (ours, other) = (authority(), authority());
    let server = server(15, &ours.issue("localhost", &["localhost"]), &authority()).await;
    let client = Client::of(&server);
    assert_eq!(client.tls("user=strong sslmode=disable").await, None);
    assert_eq!(client.tls("user=strong sslmode=allow").await, None);
    for parameters in ["user=strong", "user=tls sslmode=allow", "user=tls sslmode=prefer", "user=tls sslmode=require"] {
        assert_eq!(client.tls(parameters).await.as_deref(), Some("TLSv1.3"), "{parameters}");
    }
    assert_eq!(client.tls("user=tls ssl_max_protocol_version=TLSv1.2").await.as_deref(), Some("TLSv1.2"));
    let error = client.refused("user=tls sslmode=disable").await;
    assert_eq!(sqlstate(&error), Some("28000"), "{error:?}");
    assert!(chain(&client.refused("user=tls sslmode=verify-ca").await).contains("root certificate"));

    let (root, wrong) =
        (client.file("ours", &ours.certificate, 0o644), client.file("other", &other.certificate, 0o644));
    for mode in ["verify-ca", "verify-full", "require"] {
        assert!(client.tls(&format!("user=tls sslmode={mode} sslrootcert={root}")).await.is_some());
        let error = client.refused(&format!("user=tls sslmode={mode} sslrootcert={wrong}")).await;
        assert!(chain(&error).contains("UnknownIssuer"), "{mode}: {error:?}");
    }
    // Without the demand for it, a server that cannot be trusted is spoken to in the clear, as libpq does.
    assert_eq!(client.tls(&format!("user=strong sslmode=prefer sslrootcert={wrong}")).await, None);
    let elsewhere = format!("user=tls sslrootcert={root} host=db.example.org");
    assert!(client.tls(&format!("{elsewhere} sslmode=verify-ca")).await.is_some());
    let error = client.refused(&format!("{elsewhere} sslmode=verify-full")).await;
    assert!(error.hint().unwrap().contains("a name that the certificate has"), "{error:?}");
    let error = client.refused(&format!("user=tls sslrootcert={root} host='' sslmode=verify-full")).await;
    assert!(chain(&error).contains("needs the host's name"), "{error:?}");
    // What the first of two ways met is not lost.
    let error = client.refused(&format!("user=tls sslmode=prefer sslrootcert={wrong}")).await;
    assert_eq!(sqlstate(&error), Some("28000"), "{error:?}");
    assert!(
        error.hint().unwrap().contains("with TLS it failed too") && error.hint().unwrap().contains("UnknownIssuer")
    );
    // The usual place counts as if it had been named.
    client.file(".postgresql/root.crt", &other.certificate, 0o644);
    client.refused("user=tls sslmode=require").await;
}

#[tokio::test]
async fn a_server_without_tls_is_used_only_by_those_who_do_not_demand_it() {
    let server = NewServer::of_major(15).file("pg_hba.conf", HBA).start();
    server.sql(ROLES).await;
    let client = Client::of(&server);
    assert_eq!(client.tls("user=strong sslmode=prefer").await, None);
    for mode in ["require", "verify-ca sslrootcert=/dev/null", "verify-full sslrootcert=system"] {
        let error = client.refused(&format!("user=strong sslmode={mode}")).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{mode}: {error:?}");
    }
    assert!(chain(&client.refused("user=strong sslmode=require").await).contains("the server has no TLS"));
}

#[tokio::test]
async fn certificates_as_postgresql_shows_how_to_make_them_are_verified() {
    let authority = authority();
    let (by_itself, common_name) = (Issued::by_itself("localhost", &[]), authority.issue("localhost", &[]));
    let expired = authority.issue_expired("localhost", &["localhost"]);
    for (issued, root, works) in [
        (&by_itself, &by_itself.certificate, true),
        (&common_name, &authority.certificate, true),
        (&expired, &authority.certificate, false),
        (&Issued::by_itself("localhost", &[]), &by_itself.certificate, false),
    ] {
        let server = server(15, issued, &authority).await;
        let client = Client::of(&server);
        let root = client.file("root.crt", root, 0o644);
        let parameters = format!("user=tls sslmode=verify-full channel_binding=require sslrootcert={root}");
        let result = client.connect(&parameters).await;
        assert_eq!(result.is_ok(), works, "{result:?}");
        if works {
            let error = client.refused(&format!("{parameters} host=db.example.org")).await;
            assert!(chain(&error).contains("NotValidForName"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let authority = authority();
    let issued = authority.issue("localhost", &["localhost"]);
    let another = authority.issue("localhost", &["localhost"]);
    let server = server(15, &issued, &authority).await;
    let client = Client::of(&server);
    let root = client.file("root.crt", &authority.certificate, 0o644);
    for (revoked, works) in [(&another, true), (&issued, false)] {
        let list = client.file("list.crl", &authority.revoke(&[revoked]), 0o644);
        for mode in ["verify-ca host=db.example.org", "verify-full"] {
            let result = client.connect(&format!("user=tls sslmode={mode} sslrootcert={root} sslcrl={list}")).await;
            assert_eq!(result.is_ok(), works, "{mode}: {result:?}");
            assert!(works || chain(&result.unwrap_err()).contains("Revoked"));
        }
    }
}

#[tokio::test]
async fn a_server_of_tls_1_2_is_spoken_to_where_tls_is_demanded_only_when_that_is_asked_for() {
    let authority = authority();
    let issued = authority.issue("localhost", &["localhost"]);
    let server = server_with(15, &issued, &authority, &[("ssl_max_protocol_version", "TLSv1.2")]).await;
    let client = Client::of(&server);
    let error = client.refused("user=tls sslmode=require").await;
    assert!(error.hint().unwrap().contains("ssl_min_protocol_version=TLSv1.2"), "{error:?}");
    for parameters in ["user=tls sslmode=require ssl_min_protocol_version=TLSv1.2", "user=tls sslmode=prefer"] {
        assert_eq!(client.tls(parameters).await.as_deref(), Some("TLSv1.2"), "{parameters}");
    }
}

#[tokio::test]
async fn a_login_is_bound_to_the_session_by_the_hash_that_the_signature_has() {
    for (authority, works) in [
        (Authority::by_rsa(&PKCS_RSA_SHA256), true),
        (Authority::by_rsa(&PKCS_RSA_SHA512), true),
        (Authority::new(&PKCS_ECDSA_P256_SHA256), true),
        (Authority::new(&PKCS_ECDSA_P384_SHA384), true),
        (Authority::new(&PKCS_ED25519), false),
    ] {
        let server = server(15, &authority.issue("localhost", &["localhost"]), &authority).await;
        let client = Client::of(&server);
        for version in ["TLSv1.2", "TLSv1.3"] {
            let limits = format!("ssl_min_protocol_version={version} ssl_max_protocol_version={version}");
            let result = client.connect(&format!("user=tls channel_binding=require {limits}")).await;
            assert_eq!(result.is_ok(), works, "{result:?}");
            client.connect(&format!("user=tls channel_binding=disable {limits}")).await.unwrap();
            client.connect(&format!("user=tls {limits}")).await.unwrap();
        }
        // Nothing else binds.
        for parameters in ["user=strong sslmode=disable", "user=hashed", "user=clear", "user=open"] {
            let error = client.refused(&format!("{parameters} channel_binding=require")).await;
            assert!(chain(&error).contains("channel_binding=require"), "{parameters}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_client_shows_its_certificate_and_keeps_its_key_to_itself() {
    let authority = authority();
    let server = server(15, &authority.issue("localhost", &["localhost"]), &authority).await;
    let (client, issued) = (Client::of(&server), authority.issue("certified", &[]));
    assert_eq!(sqlstate(&client.refused("user=certified sslmode=require").await), Some("28000"));
    let certificate = client.file("client.crt", &issued.certificate, 0o644);
    let named = |key: &str| format!("user=certified sslmode=require sslcert={certificate} sslkey={key}");
    let key = client.file("client.key", &issued.key, 0o600);
    client.connect(&named(&key)).await.unwrap();
    client.file("client.key", &issued.key, 0o644);
    let error = client.refused(&named(&key)).await;
    assert!(chain(&error).contains("others may read the private key"), "{error:?}");
    let other = client.file("other.key", &authority.issue("certified", &[]).key, 0o600);
    assert!(chain(&client.refused(&named(&other)).await).contains("do not fit together"));
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = client.file("locked.key", locked, 0o600);
    assert!(client.refused(&named(&locked)).await.hint().unwrap().contains("passphrase"));
    assert!(chain(&client.refused(&named("/no/where")).await).contains("/no/where"));

    client.file(".postgresql/postgresql.crt", &issued.certificate, 0o644);
    client.file(".postgresql/postgresql.key", &issued.key, 0o600);
    client.connect("user=certified sslmode=require").await.unwrap();
    assert!(client.connect("user=certified sslmode=require sslcertmode=disable").await.is_err());
    let wrong = authority.issue("somebody", &[]);
    client.file(".postgresql/postgresql.crt", &wrong.certificate, 0o644);
    client.file(".postgresql/postgresql.key", &wrong.key, 0o600);
    assert_eq!(sqlstate(&client.refused("user=certified sslmode=require").await), Some("28000"));
}

#[tokio::test]
async fn tls_and_bound_logins_work_with_the_oldest_and_the_newest() {
    let authority = authority();
    for major in [13, 18] {
        let server = server(major, &authority.issue("localhost", &["localhost"]), &authority).await;
        let client = Client::of(&server);
        let root = client.file("root.crt", &authority.certificate, 0o644);
        let parameters = format!("user=tls sslmode=verify-full channel_binding=require sslrootcert={root}");
        assert!(client.tls(&parameters).await.is_some());
        let direct = client.connect(&format!("{parameters} sslnegotiation=direct")).await;
        assert_eq!(direct.is_ok(), major >= 17, "{direct:?}");
    }
}

#[tokio::test]
async fn roots_of_the_system_are_those_that_the_environment_names() {
    let authority = authority();
    let server = server(15, &authority.issue("localhost", &["localhost"]), &authority).await;
    let client = Client::of(&server);
    let root = client.file("root.crt", &authority.certificate, 0o644);
    let environment = Environment::empty().with("PGUSER", "tls").with("PGPASSWORD", "s3cret");
    let text = format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres sslrootcert=system", server.port());
    let connect = async |environment: &Environment| {
        let options = ConnectOptions::resolve(&ConnInfo::parse(&text).unwrap(), environment).unwrap();
        Connection::connect(&options, Mode::Sql).await
    };
    connect(&environment.clone().with("SSL_CERT_FILE", &root)).await.unwrap();
    let other = client.file("other.crt", &self::authority().certificate, 0o644);
    assert!(connect(&environment.with("SSL_CERT_FILE", &other)).await.is_err());
}

#[tokio::test]
async fn the_user_that_runs_the_server_can_be_demanded() {
    let server = NewServer::of_major(15).start();
    let owner = std::fs::metadata(server.data()).unwrap();
    let names = std::fs::read_to_string("/etc/passwd").unwrap();
    let uid = std::os::unix::fs::MetadataExt::uid(&owner).to_string();
    let name = names.lines().find(|line| line.split(':').nth(2) == Some(&uid)).and_then(|line| line.split(':').next());
    let connect = async |user: &str| {
        Connection::connect(&server.options(&format!("dbname=postgres requirepeer={user}")), Mode::Sql).await
    };
    connect(name.unwrap()).await.unwrap();
    assert!(chain(&connect("nobody-at-all").await.unwrap_err()).contains("runs as"));
}
