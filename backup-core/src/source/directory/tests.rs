use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::{Arc, Mutex};

use super::*;
use crate::ErrorKind;
use crate::source::files_index::{EntryKind, FileEntry};
use crate::source::tests::read_all;

type Warnings = Arc<Mutex<Vec<String>>>;

fn open(root: &Path) -> (DirectorySource, FilesIndexSource, Warnings) {
    let warnings = Warnings::default();
    let seen = Arc::clone(&warnings);
    let on_warning: WarningCallback = Box::new(move |warning| seen.lock().unwrap().push(warning.to_string()));
    let (tar, index) = DirectorySource::new(root, DirectoryOptions { on_warning: Some(on_warning) }).unwrap();
    (tar, index, warnings)
}

/// The tar stream, its index, and the warnings.
async fn read(root: &Path) -> (Vec<u8>, Vec<FileEntry>, Vec<String>) {
    let (mut tar, mut index, warnings) = open(root);
    let (tar, index) = tokio::join!(read_all(&mut tar, 100_000), read_all(&mut index, 10));
    let index = index.unwrap().concat();
    let entries = index.split_inclusive(|&b| b == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect();
    let warnings = warnings.lock().unwrap().clone();
    (tar.unwrap().concat(), entries, warnings)
}

fn paths(tar: &[u8]) -> Vec<Vec<u8>> {
    let mut archive = ::tar::Archive::new(tar);
    archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect()
}

#[tokio::test]
async fn a_tree_is_read_in_order_with_all_its_kinds() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("b/empty")).unwrap();
    fs::write(at("b/file"), "hello").unwrap();
    fs::hard_link(at("b/file"), at("b/hard")).unwrap();
    symlink("b/file", at("c-link")).unwrap();
    fs::write(at("a"), vec![7; 300_000]).unwrap();
    fs::set_permissions(at("a"), fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("d-fifo"), Mode::RWXU).unwrap();
    let (tar, index, warnings) = read(root.path()).await;

    let names = ["./", "a", "b/", "b/empty/", "b/file", "b/hard", "c-link"];
    assert_eq!(paths(&tar), names.map(|name| name.as_bytes().to_vec()));
    assert_eq!(warnings, ["d-fifo: is a pipe: left out"]);
    let kinds: Vec<_> = index.iter().map(|e| (e.path.as_str(), e.kind)).collect();
    use EntryKind::{Directory, File, HardLink, Symlink};
    assert_eq!(
        kinds,
        [
            ("", Directory),
            ("a", File),
            ("b", Directory),
            ("b/empty", Directory),
            ("b/file", File),
            ("b/hard", HardLink),
            ("c-link", Symlink)
        ]
    );
    for (path, contents) in [("a", vec![7; 300_000]), ("b/file", b"hello".to_vec())] {
        let entry = index.iter().find(|e| e.path == path).unwrap();
        let offset = usize::try_from(entry.offset).unwrap();
        assert_eq!(tar[offset..offset + contents.len()], contents, "{path}");
        assert_eq!(entry.size, contents.len() as u64);
    }
    assert_eq!(index[1].mode, 0o640);
    let modified = fs::metadata(at("a")).unwrap();
    assert_eq!(index[1].mtime_ns, i128::from(modified.mtime()) * 1_000_000_000 + i128::from(modified.mtime_nsec()));
    assert_eq!((read(root.path()).await.0 == tar, tar.len() % 512), (true, 0));
}

