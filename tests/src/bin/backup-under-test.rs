//! The program as it is shipped, in this package: cargo tells a test where a binary is only if both are in one package. And at another time,
//! if the environment says so: `BACKUP_UNDER_TEST_NOW` is the moment at which it starts.
//!
//! With `BACKUP_UNDER_TEST_PANIC` in its environment it panics, where only a bug could make it: it starts the log, and finds that somebody has.

use std::sync::Arc;
use std::time::Instant;

use backup_core::clock::Clock;
use backup_core::jiff::Timestamp;

/// A clock that was set, and goes on from there.
#[derive(Debug)]
struct Moved {
    from: Timestamp,
    since: Instant,
}

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        self.from + self.since.elapsed()
    }
}

fn main() -> std::process::ExitCode {
    if std::env::var_os("BACKUP_UNDER_TEST_PANIC").is_some() {
        let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
    }
    match std::env::var("BACKUP_UNDER_TEST_NOW") {
        Ok(now) => {
            let from = now.parse().expect("BACKUP_UNDER_TEST_NOW is a time");
            backup_cli::main_at(Arc::new(Moved { from, since: Instant::now() }))
        }
        Err(_) => backup_cli::main(),
    }
}
