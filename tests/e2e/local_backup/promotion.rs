//! Standbys whose timeline changes while they are backed up. What was copied would be of two histories.

use std::time::Duration;

use backup_tests::host::{Host, Running};
use backup_tests::postgres::{NewServer, Server};

use super::{follows, save};
use crate::BACKUP;

/// Waits until files are being copied.
pub(super) fn copies(host: &Host, running: &mut Running) {
    while !host.stored().iter().any(|name| name.contains("base.")) {
        assert!(running.is_running(), "it ended early: {:?}", host.stored());
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn primary() -> Server {
    let primary = NewServer::of_major(15).setting("max_wal_senders", "8").setting("wal_keep_size", "256MB").start();
    primary.sql("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g").await;
    primary
}

/// For a restart point there has to be something to replay.
async fn checkpoint(primary: &Server, standby: &Server) {
    primary.sql("INSERT INTO t VALUES (0); CHECKPOINT").await;
    follows(standby, primary).await;
}

#[tokio::test]
async fn a_standby_that_is_promoted_meanwhile_is_told_to_be_backed_up_again() {
    let primary = primary().await;
    for arguments in [&["--method", "local"][..], &["--method", "local", "--no-wal"], &["--method", "stream"]] {
        let standby = NewServer::of_major(15).standby_of(&primary).start();
        let host = Host::initialised(BACKUP);
        checkpoint(&primary, &standby).await;
        let save = |more: &[&str]| {
            host.backup(["save", "db", "--base-backup", &standby.conninfo()]).args(arguments).args(more)
        };
        let mut running = save(&["--max-rate", "4MiB"]).start();
        copies(&host, &mut running);
        assert_eq!(standby.value("SELECT pg_promote()").await, "t");
        let outcome = running.wait().failed(1);
        // Whoever notices first: the stream of the log, or the server when it is to end the backup.
        let said = outcome.to_string();
        let whys = [
            ("from timeline 1 to 2 during the backup", "begin the backup again"),
            ("the standby was promoted during online backup", "Try taking another online backup"),
        ];
        assert!(whys.iter().any(|(why, what)| said.contains(why) && said.contains(what)), "{arguments:?}: {said}");
        assert!(host.stored().is_empty() && host.listed().is_empty(), "{arguments:?}: {:?}", host.stored());
        assert_eq!(standby.value("SELECT count(*) FROM pg_replication_slots").await, "0");
        // And that does.
        save(&[]).run().succeeded();
    }
}

#[tokio::test]
async fn a_standby_that_follows_another_primary_is_backed_up_again_after_its_next_checkpoint() {
    let primary = primary().await;
    // The checkpoint that comes with its promotion takes its time, if there is something to write.
    let slow =
        NewServer::of_major(15).setting("checkpoint_timeout", "1d").setting("checkpoint_completion_target", "0.9");
    let middle = slow.setting("max_wal_senders", "8").standby_of(&primary).start();
    let standby = NewServer::of_major(15).setting("max_wal_senders", "8").standby_of(&middle).start();
    let host = Host::initialised(BACKUP);
    checkpoint(&primary, &standby).await;
    primary.sql("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 100000) g").await;
    follows(&standby, &primary).await;
    let mut running = save(&host, &standby, &["--max-rate", "4MiB"]).start();
    copies(&host, &mut running);
    assert_eq!(middle.value("SELECT pg_promote()").await, "t");
    // In the middle of one, and again before there was a checkpoint.
    for outcome in [running.wait(), save(&host, &standby, &["--max-rate", "4MiB"]).run()] {
        let outcome = outcome.failed(1).saying("from timeline 1 to 2 during the backup");
        outcome.hinting("begin the backup again; that of a standby, after its primary's next checkpoint");
        assert!(host.stored().is_empty() && host.listed().is_empty(), "{:?}", host.stored());
    }
    checkpoint(&middle, &standby).await;
    save(&host, &standby, &[]).run().succeeded();
}
