//! What can be asked of a server once it has let us in, on each major version.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::clock::{Clock, SystemClock};
use backup_core::jiff::SignedDuration;
use backup_core::postgres::wal::{Lsn, SegmentSize, Timeline};
use backup_core::postgres::wire::{
    BackupEvent, BaseBackup, BaseBackupOptions, CompressionMethod, Connection, Mode, ServerCompression, SlotPosition,
    StandbyStatus, Tablespace, WalMessage, WalPosition, WalStream, is_missing, server_message, sqlstate,
};
use backup_core::{Error, ErrorKind};
use backup_tests::postgres::{NewServer, Server};

/// What a base backup had.
#[derive(Debug, Default)]
pub(super) struct Received {
    archives: Vec<(String, Vec<u8>)>,
    manifest: Vec<u8>,
    progress: u64,
    end: Option<WalPosition>,
}

/// Receives all of it; dropping the future now and then must lose nothing.
pub(super) async fn receive(backup: &mut BaseBackup) -> (Received, Result<(), Error>) {
    let (mut received, mut room, mut in_manifest) = (Received::default(), vec![0; 100_000], false);
    let interruption = Duration::from_micros(100);
    loop {
        let Ok(read) = tokio::time::timeout(interruption, backup.read(&mut room)).await else { continue };
        match read {
            Ok(0) => {}
            Ok(n) => {
                let to =
                    if in_manifest { &mut received.manifest } else { &mut received.archives.last_mut().unwrap().1 };
                to.extend_from_slice(&room[..n]);
                continue;
            }
            Err(error) => return (received, Err(error)),
        }
        received.progress = backup.progress();
        let Ok(next) = tokio::time::timeout(interruption, backup.next()).await else { continue };
        match next {
            Ok(Some(BackupEvent::Archive { file, .. })) => received.archives.push((file, Vec::new())),
            Ok(Some(BackupEvent::Manifest)) => in_manifest = true,
            Ok(Some(BackupEvent::End(position))) => received.end = Some(position),
            Ok(None) => return (received, Ok(())),
            Err(error) => return (received, Err(error)),
        }
    }
}

/// The files of the archives with their sizes, as the backup manifest names them.
fn files(received: &Received) -> BTreeMap<String, u64> {
    let mut files = BTreeMap::new();
    for (name, bytes) in &received.archives {
        assert!(bytes.ends_with(&[0; 1024]) && bytes.len().is_multiple_of(512), "{name} has no end mark");
        let prefix = match name.strip_suffix(".tar").unwrap() {
            "base" => String::new(),
            oid => format!("pg_tblspc/{oid}/"),
        };
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.header().entry_type().is_file() {
                let size = std::io::copy(&mut entry.by_ref(), &mut std::io::sink()).unwrap();
                files.insert(format!("{prefix}{}", entry.path().unwrap().display()), size);
            }
        }
    }
    files
}

/// What the manifest says of them, and of the log.
fn manifest(received: &Received) -> (BTreeMap<String, u64>, serde_json::Value) {
    let manifest: serde_json::Value = serde_json::from_slice(&received.manifest).unwrap();
    let listed = manifest["Files"].as_array().unwrap().iter();
    let listed =
        listed.map(|file| (file["Path"].as_str().unwrap().to_owned(), file["Size"].as_u64().unwrap())).collect();
    (listed, manifest["WAL-Ranges"][0].clone())
}

/// That the archives have what the manifest lists; the log that goes with it.
pub(super) fn whole(received: &Received) -> serde_json::Value {
    let (listed, range) = manifest(received);
    assert_eq!(files(received), listed);
    range
}

async fn replication(server: &Server) -> Connection {
    Connection::connect(&server.options(""), Mode::Replication).await.unwrap()
}

