//! What a connection string and its surroundings come to.

use proptest::prelude::*;

use super::super::tls_options::{Roots, SslMode};
use super::*;

fn resolve(text: &str, environment: &Environment) -> Result<ConnectOptions> {
    ConnectOptions::resolve(&ConnInfo::parse(text).unwrap(), environment)
}

fn me() -> Environment {
    Environment::empty().with_user("me")
}

fn hosts_of(text: &str, environment: &Environment) -> Vec<String> {
    resolve(text, environment).unwrap().hosts.iter().map(ToString::to_string).collect()
}

#[test]
fn hosts_ports_and_addresses_belong_together() {
    for (text, expected) in [
        ("host=a,b port=1,2", &["host a port 1", "host b port 2"][..]),
        ("host=a,b port=9", &["host a port 9", "host b port 9"]),
        (
            "host=a,/run/pg,@abstract",
            &["host a port 5432", "socket /run/pg/.s.PGSQL.5432", "socket @abstract/.s.PGSQL.5432"],
        ),
        ("hostaddr=::1,10.0.0.1 port=1,", &["address ::1 port 1", "address 10.0.0.1 port 5432"]),
        ("host=a,b hostaddr=::1,", &["host a (::1) port 5432", "host b port 5432"]),
        ("postgresql://[::1]:7,b/x", &["host ::1 port 7", "host b port 5432"]),
    ] {
        assert_eq!(hosts_of(text, &me()), expected, "{text}");
    }
    for text in ["host=a,b,c port=1,2", "host=a hostaddr=::1,::2", "port=0", "port=65536", "port=x", "hostaddr=name"] {
        assert!(resolve(text, &me()).is_err(), "{text}");
    }
}

#[test]
fn a_directory_is_a_socket_and_nothing_is_the_usual_one() {
    assert_eq!(hosts_of("", &me().with("PGHOST", "/srv/pg").with("PGPORT", "6")), ["socket /srv/pg/.s.PGSQL.6"]);
    let usual = hosts_of("port=1", &me());
    assert!(
        SOCKET_DIRECTORIES.iter().any(|directory| usual == [format!("socket {directory}/.s.PGSQL.1")]),
        "{usual:?}"
    );
    assert_eq!(hosts_of("host='' port=1", &me().with("PGHOST", "db")), usual, "an empty host is said, too");
}

#[test]
fn the_string_comes_before_the_service_and_that_before_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(".pg_service.conf"), "[s]\nhost=of-service\nuser=service\ndbname=d\n")
        .unwrap();
    let environment = me()
        .with_home(directory.path())
        .with("PGHOST", "of-environment")
        .with("PGUSER", "environment")
        .with("PGAPPNAME", "app")
        .with("PGSERVICE", "s");
    let options = resolve("user=string", &environment).unwrap();
    assert_eq!((options.user(), options.database(Mode::Sql)), ("string", "d"));
    assert_eq!(options.hosts[0].to_string(), "host of-service port 5432");
    assert_eq!(options.application_name, "app");
    assert_eq!(resolve("", &me()).unwrap().database(Mode::Sql), "me", "the user's own database");
    let error = resolve("service=none", &environment).unwrap_err();
    assert!(error.to_string().contains("no service"), "{error}");
}

#[test]
fn passwords_are_looked_for_under_the_names_that_libpq_uses() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("passwords");
    let lines = "localhost:5432:app:me:of-socket\n/srv/pg:5432:app:me:of-directory\nname:5432:app:me:of-name\n\
        10.0.0.1:5432:app:me:of-address\nname:5432:replication:me:of-replication\n";
    std::fs::write(&path, lines).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let environment = me().with("PGPASSFILE", &path.display().to_string());
    let password = |text: &str, mode| {
        let options = resolve(&format!("dbname=app {text}"), &environment).unwrap();
        options.password_for(&options.hosts[0], mode).map(|password| (*password).clone())
    };
    for (text, expected) in [
        ("host=/tmp", Some("of-socket")),
        ("host=/srv/pg", Some("of-directory")),
        ("host=name", Some("of-name")),
        ("host=name hostaddr=10.0.0.1", Some("of-name")),
        ("hostaddr=10.0.0.1", Some("of-address")),
        ("host=name port=1", None),
        ("host=name port=1 password=given", Some("given")),
    ] {
        assert_eq!(password(text, Mode::Sql).as_deref(), expected, "{text}");
    }
    assert_eq!(password("host=name", Mode::Replication).as_deref(), Some("of-replication"));
    assert_eq!(password("host=name", Mode::ReplicationDatabase).as_deref(), Some("of-name"));
}

