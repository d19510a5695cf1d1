//! From configured names, files and commands to recipients and identities.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use backup_core::keys::age::AgeIdentity;
use backup_core::keys::passphrase::{PassphraseIdentity, PassphraseRecipient};
use backup_core::keys::{self, Identity, Recipient};
use backup_core::{Error, ErrorKind, Result, Stage};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use zeroize::Zeroizing;

use crate::config::{Config, Origin, PassphraseFrom, Setting};
use crate::small_file::{self, SmallFile};

/// The longest passphrase in bytes; what is longer is something else.
const SECRET_LEN_MAX: usize = 64 * 1024;

/// Whom to encrypt to: the recipients and the passphrase that are configured, else the public halves of the identities.
///
/// May be empty: the pipeline refuses that, and says what to do.
pub(crate) async fn recipients(config: &Config) -> Result<Vec<Arc<dyn Recipient>>> {
    let mut recipients = configured_recipients(config)?;
    if let Some(setting) = &config.passphrase {
        recipients.push(Arc::new(PassphraseRecipient::new(passphrase(&setting.value).await?)?));
    }
    if recipients.is_empty() {
        for identity in age_identities(config)? {
            for recipient in identity.recipients() {
                recipients.push(Arc::new(recipient));
            }
        }
        recipients.extend(each(config.identities.as_ref(), keys::parse_recipient)?);
    }
    Ok(recipients)
}

/// The recipients that are named by flag, environment or file.
pub(crate) fn configured_recipients(config: &Config) -> Result<Vec<Arc<dyn Recipient>>> {
    let mut recipients = each(config.recipients.as_ref(), keys::parse_recipient)?;
    // Named twice, by a file for many hosts and a template say, is meant once.
    let mut seen = HashSet::new();
    recipients.retain(|recipient| seen.insert(recipient.describe()));
    Ok(recipients)
}

/// The identities that are named by flag, environment or file, and lie in none.
pub(crate) fn configured_identities(config: &Config) -> Result<Vec<Arc<dyn Identity>>> {
    each(config.identities.as_ref(), keys::parse_identity)
}

/// Reads each of the texts of a setting; errors say where it came from.
fn each<T>(setting: Option<&Setting<Vec<String>>>, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let Some(setting) = setting else { return Ok(Vec::new()) };
    let parse = |text: &String| {
        parse(text).map_err(|e| {
            let hint = e.hint().unwrap_or_default().to_owned();
            Error::config(format!("{}: {e}", setting.origin)).with_hint(hint)
        })
    };
    setting.value.iter().map(parse).collect()
}

/// With what to open; at least one. Where an absent identity has to be an error before anything is looked for.
pub(crate) async fn identities(config: &Config) -> Result<Vec<Arc<dyn Identity>>> {
    let identities = identities_at_hand(config).await?;
    if identities.is_empty() {
        let hint = "give the identity file with --identity-file or BACKUP_IDENTITY_FILE, another key with --identity, or a passphrase with --passphrase-file";
        return Err(key_error("no identity to open the backup with").with_hint(hint));
    }
    Ok(identities)
}

/// With what to open backups, first what needs no network; may be none. Opening a backup with none says who could.
pub(crate) async fn identities_at_hand(config: &Config) -> Result<Vec<Arc<dyn Identity>>> {
    let mut identities: Vec<Arc<dyn Identity>> = Vec::new();
    for identity in age_identities(config)? {
        identities.push(Arc::new(identity));
    }
    if let Some(setting) = &config.passphrase {
        identities.push(Arc::new(PassphraseIdentity::new(passphrase(&setting.value).await?)));
    }
    identities.extend(configured_identities(config)?);
    Ok(identities)
}

/// The identity files that are configured, or the default one where it exists. One that must not be looked at exists: loading it says why.
pub(crate) fn age_identities(config: &Config) -> Result<Vec<AgeIdentity>> {
    let Some(setting) = &config.identity_files else { return Ok(Vec::new()) };
    let wanted = |path: &&PathBuf| setting.origin != Origin::Default || path.try_exists().unwrap_or(true);
    setting.value.iter().filter(wanted).map(|path| AgeIdentity::load(path)).collect()
}

/// Whether the passphrase file, if one is configured, can be used. A command is not run for a check.
pub(crate) async fn check_passphrase_file(config: &Config) -> Result<()> {
    match &config.passphrase {
        Some(Setting { value: from @ PassphraseFrom::File(_), .. }) => passphrase(from).await.map(drop),
        _ => Ok(()),
    }
}

/// Cancel safe: a command that still runs is killed.
async fn passphrase(from: &PassphraseFrom) -> Result<String> {
    let mut passphrase = match from {
        PassphraseFrom::File(path) => read_secret(path.clone()).await?,
        PassphraseFrom::Command(command) => run_for_secret(command).await?,
    };
    // Editors and `echo` end the last line; the line end is not meant.
    let without_line_end = passphrase.trim_end_matches(['\n', '\r']).len();
    passphrase.truncate(without_line_end);
    if passphrase.is_empty() {
        return Err(key_error("the passphrase is empty"));
    }
    // Whoever takes it wipes it.
    Ok(std::mem::take(&mut *passphrase))
}

async fn read_secret(path: PathBuf) -> Result<Zeroizing<String>> {
    let read = move || {
        let failed = |e| key_error(format!("could not read the passphrase file {}", path.display())).with_source(e);
        let file = SmallFile::open(&path).map_err(failed)?;
        if let Some(mode) = file.mode().filter(|mode| mode & 0o077 != 0) {
            let message = format!("the passphrase file {} is open to other users (mode {mode:04o})", path.display());
            return Err(key_error(message).with_hint(format!("chmod 600 {}", path.display())));
        }
        file.read(SECRET_LEN_MAX).map_err(failed)
    };
    // It may be a pipe that somebody has yet to write to.
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|e| Error::internal(Stage::Keys, "the passphrase file could not be read").with_source(e))?
}

async fn run_for_secret(command: &str) -> Result<Zeroizing<String>> {
    let failed = |e: io::Error| key_error(format!("the passphrase command failed: {e}"));
    // Standard input is the stream to back up. Who must ask a person opens /dev/tty.
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut printed = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX + 1));
    if let Some(stdout) = child.stdout.take() {
        stdout.take(SECRET_LEN_MAX as u64 + 1).read_to_end(&mut printed).await.map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    if !status.success() && printed.len() <= SECRET_LEN_MAX {
        return Err(key_error(format!("the passphrase command failed: {status}")));
    }
    small_file::text(printed, SECRET_LEN_MAX)
        .map_err(|e| key_error("what the passphrase command printed is no passphrase").with_source(e))
}

fn key_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Key, Stage::Keys, message)
}
