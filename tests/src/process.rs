//! Servers that are programs of their own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A server that takes longer to start does not.
const DEADLINE: Duration = Duration::from_secs(90);

/// Ends the program with its own standard input: also when the test that started both is killed.
const GUARD: &str = "\"$@\" >\"$0\" 2>&1 </dev/null & pid=$!; read -r _; kill -9 $pid";

/// A running program, and a directory for its data. Dropping it ends the program and removes the directory.
#[derive(Debug)]
pub struct Program {
    guard: Child,
    home: TempDir,
}

impl Program {
    /// Starts `program` with the arguments that `arguments` makes of the directory.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: &Path, arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let home = tempfile::Builder::new().prefix("backup-test-server.").tempdir().expect("a temporary directory");
        let arguments = arguments(home.path());
        let guard = Command::new("sh")
            .args(["-c", GUARD])
            .arg(home.path().join("log"))
            .arg(program)
            .args(arguments)
            .current_dir(home.path())
            .env("TMPDIR", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        Self { guard, home }
    }

    /// Waits until `ready` finds what it looks for in what the program said.
    ///
    /// # Panics
    /// When that does not come.
    pub fn until<T>(&self, ready: impl Fn(&str) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            let log = fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            if let Some(found) = ready(&log) {
                return found;
            }
            assert!(started.elapsed() < DEADLINE, "the server does not start; run: scripts/install-deps test\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the program has said where it listens, behind the words `begins`.
    ///
    /// # Panics
    /// When it does not.
    pub fn until_listening(&self, begins: &str) -> SocketAddr {
        self.until(|log| {
            let (_, rest) = log.split_once(begins)?;
            // Its line may still be on its way.
            let (address, _) = rest.split_once('\n')?;
            address.trim().trim_start_matches("http://").parse().ok()
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A program of a package that `scripts/install-deps test` installed with npm.
pub fn npm(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/node/node_modules").join(script)
}
