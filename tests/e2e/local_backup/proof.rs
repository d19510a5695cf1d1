//! Which directories are copied: those of the server that runs, and no others.

use std::path::Path;
use std::process::Command;

use backup_tests::host::{Host, Outcome};
use backup_tests::network::Network;
use backup_tests::postgres::{NewServer, Server};

use super::{follows, save, shown, streams};
use crate::BACKUP;

#[tokio::test]
async fn only_a_directory_that_is_the_running_servers_is_copied() {
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    let method = |outcome: Outcome| {
        shown(&host, &outcome.succeeded().id())["details"]["source"]["method"].as_str().unwrap().to_owned()
    };
    let auto = |more: &[&str]| host.backup(["-v", "save", "db", "--base-backup", &server.conninfo()]).args(more).run();
    assert_eq!(method(auto(&[])), "local");
    assert_eq!(method(auto(&["--method", "stream"])), "stream");
    // What only the server can do.
    let compressed =
        auto(&["--server-compression", "gzip:1"]).saying("the server compresses only what it sends itself");
    assert_eq!(method(compressed), "stream");
    save(&host, &server, &["--server-compression", "gzip:1"]).run().failed(2).saying("only what it sends itself");

    // A role that may replicate, and no more.
    server.sql("CREATE ROLE replicator LOGIN REPLICATION").await;
    let as_replicator = server.conninfo().replace("user=postgres", "user=replicator");
    let outcome = host.backup(["-v", "save", "db", "--base-backup", &as_replicator]).run();
    assert_eq!(method(outcome.saying("this role may not start a backup")), "stream");
    let local = |conninfo: &str| host.backup(["save", "db", "--method", "local", "--base-backup", conninfo]).run();
    local(&as_replicator).failed(2).hinting("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean)");
    // Nothing is copied that could not be brought to its end.
    server.sql("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO replicator").await;
    local(&as_replicator).failed(2).hinting("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean)");
    server.sql("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO replicator").await;
    local(&as_replicator).failed(2).hinting("pg_read_all_settings");
    server.sql("GRANT pg_read_all_settings TO replicator").await;
    local(&as_replicator).succeeded();

    // A user who may not read the files.
    if rustix::process::geteuid().is_root() {
        let by_address = format!("host=127.0.0.1 port={} user=postgres", server.port());
        let denied = host.without_override(["-v", "save", "db", "--base-backup", &by_address]).run();
        assert_eq!(method(denied.saying("cannot be read here")), "stream");
    }
}

#[tokio::test]
async fn without_wal_the_slot_is_there_for_the_proof_alone() {
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    let id = save(&host, &server, &["--no-wal"]).run().succeeded().id();
    let shown = shown(&host, &id);
    assert_eq!(streams(&shown), ["base", "files", "backup_manifest", "details"]);
    assert_eq!(shown["backup"]["cluster"]["wal_included"], false);
    assert_eq!(server.value("SELECT count(*) FROM pg_replication_slots").await, "0");

    // Without a slot nothing is proved, and the server has to send its files.
    let server = NewServer::of_major(15).setting("max_replication_slots", "0").start();
    let host = Host::initialised(BACKUP);
    let refused = save(&host, &server, &["--no-wal"]).run().failed(1);
    refused.saying("max_replication_slots").hinting("--method stream");
    assert!(host.stored().is_empty());
    let auto = host.backup(["-v", "save", "db", "--no-wal", "--base-backup", &server.conninfo()]).run();
    let id = auto.saying("all replication slots are in use").succeeded().id();
    assert_eq!(self::shown(&host, &id)["details"]["source"]["method"], "stream");
}

/// Runs `save` of the server's cluster where another directory is seen in the place of its own; `None` where this user may not do that.
fn save_seeing(host: &Host, other: &Path, server: &Server, more: &[&str]) -> Option<Outcome> {
    save_of(&server.conninfo(), host, other, server, more)
}

/// The same, by another way to the server.
fn save_of(conninfo: &str, host: &Host, other: &Path, server: &Server, more: &[&str]) -> Option<Outcome> {
    save_with(&format!("--bind {} {}", other.display(), server.data().display()), conninfo, host, more)
}

