//! Tablespaces of a cluster that is copied here: all of them, or no backup.

use std::time::Duration;

use backup_tests::host::Host;
use backup_tests::physical::PublicDir;
use backup_tests::postgres::NewServer;

use super::promotion::copies;
use super::proof::save_with;
use super::{restored, save, shown, streams};
use crate::BACKUP;

#[tokio::test]
async fn a_tablespace_that_cannot_be_seen_here_is_not_left_out() {
    // As in a container that was given the data directory and the socket, and not the other volume.
    let server = NewServer::of_major(15).start();
    let location = server.make_tablespace_directory("fast");
    server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", location.display())).await;
    server.sql("CREATE TABLE t TABLESPACE fast AS SELECT generate_series(1, 1000) g").await;
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let above = location.parent().expect("a directory above it");
    let mut id = String::new();
    // The link leads to nothing; to what the volume is mounted on.
    for masked in [above, &location] {
        let save =
            |more: &[&str]| save_with(&format!("-t tmpfs none {}", masked.display()), &server.conninfo(), &host, more);
        let Some(local) = save(&["--method", "local"]) else { return };
        local.failed(2).saying("fast, cannot be read here").hinting("--method stream");
        id = save(&[]).unwrap().saying("fast, cannot be read here").succeeded().id();
        let shown = shown(&host, &id);
        assert_eq!(shown["details"]["source"]["method"], "stream");
        assert!(streams(&shown)[0].starts_with("tablespace-"), "{shown}");
    }
    let restored = restored(&host, &server, &id, &public.path("data"), &[location]);
    assert_eq!(restored.sql("postgres", "SELECT count(*) FROM t"), "1000");
}

#[tokio::test]
async fn a_tablespace_that_is_dropped_meanwhile_is_not_missed() {
    for major in [13, 15] {
        let server = NewServer::of_major(major).start();
        let location = server.make_tablespace_directory("fast");
        server.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", location.display())).await;
        let host = Host::initialised(BACKUP);
        let mut saving = save(&host, &server, &["--max-rate", "8MiB"]).within(Duration::from_secs(120)).start();
        copies(&host, &mut saving);
        server.sql("DROP TABLESPACE fast").await;
        assert!(saving.is_running(), "{major}: it was dropped too late");
        saving.wait().succeeded();
    }
}

#[tokio::test]
async fn a_tablespace_in_place_that_is_dropped_meanwhile_comes_back_to_the_right_owner() {
    let server =
        NewServer::of_major(15).setting("allow_in_place_tablespaces", "on").setting("autovacuum", "off").start();
    server.sql("CREATE TABLESPACE inside LOCATION ''").await;
    server.sql("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 5000) g").await;
    let (host, public) = (Host::initialised(BACKUP), PublicDir::new());
    let mut saving = save(&host, &server, &["--max-rate", "8MiB"]).within(Duration::from_secs(120)).start();
    copies(&host, &mut saving);
    server.sql("DROP TABLE t").await;
    server.sql("DROP TABLESPACE inside").await;
    assert!(saving.is_running(), "it was dropped too late");
    let id = saving.wait().succeeded().id();
    // Recovery drops it once more, as the server's user.
    let restored = restored(&host, &server, &id, &public.path("data"), &[]);
    assert_eq!(restored.sql("postgres", "SELECT count(*) FROM pg_tablespace WHERE spcname = 'inside'"), "0");
}
