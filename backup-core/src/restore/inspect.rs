//! Streams that are restored to nowhere, to find out whether they could be: tar archives, and all of a base backup.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tar::Archive;

use super::sink::Sink;
use super::tree::{COPY_BYTES, EndWatch, names, no_tar};
use super::worker::{Incoming, Worker};
use crate::error::Result;

pub(crate) use super::cluster::inspect::{Inspected, cluster};

/// A sink that reads a tar archive to its end.
pub(crate) fn tar() -> Result<impl Sink + 'static> {
    Ok(WorkerSink(Worker::spawn(check_tar)?))
}

fn check_tar(incoming: Incoming) -> Result<()> {
    let mut archive = Archive::new(EndWatch::new(incoming));
    for entry in archive.entries().map_err(no_tar)? {
        names(&entry.map_err(no_tar)?.path().map_err(no_tar)?)?;
    }
    archive.into_inner().finish(&mut vec![0; COPY_BYTES])
}

/// A sink that is all thread: there is nothing to undo, once the thread has ended.
#[derive(Debug)]
pub(super) struct WorkerSink(pub(super) Worker);

impl Sink for WorkerSink {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>> {
        self.0.write(data).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        self.0.finish().boxed()
    }

    fn abort(&mut self) -> BoxFuture<'_, Result<()>> {
        async {
            self.0.abort().await;
            Ok(())
        }
        .boxed()
    }
}
