//! Files of write-ahead log: objects that no manifest lists.

use std::sync::Arc;

use backup_core::ErrorKind;
use backup_core::format::{Flag, Header, ObjectName, Plaintext};
use backup_core::keys::Identity;
use backup_core::keys::age::AgeIdentity;
use backup_core::postgres::wal::WalFile;
use backup_core::repository::Repository;
use backup_core::repository::layout::TargetName;
use backup_core::wal_archive::{Fetched, Fetcher, FetcherOptions, Reference};
use backup_tests::volume::VolumeBuilder;
use object_store::ObjectStoreExt;

use super::make::{self, Maker, data_key, frame};
use super::vector::{AskedWal, Expect, WalVector, sha256};
use super::world::chain;
use super::{files, vectors};

const SYSTEM_IDENTIFIER: &str = "7412345678901234567";
const FILE: &str = "00000002.history";
const OBJECT: &str = "00000002.history.vol";
const LARGE: &str = "00000002.history.0123456789abcdef0123456789abcdef.vol";
const PLAIN: &[u8] = b"1\t0/3000000\tno recovery target specified\n";

/// What is asked for.
pub(crate) fn asked() -> AskedWal {
    AskedWal {
        target: make::TARGET.into(),
        system_identifier: SYSTEM_IDENTIFIER.into(),
        timeline: "00000002".into(),
        file: FILE.into(),
    }
}

fn name() -> ObjectName {
    let AskedWal { target, system_identifier, timeline, file } = asked();
    ObjectName::Wal { target, system_identifier, timeline, file }
}

fn header(vector: &str) -> Header {
    let plaintext = Plaintext { bytes: PLAIN.len() as u64, blake3: *blake3::hash(PLAIN).as_bytes() };
    Header { name: name(), plaintext: Some(plaintext), ..make::header(vector, 0) }
}

fn object(header: &Header) -> Vec<u8> {
    VolumeBuilder::new(header, &data_key()).chunk(&frame(PLAIN), PLAIN.len()).finish(Flag::IndexEnd).bytes
}

fn reference(object: &str, bytes: usize) -> Vec<u8> {
    Reference { object: object.into(), bytes: bytes as u64, critical: Vec::new() }.encode()
}

pub(crate) fn make(maker: &mut Maker) {
    let sound = Expect::plaintext(PLAIN);
    let hostile = |contains: &[&str]| Expect::error("integrity", contains);
    let whole = object(&header("wal"));
    maker.wal("wal", "A file in one object", &[(OBJECT, whole.clone())], sound.clone());
    let (large, len) = (object(&header("wal-large")), object(&header("wal-large")).len());
    let objects = [(OBJECT, reference(LARGE, len)), (LARGE, large.clone())];
    maker.wal("wal-large", "A file under a random name, with a reference", &objects, sound);

    names(maker);
    let digests: [(&str, &str, Option<Plaintext>, &[&str]); 3] = [
        ("wal-without-plaintext", "A header without length and digest", None, &["malformed", "plaintext"]),
        (
            "wal-of-another-length",
            "A header with another length",
            Some(Plaintext { bytes: 7, ..header("").plaintext.expect("it has one") }),
            &["bytes of its file and should hold 7"],
        ),
        (
            "wal-of-another-digest",
            "A header with the digest of another file",
            Some(Plaintext { blake3: [7; 32], ..header("").plaintext.expect("it has one") }),
            &["holds other bytes than its header says"],
        ),
    ];
    for (vector, about, plaintext, contains) in digests {
        let object = object(&Header { plaintext, ..header(vector) });
        let made = maker.wal(vector, about, &[(OBJECT, object)], hostile(&[&[OBJECT], contains].concat()));
        made.only_with_blake3 = vector.ends_with("digest");
    }
    let vector = "wal-that-goes-on";
    let more = VolumeBuilder::new(&header(vector), &data_key()).chunk(&frame(PLAIN), PLAIN.len());
    let more = more.finish(Flag::IndexMore);
    let contains = [OBJECT, &format!("offset {}", more.index)];
    maker.wal(vector, "A volume behind which more should come", &[(OBJECT, more.bytes)], hostile(&contains));
    maker.wal(
        "wal-truncated",
        "The object ends early",
        &[(OBJECT, whole[..whole.len() - 1].to_vec())],
        hostile(&[OBJECT, "the footer contradicts"]),
    );
    references(maker, &whole, &large);
}

fn names(maker: &mut Maker) {
    let name = |change: &dyn Fn(&mut AskedWal)| {
        let mut asked = asked();
        change(&mut asked);
        let AskedWal { target, system_identifier, timeline, file } = asked;
        ObjectName::Wal { target, system_identifier, timeline, file }
    };
    for (vector, name) in [
        ("wal-of-another-target", name(&|asked| asked.target = "other".into())),
        ("wal-of-another-cluster", name(&|asked| asked.system_identifier = "7".into())),
        ("wal-of-another-timeline", name(&|asked| asked.timeline = "00000003".into())),
        ("wal-of-another-file", name(&|asked| asked.file = "00000003.history".into())),
        ("wal-that-is-a-backup", make::header("", 0).name),
    ] {
        let object = object(&Header { name, ..header(vector) });
        let expect = Expect::error("integrity", &[OBJECT, "answers to another name"]);
        maker.wal(vector, "A whole volume that answers to another name", &[(OBJECT, object)], expect);
    }
    let vector = "wal-second-volume";
    let object = object(&Header { volume: 1, ..header(vector) });
    let expect = Expect::error("integrity", &[OBJECT, "answers to another name"]);
    maker.wal(vector, "The second volume of a stream", &[(OBJECT, object)], expect);
}

