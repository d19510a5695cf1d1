//! Secrets from files and from what commands print; never from arguments, which everybody on a host can see.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use zeroize::Zeroizing;

use super::key_error;
use crate::error::{Error, Result, Stage};
use crate::small_file::{SmallFile, room, text};

/// Where a secret is to be had.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file that nobody else can read, or a pipe.
    File(PathBuf),
    /// A command for `sh`, which prints it.
    Command(String),
}

/// Without the command: people put secrets into commands.
impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Command(_) => f.debug_tuple("Command").finish_non_exhaustive(),
        }
    }
}

impl SecretSource {
    /// The secret, which messages call `what`: text of 1 to `bytes_max` bytes, without the end of its last line. A command may ask a person, who
    /// is at `/dev/tty`: its standard input is empty.
    ///
    /// # Errors
    /// Of kind [`ErrorKind::Key`](crate::ErrorKind::Key); a file that others can read is refused. Cancel safe: a command that still runs is killed.
    pub async fn read(&self, what: &str, bytes_max: usize) -> Result<Zeroizing<String>> {
        let mut secret = match self {
            Self::File(path) => {
                let (path, what) = (path.clone(), format!("{what} file"));
                // It may be a pipe that somebody has yet to write to.
                let reading = tokio::task::spawn_blocking(move || read_private_file(&path, &what, bytes_max)).await;
                reading.map_err(|e| Error::internal(Stage::Keys, "a secret could not be read").with_source(e))??
            }
            Self::Command(command) => printed(command, what, bytes_max).await?,
        };
        // Editors and `echo` end the last line; the line end is not meant.
        let len = secret.trim_end_matches(['\n', '\r']).len();
        secret.truncate(len);
        match secret.is_empty() {
            true => Err(key_error(format!("the {what} is empty"))),
            false => Ok(secret),
        }
    }
}

/// The text of a file of at most `bytes_max` bytes, which messages call `what`, and which others must not be able to read. Opened once, so what was
/// checked is what is read. Blocks.
pub(super) fn read_private_file(path: &Path, what: &str, bytes_max: usize) -> Result<Zeroizing<String>> {
    let failed = |e: io::Error| key_error(format!("could not read the {what} {}", path.display())).with_source(e);
    let file = SmallFile::open(path).map_err(failed)?;
    if let Some(mode) = file.mode().filter(|mode| mode & 0o077 != 0) {
        let message = format!("the {what} {} is open to other users (mode {mode:04o})", path.display());
        return Err(key_error(message).with_hint(format!("chmod 600 {}", path.display())));
    }
    file.read(bytes_max).map_err(failed)
}

async fn printed(command: &str, what: &str, bytes_max: usize) -> Result<Zeroizing<String>> {
    let failed = |e: io::Error| key_error(format!("the {what} command failed")).with_source(e);
    let mut child = Command::new("sh")
        .args(["-c", command])
        // Ours is the stream to back up.
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut bytes = room(bytes_max);
    if let Some(stdout) = child.stdout.take() {
        stdout.take(bytes_max as u64 + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    // One that printed too much was cut off.
    if !status.success() && bytes.len() <= bytes_max {
        return Err(key_error(format!("the {what} command failed: {status}")));
    }
    text(bytes, bytes_max)
        .map_err(|e| key_error(format!("what the {what} command printed is no {what}")).with_source(e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_secret_is_a_line_of_bounded_length() {
        let command = |text: &str| SecretSource::Command(text.to_owned());
        assert_eq!(*command("echo 1234").read("PIN", 10).await.unwrap(), "1234");
        for (text, message) in [
            ("true", "the PIN is empty"),
            ("exit 7", "the PIN command failed: exit status: 7"),
            ("yes", "what the PIN command printed is no PIN"),
            (r"printf '\377'", "what the PIN command printed is no PIN"),
        ] {
            assert_eq!(command(text).read("PIN", 10).await.unwrap_err().to_string(), message, "{text}");
        }
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_or_that_has_no_end_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "1234\r\n").unwrap();
        let source = SecretSource::File(file.path().into());
        assert_eq!(*source.read("PIN", 10).await.unwrap(), "1234");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = source.read("PIN", 10).await.unwrap_err();
        assert!(error.to_string().contains("is open to other users (mode 0640)"), "{error}");
        let endless = SecretSource::File("/dev/zero".into()).read("PIN", 10).await.unwrap_err();
        assert_eq!(std::error::Error::source(&endless).unwrap().to_string(), "longer than 10 bytes");
    }
}
