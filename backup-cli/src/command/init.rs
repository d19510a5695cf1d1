//! `backup init`: a repository, and a key where none is configured.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

use backup_core::clock::Clock;
use backup_core::keys::age::AgeIdentity;
use backup_core::keys::public_recipient;
use backup_core::repository::{Init, Location, Repository};
use backup_core::{Error, Result};
use serde::Serialize;

use crate::App;
use crate::args::InitArgs;
use crate::exit::Exit;
use crate::style::BOLD;
use crate::{keys, report};

use super::{location, or_cancelled};

#[derive(Debug, Clone, Serialize)]
struct RepositoryDocument<'a> {
    repository: &'a str,
    repository_id: &'a str,
    created: bool,
    conditional_put: bool,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    /// The same as the first of all.
    #[serde(flatten)]
    first: Option<RepositoryDocument<'a>>,
    repositories: Vec<RepositoryDocument<'a>>,
    recipients: Vec<String>,
    identity_file: Option<Cow<'a, str>>,
    identity_created: bool,
}

/// Where the key to these backups is.
enum Key {
    /// Elsewhere: this host has recipients or a passphrase.
    Configured(Vec<String>),
    /// In an identity file on this host.
    File { path: PathBuf, created: bool, recipients: Vec<String> },
}

pub(crate) async fn run(app: &App, args: &InitArgs) -> Result<Exit> {
    let locations: Vec<Location> =
        app.config.repositories()?.iter().map(|repository| location(&app.config, repository)).collect::<Result<_>>()?;
    let mut recipients: Vec<String> =
        keys::configured_recipients(&app.config)?.iter().map(|recipient| recipient.describe().1).collect();
    for (_, recipient) in keys::policy_recipients(&app.config)? {
        recipients.push(recipient.describe().1);
    }
    if let (true, Some(identities)) = (recipients.is_empty(), &app.config.identities) {
        keys::configured_identities(&app.config)?;
        for identity in &identities.value {
            // What a host needs that only writes: of a key on a token, the public half.
            recipients.push(or_cancelled(app, public_recipient(identity)).await?);
        }
    }
    let identity_file = if recipients.is_empty() && app.config.passphrase.is_none() {
        Some(identity_file(app, &locations)?)
    } else {
        None
    };
    // The key first: a repository without one would look finished.
    let key = match identity_file {
        Some(path) => load_or_create(path, &*app.clock)?,
        None => Key::Configured(recipients),
    };
    let mut made = Vec::new();
    let mut failed: Vec<Error> = Vec::new();
    for (location, setting) in locations.iter().zip(app.config.repositories()?) {
        match Repository::init(location, &*app.clock).await {
            Ok((repository, init)) => made.push((repository, init)),
            // It may be away today; the others need not wait for it.
            Err(error) if !setting.required => {
                app.output.warning(format!("{location} was not made: {}", report::in_one_line(&error)));
                failed.push(error);
            }
            Err(error) => {
                // It stays: another run may be using it by now. The next one finds it there, and would not say to keep a copy.
                if let Key::File { created: true, .. } = key {
                    tell_key(app, &key);
                }
                return Err(error);
            }
        }
    }
    if args.json {
        app.output.json(&document(&made, &key))?;
    } else {
        made.iter().for_each(|(repository, init)| tell(app, repository, init));
        tell_key(app, &key);
    }
    let warnings: Vec<&String> = made.iter().filter_map(|(_, init)| init.warning.as_ref()).collect();
    for warning in &warnings {
        app.output.warning(warning);
    }
    Ok(if warnings.is_empty() && failed.is_empty() { Exit::Done } else { Exit::Warnings })
}

/// Where the identity is or will be: never in the repository, where it would open all that it protects.
fn identity_file(app: &App, locations: &[Location]) -> Result<PathBuf> {
    let files = app.config.identity_files.as_ref().map(|s| s.value.as_slice()).unwrap_or_default();
    let path = match files {
        [path] => path,
        [] => {
            return Err(Error::config("there is no home directory to put a key into")
                .with_hint("name a place with --identity-file, or whom to encrypt to with --recipient"));
        }
        _ => {
            return Err(Error::config("several identity files are configured, and no recipient")
                .with_hint("name one --identity-file, or whom to encrypt to with --recipient"));
        }
    };
    if locations.iter().filter_map(Location::as_directory).any(|inside| resolved(path).starts_with(resolved(inside))) {
        let message = format!("the identity file {} would lie inside the repository", path.display());
        return Err(Error::config(message)
            .with_hint("whoever holds the repository could then read it; choose another place with --identity-file"));
    }
    Ok(path.clone())
}

/// `path` without symbolic links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut resolved = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => drop(resolved.pop()),
            other => resolved.push(other),
        }
        if let Ok(real) = resolved.canonicalize() {
            resolved = real;
        }
    }
    resolved
}

fn load_or_create(path: PathBuf, clock: &dyn Clock) -> Result<Key> {
    // One that must not be looked at exists: loading it says why.
    let created = !path.try_exists().unwrap_or(true);
    let identity = if created {
        let identity = AgeIdentity::generate();
        identity.create_file(&path, clock)?;
        identity
    } else {
        AgeIdentity::load(&path)?
    };
    let recipients = identity.recipients().iter().map(ToString::to_string).collect();
    Ok(Key::File { path, created, recipients })
}

fn document<'a>(made: &'a [(Repository, Init)], key: &'a Key) -> Document<'a> {
    let (recipients, identity_file, identity_created) = match key {
        Key::Configured(recipients) => (recipients.clone(), None, false),
        Key::File { path, created, recipients } => (recipients.clone(), Some(path.to_string_lossy()), *created),
    };
    let repositories = made.iter().map(|(repository, init)| RepositoryDocument {
        repository: repository.name(),
        repository_id: repository.id(),
        created: init.created,
        conditional_put: repository.conditional_put(),
    });
    let repositories: Vec<RepositoryDocument<'_>> = repositories.collect();
    Document { first: repositories.first().cloned(), repositories, recipients, identity_file, identity_created }
}

fn tell(app: &App, repository: &Repository, init: &Init) {
    let what = if init.created { "created the repository" } else { "the repository is there already:" };
    app.output.note(format!("{what} {repository} (id {})", repository.id()));
}

fn tell_key(app: &App, key: &Key) {
    let output = &app.output;
    match key {
        Key::Configured(recipients) => {
            for recipient in recipients {
                output.note(format!("backups are encrypted to {recipient}"));
            }
            if app.config.passphrase.is_some() {
                output.note("backups are encrypted with the passphrase");
            }
        }
        Key::File { path, created, recipients } => {
            let what = if *created { "made a key:" } else { "using the key that is there already:" };
            output.note(format!("{what} {}", path.display()));
            for recipient in recipients {
                output.note(format!("its public half is {recipient}"));
            }
            if *created {
                output.note(format!(
                    "\n{BOLD}Keep a copy of {} elsewhere, and not in the repository.\nWithout it nobody can restore these \
                     backups, not even you.{BOLD:#}",
                    path.display()
                ));
            }
        }
    }
}
