//! `backup key retire`.

use std::collections::BTreeSet;

use backup_core::format::RecipientName;
use backup_core::keys::passphrase;
use backup_core::keys::policy::{Key, State};
use backup_core::repository::census::{Census, Looked};
use backup_core::repository::rewrap::named;
use backup_core::{Error, ErrorKind, Result, Stage};

use crate::App;
use crate::args::RetireArgs;
use crate::config::edit;
use crate::exit::Exit;
use crate::{keys, progress};

use super::{concurrency, configured, open, problems, shown, targets, tell_problems, words, words_and_names};

pub(super) async fn run(app: &App, args: &RetireArgs) -> Result<Exit> {
    let now = app.clock.now();
    let key = configured(&app.config, &args.name)?;
    match key.state(now) {
        State::Retired => {
            app.output.note(format!("key '{}' is retired already", key.name));
            return Ok(Exit::Done);
        }
        state if state.is_used() => return Err(still_used(key, state)),
        _ => {}
    }
    let retiring = named(&*keys::key_recipient(&app.config, key)?);
    let mut others = keys::recipient_names(&app.config, now)?;
    others.remove(&retiring);
    // What was wrapped for one passphrase cannot be told from what was wrapped for another.
    others.retain(|name| name.kind != passphrase::KIND);
    let census = census(app).await?;
    tell_problems(&app.output, &census);
    if let Some(error) = problems(&census, "opened, so it is not known whether they need the key") {
        return Err(error);
    }
    check(key, &retiring, &others, &census)?;
    let all = census.all();
    app.output.note(format!("{} can be opened without '{}'", words(&all), key.name));
    if args.dry_run {
        return Ok(Exit::Done);
    }
    let file = app.config.file.as_deref().ok_or_else(|| Error::config("there is no configuration file"))?;
    edit::edit(file, |document| edit::retire(document, &key.name, now))?;
    app.output.note(format!(
        "'{}' is retired; {} was changed. Before its identity is destroyed: are there copies of this repository, or others, that need it?",
        key.name,
        file.display()
    ));
    Ok(Exit::Done)
}

/// What is kept, everything of it, proved.
async fn census(app: &App) -> Result<Census> {
    let identities = keys::identities(&app.config).await.map_err(|e| {
        e.with_hint("it is proved with an identity that opens what is kept: give one with --identity-file, on a host that may have it")
    })?;
    let repository = open(app).await?;
    let targets = targets(&repository, &[]).await?;
    let looked = Looked::default();
    let work = Census::take(&repository, &targets, &identities, concurrency(&app.config), &looked);
    progress::during(&app.output, None, || shown(&looked), work).await
}

/// Refuses as long as anything is opened by none of `others`. Which of that names the key itself is only told: what does not name it may need it
/// all the same, by another name or because an older key is gone.
fn check(key: &Key, retiring: &RecipientName, others: &BTreeSet<RecipientName>, census: &Census) -> Result<()> {
    if census.closed_to(others).is_empty() {
        return Ok(());
    }
    let with_it: BTreeSet<RecipientName> = others.iter().chain([retiring]).cloned().collect();
    let (needing, closed) = (census.needing(retiring, others), census.closed_to(&with_it));
    let mut why = Vec::new();
    if !needing.is_empty() {
        why.push(format!("key '{}' is still needed by {}", key.name, words_and_names(&needing)));
    }
    if !closed.is_empty() {
        why.push(format!("no key of today opens {}", words_and_names(&closed)));
    }
    Err(Error::new(ErrorKind::Key, Stage::Keys, why.join("; ")).with_hint(
        "'backup key rewrap' wraps them for the recipients of today; what is not kept any more does not count",
    ))
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
