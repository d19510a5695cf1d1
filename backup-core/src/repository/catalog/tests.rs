use object_store::{ObjectStoreExt, PutPayload};

use super::*;
use crate::encrypt::DataKey;
use crate::format::{Condition, Kind, StreamEntry, VolumeEntry};

fn manifest(path: &BackupPath, condition: Condition) -> Vec<u8> {
    let manifest = Manifest {
        format: 1,
        id: path.id.to_string(),
        target: path.target.to_string(),
        kind: Kind::Stream,
        condition,
        warnings: 0,
        started: path.id.timestamp(),
        finished: path.id.timestamp(),
        data_key: "00".repeat(16),
        recipients: vec![],
        streams: vec![StreamEntry {
            name: "data".to_owned(),
            stream_id: "00".repeat(16),
            bytes: 0,
            volumes: vec![VolumeEntry { path: "data.00000.vol".to_owned(), bytes: 0, chunks: 0, digest: [0; 32] }],
        }],
        cluster: None,
        requires: vec![],
        version: "0.1.0".to_owned(),
        critical: vec![],
    };
    manifest.encode(&DataKey::from_bytes([1; 32])).unwrap()
}

fn path(target: &str, id: &str) -> BackupPath {
    target.parse::<TargetName>().unwrap().backup(&id.parse().unwrap())
}

async fn put(repository: &Repository, path: &Path, bytes: Vec<u8>) {
    repository.store().put(path, PutPayload::from(bytes)).await.unwrap();
}

async fn add(repository: &Repository, target: &str, id: &str, condition: Condition) {
    let path = path(target, id);
    put(repository, &path.manifest(), manifest(&path, condition)).await;
}

const A1: &str = "20261119T020000Z-aaaaaaaaaaaaaaaa";
const A2: &str = "20261120T235959Z-abbbbbbbbbbbbbbb";
const A3: &str = "20261121T000000Z-cccccccccccccccc";
const A4: &str = "20261122T020000Z-dddddddddddddddd";
const UNFINISHED: &str = "20261123T020000Z-eeeeeeeeeeeeeeee";
const B1: &str = "20261119T030000Z-ffffffffffffffff";

/// Two targets, of which one has a damaged and an unfinished backup at its end; once in memory and once in a directory.
async fn repositories(temp: &tempfile::TempDir) -> [Repository; 2] {
    let directory = crate::repository::Location::directory(temp.path().join("repo")).unwrap();
    let directory = Repository::init(&directory, &crate::clock::SystemClock).await.unwrap().0;
    let repositories = [Repository::in_memory().await.unwrap(), directory];
    for repository in &repositories {
        for id in [A1, A2, A3] {
            add(repository, "app", id, Condition::Good).await;
        }
        add(repository, "app", A4, Condition::Damaged).await;
        put(repository, &path("app", UNFINISHED).running(), b"{}".to_vec()).await;
        add(repository, "billing", B1, Condition::Good).await;
        put(repository, &Path::from("runs/2026/11/19/x.json"), b"{}".to_vec()).await;
        put(repository, &Path::from("app/backups/not-an-id/manifest.json"), b"{}".to_vec()).await;
    }
    repositories
}

async fn ids(repository: &Repository, target: Option<&str>) -> Vec<String> {
    let target = target.map(|t| t.parse().unwrap());
    let listed: Vec<Listed> = repository.list(target.as_ref()).try_collect().await.unwrap();
    let show = |listed: &Listed| match listed {
        Listed::Backup(found) => found.path.id.to_string(),
        Listed::Unfinished(path) => format!("unfinished {}", path.id),
        Listed::UnreadableTarget(target, error) => format!("refused {target} {:?}", error.kind()),
        Listed::Unreadable(path, error) => {
            format!("unreadable {} {}", path.id, error.kind() == ErrorKind::Integrity)
        }
    };
    listed.iter().map(show).collect()
}

