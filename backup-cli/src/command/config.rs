//! `backup config`: what is configured, and who said so.

use std::path::PathBuf;

use backup_core::Result;
use backup_core::encrypt::signature::Signer;
use backup_core::keys::parse_recipient;
use backup_core::keys::secret::SecretSource;
use clap::ValueEnum;
use serde::Serialize;

use crate::args::ConfigAction;
use crate::config::{Config, Origin, RepositorySetting, Setting};
use crate::exit::Exit;
use crate::output::table;
use crate::{App, keys, signing};

use super::describe::time;
use super::repositories;

#[derive(Debug, Serialize)]
struct Document {
    config_file: Option<String>,
    settings: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    key: String,
    value: Option<String>,
    origin: Option<Origin>,
}

impl Entry {
    /// With what applies when nobody said anything.
    fn or(self, applies: &str) -> Self {
        let origin = self.origin.or(Some(Origin::Default));
        Self { value: self.value.or_else(|| Some(applies.to_owned())), origin, ..self }
    }
}

pub(crate) async fn run(app: &App, action: &ConfigAction) -> Result<Exit> {
    match action {
        ConfigAction::Check => check(app).await,
        ConfigAction::Show { json } => show(app, *json),
    }
}

/// Resolves all that can be resolved without a request: addresses, keys, files.
async fn check(app: &App) -> Result<Exit> {
    repositories(&app.config)?;
    keys::configured_recipients(&app.config)?;
    keys::policy_recipients(&app.config)?;
    keys::age_identities(&app.config)?;
    keys::configured_identities(&app.config)?;
    signing::signing_key(&app.config)?;
    keys::check_passphrase_file(&app.config).await?;
    app.config.targets.iter().try_for_each(|target| target.input.check())?;
    app.output.note("the configuration is sound");
    Ok(Exit::Done)
}

fn show(app: &App, json: bool) -> Result<Exit> {
    let settings = entries(&app.config);
    if json {
        let config_file = app.config.file.as_ref().map(|path| path.to_string_lossy().into_owned());
        app.output.json(&Document { config_file, settings })?;
        return Ok(Exit::Done);
    }
    let mut rows = vec![["SETTING", "VALUE", "FROM"].map(str::to_owned).to_vec()];
    for Entry { key, value, origin } in settings {
        let origin = origin.map_or_else(|| "not set".to_owned(), |o| o.to_string());
        rows.push(vec![key, value.unwrap_or_else(|| "-".to_owned()), origin]);
    }
    match &app.config.file {
        Some(path) => app.output.note(format!("configuration file: {}", path.display())),
        None => app.output.note("configuration file: none"),
    }
    app.output.data(&table(&rows))?;
    Ok(Exit::Done)
}