/// Everything that a server can be asked, on one connection.
async fn everything(major: u32) {
    let server = NewServer::of_major(major).initdb("--wal-segsize=1").start();
    let space = server.make_tablespace_directory("space");
    server.sql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).await;
    server.sql("CREATE TABLE t TABLESPACE space AS SELECT g FROM generate_series(1, 50000) g").await;

    let mut connection = replication(&server).await;
    assert_eq!(connection.server_major().unwrap(), major);
    let identity = connection.identify_system().await.unwrap();
    assert_eq!(identity.timeline, Timeline::FIRST);
    assert_eq!(connection.show("wal_segment_size").await.unwrap(), "1MB");
    let error = connection.show("no_such.setting").await.unwrap_err();
    assert_eq!(sqlstate(&error), Some("42704"));
    let error = connection.timeline_history(Timeline::FIRST).await.unwrap_err();
    assert!(is_missing(&error), "{error:?}");
    slots(&mut connection, major).await;

    connection.create_replication_slot("kept", true, true).await.unwrap();
    let options = BaseBackupOptions { label: "it's \\ ours".into(), ..BaseBackupOptions::default() };
    let mut backup = replication(&server).await.base_backup(&options).await.unwrap();
    let start = backup.start();
    let [space_of, base] = [0, 1].map(|index| backup.tablespaces()[index].clone());
    assert_eq!((base.oid, base.location.as_deref()), (None, None));
    assert_eq!(space_of.location.as_deref(), Some(space.as_path()));
    let (received, result) = receive(&mut backup).await;
    result.unwrap();
    let mut again = backup.into_connection().await.unwrap();
    assert_eq!(again.identify_system().await.unwrap().system, identity.system, "the connection can be used again");

    let mut names: Vec<&str> = received.archives.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [&format!("{}.tar", space_of.oid.unwrap()), "base.tar"]);
    let range = whole(&received);
    let estimated: u64 = backup_bytes(&[space_of, base]);
    assert!(estimated > 20 << 20 && (major < 15 || received.progress > 20 << 20), "{estimated} {}", received.progress);
    let end = received.end.unwrap();
    assert_eq!((&range["Start-LSN"], &range["End-LSN"]), (&start.lsn.to_string().into(), &end.lsn.to_string().into()));

    streams(&server, connection, start, end).await;
}

fn backup_bytes(tablespaces: &[Tablespace]) -> u64 {
    tablespaces.iter().map(|tablespace| tablespace.bytes_estimated.unwrap()).sum()
}

async fn slots(connection: &mut Connection, major: u32) {
    connection.create_replication_slot("empty", false, false).await.unwrap();
    let error = connection.create_replication_slot("empty", false, false).await.unwrap_err();
    assert_eq!(sqlstate(&error), Some("42710"), "{error:?}");
    connection.create_replication_slot("full", false, true).await.unwrap();
    if major >= 15 {
        assert_eq!(connection.read_replication_slot("empty").await.unwrap(), Some(SlotPosition { restart: None }));
        let restart = connection.read_replication_slot("full").await.unwrap().unwrap().restart;
        assert!(restart.is_some_and(|(lsn, timeline)| lsn > Lsn(0) && timeline == Timeline::FIRST), "{restart:?}");
        assert_eq!(connection.read_replication_slot("none").await.unwrap(), None);
    } else {
        let error = connection.read_replication_slot("empty").await.unwrap_err();
        assert!(error.to_string().contains("came with 15"), "{error}");
    }
    connection.drop_replication_slot("empty").await.unwrap();
    connection.drop_replication_slot("full").await.unwrap();
    assert!(is_missing(&connection.drop_replication_slot("full").await.unwrap_err()));
}

/// Streams for the slot `kept` that this connection has made, from the start of the backup over its end to what is written only then.
async fn streams(server: &Server, connection: Connection, start: WalPosition, end: WalPosition) {
    let size = SegmentSize::new(1 << 20).unwrap();
    let from = size.start_of(start.lsn);
    let mut stream = connection.start_replication(Some("kept"), from, start.timeline).await.unwrap();
    until(&mut stream, end.lsn).await;
    assert!(stream.position() >= end.lsn);
    let written = server.sql("CREATE TABLE later AS SELECT 1; SELECT pg_current_wal_flush_lsn()").await;
    let written: Lsn = written[0][0].as_deref().unwrap().parse().unwrap();
    until(&mut stream, written).await;

    let (write, flush) = (stream.position(), end.lsn);
    let status = StandbyStatus { write, flush, apply: Lsn(0), time: SystemClock.now(), reply_requested: true };
    stream.status(&status).await.unwrap();
    let answer = loop {
        if let Some(WalMessage::Keepalive { time, .. }) = stream.next().await.unwrap() {
            break time;
        }
    };
    assert!(
        answer.duration_since(SystemClock.now()).abs() < SignedDuration::from_mins(10),
        "{answer} is not this machine's time"
    );
    let seen = server.sql("SELECT write_lsn, flush_lsn FROM pg_stat_replication WHERE state = 'streaming'").await;
    assert_eq!(seen, [vec![Some(write.to_string()), Some(flush.to_string())]]);

    let (mut connection, next) = stream.finish().await.unwrap();
    assert_eq!(next, None, "the timeline goes on");
    let identity = connection.identify_system().await.unwrap();
    assert!(identity.position >= written);
}

