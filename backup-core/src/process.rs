//! Child processes: each in a process group of its own, so that all it started can be killed with it, and reaped without a race.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::error::{Error, ErrorKind, Stage};

/// Room of the pipes to and from children. The default of 64 KiB halves the whole pipeline.
pub(crate) const PIPE_BYTES: usize = 1 << 20;

/// Longest piece of a child's output that is handed on as one line.
pub(crate) const LINE_BYTES_MAX: u64 = 64 << 10;

/// How long the last lines of stderr are waited for after a child has ended: a process that it left behind may keep the pipe open.
const STDERR_GRACE: Duration = Duration::from_secs(1);

/// Receives a child's stderr, line by line, without the line ends.
pub type LineCallback = Box<dyn FnMut(&str) + Send>;

/// A running child and its process group. Clones share it; dropping them neither kills nor reaps.
#[derive(Clone)]
pub(crate) struct Group(Arc<Shared>);

struct Shared {
    name: String,
    pid: Pid,
    state: Mutex<State>,
}

struct State {
    child: Child,
    /// Set once the child is reaped: from then on its process id, and its group's, may belong to somebody else.
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` in a new process group. Take the pipes that were asked for from the child that comes with it.
    pub(crate) fn spawn(mut command: Command, pipes: impl FnOnce(&mut Child)) -> io::Result<Self> {
        let name = program_name(&command);
        let mut child = command.process_group(0).spawn()?;
        pipes(&mut child);
        let pid = Pid::from_child(&child);
        Ok(Self(Arc::new(Shared { name, pid, state: Mutex::new(State { child, status: None }) })))
    }

    /// The program's file name.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Kills the child and what it started, unless it has been waited for; returns whether it still has to be.
    ///
    /// SIGKILL: a child that ignores SIGTERM must not go on, and PostgreSQL's clients leave their cleaning up to the server.
    pub(crate) fn kill(&self) -> bool {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.status.is_some() {
            return false;
        }
        if let Err(error) = kill_process_group(self.0.pid, Signal::KILL) {
            tracing::debug!(child = self.0.name, %error, "cannot kill the process group");
        }
        true
    }

    /// Blocks until the child has ended, and reaps it. [`kill`](Self::kill) works meanwhile.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        // Waiting without reaping and without the lock, so that the process id stays ours for as long as `kill` may use it.
        let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(Errno::INTR) = waitid(WaitId::Pid(self.0.pid), exited) {}
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let status = state.child.wait()?;
        state.status = Some(status);
        Ok(status)
    }

    /// `pg_dump exited with status 1`.
    pub(crate) fn describe(&self, status: ExitStatus) -> String {
        describe_exit(&self.0.name, status)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("name", &self.0.name).field("pid", &self.0.pid).finish_non_exhaustive()
    }
}

/// A thread that hands on what a child writes to stderr.
#[derive(Debug)]
pub(crate) struct StderrLines(mpsc::Receiver<()>);

impl StderrLines {
    pub(crate) fn read(stderr: ChildStderr, mut callback: LineCallback) -> io::Result<Self> {
        let (done, ended) = mpsc::channel();
        thread::Builder::new().name("backup-stderr".into()).spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while let Ok(1..) = stderr.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                callback(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
                line.clear();
            }
            drop(done);
        })?;
        Ok(Self(ended))
    }

    /// Waits for the last line, but not for ever. Call it when the child has ended.
    pub(crate) fn join(&self) {
        let _ = self.0.recv_timeout(STDERR_GRACE);
    }
}

/// The error of a program that could not be started; `program` is what it was called by, see [`program_path`].
pub(crate) fn cannot_start(program: &str, stage: Stage, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            Some("does the file exist, and what its #! names?".to_owned())
        }
        io::ErrorKind::NotFound => Some(format!("is {program} installed, and in PATH?")),
        io::ErrorKind::PermissionDenied => Some(format!("may this user execute {program}?")),
        _ => None,
    };
    let cannot = Error::new(ErrorKind::Config, stage, format!("cannot start {program}")).with_source(error);
    match hint {
        Some(hint) => cannot.with_hint(hint),
        None => cannot,
    }
}

/// The file name of the program that `command` runs.
pub(crate) fn program_name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// The program that `command` runs, as it was given: a name to be found in `PATH`, or a path.
pub(crate) fn program_path(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// `pg_dump was killed by signal 9 (SIGKILL)`.
pub(crate) fn describe_exit(program: &str, status: ExitStatus) -> String {
    format!("{program} {}", describe(status))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => match Signal::from_named_raw(signal) {
            Some(named) => {
                let name = format!("{named:?}");
                format!("was killed by signal {signal} (SIG{})", name.trim_matches('"').trim_start_matches("Signal::"))
            }
            None => format!("was killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_called_what_the_user_called_it() {
        for (program, hint) in [("/no/where/pg_dump", "exist"), ("nowhere_dump", "PATH")] {
            let mut command = Command::new(program);
            let error = cannot_start(&program_path(&command), Stage::Source, command.spawn().unwrap_err());
            assert_eq!(error.to_string(), format!("cannot start {program}"));
            assert!(error.hint().unwrap().contains(hint), "{error:?}");
        }
    }

    #[test]
    fn a_status_is_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "exited with status 1");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by signal 9 (SIGKILL)");
        assert_eq!(describe(ExitStatus::from_raw(64)), "was killed by signal 64");
    }
}
