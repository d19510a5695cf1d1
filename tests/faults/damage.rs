//! One byte of one object is another: nobody is given wrong data, and everybody is told where.

use std::sync::Arc;

use backup_core::ErrorKind;
use backup_core::compress::Compression;
use backup_core::keys::age::AgeIdentity;
use backup_core::repository::layout::BackupPath;
use backup_core::repository::{Location, Repository};
use backup_core::source::BytesSource;
use backup_tests::data::Data;
use backup_tests::embedder::{Embedder, target};
use backup_tests::host::{Host, files_below};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use crate::BACKUP;

/// The objects of a backup, with their contents.
async fn objects(repository: &Repository, path: &BackupPath) -> Vec<(Path, Vec<u8>)> {
    let listing = repository.store().list(Some(&path.prefix()));
    let names: Vec<Path> = listing.map_ok(|meta| meta.location).try_collect().await.unwrap();
    let mut objects = Vec::new();
    for name in names {
        let bytes = repository.store().get(&name).await.unwrap().bytes().await.unwrap();
        objects.push((name, bytes.to_vec()));
    }
    objects
}

/// Flips one bit of each byte of each object, one after the other; restores everything, verifies everything. What somebody changes in
/// a manifest on purpose takes the key to find; in volumes all is found without it, too.
async fn flip_every_byte(volume_chunks: u32, compression: Compression) {
    let mut embedder = Embedder::new(Repository::in_memory().await.unwrap());
    embedder.limits.volume_chunks = volume_chunks;
    let data = Data::compressible(9000, "flips").to_vec();
    let source = BytesSource::new(data.clone());
    let backup = embedder.backup().compression(compression).stream("data".parse().unwrap(), source).start().unwrap();
    let path = target().backup(backup.id());
    backup.wait().await.unwrap();
    let store = embedder.repository.store();
    for (object, good) in objects(&embedder.repository, &path).await {
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            store.put(&object, PutPayload::from(bad)).await.unwrap();
            let restored = async {
                embedder.open(&path).await?.details().await?;
                embedder.restore(&path, 0..u64::MAX).await
            };
            let error = restored.await.expect_err("restored");
            let told = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Integrity, "{object} at {at}: {error:?}");
            assert!(told.contains(object.as_ref()) && told.contains("offset"), "{object} at {at}: {error:?}");
            if object.as_ref().ends_with(".vol") {
                let verified = embedder.verify_keyless(&path).await.unwrap();
                let [finding] = &verified.findings[..] else { panic!("{object} at {at}: {verified:?}") };
                assert!(finding.object == object.as_ref() && finding.problem.contains("offset"), "{finding:?}");
            }
            let verified = embedder.verify_deep(&path).await.unwrap();
            let told = verified.findings.iter().any(|finding| {
                let text = format!("{} {}", finding.object, finding.problem);
                text.contains(object.as_ref()) && text.contains("offset")
            });
            assert!(told, "{object} at {at}: {verified:?}");
        }
        store.put(&object, PutPayload::from(good)).await.unwrap();
    }
    assert!(embedder.restore(&path, 0..u64::MAX).await.unwrap() == data, "all is well again");
}

#[tokio::test]
async fn every_flipped_byte_of_a_small_backup_is_found_with_object_and_offset() {
    flip_every_byte(3, Compression::Zstd(3)).await;
}

#[tokio::test]
async fn every_flipped_byte_of_a_backup_of_several_volumes_is_found_with_object_and_offset() {
    flip_every_byte(1, Compression::Zstd(3)).await;
}

/// A repository in a directory, with a backup of several volumes that the program can open; and the plain data.
fn several_volumes() -> (Host, BackupPath, Vec<u8>) {
    let host = Host::initialised(BACKUP);
    let data = Data::compressible(30_000, "program").to_vec();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (path, manifest) = runtime.block_on(async {
        let location = Location::directory(host.repository()).unwrap();
        let mut embedder = Embedder::new(Repository::open(&location).await.unwrap());
        embedder.identity = Arc::new(AgeIdentity::load(&host.identity_file()).unwrap());
        embedder.save_bytes(data.clone()).await.unwrap()
    });
    assert_eq!(manifest.stream("data").unwrap().volumes.len(), 3);
    (host, path, data)
}

/// With a named stream nothing else is looked at: lost details never stand between somebody and the data.
#[test]
fn damaged_or_lost_details_stop_a_restore_before_it_writes_and_not_one_of_a_named_stream() {
    let (host, path, data) = several_volumes();
    let details = host.repository().join(path.prefix().as_ref()).join("details.00000.vol");
    let mut bytes = std::fs::read(&details).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    for damage in [Some(bytes), None] {
        match damage {
            Some(bytes) => std::fs::write(&details, bytes).unwrap(),
            None => std::fs::remove_file(&details).unwrap(),
        }
        let refused = host.backup(["restore", "app", "--to"]).args([host.path("out")]).run().failed(13);
        refused.saying("details.00000.vol").hinting("--stream data");
        assert!(!host.path("out").exists());
        let restored = host.backup(["restore", "app", "--to-stdout", "--stream", "data"]).run().succeeded();
        assert!(restored.stdout() == data);
    }
}

