//! What `verify` tells: all that is wrong, not only the first.

use std::path::Path;

use backup_core::format::ClusterEntry;
use backup_core::pipeline::Counters;
use backup_core::postgres::wal::{Lsn, SegmentSize, SystemIdentifier, Timeline};
use backup_core::repository::Repository;
use backup_core::repository::verify::{self, KeylessOptions, Sample};
use backup_tests::data::Data;
use backup_tests::embedder::Embedder;
use backup_tests::host::Host;
use backup_tests::physical::{BaseBackup, edit_tar};
use backup_tests::postgres::Cluster;
use backup_tests::wal::DataDirectory;
use object_store::ObjectStoreExt;
use serde_json::{Value, json};

use crate::BACKUP;

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The findings of the only backup that was verified.
fn findings(outcome: &backup_tests::host::Outcome) -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(outcome.text()).unwrap();
    let findings = document["backups"][0]["findings"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings.iter().map(|finding| (text(&finding["object"]), text(&finding["problem"]))).collect()
}

#[tokio::test]
async fn every_damaged_chunk_of_every_volume_is_named() {
    let embedder = Embedder::new(Repository::in_memory().await.unwrap());
    // Five volumes of three chunks of 4 KiB.
    let (path, _) = embedder.save_bytes(Data::random(60_000, "chunks").to_vec()).await.unwrap();
    let store = embedder.repository.store();
    let volume = |n: u32| path.volume(&"data".parse().unwrap(), n);
    let damage = async |n: u32, at: &[usize]| {
        let mut bytes = store.get(&volume(n)).await.unwrap().bytes().await.unwrap().to_vec();
        for at in at {
            let at = bytes.len() - 152 - 61 - at;
            bytes[at] ^= 1;
        }
        store.put(&volume(n), bytes.into()).await.unwrap();
    };
    // The first and the last chunk; one in the middle; a whole volume.
    damage(0, &[100, 9000]).await;
    damage(2, &[5000]).await;
    store.delete(&volume(3)).await.unwrap();
    let deep = embedder.verify_deep(&path).await.unwrap();
    let told: Vec<String> = deep.findings.iter().map(|f| format!("{} {}", f.object, f.problem)).collect();
    for (n, words) in [(0, "chunk 0"), (0, "chunk 2"), (2, "chunk 1"), (3, "missing")] {
        let volume = volume(n);
        assert!(
            told.iter().any(|told| told.starts_with(volume.as_ref()) && told.contains(words)),
            "{words}: {told:#?}"
        );
    }
    assert_eq!(told.len(), 4, "{told:#?}");
    let keyless = embedder.verify_keyless(&path).await.unwrap();
    let objects: Vec<&str> = keyless.findings.iter().map(|f| f.object.as_str()).collect();
    assert_eq!(objects, [0, 2, 3].map(volume).each_ref().map(|volume| volume.as_ref()));
}

#[tokio::test]
async fn a_sample_reads_a_share_and_misses_nothing_that_is_gone() {
    let embedder = Embedder::new(Repository::in_memory().await.unwrap());
    // A hundred volumes of 12 KiB, and the details.
    let (path, manifest) = embedder.save_bytes(Data::random(100 * 12_288, "sample").to_vec()).await.unwrap();
    let mut options = KeylessOptions::new(&embedder.repository);
    let mut sampled = Vec::new();
    for _ in 0..2 {
        options.sample = Some(Sample::percent(20.0).unwrap());
        let found = verify::keyless(&embedder.repository, &path, &options, &Counters::default()).await.unwrap();
        let sample = found.sample.unwrap();
        // Twelve deviations from the mean would be a miracle.
        assert!((1..70).contains(&sample.len()), "{sample:?}");
        assert_eq!((found.objects, found.findings.len()), (102, 0));
        assert!(found.bytes < manifest.stored_bytes());
        sampled.push(sample);
    }
    assert_ne!(sampled[0], sampled[1], "others each time");
    options.sample = Some(Sample::percent(0.001).unwrap());
    let gone = path.volume(&"data".parse().unwrap(), 77);
    embedder.repository.store().delete(&gone).await.unwrap();
    let found = verify::keyless(&embedder.repository, &path, &options, &Counters::default()).await.unwrap();
    assert!(found.findings.iter().any(|f| f.object == gone.as_ref() && f.problem.contains("missing")), "{found:?}");
    assert!(!found.sample.unwrap().is_empty());
}

