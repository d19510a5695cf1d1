//! `backup key retire`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backup_core::format::RecipientName;
use backup_core::keys::policy::{Key, State};
use backup_core::keys::{Identity, passphrase};
use backup_core::repository::census::{Census, Looked};
use backup_core::repository::rewrap::named;
use backup_core::repository::{AzureOptions, GcsOptions, Repository, S3Options};
use backup_core::{Error, ErrorKind, Result, Stage};
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::App;
use crate::args::RetireArgs;
use crate::audit::Run;
use crate::config::{Config, RepositorySetting, Stores, edit};
use crate::exit::Exit;
use crate::{keys, progress, stores};

use super::{
    concurrency, configured, count, location, or_cancelled, problems, reread, shown, tell_problems, with_each, words,
    words_and_names,
};

pub(super) async fn run(app: &App, args: &RetireArgs) -> Result<Exit> {
    let runs = Mutex::new(Vec::new());
    let result = or_cancelled(app, retire(app, args, &runs)).await;
    for run in runs.into_inner() {
        run.end(app, &result).await;
    }
    result
}

/// In `runs` is left what has begun, in each repository, and has not ended.
async fn retire(app: &App, args: &RetireArgs, runs: &Mutex<Vec<Run>>) -> Result<Exit> {
    let Some(retiring) = Retiring::of(&app.config, &args.name, app.clock.now())? else {
        app.output.note(format!("key '{}' is retired already", args.name));
        return Ok(Exit::Done);
    };
    let (retiring, name) = (&retiring, &retiring.key.name);
    let not_asked = not_asked(&app.config, &app.config)?;
    if args.dry_run && !not_asked.is_empty() {
        app.output.warning(format!("not asked: {}", not_asked.join(", ")));
    } else {
        refuse(name, &not_asked)?;
    }
    let (identities, at_hand) = &keys::named_identities(&app.config).await.map_err(|e| {
        e.with_hint("it is proved with an identity that opens what is kept: give one with --identity-file, on a host that may have it")
    })?;
    let (censuses, unfinished) = (&Mutex::new(Vec::new()), &AtomicU64::new(0));
    // Every repository must say so, the optional ones too.
    with_each(app, |repository, _| async move {
        if !args.dry_run {
            let mut run = Run::new(app, "key retire");
            run.at(&repository);
            run.record.recipients = vec![retiring.recipient.clone()];
            run.begin_with(app, at_hand.clone()).await;
            runs.lock().await.push(run);
        }
        let census = census(app, &repository, identities).await?;
        tell_problems(&app.output, &census);
        if let Some(error) = problems(&census, "opened, so it is not known whether they need the key") {
            return Err(error);
        }
        retiring.check(&census)?;
        app.output.note(format!("{} can be opened without '{name}'", words(&census.all())));
        unfinished.fetch_add(census.unfinished.len() as u64, Ordering::Relaxed);
        censuses.lock().await.push(census);
        Ok(Exit::Done)
    })
    .await?;
    if !args.dry_run {
        write(app, args, &censuses.lock().await[..])?;
    }
    let unfinished = unfinished.load(Ordering::Relaxed);
    if unfinished > 0 {
        app.output.warning(format!(
            "unfinished, or going on: {}; what they wrote may need '{name}', and is not counted. Look again when they have ended, with 'backup key status'",
            count(unfinished, "run")
        ));
    }
    Ok(if unfinished == 0 && not_asked.is_empty() { Exit::Done } else { Exit::Warnings })
}

/// Marks the key in the file, if all is still as it was when everything was looked at, which takes a while: who was to open it may have been given up
/// by somebody else, or have ended, and there may be another repository.
fn write(app: &App, args: &RetireArgs, censuses: &[Census]) -> Result<()> {
    let file = app.config.file.as_deref().ok_or_else(|| Error::config("there is no configuration file"))?;
    edit::edit(file, |document| {
        let (config, now) = (reread(app)?, app.clock.now());
        let Some(retiring) = Retiring::of(&config, &args.name, now)? else { return Ok(()) };
        refuse(&args.name, &not_asked(&app.config, &config)?)?;
        censuses.iter().try_for_each(|census| retiring.check(census))?;
        edit::retire(document, &args.name, now)
    })?;
    app.output.note(format!(
        "'{}' is retired; {} was changed. Every configured repository was looked at. Before its identity is destroyed: are there copies elsewhere that need it?",
        args.name,
        file.display()
    ));
    Ok(())
}

