//! `wal check` beside a server: how far the archive is behind, and whether the archiver works.

use std::time::{Duration, Instant};

use backup_tests::postgres::NewServer;
use backup_tests::site::{Site, archived, until};
use serde_json::Value;

use crate::BACKUP;

#[tokio::test]
async fn a_stalled_archiver_and_the_lag_behind_the_server_are_told() {
    for major in [13, 15, 18] {
        let site = Site::new(BACKUP);
        let server = site.archiving(NewServer::of_major(major).initdb("--wal-segsize=1")).start();
        let conninfo = server.conninfo();
        let check = |more: &[&str]| site.host().backup(["wal", "check", "--server", &conninfo]).args(more).run();
        let nothing = check(&[]);
        assert_eq!(nothing.code(), Some(3), "{nothing}");
        nothing.saying("nothing of timeline 1 of the server");

        server.sql("CREATE TABLE t (n int)").await;
        archived(&server).await;
        // Its statistics come later.
        until("it is counted", &server, "SELECT archived_count > 0 FROM pg_stat_archiver").await;
        let checked = check(&["--json"]).json();
        let told = &checked["server"];
        assert_eq!(
            (&checked["ok"], &told["archive_mode"], &told["timeline"]),
            (&true.into(), &"on".into(), &1.into()),
            "{checked}"
        );
        assert!(
            told["lag_bytes"].as_u64().unwrap() < 1 << 20 && told["archived_count"].as_u64().unwrap() > 0,
            "{told}"
        );
        assert_eq!(checked["ready"]["count"], 0, "{checked}");
        assert_eq!(told["last_failed"], Value::Null, "{told}");
        check(&[]).succeeded().saying("the server is at ");

        server.sql("ALTER SYSTEM SET archive_command = 'false'").await;
        server.sql("SELECT pg_reload_conf()").await;
        for _ in 0..3 {
            server.sql("INSERT INTO t SELECT generate_series(1, 20000)").await;
            server.sql("SELECT pg_switch_wal()").await;
        }
        until("it fails", &server, "SELECT failed_count > 0 FROM pg_stat_archiver").await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let stalled = check(&["--lag-max", "1"]);
        assert_eq!(stalled.code(), Some(3), "{stalled}");
        let stalled = stalled.saying("the server fails to archive 0000000100").saying("behind the server, for ");
        stalled.saying("has been waiting for").saying("wait to be archived");
        let patient = check(&["--lag-max", "3600", "--json"]).json();
        assert_eq!(patient["ok"], true, "it has time: {patient}");
        assert!(patient["server"]["lag_bytes"].as_u64().unwrap() > 1 << 20, "{patient}");
        assert!(patient["server"]["lag_seconds"].as_u64().unwrap() >= 2, "{patient}");

        // Somebody who may not see what waits sees that it fails.
        server.sql("CREATE ROLE watcher LOGIN").await;
        let watcher = conninfo.replace("user=postgres", "user=watcher dbname=postgres");
        let checked = site.host().backup(["wal", "check", "--server", &watcher]).run();
        assert_eq!(checked.code(), Some(3), "{checked}");
        checked.saying("the server fails to archive");

        server.sql("ALTER SYSTEM RESET archive_command").await;
        server.sql("SELECT pg_reload_conf()").await;
        let begun = Instant::now();
        // It sleeps for up to a minute after three failures, unless something new comes.
        while check(&["--lag-max", "1"]).code() != Some(0) {
            assert!(begun.elapsed() < Duration::from_secs(90), "it stays stalled: {}", server.log());
            archived(&server).await;
        }
    }
}