#[test]
fn a_sample_is_named_in_the_report() {
    let host = Host::initialised(BACKUP);
    host.save("app", Data::random(3_000_000, "report"));
    let verified = host.backup(["verify", "app", "--sample", "50%", "--json"]).run().json();
    let sample = verified["backups"][0]["sample"].as_array().unwrap();
    assert!(!sample.is_empty() && sample.iter().all(|name| name.as_str().unwrap().ends_with(".vol")), "{verified}");
    assert!(host.backup(["verify", "app", "--sample", "100%"]).run().succeeded().text().contains("read at random"));
    assert_eq!(host.backup(["verify", "app", "--json"]).run().json()["backups"][0].get("sample"), None);
    for wrong in [&["--sample", "0"][..], &["--sample", "101%"], &["--sample", "x"], &["--sample", "5", "--deep"]] {
        host.backup(["verify", "app"]).args(wrong).run().failed(2);
    }
}

#[test]
fn wal_is_verified_with_everything_else_and_each_damaged_file_is_named() {
    let host = Host::initialised(BACKUP);
    let directory = DataDirectory::create(host.path("data"));
    for number in 1..=4 {
        let name = directory.add(number, "verified");
        host.backup(["wal", "push", "--target", "app"]).args([directory.pg_wal(&name)]).run().succeeded();
    }
    for flags in [&[][..], &["--deep"], &["--sample", "30%"]] {
        let verified = host.backup(["verify", "--all", "--json"]).args(flags).run().json();
        assert_eq!((&verified["wal"][0]["files"], &verified["wal"][0]["ok"]), (&json!(4), &json!(true)), "{verified}");
        assert_eq!(verified["wal"][0].get("sampled").is_some(), flags.contains(&"--sample"), "{verified}");
    }
    // How many are read of a share is chance, but of all and of almost none.
    for (share, read) in [("100%", 4), ("0.000001%", 0)] {
        let verified = host.backup(["verify", "--all", "--json", "--sample", share]).run().json();
        assert_eq!(verified["wal"][0]["sampled"], json!(read), "{verified}");
    }
    let folder = host.repository().join(format!("app/wal/{}/00000001", backup_tests::wal::SYSTEM_IDENTIFIER));
    let object = |number: u32| folder.join(format!("{}.vol", backup_tests::wal::name(number)));
    flip(&object(2), 400_000);
    // Another's, under its name.
    std::fs::copy(object(1), object(3)).unwrap();
    for flags in [&[][..], &["--deep"]] {
        let verified = host.backup(["verify", "--all"]).args(flags).run().failed(13);
        for number in [2, 3] {
            assert!(verified.text().contains(&backup_tests::wal::name(number)), "{number}: {verified}");
        }
        verified.saying("2 files of WAL damaged");
    }
    let other = host.path("other.txt");
    host.backup(["key", "generate"]).args([&other]).run().succeeded();
    // The third is found out by its header; of the others this key tells nothing.
    let mixed = host.backup(["verify", "--all", "--deep", "--json", "-i"]).args([&other]).run().failed(13);
    let mixed: Value = serde_json::from_str(mixed.text()).unwrap();
    let wal = &mixed["wal"][0];
    assert_eq!((&wal["outcome"], &wal["unverified"]), (&json!("damaged"), &json!(3)), "{mixed}");
    assert_eq!(wal["findings"].as_array().unwrap().len(), 1, "{mixed}");
    std::fs::remove_file(object(2)).unwrap();
    std::fs::remove_file(object(3)).unwrap();
    let unverified = host.backup(["verify", "--all", "--deep", "-i"]).args([&other]).run().failed(12);
    unverified.saying("2 files of WAL could not be verified");
}

