use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tar::{Builder, EntryType, Header};

use super::*;
use crate::ErrorKind;
use crate::source::{DirectoryOptions, DirectorySource, tests::read_all};

async fn unpack(tar: &[u8], to: &Path) -> Result<()> {
    let mut sink = DirectorySink::create(to)?;
    let written = async {
        for piece in tar.chunks(1000) {
            sink.write(Bytes::copy_from_slice(piece)).await?;
        }
        Ok(())
    };
    match written.await {
        Ok(()) => sink.finish().await,
        Err(error) => sink.abort().await.and(Err(error)),
    }
}

/// A tar stream of `(kind, path, link)`; the names go into the headers as they are.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, link) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1);
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(if *kind == EntryType::Regular { 4 } else { 0 });
        header.set_cksum();
        builder.append(&header, &b"evil"[..if *kind == EntryType::Regular { 4 } else { 0 }]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn a_directory_comes_back_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("x/to"));
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::write(from.join("sub/file"), vec![3; 700_000]).unwrap();
    fs::write(from.join("sub/read-only"), "r").unwrap();
    for (name, seconds) in [("before-1970", -5), ("after-2242", 0o100_000_000_000)] {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(File::create(from.join(name)).unwrap(), &times).unwrap();
    }
    assert_eq!(from.join("before-1970").metadata().unwrap().mtime(), -5);
    fs::hard_link(from.join("sub/file"), from.join("zhard")).unwrap();
    symlink("/etc/passwd", from.join("link")).unwrap();
    fs::write(from.join("n".repeat(180)), "long").unwrap();
    fs::set_permissions(from.join("sub/read-only"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o550)).unwrap();
    let (mut tar, index) = DirectorySource::new(&from, DirectoryOptions::default()).unwrap();
    drop(index);
    let tar = read_all(&mut tar, 4096).await.unwrap().concat();
    unpack(&tar, &to).await.unwrap();

    let plain = ["before-1970", "after-2242", "sub/file", "sub/read-only", "sub/empty", "sub", "zhard", "link", ""];
    for name in plain.into_iter().chain([&*"n".repeat(180)]) {
        let [old, new] = [&from, &to].map(|root| root.join(name).symlink_metadata().unwrap());
        assert_eq!((old.mode(), old.mtime(), old.uid()), (new.mode(), new.mtime(), new.uid()), "{name}");
        if old.is_file() {
            assert_eq!(fs::read(from.join(name)).unwrap(), fs::read(to.join(name)).unwrap(), "{name}");
        }
    }
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(to.join("zhard")).unwrap().ino(), fs::metadata(to.join("sub/file")).unwrap().ino());
    assert!(!to.join(MARKER).exists());
    fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(to.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
}

#[tokio::test]
async fn no_entry_gets_out() {
    use EntryType::{Link, Regular, Symlink};
    let root = tempfile::tempdir().unwrap();
    let outside = root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "good").unwrap();
    let absolute = outside.join("evil").to_str().unwrap().to_owned();
    for entries in [
        &[(Regular, "../outside/evil", "")][..],
        &[(Regular, "a/../../outside/evil", "")],
        &[(Regular, &absolute, "")],
        &[(Symlink, "l", "../outside"), (Regular, "l/evil", "")],
        &[(Symlink, "l", "../outside/file"), (Regular, "l", "")],
        &[(Symlink, "l", "../outside"), (EntryType::Directory, "l", "")],
        &[(Link, "l", "../outside/file")],
        &[(Symlink, "l", "../outside"), (Link, "m", "l/file")],
        &[(Regular, MARKER, "")],
    ] {
        let to = root.path().join("to");
        let error = unpack(&archive(entries), &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Sink, "{entries:?}");
        assert!(!to.exists(), "{entries:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"good");
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("to");
    let tar = archive(&[(EntryType::Regular, "a", ""), (EntryType::Regular, "b", "")]);
    for len in [0, 300, 512, 600, 1024, 2048] {
        let error = unpack(&tar[..len], &to).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Sink && !to.exists(), "{len}: {error:?}");
    }
    unpack(&tar, &to).await.unwrap();
    assert_eq!(fs::read_dir(&to).unwrap().count(), 2);
}

#[tokio::test]
async fn a_marker_stands_until_the_end() {
    let root = tempfile::tempdir().unwrap();
    let tar = archive(&[(EntryType::Directory, "d", ""), (EntryType::Regular, "d/a", "")]);
    let mut sink = DirectorySink::create(root.path()).unwrap();
    sink.write(Bytes::from(tar)).await.unwrap();
    assert!(root.path().join(MARKER).exists());
    let error = DirectorySink::create(root.path()).unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.hint().unwrap().contains("earlier restore"));
    sink.abort().await.unwrap();
    // It was there before, so it stays; empty.
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_left_out_is_told_to_the_caller() {
    use std::sync::{Arc, Mutex};
    let root = tempfile::tempdir().unwrap();
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&warnings);
    let on_warning: WarningCallback = Box::new(move |warning| seen.lock().unwrap().push(warning.to_string()));
    let mut sink = DirectorySink::create_with(root.path(), on_warning).unwrap();
    let tar = archive(&[(EntryType::Fifo, "a", ""), (EntryType::Block, "b", ""), (EntryType::new(b'Z'), "c", "")]);
    sink.write(Bytes::from(tar)).await.unwrap();
    sink.finish().await.unwrap();
    let expected = ["a: is a pipe: left out", "b: is a device: left out", "c: is of an unknown kind, 'Z': left out"];
    assert_eq!(*warnings.lock().unwrap(), expected);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn aborting_what_could_not_be_finished_is_no_second_failure() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("to");
    let mut sink = DirectorySink::create(&to).unwrap();
    sink.write(Bytes::from_static(&[1; 600])).await.unwrap();
    assert!(sink.finish().await.unwrap_err().cleanup().is_none());
    // Somebody else's by now.
    fs::create_dir(&to).unwrap();
    fs::write(to.join("theirs"), "").unwrap();
    sink.abort().await.unwrap();
    assert!(to.join("theirs").exists());
}
