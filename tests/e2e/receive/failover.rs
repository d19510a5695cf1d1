//! `wal receive` after a failover: what the new primary has of the old timeline, and what only the old one had.

use super::*;

fn standby_of(primary: &Server) -> Server {
    NewServer::of_major(15).setting("wal_keep_size", "1GB").standby_of(primary).start()
}

/// Waits until a standby has replayed what its primary has written.
async fn caught_up(standby: &Server, primary: &Server) {
    let (lsn, begun) = (position(primary).await, Instant::now());
    while standby.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'")).await != "t" {
        assert!(begun.elapsed() < Duration::from_secs(60), "the standby does not follow: {}", standby.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nobody else archives it here, and without it no recovery finds the timeline.
#[tokio::test]
async fn the_history_of_the_timeline_that_an_empty_archive_begins_with_is_stored() {
    let (primary, host) = world(15);
    write(&primary).await;
    let standby = standby_of(&primary);
    caught_up(&standby, &primary).await;
    primary.stop();
    standby.sql("SELECT pg_promote()").await;
    for _ in 0..2 {
        let running = receive(&host, &standby, &[]);
        received_from(&standby).await;
        written(&standby).await;
        stop(running);
        assert_eq!(files(&host, "00000002.history.vol").len(), 1);
    }
    let to = host.path("history");
    host.backup(["wal", "fetch", "00000002.history"]).args([&to]).in_directory(standby.data()).run().succeeded();
    assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(standby.data().join("pg_wal/00000002.history")).unwrap());
    nothing_missing(&host);
}
