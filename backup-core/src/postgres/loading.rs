//! The program that a dump is loaded with, while it runs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::sql::OWN_COMMIT;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process::{Group, LINE_BYTES_MAX, LineCallback, PIPE_BYTES, StderrLines, cannot_start, program_path};

/// A running `pg_restore` or `psql`.
pub(super) struct Loading {
    group: Group,
    stdin: Option<pipe::Sender>,
    held_back: Option<u8>,
    epilogue: String,
    /// Tells when the program has said that it read all.
    confirmed: Option<oneshot::Receiver<()>>,
    stderr: Option<StderrLines>,
    hint: Hint,
}

impl Loading {
    /// Starts `command`. After the data it gets `epilogue`, and if there is a `token`, it must then have written that as a line.
    pub(super) fn spawn(
        mut command: Command,
        callback: Option<LineCallback>,
        epilogue: String,
        token: Option<String>,
    ) -> Result<Self> {
        let program = program_path(&command);
        let failed = |e: io::Error| cannot_start(&program, Stage::Sink, e);
        let stdout = if token.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        let mut pipes = (None, None, None);
        let group =
            Group::spawn(command, |child| pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take()));
        let group = group.map_err(failed)?;
        let hint = Arc::new(Mutex::new(None));
        let (Some(stdin), stdout, Some(stderr)) = pipes else {
            return Err(Error::internal(Stage::Sink, "the child has no standard input"));
        };
        let confirmed =
            stdout.zip(token).map(|(stdout, token)| await_token(stdout, token)).transpose().map_err(failed)?;
        let stdin = OwnedFd::from(stdin);
        #[cfg(target_os = "linux")]
        let _ = rustix::pipe::fcntl_setpipe_size(&stdin, PIPE_BYTES);
        let stdin = pipe::Sender::from_owned_fd(stdin).map_err(failed)?;
        let stderr = StderrLines::read(stderr, remembering(&hint, callback)).map_err(failed)?;
        Ok(Self { group, stdin: Some(stdin), held_back: None, epilogue, confirmed, stderr: Some(stderr), hint })
    }

    pub(super) async fn feed(&mut self, data: &[u8]) -> Result<()> {
        let Some((&last, rest)) = data.split_last() else { return Ok(()) };
        if let Some(before) = self.held_back.replace(last) {
            self.send(&[before]).await?;
        }
        self.send(rest).await
    }

    async fn send(&mut self, data: &[u8]) -> Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Err(Error::internal(Stage::Sink, "the input of the load is closed"));
        };
        let Err(error) = stdin.write_all(data).await else { return Ok(()) };
        // It has most likely said why on stderr, and its status is the better message.
        let status = self.wait().await?;
        if status.success() {
            let message = format!("{} ended before the dump did", self.group.name());
            return Err(sink_error(message).with_source(error));
        }
        Err(self.failure(status))
    }

    pub(super) async fn finish(&mut self) -> Result<()> {
        if let Some(last) = self.held_back.take() {
            self.send(&[last]).await?;
        }
        let epilogue = std::mem::take(&mut self.epilogue);
        self.send(epilogue.as_bytes()).await?;
        self.stdin = None;
        let status = self.wait().await?;
        if !status.success() {
            return Err(self.failure(status));
        }
        self.confirm().await
    }

    async fn confirm(&mut self) -> Result<()> {
        let Some(confirmed) = self.confirmed.take() else { return Ok(()) };
        if let Ok(Ok(())) = tokio::time::timeout(LAST_WORD_DEADLINE, confirmed).await {
            return Ok(());
        }
        let message = format!("{} ended without an error, but did not come to the end of the SQL", self.group.name());
        Err(sink_error(message).with_hint(
            "the SQL says \\quit, or ends within a string, a comment, the rows of a COPY or an \\if: is it complete?",
        ))
    }

    pub(super) async fn kill(mut self) {
        self.group.kill();
        let _ = self.wait().await;
        self.stdin = None;
    }

    async fn wait(&mut self) -> Result<ExitStatus> {
        let (group, stderr) = (self.group.clone(), self.stderr.take());
        let waited = tokio::task::spawn_blocking(move || {
            let status = group.wait();
            if let Some(stderr) = stderr {
                stderr.join();
            }
            status
        });
        let failed = |e: io::Error| sink_error("cannot learn how the load ended").with_source(e);
        waited.await.map_err(|e| failed(e.into()))?.map_err(failed)
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let error = sink_error(self.group.describe(status));
        match *self.hint.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if self.group.kill() {
            let group = self.group.clone();
            // Its own thread, as the caller may be async; it lasts for as long as the child takes to die.
            let _ = thread::Builder::new().name("backup-reap".into()).spawn(move || group.wait());
        }
    }
}

/// How long the program's last word is waited for once it has ended. It lies in the pipe by then; a process that was left behind may
/// keep that open.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(30);

/// Reads the program's standard output to its end, forgets it, and tells when a line of it is `token`.
fn await_token(stdout: ChildStdout, token: String) -> io::Result<oneshot::Receiver<()>> {
    let (confirm, confirmed) = oneshot::channel();
    let mut confirm = Some(confirm);
    thread::Builder::new().name("backup-stdout".into()).spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while let Ok(1..) = stdout.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            if line.strip_suffix(b"\n") == Some(token.as_bytes())
                && let Some(confirm) = confirm.take()
            {
                let _ = confirm.send(());
            }
            line.clear();
        }
    })?;
    Ok(confirmed)
}

/// What the user can do about the first error that is understood.
type Hint = Arc<Mutex<Option<&'static str>>>;

/// Passes the program's stderr on, and takes a hint from it.
fn remembering(hint: &Hint, callback: Option<LineCallback>) -> LineCallback {
    let hint = Arc::clone(hint);
    let mut pass_on = callback.unwrap_or_else(|| {
        Box::new(|line| {
            let _ = writeln!(io::stderr(), "{line}");
        })
    });
    Box::new(move |line| {
        if let Some(found) = hint_for(line) {
            hint.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(found);
        }
        pass_on(line);
    })
}

/// What can be done about an error of the server.
pub(super) fn hint_for(message: &str) -> Option<&'static str> {
    if message.contains("out of shared memory") || message.contains("max_locks_per_transaction") {
        return Some(
            "a single transaction locks every table: raise max_locks_per_transaction, or load into a new database, which needs none",
        );
    }
    if message.contains(OWN_COMMIT) {
        return Some(
            "the SQL has transactions of its own, so it cannot be undone: load it into a new database, or dump in custom format",
        );
    }
    if message.contains("DISCARD ALL cannot run inside a transaction block") {
        return Some("the SQL begins a transaction and does not commit it: is it complete?");
    }
    if message.contains("the SQL went on after an error") || message.contains("current transaction is aborted") {
        return Some("the SQL goes on after an error (it sets ON_ERROR_STOP): see the first one above");
    }
    if message.contains("already exists") && !message.contains("database \"") {
        return Some(
            "the database is not empty: load into one that is missing, and it will be made, or into an empty one",
        );
    }
    if message.contains("role ") && message.contains("does not exist") {
        return Some("create the role first, or restore without owners and privileges");
    }
    None
}

fn sink_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Sink, Stage::Sink, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_not_empty_is_known_by_what_is_in_it() {
        let hint = hint_for("pg_restore: error: could not execute query: ERROR:  relation \"t\" already exists");
        assert!(hint.unwrap().contains("not empty"));
        assert_eq!(hint_for("ERROR:  database \"app\" already exists"), None);
    }
}
