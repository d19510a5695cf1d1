//! `backup pin` and `backup unpin`.

use std::sync::atomic::{AtomicBool, Ordering};

use backup_core::clock::Clock;
use backup_core::repository::layout::BackupPath;
use backup_core::repository::pins::Pin;
use backup_core::repository::{Found, Repository};
use backup_core::{Error, ErrorKind, Result, Stage};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::{AgeFlag, PinArgs, UnpinArgs};
use crate::audit::{Run, who};
use crate::exit::Exit;
use crate::{App, report};

use super::describe::time;
use super::{or_cancelled, repositories, resolve, with_each};

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
    // The same everywhere, so that it is seen to be one.
    let created = &At(app.clock.now());
    let (found, exit) = &or_cancelled(app, meant(app, &args.reference)).await?;
    let is_pinned = &AtomicBool::new(false);
    let exit = with_each(app, |repository, _| async move {
        let mut run = Run::new(app, "pin");
        run.at(&repository);
        run.about(&found.manifest);
        let work = async {
            match repository.pin(&found.path, &args.reason, until, who(), created).await {
                Ok(_) => is_pinned.store(true, Ordering::Relaxed),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(not_there(app, &repository, &found.path)),
                Err(e) => return Err(e),
            }
            let until =
                until.map_or_else(|| "until it is unpinned".to_owned(), |until| format!("until {}", time(until)));
            app.output.note(format!("{} is pinned, {until}", found.path));
            Ok(Exit::Done)
        };
        run.through(app, work).await
    })
    .await?
    .or_worse(*exit);
    if is_pinned.load(Ordering::Relaxed) {
        return Ok(exit);
    }
    Err(Error::new(ErrorKind::NotFound, Stage::Catalog, format!("{} has gone, and is not pinned", found.path)))
}

pub(crate) async fn unpin(app: &App, args: &UnpinArgs) -> Result<Exit> {
    let (found, exit) = &or_cancelled(app, meant(app, &args.reference)).await?;
    let done = with_each(app, |repository, _| async move {
        let mut run = Run::new(app, "unpin");
        run.at(&repository);
        run.about(&found.manifest);
        let work = async {
            match repository.unpin(&found.path).await? {
                0 => app.output.note(format!("{} was not pinned", found.path)),
                pins => app.output.note(format!("{} is not pinned any more ({pins} removed)", found.path)),
            }
            Ok(Exit::Done)
        };
        run.through(app, work).await
    });
    Ok(done.await?.or_worse(*exit))
}

/// The backup that a person means, for all repositories: the first that knows it says so, and the required ones, which have everything, are asked first.
async fn meant(app: &App, reference: &str) -> Result<(Found, Exit)> {
    let repositories = repositories(&app.config)?;
    let (mut first, mut exit) = (None, Exit::Done);
    for member in repositories.to_read() {
        let resolved = async {
            let repository = member.open().await?;
            resolve(app, repository, reference, &AgeFlag::default()).await
        };
        match resolved.await {
            Ok((found, passed_over)) => {
                return Ok((found, if passed_over { exit.or_worse(Exit::Warnings) } else { exit }));
            }
            Err(e) => match e.kind() {
                ErrorKind::NotFound => first = first.or(Some(e)),
                ErrorKind::Storage | ErrorKind::Unavailable => {
                    app.output.warning(format!("{member} cannot be asked: {}", report::in_one_line(&e)));
                    exit = Exit::Warnings;
                    // That it is not in the others says nothing.
                    first = Some(e);
                }
                _ => return Err(e),
            },
        }
    }
    Err(first.unwrap_or_else(|| Error::config("no repository is given")))
}

fn not_there(app: &App, repository: &Repository, path: &BackupPath) -> Exit {
    app.output.warning(format!("{path} is not in {repository}, so it is not pinned there"));
    Exit::Warnings
}

/// A clock that stands.
#[derive(Debug)]
struct At(Timestamp);

impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
}
