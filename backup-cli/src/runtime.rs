//! The async runtime, and what signals do to it.

use std::future::Future;
use std::time::Duration;

use backup_core::{Error, Result, Stage};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::WalAction;
use crate::exit::Exit;
use crate::output::Output;

/// Async threads only move bytes around: compression and encryption have threads of their own. Where there are few cores one does it all: a second
/// would be woken for every message of a server that the first is busy reading, and take the core from that server.
fn async_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, ASYNC_THREADS_MAX))
}

/// More than this gain nothing while one stream is read.
const ASYNC_THREADS_MAX: usize = 4;

/// Runs `work` to its end. The first SIGINT, SIGTERM or SIGHUP cancels the token, the second ends the program at once.
pub(crate) fn block_on<F>(output: &Output, cancel: &CancellationToken, work: F) -> Result<Exit>
where
    F: Future<Output = Result<Exit>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(async_threads())
        .enable_all()
        .build()
        .map_err(|e| Error::internal(Stage::Setup, "could not start the async runtime").with_source(e))?;
    let result = runtime.block_on(async {
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let hang_up = SignalKind::hangup();
        let mut hang_up = if is_ignored(hang_up) { None } else { Some(listen(hang_up)?) };
        tokio::pin!(work);
        let mut signals = 0;
        loop {
            tokio::select! {
                result = &mut work => return result,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = received(hang_up.as_mut()) => {}
            }
            signals += 1;
            if signals > 1 {
                end_at_once();
            }
            output.note("interrupted: cleaning up; once more to end at once");
            cancel.cancel();
        }
    });
    // A read from a terminal or a pipe that nobody writes to cannot be called back, and must not keep us here.
    runtime.shutdown_background();
    result
}

/// How long a command that PostgreSQL started may clean up.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(3);

/// Runs an `archive_command` or a `restore_command`. On one thread: most of what they do is waiting, and they should be small.
///
/// A push that is told to end does so at once, with an exit code and not by the signal, which would end the archiver, too. A fetch
/// does not even listen: it dies of the signal, as PostgreSQL expects it to, and a half-written file has no name that means anything.
pub(crate) fn block_on_for_postgresql<F>(action: &WalAction, cancel: &CancellationToken, work: F) -> Result<Exit>
where
    F: Future<Output = Result<Exit>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal(Stage::Setup, "could not start the async runtime").with_source(e))?;
    let result = runtime.block_on(async {
        if matches!(action, WalAction::Fetch(_)) {
            return work.await;
        }
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let mut hang_up = listen(SignalKind::hangup())?;
        let mut quit = listen(SignalKind::quit())?;
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
            _ = quit.recv() => {}
        }
        cancel.cancel();
        let late = |_| Err(Error::cancelled(Stage::Upload));
        tokio::time::timeout(CLEANUP_DEADLINE, work).await.unwrap_or_else(late)
    });
    runtime.shutdown_background();
    result
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::internal(Stage::Setup, "could not listen to signals").with_source(e))
}

/// Waits for the signal, for ever where nobody listens to it.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether this process was started with the signal ignored, as `nohup` does: so it stays. Linux tells; elsewhere, it was not.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[expect(clippy::exit, reason = "the user asked twice; an unwinding clean-up is what they do not want to wait for")]
fn end_at_once() -> ! {
    std::process::exit(Exit::Interrupted as i32)
}
