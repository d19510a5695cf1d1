//! `backup key retire`.

use std::collections::BTreeSet;

use backup_core::format::RecipientName;
use backup_core::keys::passphrase;
use backup_core::keys::policy::{Key, State};
use backup_core::repository::Repository;
use backup_core::repository::census::{Census, Looked};
use backup_core::repository::rewrap::named;
use backup_core::{Error, ErrorKind, Result, Stage};
use jiff::Timestamp;

use crate::App;
use crate::args::RetireArgs;
use crate::config::{Config, edit};
use crate::exit::Exit;
use crate::{keys, progress};

use super::{
    concurrency, configured, count, problems, repositories, reread, shown, tell_problems, words, words_and_names,
};

pub(super) async fn run(app: &App, args: &RetireArgs) -> Result<Exit> {
    let Some(retiring) = Retiring::of(&app.config, &args.name, app.clock.now())? else {
        app.output.note(format!("key '{}' is retired already", args.name));
        return Ok(Exit::Done);
    };
    let name = &retiring.key.name;
    let (mut censuses, mut unfinished) = (Vec::new(), 0);
    // Every repository must say so, the optional ones too.
    for member in repositories(&app.config)?.members() {
        let census = census(app, member.open().await?).await?;
        tell_problems(&app.output, &census);
        if let Some(error) = problems(&census, "opened, so it is not known whether they need the key") {
            return Err(error);
        }
        retiring.check(&census)?;
        app.output.note(format!("{} can be opened without '{name}'", words(&census.all())));
        unfinished += census.unfinished.len() as u64;
        censuses.push(census);
    }
    if !args.dry_run {
        let file = app.config.file.as_deref().ok_or_else(|| Error::config("there is no configuration file"))?;
        edit::edit(file, |document| {
            // It takes a while to look at everything: who was to open it may have been given up by somebody else, or have ended.
            let now = app.clock.now();
            let Some(retiring) = Retiring::of(&reread(app)?, &args.name, now)? else { return Ok(()) };
            censuses.iter().try_for_each(|census| retiring.check(census))?;
            edit::retire(document, &args.name, now)
        })?;
        app.output.note(format!(
            "'{name}' is retired; {} was changed. Before its identity is destroyed: are there copies of this repository, or others, that need it?",
            file.display()
        ));
    }
    if unfinished == 0 {
        return Ok(Exit::Done);
    }
    app.output.warning(format!(
        "unfinished, or going on: {}; what they wrote may need '{name}', and is not counted. Look again when they have ended, with 'backup key status'",
        count(unfinished, "run")
    ));
    Ok(Exit::Warnings)
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
async fn census(app: &App, repository: &Repository) -> Result<Census> {
    let identities = keys::identities(&app.config).await.map_err(|e| {
        e.with_hint("it is proved with an identity that opens what is kept: give one with --identity-file, on a host that may have it")
    })?;
    let targets = repository.targets().await?;
    let looked = Looked::default();
    let work = Census::take(repository, &targets, &identities, concurrency(&app.config), &looked);
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
