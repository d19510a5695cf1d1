//! The PIN of a token: from a file or from what a command prints, never from an argument.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use cryptoki::types::AuthPin;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use zeroize::{Zeroize, Zeroizing};

use super::key_error;
use super::uri::PinSource;
use crate::error::{Error, Result, Stage};

/// Tokens allow some tens of characters.
const PIN_LEN_MAX: usize = 1024;

/// Cancel safe: a command that still runs is killed.
pub(super) async fn read(source: &PinSource) -> Result<AuthPin> {
    let mut text = match source {
        PinSource::File(path) => {
            let path = path.clone();
            // It may be a pipe that somebody has yet to write to.
            let reading = tokio::task::spawn_blocking(move || read_file(&path)).await;
            reading
                .map_err(|e| Error::internal(Stage::Keys, "the file of the PIN could not be read").with_source(e))??
        }
        PinSource::Command(command) => run(command).await?,
    };
    // Editors and `echo` end the last line; the line end is not meant.
    let len = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(len);
    if text.is_empty() {
        return Err(key_error("the PIN is empty"));
    }
    // Whoever takes it wipes it.
    Ok(AuthPin::from(std::mem::take(&mut *text)))
}

fn read_file(path: &Path) -> Result<Zeroizing<String>> {
    let failed = |e| key_error(format!("could not read the file of the PIN, {}", path.display())).with_source(e);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        let message = format!("the file of the PIN, {}, is open to other users (mode {mode:04o})", path.display());
        return Err(key_error(message).with_hint(format!("chmod 600 {}", path.display())));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(PIN_LEN_MAX + 1));
    file.take(PIN_LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    text(bytes)
}

async fn run(command: &str) -> Result<Zeroizing<String>> {
    let failed = |e: std::io::Error| key_error("the command that prints the PIN failed").with_source(e);
    // Standard input is the stream to back up. Who must ask a person opens /dev/tty.
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut printed = Zeroizing::new(Vec::with_capacity(PIN_LEN_MAX + 1));
    if let Some(stdout) = child.stdout.take() {
        stdout.take(PIN_LEN_MAX as u64 + 1).read_to_end(&mut printed).await.map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    if !status.success() && printed.len() <= PIN_LEN_MAX {
        return Err(key_error(format!("the command that prints the PIN failed: {status}")));
    }
    text(printed)
}

fn text(mut bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<String>> {
    if bytes.len() > PIN_LEN_MAX {
        return Err(key_error(format!("the PIN is longer than {PIN_LEN_MAX} bytes")));
    }
    String::from_utf8(std::mem::take(&mut *bytes)).map(Zeroizing::new).map_err(|e| {
        e.into_bytes().zeroize();
        key_error("the PIN is not text")
    })
}
