//! Restores of base backups that are killed, interrupted, or run out of space.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use backup_core::format::ClusterEntry;
use backup_core::postgres::backup_manifest::Algorithm;
use backup_tests::data::Data;
use backup_tests::host::{Host, files_below};
use backup_tests::physical::{BaseBackup, sealed_manifest};
use rustix::process::Signal;

use crate::BACKUP;
use crate::disk::{mounted, on_a_small_disk};

const MARKER: &str = ".backup-restore-incomplete";

/// A base backup made by hand: `global/pg_control`, and so many files of so many bytes.
fn made(files: usize, bytes: u64) -> BaseBackup {
    let mut builder = tar::Builder::new(Vec::new());
    let mut lines = Vec::new();
    let names = (0..files).map(|n| format!("base/5/{n}")).chain(["global/pg_control".to_owned()]);
    for name in names {
        let contents = Data::random(bytes, &name).to_vec();
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(0o600);
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        builder.append_data(&mut header, &name, &contents[..]).unwrap();
        let mut hasher = Algorithm::Crc32c.hasher();
        hasher.update(&contents);
        let checksum = data_encoding::HEXLOWER.encode(&hasher.finish());
        lines.push(format!(
            "{{ \"Path\": \"{name}\", \"Size\": {}, \"Last-Modified\": \"2026-11-22 02:00:00 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}",
            contents.len()
        ));
    }
    let cluster: ClusterEntry = serde_json::from_value(serde_json::json!({
        "system_identifier": "7412345678901234567", "server_version_num": 150_018, "wal_segment_bytes": 16 << 20, "timeline": 1,
        "start_lsn": "0/2000028", "stop_lsn": "0/2000100", "stopped": "2026-11-22T02:00:00Z", "wal_included": true,
    }))
    .unwrap();
    let mut log = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(16 << 20);
    header.set_mode(0o600);
    log.append_data(&mut header, "000000010000000000000002", &vec![0; 16 << 20][..]).unwrap();
    let streams =
        vec![("base".to_owned(), builder.into_inner().unwrap()), ("pg_wal".to_owned(), log.into_inner().unwrap())];
    BaseBackup {
        streams,
        backup_manifest: sealed_manifest(&lines),
        cluster,
        tablespaces: Vec::new(),
        compression: None,
    }
}

/// Waits until `path` is there.
fn appears(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{} does not come", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_restore_that_was_killed_is_begun_anew_in_the_same_directory() {
    let host = Host::initialised(BACKUP);
    made(3000, 20_000).store(&host, "app");
    let to = host.path("data");
    let restore = || host.backup(["restore", "app", "--to"]).args([&to]);
    for awaited in [MARKER, "backup_manifest", "base/5/1", "base/5/2000"] {
        let running = restore().start();
        appears(&to.join(awaited));
        running.signal(Signal::KILL);
        let outcome = running.wait();
        if outcome.code() == Some(0) {
            // On a busy machine the signal may come after the end.
            std::fs::remove_dir_all(&to).unwrap();
            continue;
        }
        assert_eq!(outcome.signal(), Some(9), "{outcome}");
        assert!(to.join(MARKER).exists() && !to.join("global/pg_control").exists(), "no server must start here");
    }
    std::fs::write(to.join("base-of-somebody"), "left by the last").ok();
    restore().run().succeeded();
    let files = files_below(&to);
    assert_eq!(files.iter().filter(|f| f.starts_with("base/5/")).count(), 3000);
    assert!(
        files.contains(&"global/pg_control".to_owned()) && !files.iter().any(|f| f.contains("incomplete")),
        "{files:?}"
    );
    assert!(!to.join("base-of-somebody").exists());
    restore().run().failed(2).saying("is not empty");
}

#[test]
fn two_restores_into_one_directory_do_not_disturb_each_other() {
    let host = Host::initialised(BACKUP);
    made(3000, 20_000).store(&host, "app");
    let to = host.path("data");
    let running = host.backup(["restore", "app", "--to"]).args([&to]).start();
    appears(&to.join("base/5/1"));
    running.signal(Signal::STOP);
    host.backup(["restore", "app", "--to"])
        .args([&to])
        .run()
        .failed(2)
        .saying("another restore into")
        .saying("is running");
    running.signal(Signal::CONT);
    running.wait().succeeded();
}

#[test]
fn an_interrupted_restore_leaves_nothing() {
    let host = Host::initialised(BACKUP);
    made(3000, 20_000).store(&host, "app");
    let to = host.path("deep/data");
    for awaited in ["", "base/5/1", "base/5/1500"] {
        let running = host.backup(["restore", "app", "--to"]).args([&to]).start();
        appears(&to.join(awaited));
        running.signal(Signal::TERM);
        let outcome = running.wait();
        if outcome.code() == Some(0) {
            std::fs::remove_dir_all(host.path("deep")).unwrap();
            continue;
        }
        assert_eq!(outcome.code(), Some(130), "{outcome}");
        assert!(!host.path("deep").exists(), "{outcome}");
    }
}

#[test]
fn a_full_disk_under_a_cluster_is_told_and_leaves_nothing() {
    let host = Host::initialised(BACKUP);
    made(20, 1_000_000).store(&host, "app");
    let script = format!(
        "export BACKUP_REPO={}; \"$BACKUP\" restore app --to small/data; code=$?; find small/data; exit $code",
        host.repository().display()
    );
    let outcome = mounted(on_a_small_disk(&host, &script).run()).failed(1).saying("No space left on device");
    assert_eq!(outcome.text(), "");
}

#[test]
fn a_directory_that_may_not_be_written_to_is_told() {
    let host = Host::initialised(BACKUP);
    made(1, 10).store(&host, "app");
    std::fs::create_dir(host.path("closed")).unwrap();
    std::fs::set_permissions(host.path("closed"), PermissionsExt::from_mode(0o500)).unwrap();
    let ordinary = "if [ $(id -u) = 0 ]; then set -- setpriv --bounding-set=-dac_override,-dac_read_search \"$@\"; fi; exec \"$@\"";
    let run = host.shell(&format!("set -- \"$BACKUP\" restore app --to closed/data; {ordinary}")).run();
    run.failed(1).saying("closed/data").saying("ermission denied");
}

#[test]
fn damage_in_any_stream_of_a_base_backup_leaves_nothing() {
    let host = Host::initialised(BACKUP);
    let id = made(100, 50_000).store(&host, "app");
    for stream in ["base", "pg_wal", "backup_manifest", "details"] {
        let volume = host.path(format!("repository/app/backups/{id}/{stream}.00000.vol"));
        let sound = std::fs::read(&volume).unwrap();
        let mut bytes = sound.clone();
        let late = bytes.len() * 2 / 3;
        bytes[late] ^= 1;
        std::fs::write(&volume, bytes).unwrap();
        let outcome = host.backup(["restore", &id, "--to", "data"]).run().failed(13);
        let outcome = outcome.saying(&format!("{stream}.00000.vol is damaged at offset"));
        assert!(!host.path("data").exists(), "{outcome}");
        std::fs::write(&volume, sound).unwrap();
    }
}

#[test]
fn fifty_thousand_files_are_restored_within_the_memory_of_few() {
    let host = Host::initialised(BACKUP);
    made(50_000, 700).store(&host, "app");
    let outcome = host.backup(["restore", "app", "--to", "data"]).run().succeeded().saying("50001 files");
    assert_eq!(files_below(&host.path("data/base")).len(), 50_000);
    // With debug code and its symbols; releases take less.
    assert!(outcome.peak_bytes < 64 << 20, "{} MiB", outcome.peak_bytes >> 20);
}
