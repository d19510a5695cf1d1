//! SIGINT and SIGTERM: 130, soon, and nothing left behind.

use std::thread;
use std::time::{Duration, Instant};

use backup_tests::data::Data;
use backup_tests::host::{Host, Input, Running, files_below};
use backup_tests::postgres::Cluster;
use backup_tests::s3::{Fault, Rule, S3};
use rustix::process::Signal;

use crate::BACKUP;

/// To be cancelled in an instant; the rest is the machine's.
const SOON: Duration = Duration::from_secs(10);

fn endless(bytes: u64) -> Input {
    Input::Endless(Data::random(bytes, "interrupted"))
}

fn until(what: &str, mut true_now: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_now() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} does not come");
        thread::sleep(Duration::from_millis(10));
    }
}

fn interrupt(running: Running, signal: Signal) {
    let begun = Instant::now();
    running.signal(signal);
    let outcome = running.wait().failed(130).saying("interrupted");
    assert!(begun.elapsed() < SOON, "{outcome}");
    assert_eq!(outcome.stdout(), b"");
}

#[test]
fn an_interrupted_save_leaves_nothing() {
    let host = Host::initialised(BACKUP);
    for signal in [Signal::INT, Signal::TERM] {
        let running = host.backup(["save", "app"]).stdin(endless(5_000_000)).start();
        until("a volume", || host.stored().iter().any(|name| name.contains(".vol")));
        interrupt(running, signal);
        assert_eq!(host.stored(), [] as [&str; 0]);
        assert_eq!(host.listed(), [] as [&str; 0]);
    }
}

#[test]
fn an_interrupted_save_ends_its_command() {
    let host = Host::initialised(BACKUP);
    let script = "echo $$ > pid; exec sleep 600";
    let running = host.backup(["save", "app", "--", "sh", "-c", script]).start();
    until("the command", || std::fs::read_to_string(host.path("pid")).is_ok_and(|pid| pid.ends_with('\n')));
    interrupt(running, Signal::INT);
    let pid = std::fs::read_to_string(host.path("pid")).unwrap();
    let status = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    until("the command's end", || status().map_or(true, |status| status.contains(") Z ")));
    assert_eq!(host.stored(), [] as [&str; 0]);
}

#[test]
fn an_interrupted_upload_to_s3_leaves_no_object_and_no_unfinished_upload() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    let running = host.backup(["save", "app"]).stdin(endless(30_000_000)).start();
    until("a part", || server.unfinished().iter().filter(|name| name.contains("part-")).count() >= 2);
    interrupt(running, Signal::TERM);
    assert_eq!(server.objects(), ["some/prefix/repository.json"]);
    assert_eq!(server.unfinished(), [] as [&str; 0]);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    let running = host.backup(["save", "app"]).stdin(endless(30_000_000)).start();
    until("a part", || server.unfinished().iter().any(|name| name.contains("part-")));
    // Giving up takes longer than anybody waits.
    server.inject(Rule::new(Fault::Delay(Duration::from_secs(8)), "DELETE", ""));
    running.signal(Signal::INT);
    until("the upload is given up", || server.has_struck());
    let second = Instant::now();
    running.signal(Signal::INT);
    let outcome = running.wait();
    assert_eq!(outcome.code(), Some(130), "{outcome}");
    assert!(second.elapsed() < Duration::from_secs(3), "{outcome}");
    server.heal();
}

#[test]
fn an_interrupted_restore_leaves_no_file_and_no_directory() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    host.write("from/file", Data::random(60_000_000, "restore").to_vec());
    host.backup(["save", "tree", "--directory"]).args([host.path("from")]).run().id();
    host.save("file", Data::random(60_000_000, "restore"));
    for (target, signal) in [("tree", Signal::INT), ("file", Signal::TERM)] {
        // All but the ends of the volume comes too slowly to end.
        server.inject(Rule::new(Fault::Slow(Duration::from_secs(60)), "GET", "data.00000.vol").after(7));
        let running = host.backup(["restore", target, "--to"]).args([host.path("to")]).start();
        let begun = || files_below(&host.path("to")).iter().any(|name| name != ".backup-restore-incomplete");
        until("a file", || begun() && server.has_struck());
        interrupt(running, signal);
        assert_eq!(files_below(&host.path("to")), [] as [&str; 0], "{target}");
        server.heal();
    }
}

#[test]
fn a_restore_whose_output_nobody_reads_can_be_interrupted() {
    let host = Host::initialised(BACKUP);
    host.save("app", Data::random(20_000_000, "unread"));
    let mut running = host.backup(["restore", "app", "--to-stdout"]).unread().start();
    // A full pipe: it waits, and would for ever.
    thread::sleep(Duration::from_millis(700));
    assert!(running.is_running());
    interrupt(running, Signal::TERM);
}

#[test]
fn an_interrupted_load_leaves_no_database() {
    let cluster = Cluster::shared();
    let mut host = Host::initialised(BACKUP);
    cluster.serve(&mut host);
    cluster.create("source");
    // A view that takes its time to be filled, in any other database.
    cluster.sql(
        "source",
        "CREATE FUNCTION linger() RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN IF current_database() <> 'source' THEN PERFORM pg_catalog.pg_sleep(600); END IF; RETURN 1; END $$;
         CREATE TABLE t AS SELECT 1 AS x; CREATE MATERIALIZED VIEW slow AS SELECT public.linger();",
    );
    host.backup(["save", "app", "--pg-dump", "dbname=source"]).run().id();
    cluster.create("empty");
    let before = cluster.dump("empty", &[]);
    for database in ["missing", "empty"] {
        let running = host.backup(["restore", "app", "--into"]).args([format!("dbname={database}")]).start();
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        until("the view", || cluster.sql("postgres", sleeping) != "0");
        interrupt(running, Signal::TERM);
        assert_eq!(cluster.databases(), ["empty", "source"]);
        // As if its statement had come to its end.
        cluster.sql("postgres", "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
        until("the session's end", || cluster.sql("postgres", sleeping) == "0");
        assert_eq!(cluster.dump("empty", &[]), before);
    }
}
