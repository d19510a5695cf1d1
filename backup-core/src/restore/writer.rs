//! A sink that writes: to standard output, or to anything that implements `Write`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::event::{PollFd, PollFlags, poll};

use super::Sink;
use super::worker::{Incoming, Worker, sink_error};
use crate::error::Result;
use crate::process::PIPE_BYTES;

/// Writes the stream to a [`Write`], on a thread of its own.
///
/// What was written cannot be taken back: a reader at the other end sees a stream that merely ends when the restore fails, so only
/// the exit status tells (`set -o pipefail`). A write that blocks outlives the sink.
#[derive(Debug)]
pub struct WriterSink(Worker);

impl WriterSink {
    /// Writes to `writer`, which is flushed at the end.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(writer: impl Write + Send + 'static) -> Result<Self> {
        Ok(Self(Worker::spawn(move |incoming| write_all(incoming, writer))?))
    }

    /// Writes to a file descriptor: a pipe, a socket, a file. Non-blocking ones will do.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        // Best effort: it may be no pipe, or the system's limit is lower.
        #[cfg(target_os = "linux")]
        let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES);
        Self::new(FdWriter(fd.into()))
    }

    /// Writes to standard output, around the buffer of [`std::io::stdout`], which would look for line ends.
    ///
    /// # Errors
    /// When standard output is closed, or no thread can be started.
    pub fn stdout() -> Result<Self> {
        let fd = io::stdout().as_fd().try_clone_to_owned();
        Self::from_fd(fd.map_err(|e| sink_error("cannot write to standard output", e))?)
    }
}

impl Sink for WriterSink {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>> {
        self.0.write(data).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        self.0.finish().boxed()
    }

    /// Stops without flushing. Does not wait: the reader at the other end may never read again.
    fn abort(&mut self) -> BoxFuture<'_, Result<()>> {
        self.0.detach();
        futures::future::ready(Ok(())).boxed()
    }
}

fn write_all(mut incoming: Incoming, mut writer: impl Write) -> Result<()> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe => sink_error("the reader closed the pipe before the end", error),
        _ => sink_error("cannot write the output", error),
    };
    while let Some(data) = incoming.next()? {
        writer.write_all(&data).map_err(failed)?;
    }
    writer.flush().map_err(failed)
}

/// A descriptor that may be non-blocking: whoever gave us standard output may have made it so.
struct FdWriter(File);

impl Write for FdWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::ErrorKind;

    #[tokio::test]
    async fn everything_arrives_before_finish_returns() {
        let (mut reader, writer) = io::pipe().unwrap();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        let mut sink = WriterSink::from_fd(writer.into()).unwrap();
        for n in 0..100_u8 {
            sink.write(Bytes::from(vec![n; 50_000])).await.unwrap();
        }
        sink.finish().await.unwrap();
        assert_eq!(reading.join().unwrap().unwrap().len(), 5_000_000);
    }

    #[tokio::test]
    async fn a_closed_pipe_is_said() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut sink = WriterSink::from_fd(writer.into()).unwrap();
        // The first write may be taken before the thread has met the error.
        let error = async {
            loop {
                sink.write(Bytes::from_static(b"x")).await?;
            }
        };
        let error: crate::Error = Result::<()>::unwrap_err(error.await);
        assert_eq!(error.kind(), ErrorKind::Sink);
        assert_eq!(error.to_string(), "the reader closed the pipe before the end");
    }

    #[tokio::test]
    async fn an_error_at_the_end_is_not_lost() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut sink = WriterSink::new(Full).unwrap();
        sink.write(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(sink.finish().await.unwrap_err().kind(), ErrorKind::Sink);
    }

    #[tokio::test]
    async fn an_aborted_sink_does_not_wait_for_its_reader() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut sink = WriterSink::from_fd(writer.into()).unwrap();
        sink.write(Bytes::from(vec![0; 4 << 20])).await.unwrap();
        sink.abort().await.unwrap();
    }
}
