//! The `restore_command` of a restored cluster: this program, told what it was told now, so that it finds the same repositories.
//!
//! What stands there everybody who may read the cluster can read, and it stays; so no secret is written, and nothing that was not looked at. What is
//! in the configuration file stays there. What cannot be written so that all repositories are reached as they were now is refused.

use std::path::{Path, PathBuf};

use backup_core::http::HttpOptions;
use backup_core::keys::secret::SecretSource;
use backup_core::postgres::recovery::RestoreCommand;
use backup_core::repository::layout::TargetName;
use backup_core::{Error, Result};

use crate::command::location;
use crate::config::{Config, Environment, Origin, RepositorySetting, Setting, StoreKind, Stores};
use crate::stores::http_options;

mod environment;
#[cfg(test)]
mod tests;

/// What the restored server needs beside its `restore_command`.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Identity files that it reads.
    pub(super) identity_files: Vec<PathBuf>,
    /// Variables of the environment that were set here and cannot be written there.
    pub(super) variables: Vec<&'static str>,
}

/// What is configured of stores, one setting of it.
type Told = fn(&Stores) -> Option<&Setting<String>>;

/// How the restored server fetches its log.
#[derive(Debug)]
pub(super) struct Fetching {
    /// Flags of this program, before the command.
    flags: Vec<String>,
    pub(super) needs: Needs,
}

impl Fetching {
    /// As this program has it from `config` and `environment`.
    pub(super) fn new(config: &Config, environment: &Environment) -> Result<Self> {
        let mut fetching = Self { flags: Vec::new(), needs: Needs::default() };
        if let Some(file) = &config.file {
            fetching.add("--config", absolute(file)?.1);
        }
        fetching.repositories(config)?;
        fetching.keys(config)?;
        fetching.stores(config)?;
        fetching.http(config, environment)?;
        fetching.needs.variables.extend(environment::needed(config, environment));
        Ok(fetching)
    }

    /// The command that fetches what belongs to `target`.
    pub(super) fn restore_command(&self, target: &TargetName, standby: bool) -> Result<RestoreCommand> {
        let mut arguments = self.flags.clone();
        arguments.extend(["wal", "fetch", "--target", target.as_str()].map(str::to_owned));
        if standby {
            arguments.push("--standby".to_owned());
        }
        let program = std::env::current_exe()
            .map_err(|e| Error::config("cannot find out where this program is").with_source(e))?;
        RestoreCommand::new(&program, arguments)
    }

    fn add(&mut self, flag: &str, value: String) {
        self.flags.extend([flag.to_owned(), value]);
    }

    fn repositories(&mut self, config: &Config) -> Result<()> {
        for repository in elsewhere(&config.repositories.chosen).map_or(&[][..], |_| &config.repositories.all) {
            let directory = location(config, repository)?.as_directory().map(Path::to_owned);
            let address = match (&repository.name, directory) {
                (Some(name), _) => name.clone(),
                (None, Some(path)) => absolute(&path)?.1,
                (None, None) => repository.url.value.clone(),
            };
            self.add("--repo", address);
        }
        Ok(())
    }

    fn keys(&mut self, config: &Config) -> Result<()> {
        for path in elsewhere(&config.identity_files).into_iter().flatten() {
            // The default file need not exist, with a passphrase for example.
            if path.exists() {
                let (path, text) = absolute(path)?;
                self.add("--identity-file", text);
                self.needs.identity_files.push(path);
            }
        }
        for identity in elsewhere(&config.identities).into_iter().flatten() {
            if is_pin_printed(identity) {
                return Err(Error::config(
                    "the restored server needs the PIN too, and a command for it may hold secrets",
                )
                .with_hint("name the key in the configuration file (identities), or a file by pin-source"));
            }
            self.add("--identity", identity.clone());
        }
        match elsewhere(&config.passphrase) {
            Some(SecretSource::File(path)) => self.add("--passphrase-file", absolute(path)?.1),
            Some(SecretSource::Command(_)) => {
                return Err(Error::config(
                    "the restored server needs the passphrase too, and a command for it may hold secrets",
                )
                .with_hint("name it in the configuration file (passphrase_command), or use --passphrase-file"));
            }
            None => {}
        }
        for signer in elsewhere(&config.trusted_signers).into_iter().flatten() {
            self.add("--trusted-signer", signer.clone());
        }
        Ok(())
    }