#[test]
fn every_file_of_a_base_backup_that_is_not_as_its_manifest_says_is_named_and_nothing_is_written() {
    let cluster = Cluster::shared();
    let host = Host::initialised(BACKUP);
    let taken = BaseBackup::take(cluster);
    let id = taken.store(&host, "app");
    let sound = host.backup(["verify", &id, "--deep", "--json"]).run().json();
    assert_eq!(sound["backups"][0]["continuity"]["consistent"], json!(true), "{sound}");
    let objects = sound["backups"][0]["objects"].as_u64().unwrap();
    assert_eq!(host.backup(["verify", &id, "--json"]).run().json()["backups"][0]["objects"], json!(objects));

    let mut changed = taken.clone();
    *changed.stream("base") = edit_tar(changed.stream("base"), |_, path, mut contents| {
        match path {
            "postgresql.conf" => contents[0] ^= 1,
            "pg_hba.conf" => contents.push(b'\n'),
            "pg_ident.conf" => return None,
            _ => {}
        }
        Some(contents)
    });
    let id = changed.store(&host, "app");
    host.backup(["verify", &id]).run().succeeded();
    let before = backup_tests::host::files_below(&host.path(""));
    let told = findings(&host.backup(["verify", &id, "--deep", "--json"]).run().failed(13));
    let problems: Vec<&str> = told.iter().map(|(_, problem)| problem.as_str()).collect();
    for (file, words) in
        [("postgresql.conf", "checksum is"), ("pg_hba.conf", "bytes and should have"), ("pg_ident.conf", "missing")]
    {
        let named = problems.iter().any(|problem| problem.starts_with(file) && problem.contains(words));
        assert!(named, "{file}: {problems:#?}");
    }
    assert_eq!(problems.len(), 3, "{problems:#?}");
    let mut after = backup_tests::host::files_below(&host.path(""));
    after.retain(|name| !name.contains("/runs/"));
    assert_eq!(after, before.into_iter().filter(|name| !name.contains("/runs/")).collect::<Vec<_>>());

    // The tar streams: cut off, and with less log than the backup needs.
    let mut cut = taken.clone();
    let half = cut.stream("base").len() / 2;
    cut.stream("base").truncate(half);
    let mut dry = taken;
    *dry.stream("pg_wal") = edit_tar(dry.stream("pg_wal"), |_, _, _| None);
    for (backup, words) in [(cut, "tar"), (dry, "log is incomplete")] {
        let id = backup.store(&host, "app");
        let told = findings(&host.backup(["verify", &id, "--deep", "--json"]).run().failed(13));
        assert!(told.iter().any(|(_, problem)| problem.contains(words)), "{words}: {told:#?}");
    }
}

#[test]
fn a_directory_whose_archive_is_cut_off_is_found() {
    let host = Host::initialised(BACKUP);
    host.write("files/one", "1");
    let id = host.backup(["save", "files", "--directory"]).args([host.path("files")]).run().id();
    host.backup(["verify", &id, "--deep"]).run().succeeded();
    let stored = host.backup(["restore", &id, "--to-stdout", "--stream", "data"]).run().succeeded();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cut = runtime.block_on(async {
        let location = backup_core::repository::Location::directory(host.repository()).unwrap();
        let mut embedder = Embedder::new(Repository::open(&location).await.unwrap());
        embedder.identity =
            std::sync::Arc::new(backup_core::keys::age::AgeIdentity::load(&host.identity_file()).unwrap());
        let source = backup_core::source::BytesSource::new(stored.stdout()[..700].to_vec());
        let backup = embedder.backup().kind(backup_core::format::Kind::Directory);
        backup.stream("data".parse().unwrap(), source).start().unwrap().wait().await.unwrap().id
    });
    host.backup(["verify", &cut]).run().succeeded();
    let told = findings(&host.backup(["verify", &cut, "--deep", "--json"]).run().failed(13));
    assert!(told.len() == 1 && told[0].1.contains("tar"), "{told:?}");
}

