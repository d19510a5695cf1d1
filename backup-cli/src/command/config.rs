//! `backup config`: what is configured, and who said so.

use std::path::PathBuf;

use backup_core::Result;
use backup_core::encrypt::signature::Signer;
use backup_core::keys::parse_recipient;
use backup_core::keys::secret::SecretSource;
use backup_core::repository::retention::{Keep, Rules};
use clap::ValueEnum;
use serde::Serialize;

use crate::args::ConfigAction;
use crate::config::{Config, Origin, RepositorySetting, Setting, StoreKind, Stores};
use crate::exit::Exit;
use crate::output::table;
use crate::{App, keys, signing, stores};

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
    stores::http_options(&app.config)?.check()?;
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
        plain("http.ssl_min_protocol_version", config.http.ssl_min_protocol_version.as_ref()).or("TLSv1.3"),
        entry("http.ca_file", config.http.ca_file.as_ref(), |path| path.display().to_string()),
        // One with a password is refused, but not here.
        entry("http.proxy", config.http.proxy.as_ref(), |proxy| {
            if proxy.contains('@') { "…" } else { proxy }.to_owned()
        })
        .or("that of the environment"),
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
    all.extend(retention(config));
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

fn entry<T>(key: impl Into<String>, setting: Option<&Setting<T>>, text: impl Fn(&T) -> String) -> Entry {
    Entry { key: key.into(), value: setting.map(|s| text(&s.value)), origin: setting.map(|s| s.origin.clone()) }
}

fn plain<T: ToString>(key: impl Into<String>, setting: Option<&Setting<T>>) -> Entry {
    entry(key, setting, T::to_string)
}

/// The repositories that are used, and how much each may hold.
fn repository_entries(config: &Config) -> Vec<Entry> {
    let entries = |repository: &RepositorySetting| {
        let Setting { value, origin } = &repository.url;
        let several = config.repositories.all.len() > 1;
        let role = if repository.required { "required" } else { "optional" };
        let table = repository.name.as_ref().map_or_else(|| "repository".to_owned(), |n| format!("repositories.{n}"));
        let url = Entry {
            key: if repository.name.is_some() { table.clone() } else { format!("{table}.url") },
            value: Some(if several || repository.name.is_some() { format!("{value}, {role}") } else { value.clone() }),
            origin: Some(origin.clone()),
        };
        let capacity = plain(format!("{table}.capacity"), repository.capacity.as_ref()).or("no budget");
        let warning =
            entry(format!("{table}.capacity_warning"), Some(&repository.capacity_warning), |n| format!("{n} %"));
        let mut entries = vec![url, capacity, warning];
        entries.extend(store_entries(&table, repository));
        entries
    };
    match &config.repositories.all[..] {
        [] => vec![Entry { key: "repository.url".to_owned(), value: None, origin: None }],
        all => all.iter().flat_map(entries).collect(),
    }
}

/// How the store is reached in which a repository is.
fn store_entries(table: &str, repository: &RepositorySetting) -> Vec<Entry> {
    let Stores { s3, azure, gcs } = &repository.stores;
    match repository.kind() {
        StoreKind::Directory => Vec::new(),
        StoreKind::S3 => {
            let key = |name: &str| format!("{table}.s3.{name}");
            vec![
                plain(key("endpoint"), s3.endpoint.as_ref()).or("the AWS profile's, or AWS itself"),
                plain(key("region"), s3.region.as_ref()).or("the AWS profile's, or us-east-1"),
                plain(key("path_style"), s3.path_style.as_ref()).or("true with an endpoint of one's own"),
                plain(key("profile"), s3.profile.as_ref()).or("that of the environment"),
                plain(key("sse"), s3.sse.as_ref()).or("as the bucket is set"),
                plain(key("sse_kms_key_id"), s3.sse_kms_key_id.as_ref()),
                plain(key("sse_bucket_key"), s3.sse_bucket_key.as_ref()),
                plain(key("storage_class"), s3.storage_class.as_ref()).or("as the bucket is set"),
                plain(key("checksum"), s3.checksum.as_ref()).or("crc64nvme at AWS and without TLS, else none"),
                plain(key("request_payer"), s3.request_payer.as_ref()).or("false"),
            ]
        }
        StoreKind::Azure => {
            let key = |name: &str| format!("{table}.azure.{name}");
            vec![
                plain(key("account"), azure.account.as_ref()).or("that of the connection string"),
                plain(key("endpoint"), azure.endpoint.as_ref()).or("that of the account"),
                plain(key("storage_class"), azure.storage_class.as_ref()).or("as the account is set"),
            ]
        }
        StoreKind::Gcs => vec![
            plain(format!("{table}.gcs.endpoint"), gcs.endpoint.as_ref()).or("https://storage.googleapis.com"),
            plain(format!("{table}.gcs.storage_class"), gcs.storage_class.as_ref()).or("as the bucket is set"),
        ],
    }
}

/// The rules, those of single targets too.
fn retention(config: &Config) -> Vec<Entry> {
    let kept = &config.retention;
    let origin = config.file.clone().zip(kept.line).map(|(path, line)| Origin::File { path, line });
    let origin = origin.or(Some(Origin::Default));
    let general = Entry { key: "retention".to_owned(), value: Some(rules(&kept.rules)), origin: origin.clone() };
    let grace = Entry { key: "retention.grace".to_owned(), value: Some(format!("{:#}", kept.grace)), origin };
    let of_target = kept.of_target.iter().map(|(target, of_target)| Entry {
        key: format!("targets.{target}.retention"),
        value: Some(rules(of_target)),
        origin: config.file.clone().map(|path| Origin::File { path, line: kept.line_of(target) }),
    });
    [general, grace].into_iter().chain(of_target).collect()
}

fn rules(rules: &Rules) -> String {
    let kept = |keep: Keep| match keep {
        Keep::Nothing => None,
        Keep::Count(count) => Some(count.to_string()),
        Keep::Within(span) => Some(format!("{span:#}")),
    };
    let named = [
        ("last", rules.last),
        ("daily", rules.daily),
        ("weekly", rules.weekly),
        ("monthly", rules.monthly),
        ("yearly", rules.yearly),
    ];
    let mut words: Vec<String> =
        named.into_iter().filter_map(|(name, keep)| Some(format!("{name} {}", kept(keep)?))).collect();
    words.push(format!("wal {:#}", rules.wal));
    words.push(rules.time_zone.iana_name().unwrap_or("UTC").to_owned());
    words.join(", ")
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