/// All settings, by their names in the file.
fn entries(config: &Config) -> Vec<Entry> {
    fn entry<T>(key: &'static str, setting: Option<&Setting<T>>, text: impl Fn(&T) -> String) -> Entry {
        Entry { key: key.to_owned(), value: setting.map(|s| text(&s.value)), origin: setting.map(|s| s.origin.clone()) }
    }
    fn plain<T: ToString>(key: &'static str, setting: Option<&Setting<T>>) -> Entry {
        entry(key, setting, T::to_string)
    }
    let files = |files: &Vec<PathBuf>| files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
    let passphrase = |text: fn(&SecretSource) -> Option<String>| {
        let setting = config.passphrase.as_ref()?;
        Some(Setting { value: text(&setting.value)?, origin: setting.origin.clone() })
    };
    let file = passphrase(|from| match from {
        SecretSource::File(path) => Some(path.display().to_string()),
        SecretSource::Command(_) => None,
    });
    let command = passphrase(|from| match from {
        SecretSource::Command(command) => Some(program(command)),
        SecretSource::File(_) => None,
    });
    let names = |keys: &Vec<String>| keys.iter().map(|key| recipient(key)).collect::<Vec<_>>().join(", ");
    let recipients = entry("recipients", config.recipients.as_ref(), names);
    let has_identities = config.identity_files.is_some() || config.identities.is_some();
    let recipients = if !config.keys.policy.is_empty() {
        recipients.or("those of the keys whose time it is")
    } else if config.passphrase.is_none() && has_identities {
        recipients.or("those of the identities")
    } else {
        recipients
    };
    let mut all = repository_entries(config);
    all.extend([
        plain("repository.s3.endpoint", config.s3.endpoint.as_ref()).or("the AWS profile's, or AWS itself"),
        plain("repository.s3.region", config.s3.region.as_ref()).or("the AWS profile's, or us-east-1"),
        plain("repository.s3.path_style", config.s3.path_style.as_ref()).or("true with an endpoint of one's own"),
        recipients,
        entry("identity_files", config.identity_files.as_ref(), files),
        entry("identities", config.identities.as_ref(), names),
        plain("passphrase_file", file.as_ref()),
        plain("passphrase_command", command.as_ref()),
        entry("signing_key_file", config.signing_key_file.as_ref(), |path| path.display().to_string()),
        entry("trusted_signers", config.trusted_signers.as_ref(), |signers| {
            signers.iter().map(|signer| self::signer(signer)).collect::<Vec<_>>().join(", ")
        })
        .or("everybody"),
        plain("memory", config.memory.as_ref()).or("what suits the repository and the level"),
        plain("workers", config.workers.as_ref()).or("one for each core, at most 4"),
        plain("level", Some(&config.encoding.level)),
        entry("codec", Some(&config.encoding.codec), value_name),
        entry("cipher", Some(&config.encoding.cipher), value_name),
        plain("optional_lag_seconds", config.optional_lag.as_ref()).or("30; of wal, 10"),
    ]);
    all.extend(config.keys.policy.keys().iter().map(|key| {
        Entry {
            key: format!("keys.{}", key.name),
            value: Some(format!(
                "{}, from {} until {}",
                recipient(&key.recipient),
                time(key.activates),
                time(key.ends)
            )),
            origin: config
                .file
                .clone()
                .zip(config.keys.lines.get(&key.name))
                .map(|(path, line)| Origin::File { path, line: *line }),
        }
    }));
    all.extend(config.targets.iter().map(|target| Entry {
        key: format!("targets.{}", target.name),
        value: Some(target.input.describe()),
        origin: config.file.clone().map(|path| Origin::File { path, line: target.line }),
    }));
    all
}

/// The repositories that are used.
fn repository_entries(config: &Config) -> Vec<Entry> {
    let entry = |repository: &RepositorySetting| {
        let Setting { value, origin } = &repository.url;
        let several = config.repositories.all.len() > 1;
        let role = if repository.required { "required" } else { "optional" };
        Entry {
            key: repository.name.as_ref().map_or_else(|| "repository.url".to_owned(), |n| format!("repositories.{n}")),
            value: Some(if several || repository.name.is_some() { format!("{value}, {role}") } else { value.clone() }),
            origin: Some(origin.clone()),
        }
    };
    match &config.repositories.all[..] {
        [] => vec![Entry { key: "repository.url".to_owned(), value: None, origin: None }],
        all => all.iter().map(entry).collect(),
    }
}

/// Only the program: people put secrets into arguments and assignments.
fn program(command: &str) -> String {
    let mut words = command.split_whitespace();
    match (words.next(), words.next()) {
        (Some(program), None) if !program.contains('=') => program.to_owned(),
        (Some(program), _) if !program.contains('=') => format!("{program} …"),
        _ => "…".to_owned(),
    }
}

/// What is no recipient may be a secret key that was pasted here by mistake.
fn recipient(text: &str) -> String {
    parse_recipient(text).map_or_else(|_| "(not a recipient)".to_owned(), |recipient| recipient.describe().1)
}

fn signer(text: &str) -> String {
    text.parse::<Signer>().map_or_else(|_| "(not a signer)".to_owned(), |signer| signer.to_string())
}

fn value_name<T: ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}
