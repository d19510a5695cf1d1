//! Large segments: all ways in and out, with a live server.

use std::time::{Duration, Instant};

use backup_core::postgres::wal::{Lsn, SegmentSize, WalFile};
use backup_tests::postgres::NewServer;
use backup_tests::site::{Site, archived, opened, until};
use rustix::process::Signal;

use crate::BACKUP;

const SEGMENT: u64 = 64 << 20;

#[tokio::test]
async fn segments_of_64_mib_are_archived_received_fetched_and_recovered_from() {
    let site = Site::new(BACKUP);
    let server = NewServer::of_major(15).initdb("--wal-segsize=64").setting("max_wal_size", "2GB");
    let server = site.archiving(server.setting("synchronous_commit", "on")).start();
    assert_eq!(
        server.value("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").await,
        SEGMENT.to_string()
    );
    server.sql("CREATE TABLE t (n int, filler text); ALTER TABLE t ALTER filler SET STORAGE EXTERNAL").await;
    site.back_up(&server);
    // What is received goes elsewhere, or whoever is later would only compare.
    let receive =
        ["wal", "receive", &server.conninfo(), "--target=received", "--slot=s", "--create-slot", "--flush-interval=1"];
    let receiving = site.host().backup(receive).start();
    until("somebody receives", &server, "SELECT count(*) = 1 FROM pg_stat_replication").await;

    let write = |n: u32| {
        format!("INSERT INTO t SELECT {n}, string_agg(md5(random()::text), '') FROM generate_series(1, 2000000)")
    };
    server.sql(&write(1)).await;
    server.sql("SELECT pg_create_restore_point('between')").await;
    server.sql(&write(2)).await;
    let lsn = server.value("SELECT pg_current_wal_flush_lsn()").await;
    let durable = format!("SELECT coalesce(bool_or(flush_lsn >= '{lsn}'), false) FROM pg_stat_replication");
    until("it is durable", &server, &durable).await;
    archived(&server).await;
    receiving.signal(Signal::TERM);
    let received = receiving.wait().succeeded();

    // Both archives hold the same, segment by segment.
    let segments = server.sql("SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' ORDER BY name").await;
    let mut compared = 0;
    for name in segments.iter().map(|row| row[0].as_ref().unwrap()) {
        let was = std::fs::read(server.data().join("pg_wal").join(name)).unwrap();
        for target in ["app", "received"] {
            let to = site.path("fetched");
            let fetch = site.host().backup(["wal", "fetch", name, "--prefetch=0", "--target", target]).args([&to]);
            let outcome = fetch.in_directory(server.data()).run();
            if outcome.code() == Some(0) {
                let is = std::fs::read(&to).unwrap();
                let end = if target == "app" { is.len() } else { durable_part(name, &lsn) };
                assert!(is.len() as u64 == SEGMENT && was[..end] == is[..end], "{name} of {target} differs: {outcome}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 4, "{compared}: {segments:?}");
    // A segment that is almost full, all of it as a piece that is being stored, and the program.
    assert!(received.peak_bytes < 3 * SEGMENT, "{} MiB", received.peak_bytes >> 20);

    site.restoring(&server).args(["--target-name=between", "--target-action=promote"]).run().succeeded();
    let begun = Instant::now();
    server.start();
    opened(&server).await;
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(server.value("SELECT string_agg(n || ' ' || length(filler), ',') FROM t").await, "1 64000000");
}

/// How many bytes of a segment are before `lsn`.
fn durable_part(segment: &str, lsn: &str) -> usize {
    let size = SegmentSize::new(u32::try_from(SEGMENT).unwrap()).unwrap();
    let Ok(WalFile::Segment(segment)) = segment.parse() else { panic!("{segment}") };
    let start = segment.start(size).unwrap();
    usize::try_from(lsn.parse::<Lsn>().unwrap().0.saturating_sub(start.0).min(SEGMENT)).unwrap()
}
