//! `wal receive` after a failover: what the new primary has of the old timeline, and what only the old one had.

use super::*;

fn standby_of(primary: &Server) -> Server {
    standby_of_major(15, primary)
}

fn standby_of_major(major: u32, primary: &Server) -> Server {
    NewServer::of_major(major)
        .setting("wal_keep_size", "1GB")
        .setting("synchronous_commit", "on")
        .standby_of(primary)
        .start()
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

/// Where the server's timeline 2 begins.
fn fork(server: &Server) -> String {
    let history = std::fs::read_to_string(server.data().join("pg_wal/00000002.history")).unwrap();
    history.split_whitespace().nth(1).unwrap().to_owned()
}

/// The name of the segment of a timeline with the byte at `lsn`.
async fn segment(server: &Server, timeline: u32, lsn: &str) -> String {
    let name = server.value(&format!("SELECT pg_walfile_name('{lsn}')")).await;
    format!("{timeline:08X}{}", &name[8..])
}

/// The new primary's archive_command is at work before the receiver is: the archive then has a newer timeline, and the slot still keeps the old one.
#[tokio::test]
async fn the_rest_of_an_old_timeline_that_the_slot_keeps_is_received_before_the_new_one() {
    for major in [14, 15] {
        let (primary, host) = world(major);
        let standby = standby_of_major(major, &primary);
        let slot = ["--slot", "backup", "--create-slot"];
        let running = receive(&host, &standby, &slot);
        received_from(&standby).await;
        write(&primary).await;
        durable(&standby, &position(&primary).await).await;
        stop(running);
        for _ in 0..3 {
            write(&primary).await;
        }
        caught_up(&standby, &primary).await;
        primary.stop();
        standby.sql("SELECT pg_promote()").await;
        write(&standby).await;
        let fork = fork(&standby);
        let first = segment(&standby, 2, &fork).await;
        let pg_wal = standby.data().join("pg_wal");
        for file in ["00000002.history", &first] {
            host.backup(["wal", "push"]).args([&pg_wal.join(file)]).run().succeeded();
        }

        let running = receive(&host, &standby, &slot);
        received_from(&standby).await;
        written(&standby).await;
        stop(running).saying("receiving timeline 1").saying("went over to timeline 2");
        let checked = nothing_missing(&host);
        let timelines = checked["clusters"][0]["timelines"].as_array().unwrap();
        let ranges = |timeline: usize| timelines[timeline]["ranges"].as_array().unwrap();
        assert_eq!((ranges(0).len(), ranges(1).len()), (1, 1), "{major}: {checked}");
        let before = standby.value(&format!("SELECT pg_walfile_name('{fork}'::pg_lsn - 1048576)")).await;
        assert_eq!(ranges(0)[0]["last"], format!("00000001{}", &before[8..]), "{major}: {checked}");
        assert_eq!(ranges(1)[0]["first"], first.as_str(), "{major}: {checked}");
    }
}

/// What the old primary had streamed, the new one never got: it leaves the old timeline before the position that is durable.
#[tokio::test]
async fn a_new_primary_that_was_behind_is_followed_from_where_it_left_the_old_timeline() {
    let (primary, host) = world(15);
    let standby = standby_of(&primary);
    // The backup switched to a new segment: the fork is to lie within one.
    write(&primary).await;
    caught_up(&standby, &primary).await;
    standby.stop();
    let all = |of: fn(&Server) -> String| [of(&primary), of(&standby)].join(",");
    let (hosts, ports) =
        (all(|server| server.directory().display().to_string()), all(|server| server.port().to_string()));
    let conninfo = format!("host={hosts} port={ports} user=postgres target_session_attrs=primary");
    let mut running = host.backup(["wal", "receive", &conninfo, "--flush-interval", "1"]).start();
    received_from(&primary).await;
    for _ in 0..2 {
        written(&primary).await;
    }
    primary.kill();
    standby.start();
    standby.sql("SELECT pg_promote()").await;
    received_from(&standby).await;
    written(&standby).await;
    assert!(running.is_running());
    stop(running).saying("went over to timeline 2");
    let checked = nothing_missing(&host);
    let first = segment(&standby, 2, &fork(&standby)).await;
    assert_eq!(checked["clusters"][0]["timelines"][1]["ranges"][0]["first"], first.as_str(), "{checked}");
}

/// A copy of the cluster archives into its target. No attempt can succeed until somebody has decided which of the two it is for.
#[tokio::test]
async fn a_segment_that_another_server_has_archived_ends_it() {
    let (server, host) = world(15);
    server.sql("SELECT pg_create_physical_replication_slot('backup', true)").await;
    write(&server).await;
    let name = server.value("SELECT pg_walfile_name(pg_current_wal_flush_lsn())").await;
    server.sql("SELECT pg_switch_wal()").await;
    // The same segment in the copy, where other rows were written.
    let mut bytes = std::fs::read(server.data().join("pg_wal").join(&name)).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let copy = host.path(&name);
    std::fs::write(&copy, bytes).unwrap();
    host.backup(["wal", "push"]).args([&copy]).run().succeeded();
    let outcome = receive(&host, &server, &["--slot", "backup"]).wait().failed(11);
    outcome.saying(&format!("another {name} is archived already")).hinting("do two servers archive to this target?");
}

/// It may be all that is left of the server: nobody waits for the next flush.
#[tokio::test]
async fn what_arrived_before_the_server_was_lost_is_stored_though_it_was_not_due() {
    let (server, host) = world(15);
    let mut running = host.backup(["wal", "receive", &conninfo(&server), "--flush-interval", "600"]).start();
    received_from(&server).await;
    for _ in 0..2 {
        write(&server).await;
    }
    let lsn = position(&server).await;
    let arrived = format!("SELECT coalesce(bool_or(write_lsn >= '{lsn}'), false) FROM pg_stat_replication");
    let begun = Instant::now();
    while server.value(&arrived).await != "t" {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not arrive");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(files(&host, ".tail/"), [""; 0]);
    server.kill();
    let begun = Instant::now();
    while files(&host, ".tail/").iter().all(|name| name.contains('#')) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not stored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(running.is_running());
    stop(running).saying("durable up to");
    server.start();
    same(&host, &server, &lsn).await;
}

/// The timeline ends while the store is away: that must not keep it from stopping, and what is lost with it is told.
#[tokio::test]
async fn told_to_stop_at_the_end_of_a_timeline_while_the_store_is_away_it_stops_and_says_what_is_lost() {
    let store = S3::start();
    let (primary, mut host) = world(15);
    store.serve(&mut host);
    host.set("BACKUP_REPO", format!("s3://{BUCKET}/some/prefix"));
    host.backup(["init"]).run().succeeded();
    let standby = standby_of(&primary);
    let running = receive(&host, &standby, &["--slot", "backup", "--create-slot"]);
    received_from(&standby).await;
    write(&primary).await;
    durable(&standby, &position(&primary).await).await;
    store.inject(Rule::new(Fault::Reset, "PUT", "/wal/"));
    store.take_requests();
    write(&primary).await;
    caught_up(&standby, &primary).await;
    asked(&store, |request| request.method == "PUT").await;
    standby.sql("SELECT pg_promote()").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = Instant::now();
    running.signal(Signal::TERM);
    running.wait().failed(11).saying("could not be stored").saying("of timeline 1");
    assert!(told.elapsed() < Duration::from_secs(50), "{:?}", told.elapsed());
}
