//! What few clusters have and all may: tablespaces in place, and the partial segment that a promotion leaves.

use backup_tests::host::files_below;
use backup_tests::postgres::NewServer;
use backup_tests::site::{Site, archived, opened, until};

use crate::BACKUP;

#[tokio::test]
async fn a_tablespace_in_place_comes_back_in_place() {
    for major in [15, 18] {
        let site = Site::new(BACKUP);
        let server =
            NewServer::of_major(major).initdb("--wal-segsize=1").setting("allow_in_place_tablespaces", "on").start();
        server.sql("CREATE TABLESPACE inside LOCATION ''").await;
        server.sql("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 1000) n").await;
        site.back_up(&server);
        site.restoring(&server).run().succeeded();
        let inside = files_below(&server.data().join("pg_tblspc"));
        assert!(!inside.is_empty() && !server.data().join("pg_tblspc").join(&inside[0]).is_symlink(), "{inside:?}");
        if major == 15 {
            server.client("pg_verifybackup", &["--quiet", server.data().to_str().unwrap()]);
        }
        server.start();
        opened(&server).await;
        assert_eq!(server.value("SELECT count(*) FROM t").await, "1000");
        server.sql("INSERT INTO t VALUES (0)").await;
    }
}

#[tokio::test]
async fn the_partial_segment_of_a_promotion_is_archived_and_comes_back() {
    let site = Site::new(BACKUP);
    let small = || NewServer::of_major(15).initdb("--wal-segsize=1");
    let primary = site.archiving(small()).start();
    primary.sql("CREATE TABLE t (n int)").await;
    site.back_up(&primary);
    let standby = site.archiving(small().standby_of(&primary)).start();
    primary.sql("INSERT INTO t VALUES (1)").await;
    archived(&primary).await;
    // In the segment that will be partial.
    primary.sql("INSERT INTO t VALUES (2)").await;
    let lsn = primary.value("SELECT pg_current_wal_insert_lsn()").await;
    until("it follows", &standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")).await;
    primary.kill();
    standby.sql("SELECT pg_promote()").await;
    opened(&standby).await;
    standby.sql("INSERT INTO t VALUES (3)").await;
    archived(&standby).await;

    let wal = standby.sql("SELECT name FROM pg_ls_waldir() WHERE name LIKE '%.partial'").await;
    let name = wal[0][0].as_ref().unwrap();
    let stored = site.host().stored();
    assert!(stored.iter().any(|object| object.ends_with(&format!("{name}.vol"))), "{name}: {stored:?}");
    let to = site.path("fetched");
    site.host().backup(["wal", "fetch", name]).args([&to]).in_directory(standby.data()).run().succeeded();
    assert!(std::fs::read(&to).unwrap() == std::fs::read(standby.data().join("pg_wal").join(name)).unwrap());
    let checked = site.host().backup(["wal", "check", "--json"]).run().json();
    assert_eq!(checked["problems"], serde_json::json!([]), "{checked}");

    // The new timeline begins with what the partial segment holds.
    site.restoring(&primary).run().succeeded();
    primary.start();
    opened(&primary).await;
    assert_eq!(primary.value("SELECT string_agg(n::text, ' ' ORDER BY n) FROM t").await, "1 2 3");
}
