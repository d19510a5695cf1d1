//! From configured names and files to who signs, and who is believed.

use backup_core::encrypt::signature::{Signer, SigningKey};
use backup_core::{Error, Result};

use crate::config::Config;

/// With what to sign, if anything. Blocks; the file is small.
///
/// # Errors
/// `Key` when the file cannot be used; `Config` when this host would not believe what it wrote itself.
pub(crate) fn signing_key(config: &Config) -> Result<Option<SigningKey>> {
    let Some(setting) = &config.signing_key_file else { return Ok(None) };
    let key = SigningKey::load(&setting.value)?;
    let trusted = trusted_signers(config)?;
    if trusted.is_empty() || trusted.contains(&key.signer()) {
        return Ok(Some(key));
    }
    let message =
        format!("{} is none of the trusted signers: this host would not believe its own backups", key.signer());
    Err(Error::config(message).with_hint("add it to trusted_signers"))
}

/// Who is believed; everybody when there is nobody.
///
/// # Errors
/// `Config`, also when somebody meant to name signers and named none.
pub(crate) fn trusted_signers(config: &Config) -> Result<Vec<Signer>> {
    let Some(setting) = &config.trusted_signers else { return Ok(Vec::new()) };
    let parse = |text: &String| {
        text.parse().map_err(|e: Error| {
            let hint = e.hint().unwrap_or_default().to_owned();
            Error::config(format!("{}: {e}", setting.origin)).with_hint(hint)
        })
    };
    let signers = setting.value.iter().map(parse).collect::<Result<Vec<Signer>>>()?;
    if signers.is_empty() {
        return Err(Error::config(format!("{}: no trusted signer is named", setting.origin))
            .with_hint("to believe everybody, leave it out"));
    }
    Ok(signers)
}