/// Runs `save` in a mount namespace of its own, in which something is mounted.
pub(super) fn save_with(mount: &str, conninfo: &str, host: &Host, more: &[&str]) -> Option<Outcome> {
    if host.command("unshare").args(["--mount", "mount", "--make-rprivate", "/"]).run().code() != Some(0) {
        return None;
    }
    let script = format!(
        "mount --make-rprivate / && mount {mount} && exec \"$BACKUP\" -v save db --base-backup '{conninfo}' \"$@\""
    );
    let run = host.command("unshare").args(["--mount", "sh", "-c", &script, "sh"]).args(more);
    Some(run.env("BACKUP", host.program()).run())
}

#[tokio::test]
async fn a_clone_of_the_directory_is_not_taken_for_the_server() {
    // Seen from the server its files are here, and what is here is yesterday's copy of them.
    let server = NewServer::of_major(15).start();
    let host = Host::initialised(BACKUP);
    for (n, wal) in [&[][..], &["--no-wal"]].into_iter().enumerate() {
        let clone = host.path(format!("clone{n}"));
        let copied = Command::new("cp").arg("-a").arg(server.data()).arg(&clone).status().unwrap();
        assert!(copied.success());
        let save = |method: &[&str]| save_seeing(&host, &clone, &server, &[method, wal].concat());
        let Some(local) = save(&["--method", "local"]) else { return };
        local.failed(2).saying("is not that of the server that runs");
        // That is found out before the backup begins: the server can still be asked for its files, and makes a checkpoint.
        for words in ["is not that of the server that runs", "an older copy of this one"] {
            let id = save(&[]).unwrap().saying(words).succeeded().id();
            assert_eq!(shown(&host, &id)["details"]["source"]["method"], "stream", "{wal:?}");
        }
        save(&["--method", "local"]).unwrap().failed(2).saying("an older copy of this one");
    }
}

#[tokio::test]
async fn a_directory_that_is_ahead_of_the_server_is_not_taken_for_it() {
    // On the primary's host, through a tunnel to a standby: the paths are the same, and the primary's files know of every checkpoint.
    let primary = NewServer::of_major(15).setting("max_wal_senders", "5").start();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) g").await;
    let standby = NewServer::of_major(15).standby_of(&primary).start();
    let host = Host::initialised(BACKUP);
    for wal in [&[][..], &["--no-wal"]] {
        // For a restart point there has to be something to replay.
        primary.sql("INSERT INTO t VALUES (0); CHECKPOINT").await;
        follows(&standby, &primary).await;
        let save = |method: &[&str]| save_seeing(&host, &primary.data(), &standby, &[method, wal].concat());
        let Some(local) = save(&["--method", "local"]) else { return };
        local.failed(2).saying("is not that of the server that runs");
        let id = save(&[]).unwrap().saying("is not that of the server that runs").succeeded().id();
        assert_eq!(shown(&host, &id)["details"]["source"]["method"], "stream", "{wal:?}");
    }
}

#[tokio::test]
async fn a_slot_of_another_server_than_the_one_that_is_asked_proves_nothing() {
    // One address for two servers: the backup would be agreed with the standby, and the slot, and the files here, are the primary's.
    let primary = NewServer::of_major(15).setting("max_wal_senders", "5").start();
    let standby = NewServer::of_major(15).standby_of(&primary).start();
    let host = Host::initialised(BACKUP);
    for wal in [&[][..], &["--no-wal"]] {
        primary.sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (0); CHECKPOINT").await;
        follows(&standby, &primary).await;
        let network = Network::in_turn(&[standby.port(), primary.port()]);
        let conninfo = format!("host=127.0.0.1 port={} user=postgres sslmode=disable", network.port());
        let more = [&["--method", "local"], wal].concat();
        let Some(outcome) = save_of(&conninfo, &host, &primary.data(), &standby, &more) else { return };
        outcome.failed(2).saying("two connections led to two different servers").hinting("name one host");
        assert!(host.stored().is_empty(), "{wal:?}");
    }
}