/// The repositories of the file of `now`, chosen or not, that are none of those which were asked.
fn not_asked(asked: &Config, now: &Config) -> Result<Vec<String>> {
    let asked: Vec<Place> = asked.repositories.all.iter().map(|one| place(asked, one)).collect::<Result<_>>()?;
    let mut names = Vec::new();
    for repository in &now.repositories.of_file {
        if !asked.contains(&place(now, repository)?) {
            names.push(repository.name.clone().unwrap_or_else(|| repository.url.value.clone()));
        }
    }
    Ok(names)
}

/// What tells one repository from another before it is asked.
#[derive(Debug, PartialEq)]
enum Place {
    Directory(PathBuf),
    Store(Box<(String, S3Options, AzureOptions, GcsOptions)>),
}

fn place(config: &Config, repository: &RepositorySetting) -> Result<Place> {
    let location = location(config, repository)?;
    if let Some(path) = location.as_directory() {
        return Ok(Place::Directory(path.canonicalize().unwrap_or_else(|_| path.to_owned())));
    }
    let Stores { s3, azure, gcs } = &repository.stores;
    let (s3, azure, gcs) = (stores::s3_options(s3)?, stores::azure_options(azure), stores::gcs_options(gcs));
    Ok(Place::Store(Box::new((location.to_string(), s3, azure, gcs))))
}

fn refuse(name: &str, not_asked: &[String]) -> Result<()> {
    if not_asked.is_empty() {
        return Ok(());
    }
    let message = format!("what is in {} may need key '{name}', and was not looked at", not_asked.join(", "));
    Err(Error::config(message).with_hint(
        "a key is retired for every repository of the file: name none with --repo or BACKUP_REPO, or all of them",
    ))
}

/// A key that can be retired as far as the configuration goes.
struct Retiring {
    key: Key,
    recipient: RecipientName,
    /// Whom else things are encrypted to.
    others: BTreeSet<RecipientName>,
}

impl Retiring {
    /// `None`, when it is retired already.
    fn of(config: &Config, name: &str, now: Timestamp) -> Result<Option<Self>> {
        let key = configured(config, name)?;
        match key.state(now) {
            State::Retired => return Ok(None),
            state if state.is_used() => return Err(still_used(key, state)),
            _ => {}
        }
        let recipient = named(&*keys::key_recipient(config, key)?);
        let mut others = keys::recipient_names(config, now)?;
        others.remove(&recipient);
        // What was wrapped for one passphrase cannot be told from what was wrapped for another.
        others.retain(|name| name.kind != passphrase::KIND);
        Ok(Some(Self { key: key.clone(), recipient, others }))
    }

    /// Refuses as long as anything is opened by none of the others. Which of that names the key itself is only told: what does not name it may need
    /// it all the same, by another name or because an older key is gone.
    fn check(&self, census: &Census) -> Result<()> {
        if census.closed_to(&self.others).is_empty() {
            return Ok(());
        }
        let with_it: BTreeSet<RecipientName> = self.others.iter().chain([&self.recipient]).cloned().collect();
        let (needing, closed) = (census.needing(&self.recipient, &self.others), census.closed_to(&with_it));
        let mut why = Vec::new();
        if !needing.is_empty() {
            why.push(format!("key '{}' is still needed by {}", self.key.name, words_and_names(&needing)));
        }
        if !closed.is_empty() {
            why.push(format!("no key of today opens {}", words_and_names(&closed)));
        }
        Err(Error::new(ErrorKind::Key, Stage::Keys, why.join("; ")).with_hint(
            "'backup key rewrap' wraps them for the recipients of today; what is not kept any more does not count",
        ))
    }
}

/// What is kept, everything of it, proved.
async fn census(app: &App, repository: &Repository, identities: &[Arc<dyn Identity>]) -> Result<Census> {
    let targets = repository.targets().await?;
    let looked = Looked::default();
    let work = Census::take(repository, &targets, identities, concurrency(&app.config), &looked);
    progress::during(&app.output, None, || shown(&looked), work).await
}

fn still_used(key: &Key, state: State) -> Error {
    let error =
        Error::config(format!("key '{}' is used until {} ({state}), so it cannot be retired", key.name, key.ends));
    if key.successors.is_empty() {
        error.with_hint(format!("bring in a successor first: backup key rotate {}", key.name))
    } else {
        error.with_hint("if it must end at once, set 'expires' in its table of the configuration file")
    }
}