#[test]
fn what_cannot_be_done_is_refused_and_what_does_no_harm_is_not() {
    for text in [
        "gssencmode=require",
        "sslcrldir=/x",
        "sslcertmode=require",
        "ssl_max_protocol_version=TLSv1.1",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "ssl_min_protocol_version=SSLv3",
        "min_protocol_version=3.2",
        "scram_client_key=x",
        "oauth_issuer=x",
        "sslnegotiation=direct",
        "sslnegotiation=direct sslmode=prefer",
        "sslrootcert=system sslmode=require",
        "sslmode=''",
        "sslmode=verify",
        "target_session_attrs=any,primary",
        "channel_binding=on",
        "require_auth=md5,!scram-sha-256",
        "require_auth=kerberos",
        "load_balance_hosts=yes",
        "connect_timeout=soon",
        "hots=a",
    ] {
        let error = resolve(text, &me()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Config, "{text}");
    }
    for text in [
        "gssencmode=prefer krbsrvname=postgres gsslib=gssapi gssdelegation=1",
        "sslcompression=0 client_encoding=auto replication=true",
        "ssl_min_protocol_version=TLSv1 min_protocol_version=3.0 max_protocol_version=latest",
        "sslnegotiation=direct sslmode=require",
    ] {
        resolve(text, &me()).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    }
    let gss = me().with("PGGSSENCMODE", "require");
    assert!(resolve("", &gss).is_err(), "the environment demands it as well");
    assert!(resolve("", &Environment::empty()).unwrap_err().hint().unwrap().contains("PGUSER"));
}

#[test]
fn tls_is_demanded_as_libpq_does() {
    let mode = |text: &str, environment: &Environment| resolve(text, environment).unwrap().tls.mode;
    assert_eq!(mode("", &me()), SslMode::Prefer);
    assert_eq!(mode("", &me().with("PGREQUIRESSL", "1")), SslMode::Require);
    assert_eq!(mode("", &me().with("PGSSLMODE", "verify-ca")), SslMode::VerifyCa);
    assert_eq!(mode("postgresql://h/?ssl=true", &me().with("PGSSLMODE", "disable")), SslMode::Require);
    let system = resolve("sslrootcert=system", &me()).unwrap().tls;
    assert_eq!((system.mode, system.roots), (SslMode::VerifyFull, Roots::System));
}

#[test]
fn a_time_to_connect_is_there_unless_it_was_forbidden() {
    let timeout = |text| resolve(text, &me()).unwrap().timeout();
    assert_eq!(timeout(""), Some(Duration::from_secs(60)));
    assert_eq!(timeout("connect_timeout=7"), Some(Duration::from_secs(7)));
    assert_eq!((timeout("connect_timeout=0"), timeout("connect_timeout=-1")), (None, None));
}

#[test]
fn secrets_are_not_debugged() {
    let environment = me().with("PGPASSWORD", "s3cret");
    let options = resolve("password=s3cret", &environment).unwrap();
    assert!(!format!("{options:?} {environment:?}").contains("s3cret"));
    let error = resolve("password=s3cret sslmode=s3", &environment).unwrap_err();
    assert!(!format!("{error:?}").contains("s3cret"));
}

proptest! {
    #[test]
    fn no_string_and_no_environment_panics(
        text in "((host|hostaddr|port|sslmode|require_auth|connect_timeout)=[a-z0-9,./@:!-]{0,8} ?){0,4}",
        host in "[a-z,./@]{0,8}",
    ) {
        if let Ok(info) = ConnInfo::parse(&text) {
            let _ = ConnectOptions::resolve(&info, &me().with("PGHOST", &host));
        }
    }
}
