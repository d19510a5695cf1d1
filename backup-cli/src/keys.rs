//! From configured names, files and commands to recipients and identities.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use backup_core::format::RecipientName;
use backup_core::keys::age::AgeIdentity;
use backup_core::keys::passphrase::{self, PassphraseIdentity, PassphraseRecipient};
use backup_core::keys::policy::{Key, Policy, State};
use backup_core::keys::secret::SecretSource;
use backup_core::keys::{self, Identity, Recipient};
use backup_core::repository::rewrap::named;
use backup_core::{Error, ErrorKind, Result, Stage};
use jiff::Timestamp;

use crate::App;
use crate::config::{Config, Origin, Setting};
use crate::stores::http_options;

mod following;

pub(crate) use following::Following;

/// The longest passphrase in bytes; what is longer is something else.
const SECRET_LEN_MAX: usize = 64 * 1024;

/// Whom to encrypt to: the recipients and the passphrase that are configured and the keys whose time it is, else the public halves of the
/// identities.
#[derive(Debug)]
pub(crate) struct Recipients {
    policy: Policy,
    /// Those of the policy, by the names of their keys.
    keys: Vec<(String, Arc<dyn Recipient>)>,
    /// Whether a flag or the environment names others in their place.
    overruled: bool,
    passphrase: Option<Arc<dyn Recipient>>,
    others: Vec<Arc<dyn Recipient>>,
}

impl Recipients {
    /// Reads what is configured, the passphrase too.
    pub(crate) async fn load(config: &Config) -> Result<Self> {
        let passphrase: Option<Arc<dyn Recipient>> = match &config.passphrase {
            Some(setting) => Some(Arc::new(PassphraseRecipient::new(passphrase(&setting.value).await?)?)),
            None => None,
        };
        Self::of(config, passphrase)
    }

    /// What is configured, with the passphrase as it was read before. Blocks, if it has to read identity files.
    fn of(config: &Config, passphrase: Option<Arc<dyn Recipient>>) -> Result<Self> {
        let mut others = configured_recipients(config)?;
        others.extend(passphrase.clone());
        let keys = policy_recipients(config)?;
        if others.is_empty() && keys.is_empty() {
            others = public_halves(config)?;
        }
        let (policy, overruled) = (config.keys.policy.clone(), is_overruled(config));
        Ok(Self { policy, keys, overruled, passphrase, others })
    }

    /// Those of the moment `now`. May be none, without a policy: the pipeline refuses that, and says what to do.
    ///
    /// # Errors
    /// `Key`, when no configured key is used at the time, or a recipient that was named is a key whose time it is not.
    pub(crate) fn at(&self, now: Timestamp) -> Result<Vec<Arc<dyn Recipient>>> {
        let mut all: Vec<Arc<dyn Recipient>> = self.others.clone();
        for (name, recipient) in &self.keys {
            let is_named = self.others.iter().any(|other| other.describe() == recipient.describe());
            let Some(key) = self.policy.key(name) else { continue };
            match key.state(now) {
                state if state.is_used() && !is_named && !self.overruled => all.push(Arc::clone(recipient)),
                state if !state.is_used() && is_named => return Err(not_used(key, now)),
                _ => {}
            }
        }
        if all.is_empty() && !self.policy.is_empty() {
            return Err(none_used(&self.policy, now));
        }
        Ok(all)
    }
}

/// The names of those whom backups are encrypted to at the moment `now`: a key whose time it is not is none of them, whoever names it. Asks for no
/// passphrase, and refuses only who cannot be kept account of.
pub(crate) fn recipient_names(config: &Config, now: Timestamp) -> Result<BTreeSet<RecipientName>> {
    let configured = configured_recipients(config)?.into_iter().map(stable).collect::<Result<Vec<_>>>()?;
    let mut names: BTreeSet<RecipientName> = configured.iter().map(|one| named(&**one)).collect();
    if config.passphrase.is_some() {
        let (kind, recipient) = (passphrase::KIND.to_owned(), passphrase::KIND.to_owned());
        names.insert(RecipientName { kind, recipient });
    }
    let keys = policy_recipients(config)?;
    if names.is_empty() && keys.is_empty() {
        names.extend(public_halves(config)?.iter().map(|one| named(&**one)));
    }
    let is_used = |name: &str| config.keys.policy.key(name).is_some_and(|key| key.state(now).is_used());
    let (used, idle): (Vec<_>, Vec<_>) = keys.iter().partition(|(name, _)| is_used(name));
    let names_of = |keys: Vec<&(String, Arc<dyn Recipient>)>| -> BTreeSet<RecipientName> {
        keys.into_iter().map(|(_, recipient)| named(&**recipient)).collect()
    };
    let (used, idle) = (names_of(used), names_of(idle));
    names.retain(|name| used.contains(name) || !idle.contains(name));
    if !is_overruled(config) {
        names.extend(used);
    }
    Ok(names)
}