#[test]
fn a_base_backup_whose_log_is_missing_is_damaged() {
    let cluster = Cluster::shared();
    let host = Host::initialised(BACKUP);
    let mut taken = BaseBackup::take(cluster);
    taken.streams.retain(|(name, _)| name != "pg_wal");
    taken.cluster.wal_included = false;
    let id = taken.store(&host, "app");
    for flags in [&[][..], &["--deep"]] {
        let told = findings(&host.backup(["verify", &id, "--json"]).args(flags).run().failed(13));
        assert!(told.len() == 1 && told[0].1.contains("cannot be made consistent"), "{told:?}");
    }
}

#[test]
fn gaps_behind_a_base_backup_and_missing_histories_are_told_and_are_a_warning() {
    let host = Host::initialised(BACKUP);
    let mut taken = BaseBackup::take(Cluster::shared());
    // As if it had been taken of the cluster that never was, in its second segment.
    let segment_bytes = backup_tests::wal::SEGMENT_BYTES as u64;
    let at = |offset: u64| Lsn(2 * segment_bytes + offset);
    taken.cluster = ClusterEntry {
        system_identifier: SystemIdentifier(backup_tests::wal::SYSTEM_IDENTIFIER),
        wal_segment_bytes: SegmentSize::new(1 << 20).unwrap(),
        timeline: Timeline::FIRST,
        start_lsn: at(40),
        stop_lsn: at(300),
        wal_included: false,
        ..taken.cluster
    };
    taken.streams.retain(|(name, _)| name != "pg_wal");
    let id = taken.store(&host, "app");
    let directory = DataDirectory::create(host.path("data"));
    for number in 2..=6 {
        let name = directory.add(number, "behind");
        host.backup(["wal", "push", "--target", "app"]).args([directory.pg_wal(&name)]).run().succeeded();
    }
    let whole = host.backup(["verify", &id, "--json"]).run().json();
    let continuity = &whole["backups"][0]["continuity"];
    assert_eq!((&continuity["gaps"], &continuity["lacking_histories"]), (&json!([]), &json!([])), "{whole}");
    // A later timeline whose history was never archived, and a file that was lost.
    let later = backup_tests::wal::name(7).replacen("00000001", "00000002", 1);
    let mut bytes = backup_tests::wal::segment(7, "behind");
    bytes[4..8].copy_from_slice(&2u32.to_ne_bytes());
    std::fs::write(directory.pg_wal(&later), bytes).unwrap();
    host.backup(["wal", "push", "--target", "app"]).args([directory.pg_wal(&later)]).run().succeeded();
    let archive = host.repository().join(format!("app/wal/{}/00000001", backup_tests::wal::SYSTEM_IDENTIFIER));
    std::fs::remove_file(archive.join(format!("{}.vol", backup_tests::wal::name(4)))).unwrap();
    let missing = backup_tests::wal::name(4);
    for reference in [&id, "--all"] {
        let told = host.backup(["verify", reference]).run();
        assert_eq!(told.code(), Some(3), "{told}");
        assert!(told.text().contains(&format!("log: {missing} missing")), "{told}");
        assert!(told.text().contains("log: 00000002.history missing"), "{told}");
        told.saying("log is missing behind 1 of 1 backups");
    }
    let told = host.backup(["verify", &id, "--json"]).run();
    let document: Value = serde_json::from_str(told.text()).unwrap();
    let continuity = &document["backups"][0]["continuity"];
    assert_eq!(continuity["gaps"], json!([{ "first": missing, "last": missing }]), "{document}");
    assert_eq!(continuity["lacking_histories"].as_array().unwrap().len(), 1, "{document}");
    assert_eq!((told.code(), &continuity["consistent"]), (Some(3), &json!(true)), "{document}");
}
