//! Files of uploads into a local directory that were never completed.

use std::ffi::OsStr;
use std::fs::DirEntry;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use object_store::Result;

use super::blocking;
use crate::repository::layout::RUNNING;
use crate::repository::prune::Removed;

/// What a walk over a directory removed, and what it could not.
#[derive(Debug, Default)]
pub(in crate::repository) struct Swept {
    /// What is gone, or would be.
    pub(in crate::repository) removed: Removed,
    /// Files and folders, and why not.
    pub(in crate::repository) problems: Vec<(PathBuf, io::Error)>,
}

/// Removes files of uploads that were never completed, and that nothing was written to since `old_before`; none beside the mark of a run that is
/// younger. Folders that this user may not read are passed over: whoever may write there looks after them.
pub(in crate::repository) async fn sweep_staging(
    root: &FilePath,
    old_before: Timestamp,
    dry_run: bool,
) -> Result<Swept> {
    let mut sweep = Sweep { old_before, dry_run, swept: Swept::default(), folders: vec![root.to_owned()] };
    blocking(move || {
        while let Some(folder) = sweep.folders.pop() {
            match sweep.folder(&folder) {
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
                Err(e) => sweep.swept.problems.push((folder, e)),
                Ok(()) => {}
            }
        }
        Ok(sweep.swept)
    })
    .await
}

struct Sweep {
    old_before: Timestamp,
    dry_run: bool,
    swept: Swept,
    /// What is still to be looked at.
    folders: Vec<PathBuf>,
}

impl Sweep {
    fn folder(&mut self, folder: &FilePath) -> io::Result<()> {
        let alive = self.is_alive(folder);
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.folders.push(entry.path()),
                Ok(kind) if !alive && kind.is_file() && is_staged(&entry.file_name()) => match self.file(&entry) {
                    Ok(removed) => self.swept.removed += removed,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => self.swept.problems.push((entry.path(), e)),
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a run writes there: its volumes may wait for data for longer than anything.
    fn is_alive(&self, folder: &FilePath) -> bool {
        let mark = std::fs::metadata(folder.join(RUNNING));
        mark.and_then(|mark| mark.modified()).is_ok_and(|modified| self.is_young(modified))
    }

    /// One that cannot be told is not old.
    fn is_young(&self, modified: SystemTime) -> bool {
        Timestamp::try_from(modified).unwrap_or(Timestamp::MAX) > self.old_before
    }

    fn file(&self, entry: &DirEntry) -> io::Result<Removed> {
        let metadata = entry.metadata()?;
        if self.is_young(metadata.modified()?) {
            return Ok(Removed::default());
        }
        if !self.dry_run {
            std::fs::remove_file(entry.path())?;
        }
        Ok(Removed { objects: 1, bytes: metadata.len() })
    }
}

/// A name of `stage`, and of the file system's own store: it ends in `#` and digits.
fn is_staged(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.split_once('#')).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use object_store::path::Path;
    use object_store::{MultipartUpload, ObjectStoreExt};

    use super::super::settle;
    use super::super::tests::{files, store};
    use super::*;

    /// A file that nothing was written to for long, below a repository.
    fn stale(path: &FilePath) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "stale").unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }

    fn before() -> Timestamp {
        Timestamp::from_second(2000).unwrap()
    }

    #[tokio::test]
    async fn only_old_files_of_uploads_are_swept() {
        let (temp, store) = store();
        let (kept, alive) = (Path::from("app/wal/x.vol"), Path::from("app/backups/y.vol"));
        store.put(&kept, "x".into()).await.unwrap();
        let mut upload = store.put_multipart(&alive).await.unwrap();
        upload.put_part("part".into()).await.unwrap();
        let gone = temp.path().join("app/backups/z.vol#12");
        stale(&gone);
        std::fs::write(temp.path().join("app/backups/z#1x"), "none").unwrap();
        for dry_run in [true, false] {
            assert!(gone.exists(), "{dry_run}");
            let swept = sweep_staging(temp.path(), before(), dry_run).await.unwrap();
            assert_eq!(swept.removed, Removed { objects: 1, bytes: 5 });
        }
        assert!(!gone.exists());
        assert_eq!(sweep_staging(temp.path(), before(), false).await.unwrap().removed, Removed::default());
        upload.complete().await.unwrap();
        settle(temp.path(), &Path::from("app/gone/for/ever")).await.unwrap();
        let mut left = files(&temp);
        left.sort();
        assert_eq!(left, ["app/backups/y.vol", "app/backups/z#1x", "app/wal/x.vol"]);
    }

    #[tokio::test]
    async fn what_a_run_waits_with_is_left_to_it_while_it_is_alive() {
        let (temp, store) = store();
        let [waiting, other] =
            ["app/backups/x", "app/backups/y"].map(|folder| temp.path().join(folder).join("z.vol#1"));
        stale(&waiting);
        stale(&other);
        store.put(&Path::from("app/backups/x").join(RUNNING), "{}".into()).await.unwrap();
        let swept = sweep_staging(temp.path(), before(), false).await.unwrap();
        assert_eq!((swept.removed.objects, waiting.exists(), other.exists()), (1, true, false));
        stale(&waiting.with_file_name(RUNNING));
        assert_eq!(sweep_staging(temp.path(), before(), false).await.unwrap().removed.objects, 1);
        assert!(!waiting.exists());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_walked_is_a_problem_and_hides_no_other() {
        let (temp, _store) = store();
        for target in ["app", "other"] {
            stale(&temp.path().join(target).join("z.vol#1"));
        }
        // Deeper than a path can say: permissions do not stop root, but this does.
        let mut folder = File::open(temp.path().join("app")).unwrap();
        let name = "d".repeat(200);
        for _ in 0..25 {
            rustix::fs::mkdirat(&folder, &name, rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
            folder = rustix::fs::openat(&folder, &name, flags, rustix::fs::Mode::empty()).unwrap().into();
        }
        let swept = sweep_staging(temp.path(), before(), false).await.unwrap();
        assert_eq!(swept.removed, Removed { objects: 2, bytes: 10 });
        assert_eq!(swept.problems.len(), 1, "{:?}", swept.problems);
    }
}