#[tokio::test]
async fn listings_are_in_order_and_tell_what_is_unfinished() {
    let temp = tempfile::tempdir().unwrap();
    for repository in repositories(&temp).await {
        let unfinished = format!("unfinished {UNFINISHED}");
        assert_eq!(ids(&repository, None).await, [A1, A2, A3, A4, &unfinished, B1]);
        assert_eq!(ids(&repository, Some("billing")).await, [B1]);
        assert!(ids(&repository, Some("absent")).await.is_empty());
        let targets = repository.targets().await.unwrap();
        assert_eq!(targets.iter().map(TargetName::as_str).collect::<Vec<_>>(), ["app", "billing"]);
    }
}

#[tokio::test]
async fn an_empty_folder_is_no_backup() {
    let temp = tempfile::tempdir().unwrap();
    let [_, repository] = repositories(&temp).await;
    std::fs::create_dir_all(temp.path().join("repo/app/backups/20261124T020000Z-gggggggggggggggg")).unwrap();
    assert_eq!(ids(&repository, Some("app")).await.len(), 5);
}

#[tokio::test]
async fn names_mean_what_people_expect() {
    let temp = tempfile::tempdir().unwrap();
    for repository in repositories(&temp).await {
        for (reference, expected) in [
            (A2, A2),
            (A4, A4),
            ("app", A3),
            ("billing", B1),
            ("app@2026-11-20", A2),
            ("app@2026-11-19", A1),
            ("app@2030-01-01", A3),
            ("20261121", A3),
            ("cc", A3),
            ("ab", A2),
            ("20261119T03", B1),
        ] {
            let found = repository.resolve(reference).await.unwrap();
            assert_eq!(found.path.id.as_str(), expected, "{reference}");
            assert_eq!(Manifest::decode(&found.raw).unwrap(), found.manifest);
        }
        for (reference, kind, message) in [
            ("latest", ErrorKind::Config, "app, billing"),
            ("20261119", ErrorKind::Config, A1),
            ("", ErrorKind::Config, "is empty"),
            ("2", ErrorKind::Config, A4),
            ("ee", ErrorKind::NotFound, "no backup or target 'ee'"),
            ("absent", ErrorKind::NotFound, "no backup or target"),
            ("20261119T020000Z-aaaaaaaaaaaaaaab", ErrorKind::NotFound, "no backup 2026"),
            (UNFINISHED, ErrorKind::NotFound, "no backup"),
            ("app@2026-11-18", ErrorKind::NotFound, "of 2026-11-18 (UTC) or before"),
            ("absent@2026-11-18", ErrorKind::NotFound, "no backup of 'absent'"),
            ("app@yesterday", ErrorKind::Config, "not a day"),
            ("a/b@2026-11-18", ErrorKind::Config, "cannot name a target"),
        ] {
            let error = repository.resolve(reference).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{reference}: {error}");
            assert!(error.to_string().contains(message), "{reference}: {error}");
            assert!(error.hint().is_some(), "{reference}: {error}");
        }
    }
}

#[tokio::test]
async fn latest_will_do_with_one_target_and_damaged_backups_are_not_good() {
    let repository = Repository::in_memory().await.unwrap();
    assert_eq!(repository.resolve("latest").await.unwrap_err().kind(), ErrorKind::NotFound);
    add(&repository, "app", A4, Condition::Damaged).await;
    let error = repository.resolve("latest").await.unwrap_err();
    assert!(
        error.to_string().contains("no good backup") && error.hint().unwrap().starts_with("1 whose source"),
        "{error}"
    );
    add(&repository, "app", A1, Condition::Good).await;
    assert_eq!(repository.resolve("latest").await.unwrap().path.id.as_str(), A1);
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_neither_hides_others_nor_is_passed_over() {
    let repository = Repository::in_memory().await.unwrap();
    add(&repository, "app", A1, Condition::Good).await;
    for (bytes, kind) in [
        (b"garbage\n\n".to_vec(), ErrorKind::Integrity),
        (manifest(&path("app", A1), Condition::Good), ErrorKind::Integrity),
        (manifest(&path("other", A2), Condition::Good), ErrorKind::Integrity),
        (newer(), ErrorKind::Config),
    ] {
        put(&repository, &path("app", A2).manifest(), bytes).await;
        let error = repository.resolve("app").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(A2), "{error}");
        let unreadable = format!("unreadable {A2} {}", kind == ErrorKind::Integrity);
        assert_eq!(ids(&repository, None).await, [A1, &unreadable]);
    }
}