async fn until(stream: &mut WalStream, position: Lsn) {
    while stream.position() < position {
        // Dropping the future must lose nothing.
        if let Ok(next) = tokio::time::timeout(Duration::from_micros(100), stream.next()).await {
            next.unwrap().expect("the stream goes on");
        }
    }
}

#[tokio::test]
async fn everything_can_be_asked_of_13() {
    everything(13).await;
}

#[tokio::test]
async fn everything_can_be_asked_of_14() {
    everything(14).await;
}

#[tokio::test]
async fn everything_can_be_asked_of_15() {
    everything(15).await;
}

#[tokio::test]
async fn everything_can_be_asked_of_16() {
    everything(16).await;
}

#[tokio::test]
async fn everything_can_be_asked_of_17() {
    everything(17).await;
}

#[tokio::test]
async fn everything_can_be_asked_of_18() {
    everything(18).await;
}

/// A stream reaches the end of a timeline, and is told the next.
async fn a_timeline_ends(major: u32) {
    let server = NewServer::of_major(major).setting("restore_command", "false").start();
    let before = replication(&server).await.identify_system().await.unwrap();
    server.stop();
    std::fs::write(server.data().join("recovery.signal"), "").unwrap();
    server.start();
    // It may take connections before its recovery is over.
    while server.sql("SELECT pg_is_in_recovery()").await != [[Some("f".to_owned())]] {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let mut connection = replication(&server).await;
    let second = Timeline::new(2).unwrap();
    assert_eq!(connection.identify_system().await.unwrap().timeline, second);
    let history = connection.timeline_history(second).await.unwrap();
    assert_eq!(history.file, "00000002.history");
    let from = SegmentSize::DEFAULT.start_of(before.position);
    let mut stream = connection.start_replication(None, from, Timeline::FIRST).await.unwrap();
    while stream.next().await.unwrap().is_some() {}
    let end = stream.position();
    let (connection, next) = stream.finish().await.unwrap();
    assert_eq!(next, Some(WalPosition { lsn: end, timeline: second }));
    let line = String::from_utf8(history.content.to_vec()).unwrap();
    assert!(line.contains(&format!("1\t{end}\t")), "{line}");

    // Nothing is left of the first timeline there.
    let mut stream = connection.start_replication(None, end, Timeline::FIRST).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), None);
    let (connection, next) = stream.finish().await.unwrap();
    assert_eq!(next.unwrap().timeline, second);
    let mut stream = connection.start_replication(None, end, second).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
}

#[tokio::test]
async fn the_end_of_a_timeline_names_the_next_on_13() {
    a_timeline_ends(13).await;
}

#[tokio::test]
async fn the_end_of_a_timeline_names_the_next_on_15() {
    a_timeline_ends(15).await;
}

#[tokio::test]
async fn the_end_of_a_timeline_names_the_next_on_18() {
    a_timeline_ends(18).await;
}

/// A page is wrong: everything comes, with a warning, and the error at the very end.
async fn a_page_is_damaged(major: u32) {
    let server = NewServer::of_major(major).start();
    let path = server
        .sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 5000) g; CHECKPOINT; SELECT pg_relation_filepath('t')")
        .await;
    let path = server.data().join(path[0][0].as_deref().unwrap());
    server.stop();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192 + 4000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    server.start();

    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let options = server.options("").on_notice(Arc::new(move |notice| heard.lock().unwrap().push(notice.clone())));
    let connection = Connection::connect(&options, Mode::Replication).await.unwrap();
    let mut backup = connection.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let (received, result) = receive(&mut backup).await;
    let error = result.unwrap_err();
    assert_eq!(sqlstate(&error), Some("XX001"), "{error:?}");
    assert!(server_message(&error).unwrap().message.contains("checksum"), "{error:?}");
    assert!(received.end.is_some(), "the error comes last");
    assert_eq!(files(&received).keys().collect::<Vec<_>>(), manifest(&received).0.keys().collect::<Vec<_>>());
    let notices = notices.lock().unwrap().clone();
    assert!(
        notices.iter().any(|n| n.severity == "WARNING" && n.message.contains("checksum verification failed")),
        "{notices:?}"
    );
    assert_eq!(backup.next().await.unwrap(), None, "nothing comes after an error");
    backup.into_connection().await.unwrap().identify_system().await.unwrap();
}

#[tokio::test]
async fn damaged_pages_are_told_after_everything_has_come_from_13() {
    a_page_is_damaged(13).await;
}

