//! A source that reads: any blocking reader, or a file descriptor, on a thread of its own.
//!
//! The thread reads straight into the pipeline's buffers, which go to it and come back by channel: tokio's own reading of pipes
//! copies everything once more and takes 64 KiB at a time.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::{Piece, Source};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::process::PIPE_BYTES;

/// How long a thread that waits for a file descriptor takes to notice that its source was dropped.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Reads from any [`Read`] or file descriptor until its end.
///
/// Each buffer is filled before it is handed on, so a slow reader makes few full pieces rather than many small ones.
///
/// Dropping the source ends its thread: at once if it is idle; within about 100 ms if it waits for a file descriptor
/// ([`from_fd`](Self::from_fd), [`stdin`](Self::stdin)); and when the call returns if it is inside [`Read::read`].
pub struct ReaderSource {
    requests: mpsc::Sender<Request>,
    ended: bool,
}

impl ReaderSource {
    /// Reads from `reader`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(reader: impl Read + Send + 'static) -> Result<Self> {
        Self::from_input(ReadInput(reader))
    }

    /// Reads from a file descriptor: a pipe, a socket, a file. Non-blocking ones will do.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::from_input(FdInput::new(fd, "the input"))
    }

    /// Reads from standard input. A closed one is an empty one: Rust's runtime opens `/dev/null` in its place before `main`.
    ///
    /// # Errors
    /// When no file descriptor is left, or no thread can be started.
    pub fn stdin() -> Result<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned().map_err(|e| source_error("cannot read standard input", e))?;
        Self::from_input(FdInput::new(fd, "standard input"))
    }

    pub(crate) fn from_input(input: impl Input + 'static) -> Result<Self> {
        let (requests, incoming) = mpsc::channel();
        thread::Builder::new()
            .name("backup-read".into())
            .spawn(move || serve(input, &incoming))
            .map_err(|e| Error::internal(Stage::Source, "cannot start the reader thread").with_source(e))?;
        Ok(Self { requests, ended: false })
    }

    async fn read(&mut self, buffer: Buffer) -> Result<Option<Piece>> {
        if self.ended {
            return Ok(None);
        }
        let gone = || Error::internal(Stage::Source, "the reader thread ended unexpectedly");
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { buffer, reply }).map_err(|_| gone())?;
        let Filled { buffer, ended } = answer.await.map_err(|_| gone())??;
        self.ended = ended;
        Ok((!buffer.is_empty()).then_some(Piece::Buffer(buffer)))
    }
}

impl Source for ReaderSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.read(buffer).boxed()
    }
}

impl fmt::Debug for ReaderSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderSource").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// What a reader thread reads from.
pub(crate) trait Input: Send {
    /// Reads some bytes; 0 means the end, and that all that was read is complete.
    ///
    /// An input that can tell how long it will wait asks `wanted` now and then, and gives up when the answer is no.
    fn read(&mut self, room: &mut [u8], wanted: &dyn Fn() -> bool) -> Result<usize>;

    /// The buffer that the last reads filled goes to the pipeline now.
    fn filled(&mut self, _buffer: &mut Buffer) {}
}

struct Request {
    buffer: Buffer,
    reply: oneshot::Sender<Result<Filled>>,
}

struct Filled {
    buffer: Buffer,
    ended: bool,
}

fn serve(mut input: impl Input, requests: &mpsc::Receiver<Request>) {
    while let Ok(Request { buffer, reply }) = requests.recv() {
        let filled = fill(&mut input, buffer, &|| !reply.is_closed());
        let more = matches!(filled, Ok(Filled { ended: false, .. }));
        // Nobody listens when the source was dropped meanwhile; then there is no next request either.
        let _ = reply.send(filled);
        if !more {
            break;
        }
    }
}

fn fill(input: &mut impl Input, mut buffer: Buffer, wanted: &dyn Fn() -> bool) -> Result<Filled> {
    let mut ended = false;
    while !ended && !buffer.spare().is_empty() {
        let n = input.read(buffer.spare(), wanted)?;
        buffer.advance(n);
        ended = n == 0;
    }
    input.filled(&mut buffer);
    Ok(Filled { buffer, ended })
}

struct ReadInput<R>(R);

impl<R: Read + Send> Input for ReadInput<R> {
    fn read(&mut self, room: &mut [u8], _wanted: &dyn Fn() -> bool) -> Result<usize> {
        loop {
            match self.0.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(|e| source_error("cannot read the input", e)),
            }
        }
    }
}

/// A file descriptor, polled before each read so that the thread can give up.
pub(crate) struct FdInput {
    fd: OwnedFd,
    name: &'static str,
}

impl FdInput {
    pub(crate) fn new(fd: OwnedFd, name: &'static str) -> Self {
        // Best effort, both: it is no pipe, no file, or the system's limit is lower.
        #[cfg(target_os = "linux")]
        {
            let _ = rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES);
            let _ = rustix::fs::fadvise(&fd, 0, None, rustix::fs::Advice::Sequential);
        }
        Self { fd, name }
    }
}

impl Input for FdInput {
    fn read(&mut self, room: &mut [u8], wanted: &dyn Fn() -> bool) -> Result<usize> {
        let failed = |errno: Errno| source_error(format!("cannot read {}", self.name), errno.into());
        loop {
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&POLL)) {
                Ok(0) | Err(Errno::INTR) if wanted() => continue,
                Ok(0) | Err(Errno::INTR) => return Err(Error::cancelled(Stage::Source)),
                Ok(_) => {}
                Err(errno) => return Err(failed(errno)),
            }
            match rustix::io::read(&self.fd, &mut *room) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return result.map_err(failed),
            }
        }
    }
}

pub(super) fn source_error(message: impl Into<String>, error: io::Error) -> Error {
    Error::new(ErrorKind::Source, Stage::Source, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::pipeline::BufferPool;
    use crate::source::tests::read_all;

    #[tokio::test]
    async fn trickling_input_fills_whole_buffers() {
        struct Trickle(u32);
        impl Read for Trickle {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    n if n % 3 == 0 => Err(io::ErrorKind::Interrupted.into()),
                    1..=100 => {
                        buf[0] = 7;
                        Ok(1)
                    }
                    _ => Ok(0),
                }
            }
        }
        let mut source = ReaderSource::new(Trickle(0)).unwrap();
        let pieces = read_all(&mut source, 64).await.unwrap();
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [64, 3]);
    }

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        let writing = thread::spawn(move || {
            for n in 0..1000_u32 {
                writer.write_all(&n.to_le_bytes()).unwrap();
            }
        });
        let mut source = ReaderSource::from_fd(reader.into()).unwrap();
        let data = read_all(&mut source, 1024).await.unwrap().concat();
        assert_eq!(data, (0..1000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        writing.join().unwrap();
    }

    #[tokio::test]
    async fn an_error_is_not_the_end() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("on fire"))
            }
        }
        let error = read_all(&mut ReaderSource::new(Broken).unwrap(), 64).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
    }

    #[tokio::test]
    async fn dropping_the_source_ends_a_thread_that_waits_for_a_silent_pipe() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut source = ReaderSource::from_fd(reader.into()).unwrap();
        let next = source.next(BufferPool::new(64).lease());
        assert!(tokio::time::timeout(Duration::from_millis(20), next).await.is_err());
        drop(source);
        let dropped = Instant::now();
        // The thread owned the only reading end.
        while writer.write_all(b"x").is_ok() {
            assert!(dropped.elapsed() < Duration::from_secs(5), "the thread goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
