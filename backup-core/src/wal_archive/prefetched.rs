//! Segments that were fetched before they were asked for. They wait in a folder of ours in `pg_wal`, never under a name that PostgreSQL
//! would take for its own:
//!
//! ```text
//! pg_wal/.backup/prefetch/<repository id>.<system identifier>.<target>/<segment>.<BLAKE3 of it>
//! ```
//!
//! They are not made durable before they are taken. A crash may have eaten their contents, so these are compared with the name first.
//! Everything here blocks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock, statvfs};

use super::OWN_FOLDER;
use super::local_file::is_segment_of;
use super::unseal::digest_of;
use crate::encrypt::random;
use crate::postgres::wal::{SegmentName, SegmentSize};
use crate::repository::Repository;
use crate::repository::layout::WalPath;

const PREFETCH: &str = "prefetch";
const LOCK: &str = "lock";
/// The end of a temporary file's name, before its random part.
const TEMPORARY: &str = ".tmp-";
/// What is older was left behind: recovery ended, or another repository is used now.
const AGE_MAX: Duration = Duration::from_secs(600);
/// Space that is left free on the disk beside what is fetched, in segments.
const SEGMENTS_FREE: u64 = 16;

/// The segments of one archive that wait in one `pg_wal`.
#[derive(Debug, Clone)]
pub(super) struct Prefetched {
    pg_wal: PathBuf,
    folder: PathBuf,
    archive: WalPath,
}

/// Held by who fetches ahead: one at a time.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "holding it is what it is for")] File);

/// A file that goes away unless it gets its name.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) file: Arc<File>,
    path: Option<PathBuf>,
}

impl Prefetched {
    /// For segments that are asked for at `to`.
    pub(super) fn beside(to: &Path, repository: &Repository, archive: &WalPath) -> Self {
        let pg_wal = folder_of(to);
        let name = format!("{}.{}.{}", repository.id(), archive.system_identifier, archive.target);
        let folder = pg_wal.join(OWN_FOLDER).join(PREFETCH).join(name);
        Self { pg_wal, folder, archive: archive.clone() }
    }

    /// The folder in which it all lies.
    pub(super) fn pg_wal(&self) -> &Path {
        &self.pg_wal
    }

    /// The file that waits for `segment`, if one does.
    pub(super) fn find(&self, segment: SegmentName) -> Option<PathBuf> {
        let begins = format!("{segment}.");
        let whole = |name: &str| name.len() == begins.len() + 64 && name.starts_with(&begins);
        let mut entries = fs::read_dir(&self.folder).ok()?.flatten();
        entries.find(|entry| entry.file_name().to_str().is_some_and(whole)).map(|entry| entry.path())
    }

    /// Gives the waiting `segment` the name `to`, durably, if it is whole; one that is not is removed.
    pub(super) fn take(&self, segment: SegmentName, to: &Path) -> io::Result<bool> {
        let Some(path) = self.find(segment) else { return Ok(false) };
        let digest = path.extension().and_then(|hex| HEXLOWER.decode(hex.as_encoded_bytes()).ok());
        let file = File::open(&path)?;
        let whole =
            is_segment_of(&path, segment, self.archive.system_identifier) && Some(digest_of(&file)?.to_vec()) == digest;
        if !whole {
            fs::remove_file(&path)?;
            return Ok(false);
        }
        file.sync_all()?;
        fs::rename(&path, to)?;
        crate::durable::sync_parent(&absolute(to)?)?;
        Ok(true)
    }

    /// Who may fetch ahead now; `None` while another does, or where nothing can be written.
    pub(super) fn lock(&self) -> Option<Lock> {
        crate::durable::create_private_dir(&self.folder).ok()?;
        let path = self.folder.parent()?.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Lock(file))
    }

    /// Whether the disk has room for a segment of `size`, and for what PostgreSQL may need meanwhile.
    pub(super) fn has_room(&self, size: SegmentSize) -> bool {
        statvfs(&self.pg_wal).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) / size.bytes() > SEGMENTS_FREE)
    }

    /// A new file for a segment that is about to be fetched.
    pub(super) fn begin(&self, segment: SegmentName) -> io::Result<Temporary> {
        Temporary::create(&self.folder.join(segment.to_string()))
    }

    /// Lets a complete file wait for `segment`.
    pub(super) fn keep(&self, segment: SegmentName, file: Temporary, digest: &[u8; 32]) -> io::Result<()> {
        file.rename(&self.folder.join(format!("{segment}.{}", HEXLOWER.encode(digest))))
    }

    /// Removes what lies up to `segment`, which is in its place: recovery reads forward.
    pub(super) fn forget_up_to(&self, segment: SegmentName) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let waits = name.to_str().and_then(|name| name.split_once('.')).map(|(waits, _)| waits);
            // Not what is being fetched: such names begin with a dot.
            if waits.is_some_and(|waits| !waits.is_empty() && waits <= segment.to_string().as_str()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Temporary {
    /// A new file beside `target`, under a name of its own.
    pub(super) fn create(target: &Path) -> io::Result<Self> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(TEMPORARY);
        name.push(HEXLOWER.encode(&random::bytes::<8>()));
        let path = target.with_file_name(name);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file: Arc::new(file), path: Some(path) })
    }

    /// Gives it its name, in the place of what had it.
    pub(super) fn rename(mut self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, to)?;
        }
        self.path = None;
        Ok(())
    }

    /// The same, durably.
    pub(super) fn publish(self, to: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.rename(to)?;
        crate::durable::sync_parent(&absolute(to)?)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes what was left behind in `pg_wal`: segments that nobody took, and temporary files of commands that were killed.
pub(super) fn tidy(pg_wal: &Path, now: Timestamp) {
    remove_old_temporaries(pg_wal, now);
    let root = pg_wal.join(OWN_FOLDER).join(PREFETCH);
    let Ok(folders) = fs::read_dir(&root) else { return };
    for folder in folders.flatten().filter(|entry| entry.path().is_dir()) {
        let Ok(entries) = fs::read_dir(folder.path()) else { continue };
        for entry in entries.flatten() {
            if is_old(&entry, now) {
                let _ = fs::remove_file(entry.path());
            }
        }
        // Fails while something is in it.
        let _ = fs::remove_dir(folder.path());
    }
}

fn remove_old_temporaries(pg_wal: &Path, now: Timestamp) {
    let Ok(entries) = fs::read_dir(pg_wal) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with('.') && name.contains(TEMPORARY));
        if ours && is_old(&entry, now) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_old(entry: &fs::DirEntry, now: Timestamp) -> bool {
    let changed: io::Result<SystemTime> = entry.metadata().and_then(|metadata| metadata.modified());
    let changed = changed.ok().and_then(|time| Timestamp::try_from(time).ok());
    changed.is_some_and(|changed| now.duration_since(changed).unsigned_abs() > AGE_MAX)
}

/// The folder that a path leads into.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}