#[tokio::test]
async fn odd_names_survive() {
    let root = tempfile::tempdir().unwrap();
    let deep = ["d".repeat(90), "e".repeat(90), "f".repeat(90)].join("/");
    fs::create_dir_all(root.path().join(&deep)).unwrap();
    let mut expected = vec![b"new\nline".to_vec(), b"\xff\xfe".to_vec(), "ü 😀".as_bytes().to_vec()];
    expected.push("l".repeat(200).into_bytes());
    expected.push(format!("{deep}/{}", "x".repeat(255)).into_bytes());
    for name in &expected {
        fs::write(root.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    symlink("t".repeat(300), root.path().join("z-link")).unwrap();
    let (tar, index, warnings) = read(root.path()).await;
    assert!(warnings.is_empty());
    let mut archive = ::tar::Archive::new(tar.as_slice());
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type() == ::tar::EntryType::Symlink {
            assert_eq!(entry.link_name_bytes().unwrap().len(), 300);
        }
        if entry.header().entry_type() == ::tar::EntryType::Regular {
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            assert_eq!(entry.path_bytes(), contents);
            files.push(contents);
        }
    }
    expected.sort();
    files.sort();
    assert_eq!(files, expected);
    let lossy = index.iter().find(|entry| entry.path_base64.is_some()).unwrap();
    assert_eq!(lossy.path_base64.as_deref(), Some("//4="));
}

#[tokio::test]
async fn files_that_change_while_they_are_read_keep_their_first_size() {
    let root = tempfile::tempdir().unwrap();
    for name in ["grows", "shrinks"] {
        fs::write(root.path().join(name), vec![1; 200_000]).unwrap();
    }
    let (mut tar, index, warnings) = open(root.path());
    drop(index);
    // The first buffer ends inside of the first file, the second inside of the other.
    let mut pieces = Vec::new();
    let pool = crate::pipeline::BufferPool::new(102_400);
    while let Some(Piece::Buffer(piece)) = tar.next(pool.lease()).await.unwrap() {
        pieces.extend_from_slice(piece.filled());
        match pieces.len() {
            102_400 => fs::write(root.path().join("grows"), vec![1; 300_000]).unwrap(),
            307_200 => File::options().write(true).open(root.path().join("shrinks")).unwrap().set_len(120_000).unwrap(),
            _ => {}
        }
    }
    let mut archive = ::tar::Archive::new(pieces.as_slice());
    let sizes: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().size()).collect();
    assert_eq!(sizes, [0, 200_000, 200_000]);
    assert_eq!(*warnings.lock().unwrap(), ["shrinks: shrank while it was read: 80000 bytes at its end are zeros"]);
}

#[tokio::test]
async fn what_vanishes_is_left_out_with_a_warning() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), vec![1; 5000]).unwrap();
    fs::write(root.path().join("b"), "x").unwrap();
    fs::create_dir(root.path().join("c")).unwrap();
    let (mut tar, _index, warnings) = open(root.path());
    let pool = crate::pipeline::BufferPool::new(2048);
    let first = tar.next(pool.lease()).await.unwrap();
    assert!(first.is_some());
    fs::remove_file(root.path().join("b")).unwrap();
    fs::remove_dir(root.path().join("c")).unwrap();
    read_all(&mut tar, 2048).await.unwrap();
    let expected = ["b", "c"].map(|name| format!("{name}: vanished while the directory was read: left out"));
    assert_eq!(*warnings.lock().unwrap(), expected);
}

#[tokio::test]
async fn an_index_of_a_walk_that_was_given_up_does_not_end() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), vec![1; 50_000]).unwrap();
    let (mut tar, mut index, _) = open(root.path());
    tar.next(crate::pipeline::BufferPool::new(2048).lease()).await.unwrap();
    drop(tar);
    assert_eq!(read_all(&mut index, 64).await.unwrap_err().kind(), ErrorKind::Source);
}

#[tokio::test]
async fn both_streams_flow_when_the_index_is_much_longer_than_its_channel() {
    let root = tempfile::tempdir().unwrap();
    for n in 0..5000 {
        File::create(root.path().join(format!("{n:05}"))).unwrap();
    }
    let (tar, index, _) = read(root.path()).await;
    assert_eq!((paths(&tar).len(), index.len()), (5001, 5001));
}

#[test]
fn a_missing_directory_is_said() {
    let error = DirectorySource::new("/nowhere", DirectoryOptions::default()).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Config, "cannot open /nowhere"));
}
