//! What can be asked of a server once it has let us in.

use backup_core::postgres::wal::{Lsn, Timeline};
use backup_core::postgres::wire::{BackupEvent, BaseBackupOptions, Connection, Mode, WalMessage, sqlstate};
use backup_tests::postgres::Cluster;

#[tokio::test]
async fn rows_of_all_statements_come_as_text() {
    let options = Cluster::shared().options("");
    let mut connection = Connection::connect(&options, Mode::Sql).await.unwrap();
    let rows = connection.query("SELECT 1, NULL, ''; SELECT 'é'").await.unwrap();
    assert_eq!(rows, [vec![Some("1".into()), None, Some(String::new())], vec![Some("é".into())]]);
    let error = connection.query("SELECT 1/0").await.unwrap_err();
    assert_eq!(sqlstate(&error), Some("22012"));
    assert_eq!(connection.query("").await.unwrap(), Vec::<Vec<Option<String>>>::new());
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_base_backup_streams_to_its_end_and_the_log_from_its_start() {
    let cluster = Cluster::shared();
    let options = cluster.options("");
    let connection = Connection::connect(&options, Mode::Replication).await.unwrap();
    let mut backup = connection.base_backup(&BaseBackupOptions::default()).await.unwrap();
    let start = backup.start();
    let (mut archives, mut bytes, mut manifest, mut end) = (Vec::new(), 0, None, None);
    while let Some(event) = backup.next().await.unwrap() {
        match event {
            BackupEvent::Archive { file, .. } => archives.push(file),
            BackupEvent::Manifest => manifest = Some(Vec::new()),
            BackupEvent::Data(data) => match &mut manifest {
                Some(manifest) => manifest.extend_from_slice(&data),
                None => bytes += data.len() as u64,
            },
            BackupEvent::Progress(_) => {}
            BackupEvent::End(position) => end = Some(position),
        }
    }
    assert_eq!(archives, ["base.tar"]);
    assert!(bytes > 20 << 20 && bytes.is_multiple_of(512), "{bytes}");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.unwrap()).unwrap();
    let (end, range) = (end.unwrap(), &manifest["WAL-Ranges"][0]);
    assert_eq!(range["Start-LSN"], start.lsn.to_string());
    assert_eq!(range["End-LSN"], end.lsn.to_string());

    let mut connection = backup.into_connection().await.unwrap();
    let identity = connection.identify_system().await.unwrap();
    assert_eq!(identity.timeline, Timeline::FIRST);
    let mut stream = connection.start_replication(None, start.lsn, start.timeline).await.unwrap();
    let mut position = Lsn(0);
    while position < end.lsn {
        if let Some(WalMessage::Data { start, data, .. }) = stream.next().await.unwrap() {
            position = Lsn(start.0 + data.len() as u64);
        }
    }
    let (mut connection, next) = stream.finish().await.unwrap();
    assert_eq!(next, None, "the timeline goes on");
    assert_eq!(connection.identify_system().await.unwrap().system, identity.system);
}
