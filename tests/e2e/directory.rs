//! `save --directory` and `restore --to`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use backup_tests::data::Data;
use backup_tests::host::Host;

use crate::BACKUP;

/// What a backup has to keep of a file.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    mode: u32,
    owner: (u32, u32),
    modified: i64,
    contents: Contents,
}

#[derive(Debug, PartialEq, Eq)]
enum Contents {
    Directory,
    Symlink(PathBuf),
    File {
        len: u64,
        hash: blake3::Hash,
    },
    /// Another name of this file.
    HardLink(PathBuf),
}

/// Everything below `root`, by paths from there.
fn tree(root: &Path) -> BTreeMap<PathBuf, Kept> {
    let (mut kept, mut seen) = (BTreeMap::new(), BTreeMap::new());
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let contents = if metadata.is_dir() {
            let mut entries: Vec<PathBuf> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
            entries.sort_by(|a, b| b.cmp(a));
            paths.extend(entries);
            Contents::Directory
        } else if metadata.is_symlink() {
            Contents::Symlink(fs::read_link(&path).unwrap())
        } else if let Some(first) = seen.insert(metadata.ino(), name.clone()) {
            Contents::HardLink(first)
        } else {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(File::open(&path).unwrap()).unwrap();
            Contents::File { len: metadata.len(), hash: hasher.finalize() }
        };
        let mode = if metadata.is_symlink() { 0 } else { metadata.mode() & 0o7777 };
        let owner = (metadata.uid(), metadata.gid());
        kept.insert(name, Kept { mode, owner, modified: metadata.mtime(), contents });
    }
    kept
}

/// A tree with all that makes trees hard.
fn make_tree(root: &Path) {
    let deep = root.join("a-directory-with-a-rather-long-name/".repeat(8));
    for directory in [&root.join("empty"), &root.join("closed"), &deep] {
        fs::create_dir_all(directory).unwrap();
    }
    let name = |bytes: &[u8]| root.join(OsStr::from_bytes(bytes));
    for (path, bytes) in [
        (root.join("empty-file"), Vec::new()),
        (root.join("one-byte"), vec![b'x']),
        (root.join("one-block"), vec![b'x'; 512]),
        (root.join("large"), Data::random(5_000_001, "large").to_vec()),
        (name(&[b'n'; 255]), b"a name of 255 bytes".to_vec()),
        (name(b"not \xff\xfe UTF-8"), b"bytes".to_vec()),
        (name("Zo\u{eb} M\u{fc}ller".as_bytes()), b"letters".to_vec()),
        (name(b"-rf *\n'\"\\ name"), b"signs".to_vec()),
        (deep.join("d".repeat(120)), b"deep".to_vec()),
        (root.join("closed/file"), b"in a directory that nobody may write to".to_vec()),
    ] {
        fs::write(path, bytes).unwrap();
    }
    File::create(root.join("sparse")).unwrap().set_len(64 << 20).unwrap();
    fs::hard_link(root.join("large"), root.join("large-again")).unwrap();
    fs::hard_link(root.join("large"), root.join("empty/and-again")).unwrap();
    symlink("large", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    symlink("../".repeat(60), root.join("empty/long-link")).unwrap();
    symlink("empty", root.join("link-to-directory")).unwrap();
    for (path, mode) in [("one-byte", 0o400), ("one-block", 0o755), ("large", 0o666), ("closed", 0o500)] {
        fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
    }
    let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
    for path in ["large", "empty", "."] {
        File::open(root.join(path)).unwrap().set_times(old).unwrap();
    }
}

#[test]
fn a_directory_comes_back_with_links_long_names_modes_and_times() {
    let host = Host::initialised(BACKUP);
    let (from, to) = (host.path("from"), host.path("to"));
    make_tree(&from);
    if rustix::process::geteuid().is_root() {
        // What only root can give back.
        std::os::unix::fs::chown(from.join("one-block"), Some(4711), Some(4712)).unwrap();
        fs::set_permissions(from.join("one-block"), Permissions::from_mode(0o6755)).unwrap();
        std::os::unix::fs::lchown(from.join("dangling"), Some(4711), Some(4712)).unwrap();
    }
    let id = host.backup(["save", "tree", "--directory"]).args([&from]).run().id();
    host.backup(["restore", &id, "--to"]).args([&to]).run().succeeded();
    let (was, is) = (tree(&from), tree(&to));
    for (path, kept) in &was {
        assert_eq!(is.get(path), Some(kept), "{}", path.display());
    }
    assert_eq!(was.len(), is.len(), "{:?}", is.keys());

    host.backup(["restore", &id, "--to"]).args([&to]).run().failed(2).saying("empty");
    assert_eq!(tree(&to), is, "what exists was not touched");
    let listing = host.backup(["restore", &id, "--stream", "files", "--to-stdout"]).run().succeeded();
    assert_eq!(listing.text().lines().count(), was.len());
}

#[test]
fn ordinary_tar_reads_the_stream() {
    let host = Host::initialised(BACKUP);
    let from = host.path("from");
    make_tree(&from);
    host.backup(["save", "tree", "--directory"]).args([&from]).run().id();
    fs::create_dir(host.path("to")).unwrap();
    host.shell("\"$BACKUP\" restore tree --to-stdout | tar -xpf - -C to").run().succeeded();
    assert_eq!(tree(&from), tree(&host.path("to")));
}

#[test]
fn what_cannot_be_kept_is_a_warning_and_named() {
    let host = Host::initialised(BACKUP);
    host.write("from/file", "x");
    let made = std::process::Command::new("mkfifo").arg(host.path("from/pipe")).status().unwrap();
    assert!(made.success());
    let outcome = host.backup(["save", "tree", "--directory"]).args([host.path("from")]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    let id = outcome.saying("warning: ").text().trim_end().to_owned();
    let show = host.backup(["show", &id, "--json"]).run().json();
    assert_eq!(show["backup"]["warnings"], 1);
    assert!(show["details"]["warnings"][0].as_str().expect("a warning").contains("pipe"), "{show}");
    host.backup(["restore", &id, "--to"]).args([host.path("to")]).run().succeeded();
    assert_eq!(backup_tests::host::files_below(&host.path("to")), ["file"]);
}

#[test]
fn a_directory_that_cannot_be_read_makes_no_backup() {
    let host = Host::initialised(BACKUP);
    host.write("file", "x");
    for path in ["nowhere", "file"] {
        host.backup(["save", "tree", "--directory"]).args([host.path(path)]).run().failed(2).saying(path);
    }
    let secret = host.write("from/deeper/secret", "x");
    let to_read = |path: &Path| {
        let run = host.without_override(["save", "tree", "--directory"]).args([host.path("from")]).run();
        run.failed(1).saying(&format!("cannot open {}", path.display())).hinting("user who may read it")
    };
    for path in [&secret, &host.path("from")] {
        host.forbid(path);
        to_read(path);
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(host.stored(), [] as [&str; 0]);
}