#[tokio::test]
async fn damaged_pages_are_told_after_everything_has_come_from_15() {
    a_page_is_damaged(15).await;
}

#[tokio::test]
async fn damaged_pages_are_told_after_everything_has_come_from_18() {
    a_page_is_damaged(18).await;
}

#[tokio::test]
async fn archives_compressed_by_the_server_say_so_in_their_names() {
    let server = NewServer::of_major(15).start();
    for (method, file, magic) in [
        (CompressionMethod::Gzip, "base.tar.gz", &[0x1f, 0x8b][..]),
        (CompressionMethod::Lz4, "base.tar.lz4", &[0x04, 0x22, 0x4d, 0x18]),
        (CompressionMethod::Zstd, "base.tar.zst", &[0x28, 0xb5, 0x2f, 0xfd]),
    ] {
        let compression = Some(ServerCompression { method, level: Some(1), workers: None });
        let options = BaseBackupOptions { compression, ..BaseBackupOptions::default() };
        let mut backup = replication(&server).await.base_backup(&options).await.unwrap();
        let (received, result) = receive(&mut backup).await;
        result.unwrap();
        let (name, bytes) = &received.archives[0];
        assert_eq!((name.as_str(), bytes.starts_with(magic)), (file, true));
        assert!(received.manifest.starts_with(b"{ \"PostgreSQL-Backup-Manifest"), "the manifest is not compressed");
    }
}

/// Archives that nobody reads to their ends, and the manifest, which somebody does.
async fn archives_are_passed_over(major: u32) {
    let server = NewServer::of_major(major).start();
    let mut backup = replication(&server).await.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let (mut room, mut manifest, mut ended) = ([0; 700], Vec::new(), false);
    while let Some(event) = backup.next().await.unwrap() {
        match event {
            BackupEvent::Archive { .. } => assert!(backup.read(&mut room).await.unwrap() > 0),
            BackupEvent::Manifest => {
                while let n @ 1.. = backup.read(&mut room).await.unwrap() {
                    manifest.extend_from_slice(&room[..n]);
                }
            }
            BackupEvent::End(_) => ended = true,
        }
        if ended {
            assert_eq!(backup.read(&mut room).await.unwrap(), 0);
        }
    }
    assert!(ended);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert!(manifest["Files"].is_array());
}

#[tokio::test]
async fn archives_that_nobody_reads_are_passed_over_on_13() {
    archives_are_passed_over(13).await;
}

#[tokio::test]
async fn archives_that_nobody_reads_are_passed_over_on_15() {
    archives_are_passed_over(15).await;
}

#[tokio::test]
async fn rows_of_all_statements_come_as_text() {
    let server = NewServer::of_major(15).start();
    let mut connection = Connection::connect(&server.options("dbname=postgres"), Mode::Sql).await.unwrap();
    let rows = connection.query("SELECT 1, NULL, ''; SELECT 'é'").await.unwrap();
    assert_eq!(rows, [vec![Some("1".into()), None, Some(String::new())], vec![Some("é".into())]]);
    let error = connection.query("SELECT 1/0").await.unwrap_err();
    assert_eq!(sqlstate(&error), Some("22012"));
    assert_eq!(connection.query("").await.unwrap(), Vec::<Vec<Option<String>>>::new());
    assert_eq!(connection.query("COPY (SELECT 1) TO STDOUT; SELECT 2").await.unwrap(), [vec![Some("2".into())]]);
    let error = connection.query("SELECT repeat('x', 1000000) FROM generate_series(1, 40)").await.unwrap_err();
    assert!(error.to_string().contains("33554432 bytes"), "{error}");
    assert!(connection.query("SELECT 1").await.is_err(), "the rest of that result may still come");

    let mut connection =
        Connection::connect(&server.options("dbname=postgres"), Mode::ReplicationDatabase).await.unwrap();
    assert_eq!(connection.query("SELECT 1").await.unwrap().len(), 1);
    connection.identify_system().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), connection.query("SELECT pg_sleep(60)")).await.is_err());
    assert!(connection.query("SELECT 1").await.is_err(), "an answer to another question may still come");
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_waits_for_data_of_ours_is_an_error() {
    let server = NewServer::of_major(15).start();
    let mut connection = Connection::connect(&server.options("dbname=postgres"), Mode::Sql).await.unwrap();
    let copy = connection.query("CREATE TEMPORARY TABLE t (n int); COPY t FROM STDIN");
    let error = tokio::time::timeout(Duration::from_secs(30), copy).await.expect("an answer").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
}
