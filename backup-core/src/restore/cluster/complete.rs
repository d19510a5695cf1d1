//! From restored files to a cluster: settings, links, permissions, and then everything to disk.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::destination::Destination;
use super::extract::{PG_CONTROL, PG_CONTROL_ASIDE, PG_TBLSPC, PG_VERSION, Shared};
use super::layout::BACKUP_MANIFEST;
use crate::error::{Error, Result};
use crate::postgres::recovery::Recovery;
use crate::restore::worker::sink_error;

const AUTO_CONF: &str = "postgresql.auto.conf";
/// Left of the standby, or of the restore, that was backed up.
const SIGNALS: [&str; 2] = ["recovery.signal", "standby.signal"];
/// What servers write themselves is shorter by far.
const AUTO_CONF_LEN_MAX: u64 = 16 << 20;

/// Completes what was restored. Until this has returned, the directories are marked, and no server starts in them. Blocks.
pub(super) fn complete(destination: &Destination, shared: &Shared, recovery: &Recovery) -> Result<()> {
    let data = destination.data();
    configure(data, shared, recovery)?;
    for (oid, location) in destination.tablespaces() {
        let link = data.join(PG_TBLSPC).join(oid.to_string());
        symlink(&location, &link).map_err(sink_error_of(&link))?;
        shared.ownership.apply_path(&link).map_err(io::Error::from).map_err(sink_error_of(&link))?;
    }
    mark_as_archived(data, shared)?;
    own(&data.join(BACKUP_MANIFEST), shared)?;
    for place in destination.places() {
        for directory in place.made_above() {
            shared.ownership.apply_path(directory).map_err(io::Error::from).map_err(sink_error_of(directory))?;
        }
        let mode = if shared.group_access() { 0o750 } else { 0o700 };
        fs::set_permissions(place.path(), Permissions::from_mode(mode)).map_err(sink_error_of(place.path()))?;
        shared.ownership.apply(place.fd()).map_err(io::Error::from).map_err(sink_error_of(place.path()))?;
    }
    // A backup in which its tablespace was dropped has no entry for the directory.
    for oid in destination.in_place() {
        own_in_place(&data.join(PG_TBLSPC).join(oid.to_string()), shared)?;
    }
    destination.sync()?;

    let control = data.join(PG_CONTROL);
    fs::rename(data.join(PG_CONTROL_ASIDE), &control).map_err(sink_error_of(&control))?;
    crate::durable::sync_parent(&control).map_err(sink_error_of(&control))?;
    for place in destination.places() {
        place.complete().map_err(sink_error_of(place.path()))?;
    }
    Ok(())
}

/// Gives the directory of a tablespace in place to the owner of all, if there is one.
fn own_in_place(path: &Path, shared: &Shared) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = if shared.group_access() { 0o750 } else { 0o700 };
    let done = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).and_then(|()| shared.ownership.apply(&fd)),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    };
    done.map_err(io::Error::from).map_err(sink_error_of(path))
}

/// Settings and signal file, in the place of what the backed up server had.
fn configure(data: &Path, shared: &Shared, recovery: &Recovery) -> Result<()> {
    let path = data.join(AUTO_CONF);
    let old = match fs::metadata(&path) {
        Ok(metadata) if metadata.len() > AUTO_CONF_LEN_MAX => {
            return Err(Error::config(format!("{AUTO_CONF} in the backup has {} bytes", metadata.len())));
        }
        Ok(_) => fs::read(&path).map_err(sink_error_of(&path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(sink_error_of(&path)(e)),
    };
    let version = fs::read_to_string(data.join(PG_VERSION)).ok();
    let server_major = version.and_then(|version| version.trim().parse().ok());
    let new = Recovery { server_major, ..recovery.clone() }.write_into(&old)?;
    if new != old {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(&new)).map_err(sink_error_of(&path))?;
        own(&path, shared)?;
    }
    for name in SIGNALS {
        let path = data.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(sink_error_of(&path)(e)),
            _ => {}
        }
        if recovery.signal() == Some(name) {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(sink_error_of(&path))?;
            own(&path, shared)?;
        }
    }
    Ok(())
}

/// The log that came with the backup is not to be archived once more, as little as that of `pg_basebackup` is.
fn mark_as_archived(data: &Path, shared: &Shared) -> Result<()> {
    let segments = shared.segments.names();
    if segments.is_empty() {
        return Ok(());
    }
    let directory = data.join("pg_wal/archive_status");
    match fs::create_dir(&directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(sink_error_of(&directory)(e)),
        Err(_) => {}
        Ok(()) => {
            let mode = if shared.group_access() { 0o750 } else { 0o700 };
            fs::set_permissions(&directory, Permissions::from_mode(mode)).map_err(sink_error_of(&directory))?;
            shared.ownership.apply_path(&directory).map_err(io::Error::from).map_err(sink_error_of(&directory))?;
        }
    }
    for name in segments {
        let path = directory.join(format!("{name}.done"));
        let done = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        done.map_err(sink_error_of(&path))?;
    }
    own_files_in(&data.join("pg_wal"), shared)?;
    own_files_in(&directory, shared)
}

fn own_files_in(directory: &Path, shared: &Shared) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(sink_error_of(directory))? {
        let entry = entry.map_err(sink_error_of(directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            own(&entry.path(), shared)?;
        }
    }
    Ok(())
}

/// Gives a file of ours to the owner of the others, with their permissions.
fn own(path: &Path, shared: &Shared) -> Result<()> {
    let mode = if shared.group_access() { 0o640 } else { 0o600 };
    let done = File::open(path).and_then(|file| {
        file.set_permissions(Permissions::from_mode(mode))?;
        Ok(shared.ownership.apply(&file.into())?)
    });
    done.map_err(sink_error_of(path))
}

fn sink_error_of(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let message = format!("cannot write {}", path.display());
    move |e| sink_error(message.clone(), e)
}
