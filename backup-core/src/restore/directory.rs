//! A tar stream unpacked into a directory: the sink of `restore --to DIR`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Sink;
use super::worker::{Worker, sink_error};
use crate::durable;
use crate::error::{Error, Result};
use crate::source::{DirectoryWarning, WarningCallback};

mod extract;

/// Stands in a directory until its restore is complete.
pub const MARKER: &str = ".backup-restore-incomplete";

const MARKER_TEXT: &str =
    "A restore into this directory has begun and has not been completed. What is here is not whole.\n";

/// Unpacks a tar stream into a directory that was empty or did not exist.
///
/// Until [`finish`](Sink::finish) has written everything to disk, the file [`MARKER`] says that the directory is incomplete.
/// [`abort`](Sink::abort) removes what was written; a sink that is only dropped leaves it, with the marker.
///
/// No entry gets out of the directory: no path with `..` or a root is taken, links are never followed, and nothing that exists is
/// overwritten. Owners are restored for root only; pipes and devices are left out with a
/// warning.
#[derive(Debug)]
pub struct DirectorySink {
    worker: Worker,
    path: PathBuf,
    /// Whether the directory was made by us.
    created: bool,
    /// Whether there is nothing left to do: what is there is complete, or was removed.
    settled: bool,
}

impl DirectorySink {
    /// Takes the directory, and creates it, readable by its owner only, if it does not exist. Warnings are logged.
    ///
    /// # Errors
    /// As [`create_with`](Self::create_with).
    pub fn create(path: &Path) -> Result<Self> {
        let log = |DirectoryWarning { path, what }: DirectoryWarning| tracing::warn!(path = %path.display(), "{what}");
        Self::create_with(path, Box::new(log))
    }

    /// The same, with a receiver for what is told of single entries that are left out.
    ///
    /// # Errors
    /// `Config` when it is not empty, `Sink` when it cannot be written to.
    pub fn create_with(path: &Path, on_warning: WarningCallback) -> Result<Self> {
        let cannot = |e: io::Error| sink_error(format!("cannot create {}", path.display()), e);
        let created = create_directory(path).map_err(cannot)?;
        if !created {
            let mut entries =
                fs::read_dir(path).map_err(|e| sink_error(format!("cannot read {}", path.display()), e))?;
            if entries.next().is_some() {
                return Err(not_empty(path));
            }
        }
        let root = File::open(path).map_err(cannot)?;
        let marker = path.join(MARKER);
        File::create_new(&marker)
            .and_then(|mut file| io::Write::write_all(&mut file, MARKER_TEXT.as_bytes()))
            .map_err(|e| sink_error(format!("cannot create {}", marker.display()), e))?;
        let worker = Worker::spawn(move |incoming| extract::unpack(incoming, root.into(), on_warning))?;
        Ok(Self { worker, path: path.to_owned(), created, settled: false })
    }

    async fn remove(&mut self) -> Result<()> {
        if self.settled {
            return Ok(());
        }
        self.worker.abort().await;
        let (path, created) = (self.path.clone(), self.created);
        let removed = tokio::task::spawn_blocking(move || remove_contents(&path, created)).await;
        removed.unwrap_or_else(|e| Err(e.into())).map_err(|e| {
            sink_error(format!("cannot remove all of what was restored to {}", self.path.display()), e)
                .with_hint(format!("it is incomplete, as {MARKER} says there: remove it"))
        })?;
        self.settled = true;
        Ok(())
    }
}

impl Sink for DirectorySink {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>> {
        self.worker.write(data).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        async {
            let Err(error) = self.worker.finish().await else {
                self.settled = true;
                return Ok(());
            };
            Err(match self.remove().await {
                Ok(()) => error,
                Err(cleanup) => error.with_cleanup(cleanup),
            })
        }
        .boxed()
    }

    fn abort(&mut self) -> BoxFuture<'_, Result<()>> {
        self.remove().boxed()
    }
}

fn create_directory(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        durable::create_private_dir(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// The marker goes last, so that what cannot be removed stays marked.
fn remove_contents(path: &Path, with_directory: bool) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_file(path.join(MARKER)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if with_directory { fs::remove_dir(path) } else { Ok(()) }
}

fn not_empty(path: &Path) -> Error {
    let error = Error::config(format!("{} is not empty", path.display()));
    if path.join(MARKER).exists() {
        return error.with_hint("an earlier restore into it was not completed: remove the directory first");
    }
    error.with_hint("restore into a new or an empty directory")
}

#[cfg(test)]
mod tests;
