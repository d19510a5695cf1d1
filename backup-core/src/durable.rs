//! Files and directories that survive a crash, for what this library writes outside object stores.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Makes `dir` and what is missing above it, each with mode 0700, and makes their names durable. Blocks.
pub(crate) fn create_private_dir(dir: &Path) -> io::Result<()> {
    create_dir(dir, 0o700)
}

/// Makes `dir` and what is missing above it, each with `mode` less the umask, and makes their names durable. Blocks.
pub(crate) fn create_dir(dir: &Path, mode: u32) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let missing: Vec<PathBuf> = dir.ancestors().take_while(|p| !p.exists()).map(Path::to_owned).collect();
    DirBuilder::new().recursive(true).mode(mode).create(&dir)?;
    for made in missing {
        sync_parent(&made)?;
    }
    Ok(())
}

/// Writes a file that must not exist yet, readable by its owner only, and makes it durable. Blocks.
pub(crate) fn create_private_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    if let Some(parent) = path.parent() {
        create_private_dir(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all()).and_then(|()| sync_parent(&path));
    if written.is_err() {
        // Half a file would be in the way of the next attempt. What matters is why it could not be written.
        let _ = fs::remove_file(&path);
    }
    written
}

/// Gives the file `from` the name `to`, unless something has that name, and makes it durable. Blocks.
///
/// Whatever comes of it, the name `from` is given up; after an error there is no file of ours under either name.
pub(crate) fn publish_new(from: &Path, to: &Path) -> io::Result<()> {
    rename_new(from, to).inspect_err(|_| drop(fs::remove_file(from)))?;
    sync_parent(to).inspect_err(|_| drop(fs::remove_file(to)))
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS and older file systems do not know the flag.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_new(from, to),
        renamed => Ok(renamed?),
    }
}

/// A link does not replace what is there either.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from).inspect_err(|_| drop(fs::remove_file(to)))
}

/// Makes a change of the name `path` durable. Blocks.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_published_replaces_nothing() {
        type Publish = fn(&Path, &Path) -> io::Result<()>;
        for publish in [publish_new as Publish, link_new] {
            let temp = tempfile::tempdir().unwrap();
            let [from, to] = ["from", "to"].map(|name| temp.path().join(name));
            fs::write(&from, "first").unwrap();
            publish(&from, &to).unwrap();
            assert!(!from.exists());

            fs::write(&from, "second").unwrap();
            assert_eq!(publish(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&to).unwrap(), b"first");
        }
    }

    #[test]
    fn what_is_not_published_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let from = temp.path().join("from");
        fs::write(&from, "x").unwrap();
        publish_new(&from, &temp.path().join("missing/to")).unwrap_err();
        assert!(!from.exists());
    }

    #[test]
    fn private_files_are_new_and_private_and_so_are_their_directories() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b/key");
        create_private_file(&path, b"secret").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&temp.path().join("a")), mode(&temp.path().join("a/b"))), (0o600, 0o700, 0o700));

        let again = create_private_file(&path, b"other").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"secret", "the first one is untouched");
    }
}
