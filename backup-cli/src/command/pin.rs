//! `backup pin` and `backup unpin`.

use backup_core::repository::Repository;
use backup_core::repository::pins::Pin;
use backup_core::{Error, Result};
use jiff::Timestamp;
use serde::Serialize;

use crate::App;
use crate::args::{PinArgs, UnpinArgs};
use crate::audit::{Run, who};
use crate::exit::Exit;

use super::describe::time;
use super::with_each;

/// A pin in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct PinDocument {
    reason: String,
    /// Null: for ever.
    until: Option<String>,
    created: String,
    user: String,
    host: String,
    /// Whether it holds now.
    holds: bool,
}

impl PinDocument {
    pub(crate) fn new(pin: &Pin, now: Timestamp) -> Self {
        Self {
            reason: pin.reason.clone(),
            until: pin.until.map(time),
            created: time(pin.created),
            user: pin.who.user.clone(),
            host: pin.who.host.clone(),
            holds: pin.holds(now),
        }
    }
}

/// A pin in words.
pub(crate) fn describe(pin: &Pin) -> String {
    let until = pin.until.map_or_else(String::new, |until| format!("until {}, ", time(until)));
    format!("{}: {until}by {}@{}, {}", pin.reason, pin.who.user, pin.who.host, time(pin.created))
}

/// Pins it in every repository: whatever one prunes, the others keep.
pub(crate) async fn pin(app: &App, args: &PinArgs) -> Result<Exit> {
    let until = args.until.map(|moment| moment.0);
    if until.is_some_and(|until| until <= app.clock.now()) {
        return Err(Error::config("the pin would be over already").with_hint("--until is a time to come"));
    }
    with_each(app, |repository, _| async move {
        let mut run = Run::new(app, "pin");
        let result = pin_in(app, args, until, &repository, &mut run).await;
        run.end(app, &result).await;
        result
    })
    .await
}

async fn pin_in(
    app: &App,
    args: &PinArgs,
    until: Option<Timestamp>,
    repository: &Repository,
    run: &mut Run,
) -> Result<Exit> {
    run.at(repository);
    let found = repository.resolve(&args.reference).await?;
    run.about(&found.manifest);
    repository.pin(&found.path, &args.reason, until, who(), &*app.clock).await?;
    let until = until.map_or_else(|| "until it is unpinned".to_owned(), |until| format!("until {}", time(until)));
    app.output.note(format!("{} is pinned, {until}", found.path));
    Ok(Exit::Done)
}

pub(crate) async fn unpin(app: &App, args: &UnpinArgs) -> Result<Exit> {
    with_each(app, |repository, _| async move {
        let mut run = Run::new(app, "unpin");
        let result = unpin_in(app, args, &repository, &mut run).await;
        run.end(app, &result).await;
        result
    })
    .await
}

async fn unpin_in(app: &App, args: &UnpinArgs, repository: &Repository, run: &mut Run) -> Result<Exit> {
    run.at(repository);
    let found = repository.resolve(&args.reference).await?;
    run.about(&found.manifest);
    match repository.unpin(&found.path).await? {
        0 => app.output.note(format!("{} was not pinned", found.path)),
        pins => app.output.note(format!("{} is not pinned any more ({pins} removed)", found.path)),
    }
    Ok(Exit::Done)
}