fn references(maker: &mut Maker, whole: &[u8], large: &[u8]) {
    let mut add = |vector: &str, about: &str, reference: Vec<u8>, large: &[u8], contains: &[&str]| {
        let mut objects = vec![(OBJECT, reference)];
        if !large.is_empty() {
            objects.push((LARGE, large.to_vec()));
        }
        maker.wal(vector, about, &objects, Expect::error("integrity", contains));
    };
    let good = reference(LARGE, large.len());
    add("wal-reference-to-nothing", "The large object is missing", good.clone(), &[], &[LARGE, "is missing"]);
    let longer = reference(LARGE, large.len() + 1);
    add(
        "wal-reference-of-another-length",
        "The large object has another length",
        longer,
        large,
        &[LARGE, "should have"],
    );
    for (vector, object) in [
        ("wal-reference-to-itself", OBJECT.to_owned()),
        ("wal-reference-to-another-file", LARGE.replace("00000002", "00000003")),
        ("wal-reference-out-of-the-folder", format!("../00000003/{LARGE}")),
    ] {
        let reference = reference(&object, large.len());
        add(
            vector,
            "A reference to what is no large object of the file",
            reference,
            large,
            &["answers to another name"],
        );
    }
    let mut critical = good.clone();
    critical.truncate(12);
    let json = format!(r#"{{"object":"{LARGE}","bytes":{},"critical":["new"],"new":1}}"#, large.len());
    critical[8..].copy_from_slice(&u32::try_from(json.len()).expect("short").to_le_bytes());
    critical.extend_from_slice(json.as_bytes());
    add("wal-reference-critical", "A field that must be understood", critical, large, &["critical field", "new"]);
    let mut version = good.clone();
    version[7] = 2;
    add("wal-reference-version", "A later version of references", version, large, &["format version 2"]);
    let cut = good[..good.len() - 1].to_vec();
    add("wal-reference-truncated", "A reference that ends early", cut, large, &[OBJECT, "out of bounds"]);
    let second = [good, whole.to_vec()].concat();
    add("wal-reference-and-more", "Bytes behind a reference", second, large, &[OBJECT, "out of bounds"]);
}

/// What the fetcher makes of a vector.
async fn fetched(vector: &WalVector) -> backup_core::Result<Option<Vec<u8>>> {
    let all = vectors();
    let repository = Repository::in_memory().await.expect("memory");
    let target: TargetName = all.wal.asked.target.parse().expect("a target");
    let archive = target.wal_of(all.wal.asked.system_identifier.parse().expect("a number"));
    let file: WalFile = all.wal.asked.file.parse().expect("the name of a file");
    for object in &vector.objects {
        let path = archive.timeline(file.timeline()).join(object.path.as_str());
        repository.store().put(&path, object.edit(&files()[&object.file]).into()).await.expect("memory");
    }
    let identity: Arc<dyn Identity> = Arc::new(all.identity.parse::<AgeIdentity>().expect("an identity"));
    let mut options = FetcherOptions::default();
    options.system_identifier = Some(archive.system_identifier);
    options.patience = std::time::Duration::ZERO;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let to = folder.path().join("file");
    let fetched = Fetcher::new(repository, target, vec![identity], options)?.fetch(file, &to).await;
    let left = std::fs::read_dir(folder.path()).expect("readable").count();
    assert_eq!(left, usize::from(matches!(fetched, Ok(Fetched::Placed(_)))), "{}", vector.name);
    Ok(matches!(fetched?, Fetched::Placed(_)).then(|| std::fs::read(to).expect("it was placed")))
}

#[tokio::test]
async fn sound_files_come_back_and_hostile_ones_are_refused_with_the_reason() {
    for vector in &vectors().wal.vectors {
        let fetched = fetched(vector).await;
        match &vector.expect {
            Expect::Plaintext { bytes, sha256: hash } => {
                let plain = fetched.unwrap_or_else(|e| panic!("{}: {}", vector.name, chain(&e)));
                let plain = plain.unwrap_or_else(|| panic!("{}: absent", vector.name));
                assert_eq!((plain.len(), &sha256(&plain)), (*bytes, hash), "{}", vector.name);
            }
            Expect::Error { contains, .. } => {
                let error = fetched.map(|_| ()).expect_err(&vector.name);
                let said = chain(&error);
                assert_eq!(error.kind(), ErrorKind::Integrity, "{}: {said}", vector.name);
                for text in contains {
                    assert!(said.contains(text), "{}: not '{text}' but: {said}", vector.name);
                }
            }
        }
    }
}
