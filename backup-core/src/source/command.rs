//! A source that runs a command and takes its standard output.

use std::fmt;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use futures::future::BoxFuture;

use super::reader::{FdInput, Input, ReaderSource, source_error};
use super::{Piece, Source};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::process::{Group, StderrLines, cannot_start, program_path};

pub use crate::process::LineCallback;

/// Runs a child process and reads its standard output.
///
/// The stream ends only when the child has closed its output *and* exited with status 0; anything else is an error, so that a
/// `pg_dump` that failed half way never looks complete. The child's own status counts, not that of processes it started: let
/// shells use `set -o pipefail`.
///
/// The child leads a process group of its own, so it cannot ask for passwords on the terminal. Dropping the source kills the group
/// at once and reaps the child soon after.
pub struct CommandSource {
    reader: ReaderSource,
    group: Group,
}

/// How a [`CommandSource`] treats the streams that are not the data.
#[derive(Default)]
#[non_exhaustive]
pub struct CommandOptions {
    /// The child's standard input; nothing (`/dev/null`) by default.
    pub stdin: Option<Stdio>,
    /// Receives the child's stderr; it is inherited by default.
    pub stderr: Option<LineCallback>,
}

impl CommandSource {
    /// Starts `command`, whose program, arguments, environment and directory are taken as they are; its streams are set here.
    ///
    /// # Errors
    /// `Config` when the program cannot be started.
    pub fn spawn(command: Command) -> Result<Self> {
        Self::spawn_with(command, CommandOptions::default())
    }

    /// Starts `command` with other streams than the default ones.
    ///
    /// # Errors
    /// `Config` when the program cannot be started.
    pub fn spawn_with(mut command: Command, options: CommandOptions) -> Result<Self> {
        let program = program_path(&command);
        let stderr = if options.stderr.is_some() { Stdio::piped() } else { Stdio::inherit() };
        command.stdin(options.stdin.unwrap_or_else(Stdio::null)).stdout(Stdio::piped()).stderr(stderr);
        let mut pipes = None;
        let group = Group::spawn(command, |child| pipes = Some((child.stdout.take(), child.stderr.take())))
            .map_err(|e| cannot_start(&program, Stage::Source, e))?;
        let killed_on_error = KillOnDrop(group.clone());
        let Some((Some(stdout), stderr)) = pipes else {
            return Err(Error::internal(Stage::Source, "the child has no standard output"));
        };
        let stderr = match (stderr, options.stderr) {
            (Some(stderr), Some(callback)) => Some(
                StderrLines::read(stderr, callback).map_err(|e| source_error("cannot start the stderr thread", e))?,
            ),
            _ => None,
        };
        let stdout = FdInput::new(OwnedFd::from(stdout), "the command's output");
        let reader = ReaderSource::from_input(CommandInput { stdout, stderr, group: killed_on_error })?;
        Ok(Self { reader, group })
    }
}

impl Source for CommandSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.reader.next(buffer)
    }
}

impl Drop for CommandSource {
    fn drop(&mut self) {
        // Here and now, since the process may be about to exit. The reader thread reaps.
        self.group.kill();
    }
}

impl fmt::Debug for CommandSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandSource").field("group", &self.group).finish_non_exhaustive()
    }
}

impl fmt::Debug for CommandOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdin, stderr } = self;
        f.debug_struct("CommandOptions")
            .field("stdin", stdin)
            .field("stderr", &stderr.as_ref().map(|_| "callback"))
            .finish()
    }
}

struct CommandInput {
    stdout: FdInput,
    stderr: Option<StderrLines>,
    group: KillOnDrop,
}

impl Input for CommandInput {
    fn read(&mut self, room: &mut [u8], wanted: &dyn Fn() -> bool) -> Result<usize> {
        let n = self.stdout.read(room, wanted)?;
        if n > 0 {
            return Ok(n);
        }
        // Its output has ended, but that says nothing: only the exit status tells whether it is complete.
        let group = &self.group.0;
        let status = group.wait().map_err(|e| source_error(format!("cannot learn how {} ended", group.name()), e))?;
        if let Some(stderr) = &self.stderr {
            stderr.join();
        }
        if status.success() {
            return Ok(0);
        }
        Err(Error::new(ErrorKind::Source, Stage::Source, group.describe(status)))
    }
}

/// Owned by the reader thread, where blocking to reap is no harm.
struct KillOnDrop(Group);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::pipeline::BufferPool;
    use crate::source::tests::read_all;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    async fn run(script: &str) -> Result<Vec<u8>> {
        Ok(read_all(&mut CommandSource::spawn(sh(script))?, 1 << 16).await?.concat())
    }

    fn alive(pid: &str) -> bool {
        std::path::Path::new("/proc").join(pid).exists()
    }

    #[tokio::test]
    async fn output_is_delivered_whole() {
        let data = run("head -c 3000000 /dev/zero; echo end").await.unwrap();
        assert_eq!(data.len(), 3_000_004);
        assert!(run("true").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_failed_command_never_ends_its_stream() {
        let error = run("echo half; exit 3").await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Source, "sh exited with status 3"));
        let error = run("echo half; kill -9 $$").await.unwrap_err();
        assert_eq!(error.to_string(), "sh was killed by signal 9 (SIGKILL)");
    }

    #[tokio::test]
    async fn a_command_that_closes_its_output_early_is_waited_for() {
        let error = run("echo all; exec >&-; sleep 0.2; exit 4").await.unwrap_err();
        assert_eq!(error.to_string(), "sh exited with status 4");
    }

    #[tokio::test]
    async fn a_missing_program_is_said_with_a_hint() {
        let error = CommandSource::spawn(Command::new("/nowhere/pg_dump")).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Config, "cannot start /nowhere/pg_dump"));
        assert!(error.hint().unwrap().contains("exist"));
    }

    #[tokio::test]
    async fn stderr_arrives_by_line_and_before_the_end() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let callback: LineCallback = Box::new(move |line| seen.lock().unwrap().push(line.to_owned()));
        let options = CommandOptions { stderr: Some(callback), ..CommandOptions::default() };
        let mut source = CommandSource::spawn_with(sh("echo one >&2; printf two >&2; exit 1"), options).unwrap();
        read_all(&mut source, 64).await.unwrap_err();
        assert_eq!(*lines.lock().unwrap(), ["one", "two"]);
    }

    #[tokio::test]
    async fn dropping_the_source_kills_the_whole_pipeline_and_reaps() {
        // A shell that stays the parent of both, and tells their process ids.
        let mut source = CommandSource::spawn(sh("sleep 100 & echo $$ $!; sleep 100; true")).unwrap();
        let mut head = Vec::new();
        while !head.contains(&b'\n') {
            let piece = source.next(BufferPool::new(1).lease()).await.unwrap().unwrap();
            let Piece::Buffer(byte) = piece else { panic!("a reader fills buffers") };
            head.extend_from_slice(byte.filled());
        }
        let pids: Vec<String> = String::from_utf8(head).unwrap().split_whitespace().map(str::to_owned).collect();
        assert!(pids.len() == 2 && pids.iter().all(|pid| alive(pid)), "{pids:?}");
        let next = source.next(BufferPool::new(8).lease());
        assert!(tokio::time::timeout(Duration::from_millis(20), next).await.is_err());
        drop(source);
        let dropped = Instant::now();
        // The shell is reaped by us; its child by init, or it stays a zombie where there is none: then it is no longer asleep.
        let zombie = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "));
        while alive(&pids[0]) || (alive(&pids[1]) && !zombie(&pids[1])) {
            assert!(dropped.elapsed() < Duration::from_secs(5), "{pids:?} live on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
