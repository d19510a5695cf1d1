//! A sink that is one file in a directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Sink;
use super::worker::{Incoming, Worker, sink_error};
use crate::durable;
use crate::encrypt::random;
use crate::error::{Error, Result};

/// Writes the stream to a file that has its name only once it is complete and on disk.
#[derive(Debug)]
pub struct FileSink {
    worker: Worker,
    partial: PathBuf,
}

impl FileSink {
    /// Makes the file `name` in `directory`, which is created if it does not exist. Both are readable by their owner only: what was
    /// encrypted in the repository is not here.
    ///
    /// # Errors
    /// `Config` when the file exists, `Sink` when nothing can be written there.
    pub fn create(directory: &Path, name: &str) -> Result<Self> {
        if name.is_empty() || name.contains('/') {
            return Err(Error::config("the name of a restored file must be a plain file name"));
        }
        let target = directory.join(name);
        if target.symlink_metadata().is_ok() {
            return Err(exists(&target));
        }
        durable::create_private_dir(directory)
            .map_err(|e| sink_error(format!("cannot create {}", directory.display()), e))?;
        let unique = HEXLOWER.encode(&random::bytes::<4>());
        let partial = directory.join(format!(".{name}.{unique}.partial"));
        let cannot_create = |e| sink_error(format!("cannot create {}", partial.display()), e);
        let mut new = OpenOptions::new();
        let file = new.write(true).create_new(true).mode(0o600).open(&partial).map_err(cannot_create)?;
        let from = partial.clone();
        let worker = Worker::spawn(move |incoming| {
            write_all(incoming, file, &from)?;
            publish(&from, &target)
        })?;
        Ok(Self { worker, partial })
    }

    async fn remove(&mut self) -> Result<()> {
        self.worker.abort().await;
        match tokio::fs::remove_file(&self.partial).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(sink_error(format!("cannot remove the unfinished {}", self.partial.display()), e))
            }
            _ => Ok(()),
        }
    }
}

impl Sink for FileSink {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>> {
        self.worker.write(data).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        async {
            let Err(error) = self.worker.finish().await else { return Ok(()) };
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

fn write_all(mut incoming: Incoming, mut file: File, path: &Path) -> Result<()> {
    let failed = |e| sink_error(format!("cannot write {}", path.display()), e);
    while let Some(data) = incoming.next()? {
        file.write_all(&data).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

fn publish(partial: &Path, target: &Path) -> Result<()> {
    durable::publish_new(partial, target).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => exists(target),
        _ => sink_error(format!("cannot make {} appear on disk", target.display()), e),
    })
}

fn exists(path: &Path) -> Error {
    Error::config(format!("{} exists", path.display())).with_hint("name another directory, or remove the file")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn the_name_appears_with_finish() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        let mut sink = FileSink::create(&directory, "dump").unwrap();
        sink.write(Bytes::from_static(b"abc")).await.unwrap();
        assert!(!directory.join("dump").exists());
        sink.finish().await.unwrap();
        assert_eq!(fs::read(directory.join("dump")).unwrap(), b"abc");
        assert_eq!(names(&directory), ["dump"]);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("dump"))), (0o700, 0o600));
        FileSink::create(&directory, "dump").unwrap_err();
    }

    #[tokio::test]
    async fn nothing_is_left_of_an_aborted_file() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = FileSink::create(root.path(), "dump").unwrap();
        sink.write(Bytes::from_static(b"abc")).await.unwrap();
        sink.abort().await.unwrap();
        assert!(names(root.path()).is_empty());
    }

    #[tokio::test]
    async fn a_file_that_came_meanwhile_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let mut sink = FileSink::create(root.path(), "dump").unwrap();
        fs::write(root.path().join("dump"), "theirs").unwrap();
        sink.finish().await.unwrap_err();
        assert_eq!(names(root.path()), ["dump"]);
        assert_eq!(fs::read(root.path().join("dump")).unwrap(), b"theirs");
    }
}
