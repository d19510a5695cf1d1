//! `wal receive`: the log of a real server, as it is written.

use std::path::Path;
use std::time::{Duration, Instant};

use backup_tests::host::{Host, Outcome, Running};
use backup_tests::kms::Kms;
use backup_tests::network::Network;
use backup_tests::postgres::{NewServer, Server};
use backup_tests::s3::{BUCKET, Fault, Recorded, Rule, S3};
use rustix::process::Signal;
use serde_json::Value;

use crate::BACKUP;

mod failover;
mod optional;

/// A server with small segments, which keeps what it has written, and a host with a repository.
fn world(major: u32) -> (Server, Host) {
    let server = NewServer::of_major(major).initdb("--wal-segsize=1").setting("wal_keep_size", "1GB");
    // What was committed is flushed, as it is in any server that is worth a backup.
    let server = server.setting("synchronous_commit", "on").start();
    let mut host = Host::initialised(BACKUP);
    host.set("BACKUP_TARGET", "db");
    (server, host)
}

fn conninfo(server: &Server) -> String {
    format!("host={} port={} user=postgres", server.directory().display(), server.port())
}

fn receive(host: &Host, server: &Server, more: &[&str]) -> Running {
    host.backup(["wal", "receive", &conninfo(server), "--flush-interval", "1"]).args(more).start()
}

async fn position(server: &Server) -> String {
    server.sql("SELECT pg_current_wal_flush_lsn()").await[0][0].clone().unwrap()
}

/// Some segments' worth of log.
async fn write(server: &Server) {
    server.sql("CREATE TABLE IF NOT EXISTS t (n int, hash text)").await;
    server.sql("INSERT INTO t SELECT n, md5(random()::text) FROM generate_series(1, 20000) n").await;
}

