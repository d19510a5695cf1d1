//! Which of several servers is used, and where the answer is looked for.

use std::net::TcpListener;
use std::time::Duration;

use backup_core::postgres::ConnInfo;
use backup_core::postgres::wire::{ConnectOptions, Connection, Environment, Mode, sqlstate};
use backup_core::{Error, ErrorKind};
use backup_tests::port::Port;
use backup_tests::postgres::{NewServer, Server};

async fn connect(text: &str, mode: Mode) -> Result<Connection, Error> {
    let options =
        ConnectOptions::resolve(&ConnInfo::parse(text).unwrap(), &Environment::empty().with_user("postgres"))?;
    Connection::connect(&options, mode).await
}

/// Connects to one of several; returns the port of that server.
async fn port(text: &str, mode: Mode) -> Result<u16, Error> {
    let mut connection = connect(text, mode).await?;
    Ok(connection.show("port").await.unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_host_that_is_not_there_gives_way_to_the_next() {
    let server = NewServer::of_major(15).start();
    let nobody = Port::take();
    let (dead, alive, directory) = (nobody.number(), server.port(), server.directory().display());
    for hosts in [
        format!("host=127.0.0.1,127.0.0.1 port={dead},{alive}"),
        format!("host=no-such-host.invalid,localhost port={alive}"),
        format!("host=/no/such/directory,{directory} port={alive}"),
        format!("host=db1,db2 hostaddr=127.0.0.1,127.0.0.1 port={dead},{alive}"),
        format!("host={directory},127.0.0.1 port={dead},{alive} load_balance_hosts=random"),
    ] {
        assert_eq!(port(&format!("{hosts} dbname=postgres"), Mode::Sql).await.unwrap(), alive, "{hosts}");
    }
    let error = connect(&format!("host=127.0.0.1,localhost port={dead}"), Mode::Sql).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(error.to_string().contains(&format!("host 127.0.0.1 port {dead}")), "{error:?}");
    // A server that does not want us is no reason to ask the next one.
    let text = format!("host=127.0.0.1,127.0.0.1 port={alive},{dead} dbname=none");
    let error = connect(&text, Mode::Sql).await.unwrap_err();
    assert_eq!((error.kind(), sqlstate(&error)), (ErrorKind::Config, Some("3D000")), "{error:?}");
}

#[tokio::test]
async fn a_host_that_does_not_answer_gives_way_to_the_next() {
    let server = NewServer::of_major(15).start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = format!("port={},{}", silent.local_addr().unwrap().port(), server.port());
    let text = format!("host=127.0.0.1,127.0.0.1 {ports} dbname=postgres connect_timeout=2");
    let connected = tokio::time::timeout(Duration::from_secs(60), port(&text, Mode::Sql));
    assert_eq!(connected.await.expect("it gives up").unwrap(), server.port());
}

/// A primary and its standby, which is up.
fn pair(major: u32) -> (Server, Server) {
    let primary = NewServer::of_major(major).start();
    let standby = NewServer::of_major(major).standby_of(&primary).start();
    (primary, standby)
}

async fn attributes(major: u32) {
    let (primary, standby) = pair(major);
    let (p, s) = (primary.port(), standby.port());
    for mode in [Mode::Sql, Mode::Replication, Mode::ReplicationDatabase] {
        for (first, second, attributes, expected) in [
            (s, p, "any", s),
            (s, p, "read-write", p),
            (s, p, "primary", p),
            (p, s, "read-only", s),
            (p, s, "standby", s),
            (p, s, "prefer-standby", s),
        ] {
            let hosts = format!("host=127.0.0.1,127.0.0.1 port={first},{second} dbname=postgres");
            let text = format!("{hosts} target_session_attrs={attributes}");
            assert_eq!(port(&text, mode).await.unwrap(), expected, "{major} {mode:?} {attributes}");
        }
        let alone = |attributes| format!("host=127.0.0.1 port={p} dbname=postgres target_session_attrs={attributes}");
        assert_eq!(port(&alone("prefer-standby"), mode).await.unwrap(), p);
        for attributes in ["standby", "read-only"] {
            let error = connect(&alone(attributes), mode).await.unwrap_err();
            assert!(error.hint().unwrap().contains("target_session_attrs"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn target_session_attrs_choose_among_servers_of_15() {
    attributes(15).await;
}

#[tokio::test]
async fn target_session_attrs_choose_among_servers_of_13_that_report_nothing() {
    attributes(13).await;
}

#[tokio::test]
async fn a_standby_gives_base_backups_and_its_log() {
    use backup_core::postgres::wire::{BackupEvent, BaseBackupOptions};
    let (_primary, standby) = pair(15);
    let connection = Connection::connect(&standby.options(""), Mode::Replication).await.unwrap();
    let mut backup = connection.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let (start, mut end) = (backup.start(), None);
    while let Some(event) = backup.next().await.unwrap() {
        if let BackupEvent::End(position) = event {
            end = Some(position);
        }
    }
    assert!(end.unwrap().lsn >= start.lsn);
    let connection = backup.into_connection().await.unwrap();
    let mut stream = connection.start_replication(None, start.lsn, start.timeline).await.unwrap();
    while stream.position() < end.unwrap().lsn {
        stream.next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_dies_is_an_error_at_once() {
    let server = NewServer::of_major(15).start();
    let mut connection = Connection::connect(&server.options(""), Mode::Replication).await.unwrap();
    let from = connection.identify_system().await.unwrap();
    let mut stream = connection.start_replication(None, from.position, from.timeline).await.unwrap();
    server.kill();
    let ended = async {
        while stream.next().await?.is_some() {}
        Ok::<(), Error>(())
    };
    let error = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("an end").unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Source, "lost the connection to PostgreSQL"));
    server.start();
    server.sql("SELECT 1").await;
}

#[tokio::test]
async fn a_server_that_stops_in_order_ends_the_stream_in_order() {
    let server = NewServer::of_major(15).start();
    let mut connection = Connection::connect(&server.options(""), Mode::Replication).await.unwrap();
    let from = connection.identify_system().await.unwrap();
    let mut stream = connection.start_replication(None, from.position, from.timeline).await.unwrap();
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    // It waits until we have everything.
    let ended = async {
        while stream.next().await?.is_some() {
            use backup_core::clock::{Clock, SystemClock};
            use backup_core::postgres::{wal::Lsn, wire::StandbyStatus};
            let (write, time) = (stream.position(), SystemClock.now());
            let status = StandbyStatus { write, flush: write, apply: Lsn(0), time, reply_requested: false };
            stream.status(&status).await?;
        }
        Ok::<(), Error>(())
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("an end").unwrap();
    stopping.await.unwrap();
}