    /// How the stores that are used are reached. Of others nobody has looked at what the environment says.
    fn stores(&mut self, config: &Config) -> Result<()> {
        let used = &config.repositories.all;
        let told: [(_, _, Told); 5] = [
            ("--s3-endpoint", StoreKind::S3, |stores| stores.s3.endpoint.as_ref()),
            ("--s3-region", StoreKind::S3, |stores| stores.s3.region.as_ref()),
            ("--azure-account", StoreKind::Azure, |stores| stores.azure.account.as_ref()),
            ("--azure-endpoint", StoreKind::Azure, |stores| stores.azure.endpoint.as_ref()),
            ("--gcs-endpoint", StoreKind::Gcs, |stores| stores.gcs.endpoint.as_ref()),
        ];
        for (flag, kind, of) in told {
            if let Some(setting) = of_all(used, kind, of)? {
                // The repository may be one that was not asked now, so nobody has looked at it either.
                if setting.value.contains(['@', '?', '#']) {
                    return Err(Error::config(format!(
                        "{} holds more than the restored server may be told",
                        setting.origin
                    ))
                    .with_hint("credentials belong into variables of their own"));
                }
                self.add(flag, setting.value.clone());
            }
        }
        if let Some(style) = of_all(used, StoreKind::S3, |stores| stores.s3.path_style.as_ref())? {
            self.flags.push(format!("--s3-path-style={}", style.value));
        }
        Ok(())
    }

    /// How HTTP is spoken, if it is.
    fn http(&mut self, config: &Config, environment: &Environment) -> Result<()> {
        if !speaks_http(config) {
            return Ok(());
        }
        // Should no store have been asked yet: a proxy with a password in it is refused.
        HttpOptions { ca_file: None, ..http_options(config)? }.check()?;
        let http = &config.http;
        if let Some(version) = elsewhere(&http.ssl_min_protocol_version) {
            self.add("--ssl-min-protocol-version", version.clone());
        }
        let proxy = elsewhere(&http.proxy).cloned().or_else(|| environment::proxy(config, environment));
        if let Some(proxy) = proxy {
            self.add("--proxy", proxy);
        }
        let ca_file = elsewhere(&http.ca_file).cloned().or_else(|| environment::ca_file(config, environment));
        if let Some(file) = ca_file {
            self.add("--ca-file", absolute(&file)?.1);
        }
        Ok(())
    }
}

/// A value that does not come from the configuration file, which the command names too.
fn elsewhere<T>(setting: &Option<Setting<T>>) -> Option<&T> {
    setting.as_ref().filter(|setting| is_elsewhere(setting)).map(|setting| &setting.value)
}

fn is_elsewhere<T>(setting: &Setting<T>) -> bool {
    !matches!(setting.origin, Origin::File { .. })
}

/// What some of the repositories of this kind have from elsewhere than the file. A flag of the command is for all of them, so all must have the same.
fn of_all<T: PartialEq>(
    used: &[RepositorySetting],
    kind: StoreKind,
    of: impl Fn(&Stores) -> Option<&Setting<T>>,
) -> Result<Option<&Setting<T>>> {
    let used = || used.iter().filter(|repository| repository.kind() == kind);
    let Some(told) = used().filter_map(|repository| of(&repository.stores)).find(|setting| is_elsewhere(setting))
    else {
        return Ok(None);
    };
    let differs = |other: &&RepositorySetting| of(&other.stores).is_none_or(|setting| setting.value != told.value);
    let Some(other) = used().find(differs) else { return Ok(Some(told)) };
    let (origin, name) = (&told.origin, other.name.as_deref().unwrap_or(&other.url.value));
    let message = format!("{origin} is not for the repository '{name}', and the restored server is told it for all");
    Err(Error::config(message).with_hint(
        "say it in the tables of the other repositories, in the configuration file, or choose one repository with --repo",
    ))
}

/// Whether any store or key that is used is reached by HTTP.
fn speaks_http(config: &Config) -> bool {
    config.repositories.all.iter().any(|repository| repository.kind() != StoreKind::Directory) || asks_kms(config)
}

fn asks_kms(config: &Config) -> bool {
    has_identity(config, "kms:")
}

fn has_identity(config: &Config, kind: &str) -> bool {
    config.identities.iter().flat_map(|setting| &setting.value).any(|key| key.trim().starts_with(kind))
}

/// Whether the PIN of a key on a token is what a command prints.
fn is_pin_printed(identity: &str) -> bool {
    let query = identity.split_once('?').map_or("", |(_, query)| query);
    let mut sources = query.split('&').filter_map(|part| part.trim().strip_prefix("pin-source="));
    sources.any(|source| source.starts_with('|') || source.get(..3).is_some_and(|bar| bar.eq_ignore_ascii_case("%7C")))
}

fn absolute(path: &Path) -> Result<(PathBuf, String)> {
    let invalid = || Error::config(format!("{} cannot stand in restore_command", path.display()));
    let path = std::path::absolute(path).map_err(|e| invalid().with_source(e))?;
    let text = path.to_str().ok_or_else(invalid)?.to_owned();
    Ok((path, text))
}
