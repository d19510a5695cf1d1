//! Golden vectors: streams that every reader must take, and many more that it must refuse. Each is run through every way to read.
//!
//! `BACKUP_REWRITE_VECTORS=1 cargo test -p backup-tests --test vectors` writes them anew; `tests/vectors/README.md` says when one may.

mod damaged;
mod documented;
mod example;
mod forged;
mod make;
mod sound;
mod vector;
mod wal;
mod world;
mod written;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use backup_core::format::{StreamEntry, VolumeEntry};
use backup_core::{Error, ErrorKind};
use backup_tests::{decoder, volume};
use object_store::ObjectStoreExt;

use vector::{Expect, Vector, Vectors, sha256};
use world::{World, chain};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/v1")
}

fn made() -> BTreeMap<String, Vec<u8>> {
    let mut maker = make::Maker::default();
    sound::make(&mut maker);
    damaged::make(&mut maker);
    forged::make(&mut maker);
    wal::make(&mut maker);
    maker.finish()
}

/// The files as they are committed.
fn files() -> &'static BTreeMap<String, Vec<u8>> {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        if rewriting() {
            rewrite(&made());
        }
        let entries = std::fs::read_dir(directory()).expect("tests/vectors/v1 is there");
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.expect("a directory that can be read");
            let name = entry.file_name().into_string().expect("names are ASCII");
            (name, std::fs::read(entry.path()).expect("a file that can be read"))
        };
        entries.map(read).collect()
    })
}

fn rewriting() -> bool {
    std::env::var_os("BACKUP_REWRITE_VECTORS").is_some()
}

fn rewrite(files: &BTreeMap<String, Vec<u8>>) {
    let directory = directory();
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("tests can be written");
    for (name, bytes) in files {
        std::fs::write(directory.join(name), bytes).expect("tests can be written");
    }
}

fn vectors() -> Vectors {
    serde_json::from_slice(&files()["vectors.json"]).expect("vectors.json is what vector.rs says")
}

/// Whether a refusal is the one that was to be expected.
fn check_error(vector: &Vector, way: &str, error: &Error) {
    check_kind(vector, way, error);
    check_words(vector, way, &chain(error));
}

fn check_kind(vector: &Vector, way: &str, error: &Error) {
    let Expect::Error { kind, .. } = &vector.expect else { panic!("{}: {way}: {}", vector.name, chain(error)) };
    let expected = match kind.as_str() {
        "integrity" => ErrorKind::Integrity,
        "key" => ErrorKind::Key,
        other => panic!("{}: what is a failure of kind {other}?", vector.name),
    };
    assert_eq!(error.kind(), expected, "{}: {way}: {}", vector.name, chain(error));
}

fn check_words(vector: &Vector, way: &str, said: &str) {
    let Expect::Error { contains, .. } = &vector.expect else { panic!("{}: {way}: {said}", vector.name) };
    for text in contains {
        assert!(said.contains(text), "{}: {way}: not '{text}' but: {said}", vector.name);
    }
}

#[test]
fn the_committed_vectors_are_those_that_are_made() {
    let (made, committed) = (made(), files());
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(committed));
    for (name, bytes) in &made {
        assert!(committed[name] == *bytes, "{name} would be made differently today: did the format change?");
    }
}

#[tokio::test]
async fn sound_streams_come_back_in_every_way() {
    let all = vectors();
    for vector in &all.vectors {
        let Expect::Plaintext { bytes, sha256: hash } = &vector.expect else { continue };
        let world = World::new(&all, vector, vector.stream.clone(), files()).await;
        let failed = |way: &str, e: &Error| format!("{}: {way}: {}", vector.name, chain(e));
        let whole = world.whole().await.unwrap_or_else(|e| panic!("{}", failed("whole", &e)));
        assert_eq!((whole.len(), &sha256(&whole)), (*bytes, hash), "{}", vector.name);
        let deep = world.deep().await.unwrap_or_else(|e| panic!("{}", failed("deep", &e)));
        let keyless = world.keyless().await.unwrap_or_else(|e| panic!("{}", failed("keyless", &e)));
        assert_eq!((deep.findings, keyless.findings), (vec![], vec![]), "{}", vector.name);
        let mut pieces = Vec::new();
        for range in world.ranges() {
            pieces.extend(world.range(range).await.unwrap_or_else(|e| panic!("{}", failed("range", &e))));
        }
        assert!(pieces == whole, "{}: ranges", vector.name);
    }
}

