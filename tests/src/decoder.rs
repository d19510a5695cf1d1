//! The decoder in Python, which shares no code with this workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Restores `stream` of `backup` from the repository in the directory `repository`.
///
/// # Errors
/// What the decoder said on standard error.
///
/// # Panics
/// When the decoder cannot be run here.
pub fn decode(repository: &Path, identity_file: &Path, backup: &str, stream: &str) -> Result<Vec<u8>, String> {
    let mut command = python("decode.py");
    let output = run(command.arg("--identity").arg(identity_file).arg(repository).args([backup, stream]));
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Restores `file` of the WAL of `cluster`, a target and a system identifier with `/` between, from the repository in the directory `repository`.
///
/// # Errors
/// What the decoder said on standard error.
///
/// # Panics
/// When the decoder cannot be run here.
pub fn decode_wal(repository: &Path, identity_file: &Path, cluster: &str, file: &str) -> Result<Vec<u8>, String> {
    let mut command = python("decode.py");
    let output = run(command.arg("--wal").arg("--identity").arg(identity_file).arg(repository).args([cluster, file]));
    if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A command that runs a script of `tests/decoder`.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(interpreter());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("decoder").join(script));
    command
}

/// The Python that `scripts/install-deps test` set up, else the one of this machine.
pub fn interpreter() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/python3");
    if venv.exists() { venv } else { PathBuf::from("python3") }
}

/// Runs a command of [`python`].
///
/// # Panics
/// When there is no Python, or it lacks what the decoder needs.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("no python3; run: scripts/install-deps test");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("ModuleNotFoundError"), "run: scripts/install-deps test\n{stderr}");
    output
}