/// Whether a flag or the environment names recipients: then those of the file do not count.
fn is_overruled(config: &Config) -> bool {
    config.recipients.as_ref().is_some_and(|setting| !matches!(setting.origin, Origin::File { .. }))
}

/// The recipients of the keys of the policy, by the names of the keys.
pub(crate) fn policy_recipients(config: &Config) -> Result<Vec<(String, Arc<dyn Recipient>)>> {
    let keys = config.keys.policy.keys();
    keys.iter().map(|key| Ok((key.name.clone(), key_recipient(config, key)?))).collect()
}

/// The recipient of a key of the policy.
pub(crate) fn key_recipient(config: &Config, key: &Key) -> Result<Arc<dyn Recipient>> {
    recipient(config, &key.recipient).map_err(|e| {
        let line = config.keys.lines.get(&key.name).copied().unwrap_or(1);
        let file = config.file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let hint = e.hint().unwrap_or_default().to_owned();
        Error::config(format!("{file}:{line}: key '{}': {e}", key.name)).with_hint(hint)
    })
}

/// Refuses a recipient of which nobody can keep account.
fn stable(recipient: Arc<dyn Recipient>) -> Result<Arc<dyn Recipient>> {
    if recipient.is_stable() {
        return Ok(recipient);
    }
    Err(Error::config(format!("{} does not say which key it is", recipient.describe().1)).with_hint(
        "an alias can be pointed at another key: name the ARN of the key; of a pair on a token, what 'backup init --identity' prints; an AES key on a token has no such name",
    ))
}

/// A recipient, from its public form.
pub(crate) fn recipient(config: &Config, text: &str) -> Result<Arc<dyn Recipient>> {
    keys::parse_recipient_with(text, &http_options(config)?).and_then(stable)
}

/// Reads each of the recipients of a setting.
fn each_recipient(config: &Config, setting: Option<&Setting<Vec<String>>>) -> Result<Vec<Arc<dyn Recipient>>> {
    let http = http_options(config)?;
    each(setting, |text| keys::parse_recipient_with(text, &http))
}

fn public_halves(config: &Config) -> Result<Vec<Arc<dyn Recipient>>> {
    let identities = age_identities(config)?;
    let mut halves: Vec<Arc<dyn Recipient>> =
        identities.iter().flat_map(AgeIdentity::recipients).map(|recipient| Arc::new(recipient) as _).collect();
    halves.extend(each_recipient(config, config.identities.as_ref())?);
    Ok(halves)
}

fn not_used(key: &Key, now: Timestamp) -> Error {
    key_error(format!("{}: nothing new is encrypted to {}", why_not_used(key, now), keys::shown(&key.recipient)))
        .with_hint("'backup key list' shows which keys are used")
}

fn why_not_used(key: &Key, now: Timestamp) -> String {
    match key.state(now) {
        State::Pending => format!("key '{}' is not used before {}", key.name, key.activates),
        State::Retired => format!("key '{}' is retired", key.name),
        _ => format!("key '{}' ended on {}", key.name, key.ends),
    }
}

fn none_used(policy: &Policy, now: Timestamp) -> Error {
    let keys: Vec<String> = policy.keys().iter().map(|key| why_not_used(key, now)).collect();
    key_error(format!("no configured key is active, so nothing is encrypted: {}", keys.join(", ")))
        .with_hint("bring in a successor with 'backup key rotate'")
}

/// Says what of the configured keys needs attention; whether one has ended without a successor, so that somebody who should be able to
/// read this backup cannot.
pub(crate) fn tell(app: &App) -> bool {
    let now = app.clock.now();
    let policy = &app.config.keys.policy;
    let mut needs_care = false;
    if is_overruled(&app.config) {
        return false;
    }
    for key in policy.keys() {
        match key.state(now) {
            State::Expiring => app.output.note(format!("key '{}' {}", key.name, expiring(key, now))),
            State::Expired if key.successors.is_empty() => {
                app.output.warning(format!("key '{}' {}", key.name, ended_alone(key)));
                needs_care = true;
            }
            _ => {}
        }
    }
    needs_care
}