/// Waits until somebody receives: what is written from then on is received, whatever came before.
async fn received_from(server: &Server) {
    let begun = Instant::now();
    while server.sql("SELECT count(*) FROM pg_stat_replication").await[0][0].as_deref() == Some("0") {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody receives");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a store was asked for something.
async fn asked(store: &S3, is_it: impl Fn(&Recorded) -> bool) {
    let begun = Instant::now();
    while !store.was_asked(&is_it) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not asked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the server was told that its log is durable up to `lsn`.
async fn durable(server: &Server, lsn: &str) {
    let question = format!("SELECT coalesce(bool_or(flush_lsn >= '{lsn}'), false) FROM pg_stat_replication");
    let begun = Instant::now();
    while server.sql(&question).await[0][0].as_deref() != Some("t") {
        assert!(begun.elapsed() < Duration::from_secs(60), "never durable up to {lsn}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes some segments' worth of log, and waits until it is durable; returns up to where.
async fn written(server: &Server) -> String {
    write(server).await;
    let lsn = position(server).await;
    durable(server, &lsn).await;
    lsn
}

/// Ends an orderly run.
#[track_caller]
fn stop(running: Running) -> Outcome {
    running.signal(Signal::TERM);
    running.wait().succeeded()
}

/// What the archive holds, of which nothing is missing.
#[track_caller]
fn nothing_missing(host: &Host) -> Value {
    let checked = host.backup(["wal", "check", "--json"]).run().json();
    assert_eq!(checked["problems"], serde_json::json!([]), "{checked}");
    checked
}

/// Every segment up to `lsn` comes back as it is in `pg_wal`, up to there.
async fn same(host: &Host, server: &Server, lsn: &str) {
    let mut compared = 0;
    let mut names: Vec<String> = std::fs::read_dir(server.data().join("pg_wal"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.len() == 24)
        .collect();
    names.sort();
    let last = server.sql(&format!("SELECT file_name, file_offset FROM pg_walfile_name_offset('{lsn}')")).await;
    let (last, offset) = (last[0][0].clone().unwrap(), last[0][1].as_ref().unwrap().parse::<usize>().unwrap());
    for name in names.iter().filter(|name| **name <= last) {
        let to = host.path("fetched");
        let fetched = host.backup(["wal", "fetch", name, "--prefetch=0"]).args([&to]).in_directory(server.data()).run();
        if compared == 0 && fetched.code() == Some(200) {
            // Written before anybody received it.
            continue;
        }
        let fetched = fetched.succeeded();
        let (was, is) = (std::fs::read(server.data().join("pg_wal").join(name)).unwrap(), std::fs::read(&to).unwrap());
        let end = if *name == last { offset } else { was.len() };
        assert!(was.len() == is.len() && was[..end] == is[..end], "{name} differs: {fetched}");
        compared += 1;
    }
    assert!(compared > 1, "nothing was compared: {names:?}, {last}");
}

fn files(host: &Host, part: &str) -> Vec<String> {
    host.stored().into_iter().filter(|name| name.contains(part)).collect()
}

#[tokio::test]
async fn a_key_service_is_asked_once_for_all_that_is_received() {
    let (server, mut host) = world(15);
    let kms = Kms::start();
    kms.serve(&mut host);
    // A host that cannot read what it receives.
    std::fs::remove_file(host.identity_file()).unwrap();
    host.set("BACKUP_RECIPIENTS", kms.key("eu-central-1"));
    let running = receive(&host, &server, &[]);
    received_from(&server).await;
    for _ in 0..3 {
        write(&server).await;
        durable(&server, &position(&server).await).await;
    }
    stop(running);
    assert!(files(&host, ".vol").len() > 4, "several objects: {:?}", host.stored());
    let asked = kms.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].body["EncryptionContext"], serde_json::json!({ "target": "db", "purpose": "wal" }));
}

#[tokio::test]
async fn what_the_server_was_told_to_be_flushed_comes_back() {
    for major in [13, 15, 18] {
        let (server, host) = world(major);
        let running = receive(&host, &server, &["--slot", "backup", "--create-slot"]);
        received_from(&server).await;
        write(&server).await;
        server.sql("INSERT INTO t VALUES (0, 'the last one')").await;
        let lsn = position(&server).await;
        durable(&server, &lsn).await;
        assert!(
            !files(&host, ".tail/").is_empty(),
            "{major}: a segment that is not full is a tail: {:?}",
            host.stored()
        );
        same(&host, &server, &lsn).await;
        stop(running).saying("durable up to");
    }
}

#[tokio::test]
async fn killed_and_begun_again_under_load_it_leaves_no_gap() {
    let (server, host) = world(15);
    let begin = || receive(&host, &server, &["--slot", "backup", "--create-slot"]);
    for round in 0..6u64 {
        let running = begin();
        let until = Instant::now() + Duration::from_millis(400 + 300 * round);
        while Instant::now() < until {
            write(&server).await;
        }
        running.signal(Signal::KILL);
        assert_eq!(running.wait().signal(), Some(9));
    }
    let running = begin();
    received_from(&server).await;
    let lsn = written(&server).await;
    running.signal(Signal::INT);
    running.wait().succeeded();
    same(&host, &server, &lsn).await;
    let checked = nothing_missing(&host);
    let timelines = checked["clusters"][0]["timelines"].as_array().unwrap();
    assert!(timelines[0]["tail_lsn"].is_string(), "{checked}");
    assert_eq!((timelines.len(), timelines[0]["ranges"].as_array().unwrap().len()), (1, 1), "{checked}");
    // A tail goes when its segment is full: one may stay.
    let mut tails: Vec<&str> = Vec::new();
    let stored = host.stored();
    // What was being written when it was killed is no object.
    let objects = stored.iter().filter(|name| !name.contains('#'));
    tails.extend(objects.filter_map(|name| name.split_once(".tail/").map(|(segment, _)| segment)));
    tails.dedup();
    assert_eq!(tails.len(), 1, "{tails:?}");
}

#[tokio::test]
async fn it_stops_where_it_was_told_to() {
    let (server, host) = world(15);
    write(&server).await;
    let lsn = position(&server).await;
    let running = receive(&host, &server, &["--until-lsn", &lsn]);
    running.wait().succeeded().saying("receiving timeline 1");
    let begun = Instant::now();
    while server.sql("SELECT count(*) FROM pg_replication_slots").await[0][0].as_deref() != Some("0") {
        assert!(begun.elapsed() < Duration::from_secs(60), "a temporary slot goes with its connection");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (arguments, words) in [
        (&["--slot", "nowhere"][..], "--create-slot"),
        (&["--until-lsn", "x"], "is not an LSN"),
        (&["--create-slot"], "--slot"),
        (&["--flush-interval", "0"], "flush-interval"),
    ] {
        let outcome = receive(&host, &server, arguments).wait();
        assert!(matches!(outcome.code(), Some(2 | 10)), "{outcome}");
        outcome.saying(words);
    }
}

#[tokio::test]
async fn a_promotion_is_followed_history_first() {
    let (primary, host) = world(15);
    write(&primary).await;
    let standby = NewServer::of_major(15).setting("wal_keep_size", "1GB").standby_of(&primary).start();
    let running = receive(&host, &standby, &[]);
    primary.sql("INSERT INTO t VALUES (1, 'before')").await;
    let lsn = position(&primary).await;
    durable(&standby, &lsn).await;
    standby.sql("SELECT pg_promote()").await;
    written(&standby).await;
    stop(running).saying("timeline 2");
    assert_eq!(files(&host, "00000002.history.vol").len(), 1);
    assert!(!files(&host, "/00000002/000000020").is_empty());
    let to = host.path("history");
    host.backup(["wal", "fetch", "00000002.history"]).args([&to]).in_directory(standby.data()).run().succeeded();
    assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(standby.data().join("pg_wal/00000002.history")).unwrap());
    nothing_missing(&host);
}

/// A server with small segments, which removes what it has written as soon as it can.
fn forgetful() -> Server {
    NewServer::of_major(15)
        .initdb("--wal-segsize=1")
        .setting("min_wal_size", "2MB")
        .setting("max_wal_size", "2MB")
        .setting("synchronous_commit", "on")
        .start()
}

#[tokio::test]
async fn log_that_was_removed_is_a_gap_that_is_named() {
    let server = forgetful();
    let mut host = Host::initialised(BACKUP);
    host.set("BACKUP_TARGET", "db");
    write(&server).await;
    // Two segments, so that the archive has a whole one.
    let running = receive(&host, &server, &[]);
    received_from(&server).await;
    write(&server).await;
    written(&server).await;
    stop(running);
    for _ in 0..4 {
        write(&server).await;
        server.sql("CHECKPOINT").await;
    }
    let outcome = receive(&host, &server, &[]).wait().failed(10);
    outcome.saying("this is a gap").hinting("--skip-gap");
    let running = receive(&host, &server, &["--skip-gap"]);
    received_from(&server).await;
    // It is there at once, finds the gap, and comes again: what it begins with then is a piece. So more than a segment follows.
    written(&server).await;
    written(&server).await;
    stop(running).saying("the archive has a gap from");
    let checked = host.backup(["wal", "check"]).run();
    assert_eq!(checked.code(), Some(3), "{checked}");
}

#[tokio::test]
async fn a_server_that_goes_away_is_waited_for() {
    let (server, host) = world(15);
    let mut running = receive(&host, &server, &["--slot", "backup", "--create-slot"]);
    received_from(&server).await;
    written(&server).await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(running.is_running());
    server.start();
    let lsn = written(&server).await;
    stop(running).saying("trying again");
    same(&host, &server, &lsn).await;
    assert!(Path::new(&host.repository()).exists());
}

#[tokio::test]
async fn a_network_that_was_pulled_for_a_minute_costs_nothing() {
    let (server, host) = world(15);
    let network = Network::to(server.port());
    let conninfo = format!("host=127.0.0.1 port={} user=postgres", network.port());
    let arguments = ["wal", "receive", &conninfo, "--slot", "backup", "--create-slot", "--flush-interval", "1"];
    let mut running = host.backup(arguments).start();
    received_from(&server).await;
    write(&server).await;
    let before = position(&server).await;
    durable(&server, &before).await;

    network.pull();
    let pulled = Instant::now();
    while pulled.elapsed() < Duration::from_secs(60) {
        write(&server).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let missed = position(&server).await;
    assert!(running.is_running());
    network.plug_in();
    // Each side takes a minute to give the other up; then it connects again, at most half a minute later.
    let question = format!("SELECT coalesce(bool_or(flush_lsn >= '{missed}'), false) FROM pg_stat_replication");
    while server.value(&question).await != "t" {
        assert!(pulled.elapsed() < Duration::from_secs(200), "it does not catch up: {}", server.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let lsn = written(&server).await;
    stop(running).saying("was not heard of for");
    same(&host, &server, &lsn).await;
    nothing_missing(&host);
}

/// The piece is stored, and nobody knows: neither the answer nor the look afterwards comes through. Sealed anew it is another object.
#[tokio::test]
async fn a_piece_whose_answer_was_lost_while_the_store_went_away_costs_nothing() {
    let store = S3::start();
    let server = NewServer::of_major(15).initdb("--wal-segsize=1").setting("wal_keep_size", "1GB");
    let server = server.setting("synchronous_commit", "on").start();
    let mut host = Host::new(BACKUP);
    store.serve(&mut host);
    host.set("BACKUP_TARGET", "db");
    host.backup(["init"]).run().succeeded();
    let running = receive(&host, &server, &["--slot", "backup", "--create-slot"]);
    received_from(&server).await;
    written(&server).await;

    store.inject(Rule::new(Fault::LoseAnswer, "PUT", ".tail/").times(1));
    for method in ["PUT", "GET", "HEAD"] {
        store.inject(Rule::new(Fault::Status(403), method, ".tail/"));
    }
    store.take_requests();
    server.sql("INSERT INTO t VALUES (0, 'whose piece is stored and not acknowledged')").await;
    let lost = position(&server).await;
    // It looks whether it was stored, and is refused.
    let looks = |request: &Recorded| request.method != "PUT" && request.target.contains(".tail/");
    asked(&store, looks).await;
    let acknowledged =
        format!("SELECT count(*), coalesce(bool_or(flush_lsn >= '{lost}'), false) FROM pg_stat_replication");
    let [count, acknowledged] = &server.sql(&acknowledged).await[0][..] else { panic!("two columns") };
    assert_eq!((count.as_deref(), acknowledged.as_deref()), (Some("1"), Some("f")), "it is not durable for certain");
    store.mend();
    durable(&server, &lost).await;
    let lsn = written(&server).await;
    stop(running).saying("trying again");
    same(&host, &server, &lsn).await;
    nothing_missing(&host);
}

/// Before 15 no replication command tells where a slot stands.
#[tokio::test]
async fn what_a_slot_holds_is_received_though_the_archive_is_empty() {
    for major in [13, 14, 15] {
        let (server, host) = world(major);
        server.sql("SELECT pg_create_physical_replication_slot('backup', true)").await;
        let held = server.value("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots").await;
        for _ in 0..3 {
            write(&server).await;
        }
        let running = receive(&host, &server, &["--slot", "backup", "--create-slot"]);
        let lsn = position(&server).await;
        received_from(&server).await;
        durable(&server, &lsn).await;
        stop(running);
        let checked = host.backup(["wal", "check", "--json"]).run().json();
        assert_eq!(checked["clusters"][0]["timelines"][0]["ranges"][0]["first"], held.as_str(), "{major}: {checked}");
        same(&host, &server, &lsn).await;
    }
    // Where it may not ask, it does not guess.
    let hba = "local replication all trust\nlocal all all reject\nhost all all 127.0.0.1/32 trust\n";
    let server = NewServer::of_major(14).initdb("--wal-segsize=1").file("pg_hba.conf", hba);
    let server = server.start();
    let mut host = Host::initialised(BACKUP);
    host.set("BACKUP_TARGET", "db");
    receive(&host, &server, &["--slot", "backup", "--create-slot"])
        .wait()
        .failed(2)
        .saying("slot backup")
        .hinting("pg_hba.conf");
}

/// A segment of which there is a tail only was begun; who comes again, even without a slot, begins with it.
#[tokio::test]
async fn an_archive_that_ends_with_the_tail_of_its_first_segment_is_gone_on_with() {
    let (server, host) = world(15);
    let running = receive(&host, &server, &[]);
    received_from(&server).await;
    server.sql("CREATE TABLE first (n int)").await;
    let lsn = position(&server).await;
    durable(&server, &lsn).await;
    stop(running);
    let first = server.value(&format!("SELECT pg_walfile_name('{lsn}')")).await;
    assert!(files(&host, ".vol").iter().all(|name| name.contains(".tail/")), "{:?}", host.stored());
    write(&server).await;
    let running = receive(&host, &server, &[]);
    received_from(&server).await;
    let lsn = position(&server).await;
    durable(&server, &lsn).await;
    stop(running);
    let checked = host.backup(["wal", "check", "--json"]).run().json();
    assert_eq!(checked["clusters"][0]["timelines"][0]["ranges"][0]["first"], first.as_str(), "{checked}");
    same(&host, &server, &lsn).await;
}

/// Somebody archives a later segment while nobody receives: the server still has what lies before it, and must not forget it.
#[tokio::test]
async fn a_hole_that_the_slot_still_holds_is_received_and_a_foreign_segment_hides_nothing() {
    for major in [14, 15] {
        let (server, mut host) = world(major);
        let slot = ["--slot", "backup", "--create-slot"];
        let received = async |host: &Host| {
            let running = receive(host, &server, &slot);
            received_from(&server).await;
            let lsn = written(&server).await;
            stop(running);
            lsn
        };
        received(&host).await;
        for _ in 0..4 {
            write(&server).await;
        }
        let newest = server.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())").await;
        server.sql("SELECT pg_switch_wal()").await;
        host.backup(["wal", "push"]).args([&server.data().join("pg_wal").join(&newest)]).run().succeeded();
        let checked = host.backup(["wal", "check"]).run().saying("are missing");
        assert_eq!(checked.code(), Some(3), "{checked}");

        // Who believes only some does not go on behind what somebody else has put there.
        let signer = host.backup(["key", "generate", "--signing"]).args([host.path("sign.pem")]).run().succeeded();
        let signer = String::from_utf8_lossy(signer.stdout()).trim().to_owned();
        host.set("BACKUP_TRUSTED_SIGNERS", &signer);
        receive(&host, &server, &slot).wait().failed(13).saying("is not trusted");
        host.unset("BACKUP_TRUSTED_SIGNERS");

        let lsn = received(&host).await;
        nothing_missing(&host);
        same(&host, &server, &lsn).await;
    }
}

/// A directory and a bucket as repositories that are required.
fn here_and_there(host: &mut Host, store: &S3) -> [String; 2] {
    store.serve(host);
    let places = [host.repository().display().to_string(), format!("s3://{BUCKET}/some/prefix")];
    host.set("BACKUP_REPO", places.join(","));
    host.backup(["init"]).run().succeeded();
    places
}

#[tokio::test]
async fn of_several_repositories_the_server_is_told_what_is_durable_in_all_that_are_required() {
    let (server, mut host) = world(15);
    let store = S3::start();
    let places = here_and_there(&mut host, &store);
    let running = receive(&host, &server, &["--slot", "backup", "--create-slot"]);
    received_from(&server).await;
    write(&server).await;
    durable(&server, &position(&server).await).await;
    store.inject(Rule::new(Fault::Reset, "PUT", "/wal/"));
    write(&server).await;
    let lsn = position(&server).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let told = format!("SELECT coalesce(bool_or(flush_lsn >= '{lsn}'), false) FROM pg_stat_replication");
        assert_eq!(server.sql(&told).await[0][0].as_deref(), Some("f"), "the second does not have it");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    store.mend();
    durable(&server, &lsn).await;
    running.signal(Signal::TERM);
    running.wait().succeeded();
    for place in places {
        host.set("BACKUP_REPO", place);
        same(&host, &server, &lsn).await;
    }
}

/// Two directories as repositories that are required, and a host that is configured for both.
fn two_required(host: &mut Host) {
    host.unset("BACKUP_REPO");
    let [first, second] = ["first", "second"].map(|name| host.path(name).display().to_string());
    let config = format!("[repositories.first]\nurl = \"{first}\"\n[repositories.second]\nurl = \"{second}\"\n");
    let path = host.write("backup.toml", config);
    host.set("BACKUP_CONFIG", path);
    host.backup(["init"]).run().succeeded();
}

#[tokio::test]
async fn log_that_one_of_two_repositories_lacks_is_copied_and_what_the_slot_keeps_is_not_skipped() {
    let (server, mut host) = (forgetful(), Host::new(BACKUP));
    host.set("BACKUP_TARGET", "db");
    two_required(&mut host);
    let slot = ["--slot", "backup", "--create-slot"];
    let received = async |host: &Host, more: &[&str]| {
        let running = receive(host, &server, &[&slot, more].concat());
        received_from(&server).await;
        write(&server).await;
        written(&server).await;
        stop(running)
    };
    let copy = ["copy", "--from", "first", "--to", "second"];
    // The second is filled, falls behind, and is required from then on.
    host.set("BACKUP_REPO", "first");
    received(&host, &[]).await;
    host.backup(copy).run().succeeded();
    for _ in 0..3 {
        received(&host, &[]).await;
        server.sql("CHECKPOINT").await;
    }
    // The slot keeps this.
    for _ in 0..3 {
        write(&server).await;
    }
    host.unset("BACKUP_REPO");
    let lacking = receive(&host, &server, &slot).wait().failed(10);
    lacking.saying("which second lacks").hinting("backup copy --from first --to second");
    received(&host, &["--skip-gap"]).await.saying("the archive has a gap from");
    host.set("BACKUP_REPO", "first");
    nothing_missing(&host);
    host.backup(copy).run().succeeded();
    host.set("BACKUP_REPO", "second");
    nothing_missing(&host);
}

/// When the receiver ends, the second has no archive, and the first has whole segments.
#[tokio::test]
async fn a_repository_that_failed_from_the_first_segment_on_gets_what_the_slot_keeps() {
    let (server, mut host) = world(15);
    let store = S3::start();
    let places = here_and_there(&mut host, &store);
    server.sql("SELECT pg_create_physical_replication_slot('backup', true)").await;
    let held = server.value("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots").await;
    for _ in 0..3 {
        write(&server).await;
    }
    let begin = || receive(&host, &server, &["--slot", "backup"]);
    store.inject(Rule::new(Fault::Status(403), "PUT", "/wal/"));
    let running = begin();
    let begun = Instant::now();
    while !files(&host, &held).iter().any(|name| name.ends_with(&format!("{held}.vol"))) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was stored");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    running.signal(Signal::KILL);
    running.wait();
    store.mend();
    let running = begin();
    received_from(&server).await;
    written(&server).await;
    stop(running);
    for place in places {
        host.set("BACKUP_REPO", place);
        let checked = nothing_missing(&host);
        assert_eq!(checked["clusters"][0]["timelines"][0]["ranges"][0]["first"], held.as_str(), "{checked}");
    }
}