/// A manifest that fits, as far as it can without the key.
#[test]
fn a_volume_of_another_backup_or_place_is_found_without_a_key_whatever_the_manifest_says() {
    let (host, path, _) = several_volumes();
    let folder = host.repository().join(path.prefix().as_ref());
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    host.backup(["verify", "app"]).run().succeeded();

    let (document, proof) = manifest.split_once('\n').unwrap();
    let mut swapped: serde_json::Value = serde_json::from_str(document).unwrap();
    let volumes = swapped["streams"][0]["volumes"].as_array_mut().unwrap();
    volumes.swap(0, 1);
    std::fs::write(folder.join("manifest.json"), format!("{swapped}\n{proof}")).unwrap();
    let verified = host.backup(["verify", "app"]).run().failed(13);
    assert!(verified.text().contains("data.00000.vol: it is another volume"), "{verified}");

    let (id, other) = (path.id.as_str(), "20300101T000000Z-aaaaaaaaaaaaaaaa");
    let copy = folder.with_file_name(other);
    std::fs::rename(&folder, &copy).unwrap();
    std::fs::write(copy.join("manifest.json"), manifest.replace(id, other)).unwrap();
    let verified = host.backup(["verify", other]).run().failed(13);
    assert_eq!(verified.text().matches("it is another volume").count(), 4, "{verified}");
}

#[test]
fn the_program_exits_with_13_and_names_object_and_offset_and_gives_out_nothing_wrong() {
    let (host, path, data) = several_volumes();
    let objects: Vec<_> = host.objects().into_iter().filter(|(name, _)| name != "repository.json").collect();
    assert_eq!(objects.len(), 5);
    for (n, (object, good)) in objects.iter().enumerate() {
        let file = host.repository().join(object);
        // Other places in each object; the first and the last byte always.
        for at in (0..good.len()).step_by(good.len() / 7 + n).chain([good.len() - 1]) {
            let mut bad = good.clone();
            bad[at] ^= 0x80 >> (at % 8);
            std::fs::write(&file, bad).unwrap();
            let verified = host.backup(["verify", path.id.as_str(), "--deep"]).run().failed(13);
            let told = format!("{}{}", verified.text(), verified.stderr);
            assert!(told.contains(object) && told.contains("offset"), "{object} at {at}: {verified}");
            let stream = if object.contains("details") { "details" } else { "data" };
            let restore = ["restore", path.id.as_str(), "--to-stdout", "--stream", stream];
            let restored = host.backup(restore).run().failed(13).saying(object).saying("offset");
            assert!(stream == "details" || data.starts_with(restored.stdout()), "{object} at {at}");
        }
        std::fs::write(&file, good).unwrap();
    }
    host.backup(["verify", "app", "--deep"]).run().succeeded();
}

#[test]
fn cut_lengthened_and_missing_objects_are_found_with_and_without_the_key() {
    let (host, _, _) = several_volumes();
    for (object, good) in host.objects().into_iter().filter(|(name, _)| name.ends_with(".vol")) {
        let file = host.repository().join(&object);
        let (half, lengthened) = (good[..good.len() / 2].to_vec(), [&good[..], b"x"].concat());
        for bad in [Some(vec![]), Some(half), Some(good[..good.len() - 1].to_vec()), Some(lengthened), None] {
            match bad {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            for flags in [&["verify", "app"][..], &["verify", "app", "--deep"], &["verify", "--all"]] {
                let verified = host.backup(flags).run().failed(13);
                let told = format!("{}{}", verified.text(), verified.stderr);
                assert!(told.contains(&object) && told.contains("offset"), "{verified}");
            }
        }
        std::fs::write(&file, good).unwrap();
    }
}

#[test]
fn a_damaged_repository_document_never_makes_it_panic_or_lie() {
    let (host, path, data) = several_volumes();
    let file = host.repository().join("repository.json");
    let good = std::fs::read(&file).unwrap();
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&file, bad).unwrap();
        let outcome = host.backup(["restore", path.id.as_str(), "--to-stdout"]).run();
        match outcome.code() {
            // What it says of itself need not matter to a restore.
            Some(0) => assert!(outcome.stdout() == data, "{outcome}"),
            Some(2 | 13) => assert!(outcome.stderr.contains("repository.json"), "{outcome}"),
            _ => panic!("flipped at {at}: {outcome}"),
        }
    }
}

#[test]
fn a_damaged_manifest_neither_hides_other_backups_nor_is_passed_over() {
    let host = Host::initialised(BACKUP);
    let (first, second) = (host.save("app", "first"), host.save("app", "second"));
    let (older, newer) = if first < second { (first, second) } else { (second, first) };
    host.write(format!("repository/app/backups/{newer}/manifest.json"), "{}\n{}\n");
    let listing = host.backup(["list"]).run();
    assert_eq!(listing.code(), Some(3), "{listing}");
    assert!(listing.text().contains(&older) && !listing.text().contains(&newer), "{listing}");
    listing.saying(&newer);
    host.backup(["restore", "app", "--to-stdout"]).run().failed(13).saying(&newer);
    host.backup(["restore", &older, "--to-stdout"]).run().succeeded();
    host.backup(["verify", "--all"]).run().failed(13);
}

#[test]
fn a_restore_of_damaged_data_leaves_no_file_and_no_directory() {
    let host = Host::initialised(BACKUP);
    host.write("from/file", Data::random(3_000_000, "file").to_vec());
    let file = host.save("file", Data::random(3_000_000, "file"));
    let tree = host.backup(["save", "tree", "--directory"]).args([host.path("from")]).run().id();
    for (target, id) in [("file", file), ("tree", tree)] {
        let volume = host.path(format!("repository/{target}/backups/{id}/data.00000.vol"));
        let mut bytes = std::fs::read(&volume).unwrap();
        let late = bytes.len() - 5000;
        bytes[late] ^= 1;
        std::fs::write(&volume, bytes).unwrap();
        std::fs::create_dir(host.path("there")).unwrap();
        for to in ["there", "new"] {
            host.backup(["restore", target, "--to"]).args([host.path(to)]).run().failed(13).saying("data.00000.vol");
            assert_eq!(files_below(&host.path(to)), [] as [&str; 0], "{target} to {to}");
        }
        std::fs::remove_dir(host.path("there")).unwrap();
    }
}