/// The rest of a sentence about a key that is about to end.
pub(crate) fn expiring(key: &Key, now: Timestamp) -> String {
    let days = key.ends.duration_since(now).as_hours() / 24;
    format!(
        "ends on {}, in {days} days, and no successor will be there in time: run 'backup key rotate {}'",
        key.ends, key.name
    )
}

/// The rest of a sentence about a key that has ended, and nobody took its place.
pub(crate) fn ended_alone(key: &Key) -> String {
    format!(
        "ended on {} without a successor, so nothing new is encrypted to it: run 'backup key rotate {name}', or retire it",
        key.ends,
        name = key.name
    )
}

/// The recipients that are named by flag, environment or file.
pub(crate) fn configured_recipients(config: &Config) -> Result<Vec<Arc<dyn Recipient>>> {
    let mut recipients = each_recipient(config, config.recipients.as_ref())?;
    // Named twice, by a file for many hosts and a template say, is meant once.
    let mut seen = HashSet::new();
    recipients.retain(|recipient| seen.insert(recipient.describe()));
    Ok(recipients)
}

/// The identities that are named by flag, environment or file, and lie in none.
pub(crate) fn configured_identities(config: &Config) -> Result<Vec<Arc<dyn Identity>>> {
    let http = http_options(config)?;
    each(config.identities.as_ref(), |text| keys::parse_identity_with(text, &http))
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
    named_identities(config).await.map(|(identities, _)| identities)
}

/// The same, and their public halves, for a record. All is read once: a file may be a pipe, and a command may ask a person.
pub(crate) async fn named_identities(config: &Config) -> Result<(Vec<Arc<dyn Identity>>, Vec<RecipientName>)> {
    let in_files = age_identities(config)?;
    let names = names_of(config, &in_files);
    let identities = with_others(config, in_files).await?;
    if identities.is_empty() {
        let hint = "give the identity file with --identity-file or BACKUP_IDENTITY_FILE, another key with --identity, or a passphrase with --passphrase-file";
        return Err(key_error("no identity to open the backup with").with_hint(hint));
    }
    Ok((identities, names))
}

/// With what to open backups, first what needs no network; may be none. Opening a backup with none says who could.
pub(crate) async fn identities_at_hand(config: &Config) -> Result<Vec<Arc<dyn Identity>>> {
    with_others(config, age_identities(config)?).await
}

/// Those in files, and what else is configured.
async fn with_others(config: &Config, in_files: Vec<AgeIdentity>) -> Result<Vec<Arc<dyn Identity>>> {
    let mut identities: Vec<Arc<dyn Identity>> = Vec::new();
    for identity in in_files {
        identities.push(Arc::new(identity));
    }
    if let Some(setting) = &config.passphrase {
        identities.push(Arc::new(PassphraseIdentity::new(passphrase(&setting.value).await?)));
    }
    identities.extend(configured_identities(config)?);
    Ok(identities)
}

/// The keys to open backups with, by their public halves. Asks for no passphrase; a file that cannot be read is passed over, for whoever needs it
/// says so.
pub(crate) fn identity_names(config: &Config) -> Vec<RecipientName> {
    names_of(config, &age_identities(config).unwrap_or_default())
}

/// The public halves of those in files, and of what else is configured.
fn names_of(config: &Config, in_files: &[AgeIdentity]) -> Vec<RecipientName> {
    let recipients = in_files.iter().flat_map(AgeIdentity::recipients);
    let mut names: Vec<RecipientName> = recipients.map(|recipient| named(&recipient)).collect();
    let elsewhere = each_recipient(config, config.identities.as_ref()).unwrap_or_default();
    names.extend(elsewhere.iter().map(|one| named(&**one)));
    if config.passphrase.is_some() {
        let (kind, recipient) = (passphrase::KIND.to_owned(), passphrase::KIND.to_owned());
        names.push(RecipientName { kind, recipient });
    }
    names
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
        Some(Setting { value: from @ SecretSource::File(_), .. }) => passphrase(from).await.map(drop),
        _ => Ok(()),
    }
}

/// Cancel safe: a command that still runs is killed.
async fn passphrase(from: &SecretSource) -> Result<String> {
    // Whoever takes it wipes it.
    Ok(std::mem::take(&mut *from.read("passphrase", SECRET_LEN_MAX).await?))
}

fn key_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Key, Stage::Keys, message)
}