fn newer() -> Vec<u8> {
    let text = String::from_utf8(manifest(&path("app", A2), Condition::Good)).unwrap();
    text.replace("\"format\":1", "\"format\":2").into_bytes()
}

#[tokio::test]
async fn many_backups_are_listed_in_order() {
    let repository = Repository::in_memory().await.unwrap();
    for minute in 0..60 {
        add(&repository, "app", &format!("20261119T02{minute:02}00Z-aaaaaaaaaaaaaaaa"), Condition::Good).await;
    }
    let listed = ids(&repository, None).await;
    assert!(listed.len() == 60 && listed.is_sorted(), "{listed:?}");
}

#[tokio::test]
async fn a_target_that_cannot_be_read_is_told_and_hides_no_other() {
    let temp = tempfile::tempdir().unwrap();
    let [_, repository] = repositories(&temp).await;
    // In order before and behind the others. Its folder cannot be listed, whoever asks.
    for foreign in ["aaa", "zzz"] {
        std::fs::create_dir(temp.path().join("repo").join(foreign)).unwrap();
        std::os::unix::fs::symlink("backups", temp.path().join("repo").join(foreign).join("backups")).unwrap();
    }
    let listed = ids(&repository, None).await;
    assert_eq!((listed[0].as_str(), listed[7].as_str()), ("refused aaa Storage", "refused zzz Storage"));
    assert_eq!((listed.len(), &listed[6]), (8, &B1.to_owned()));
    for (reference, expected) in
        [(A2, A2), (B1, B1), ("app", A3), ("ab", A2), ("20261119T03", B1), ("app@2026-11-19", A1)]
    {
        assert_eq!(repository.resolve(reference).await.unwrap().path.id.as_str(), expected, "{reference}");
    }
    // It could be there.
    for reference in ["20261119T020000Z-aaaaaaaaaaaaaaab", "absent", "aaa"] {
        let error = repository.resolve(reference).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage, "{reference}: {error}");
    }
    let aaa: TargetName = "aaa".parse().unwrap();
    repository.list(Some(&aaa)).try_next().await.unwrap_err();

    assert_eq!(repository.resolve("latest").await.unwrap_err().kind(), ErrorKind::Config);
    std::fs::remove_dir_all(temp.path().join("repo/billing")).unwrap();
    assert_eq!(repository.resolve("latest").await.unwrap().path.id.as_str(), A3);
    std::fs::remove_dir_all(temp.path().join("repo/app")).unwrap();
    assert_eq!(repository.resolve("latest").await.unwrap_err().kind(), ErrorKind::Storage);
}

#[tokio::test]
async fn a_target_is_there_if_anything_of_it_is_or_if_nobody_may_look() {
    let temp = tempfile::tempdir().unwrap();
    let [_, repository] = repositories(&temp).await;
    let has = async |name: &str| repository.has_target(&name.parse().unwrap()).await.unwrap();
    put(&repository, &"archived/wal/7/00000001/x".into(), b"x".to_vec()).await;
    assert!(has("app").await && has("archived").await && !has("ap").await && !has("nobody").await);
    std::fs::create_dir(temp.path().join("repo/refused")).unwrap();
    std::os::unix::fs::symlink("backups", temp.path().join("repo/refused/backups")).unwrap();
    assert!(has("refused").await);
}