#[tokio::test]
async fn hostile_streams_are_refused_in_every_way_and_with_the_reason() {
    let all = vectors();
    for vector in &all.vectors {
        let Expect::Error { .. } = &vector.expect else { continue };
        let world = World::new(&all, vector, vector.stream.clone(), files()).await;
        let passed = |way: &str| format!("{}: {way}: it passed", vector.name);
        check_error(vector, "whole", &world.whole().await.map(|plain| plain.len()).expect_err(&passed("whole")));
        match world.deep().await {
            Ok(found) => check_words(
                vector,
                "deep",
                &found.findings.first().unwrap_or_else(|| panic!("{}", passed("deep"))).problem,
            ),
            Err(error) => check_error(vector, "deep", &error),
        }
        // One range may be sound, and another run into the second of two faults first.
        let mut refused = false;
        for range in world.ranges() {
            if let Err(error) = world.range(range).await {
                check_kind(vector, "range", &error);
                refused = true;
            }
        }
        assert!(refused, "{}", passed("ranges"));
    }
}

/// As above, but with the manifest of the objects as they were: nobody who lacks the data key can do better.
#[tokio::test]
async fn changed_objects_contradict_an_honest_manifest() {
    let all = vectors();
    for vector in all.vectors.iter().filter(|v| v.objects.iter().any(|o| !o.edits.is_empty())) {
        let entry = |object: &vector::Object| volume::entry_of(&object.path, &files()[&object.file]);
        let volumes: Vec<VolumeEntry> = vector.objects.iter().map(entry).collect();
        let world = World::new(&all, vector, StreamEntry { volumes, ..vector.stream.clone() }, files()).await;
        let error = world.whole().await.map(|plain| plain.len()).expect_err(&vector.name);
        assert_eq!(error.kind(), ErrorKind::Integrity, "{}: {}", vector.name, chain(&error));
        let edited = vector.objects.iter().find(|o| !o.edits.is_empty()).expect("one is edited");
        assert!(chain(&error).contains(&edited.path), "{}: {}", vector.name, chain(&error));
        let found = world.keyless().await.expect("it can be done").findings;
        assert!(found.iter().any(|finding| finding.object.contains(&edited.path)), "{}: {found:?}", vector.name);
    }
}

#[tokio::test]
async fn every_byte_of_a_volume_matters() {
    let all = vectors();
    // Several volumes, so that the data key is found even where the wraps of one are damaged.
    let vector = all.vectors.iter().find(|v| v.name == "several-volumes-zstd-aes-256-gcm").expect("a vector");
    let world = World::new(&all, vector, vector.stream.clone(), files()).await;
    let object = &vector.objects[0];
    let path = world.path.named(&object.path);
    let good = &files()[&object.file];
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        world.repository.store().put(&path, bad.into()).await.expect("memory");
        let error = world.whole().await.map(|plain| plain.len()).expect_err(&format!("byte {at}"));
        assert_eq!(error.kind(), ErrorKind::Integrity, "byte {at}: {}", chain(&error));
        assert!(chain(&error).contains(&object.path), "byte {at}: {}", chain(&error));
    }
}

#[test]
fn the_decoder_in_python_agrees_on_every_vector() {
    let output = decoder::run(decoder::python("vectors.py").arg(directory()));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let all = vectors();
    assert_eq!(stdout.trim(), format!("{} vectors", all.vectors.len() + all.wal.vectors.len()));
}
