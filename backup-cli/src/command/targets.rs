//! Targets that were named, in each of several repositories.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use backup_core::repository::Repository;
use backup_core::repository::layout::TargetName;
use backup_core::{Error, ErrorKind, Result, Stage};

use super::{or_cancelled, repositories, with_each};
use crate::App;
use crate::config::RepositorySetting;
use crate::exit::Exit;

/// Does `work` with each repository, what is configured of it, and what it has of the targets that were named, or with all of its targets. One that has none of them is
/// passed over; what no repository has is not found.
pub(super) async fn with_each_of<'a, F>(
    app: &'a App,
    names: &[String],
    work: impl Fn(Repository, &'a RepositorySetting, Vec<TargetName>) -> F + Send + Sync,
) -> Result<Exit>
where
    F: Future<Output = Result<Exit>> + Send,
{
    let named = parsed(names)?;
    let missing: Mutex<BTreeSet<TargetName>> = Mutex::new(named.iter().cloned().collect());
    let missing = || missing.lock().unwrap_or_else(PoisonError::into_inner);
    let is_only_one = repositories(&app.config)?.members().len() == 1;
    let (named, work) = (&named, &work);
    let exit = with_each(app, |repository, setting| async move {
        if named.is_empty() {
            let all = or_cancelled(app, repository.targets()).await?;
            return work(repository, setting, all).await;
        }
        let (held, lacking) = or_cancelled(app, held(&repository, named)).await?;
        for target in lacking {
            if is_only_one {
                return Err(lacks(&repository, &target));
            }
            app.output.note(format!("there is nothing of '{target}' in {repository}"));
        }
        if held.is_empty() {
            return Ok(Exit::Done);
        }
        missing().retain(|target| !held.contains(target));
        work(repository, setting, held).await
    })
    .await?;
    match missing().first() {
        Some(target) => Err(not_found(format!("no repository has a target '{target}'"))),
        None => Ok(exit),
    }
}

/// The targets that were named, all of which this one repository must have.
pub(super) async fn all_of(repository: &Repository, names: &[String]) -> Result<Vec<TargetName>> {
    let (held, lacking) = held(repository, &parsed(names)?).await?;
    lacking.first().map_or(Ok(held), |target| Err(lacks(repository, target)))
}

fn parsed(names: &[String]) -> Result<Vec<TargetName>> {
    names.iter().map(|name| name.parse()).collect()
}

/// Those of which there is something in a repository, and those of which there is nothing.
async fn held(repository: &Repository, named: &[TargetName]) -> Result<(Vec<TargetName>, Vec<TargetName>)> {
    let (mut held, mut lacking) = (Vec::new(), Vec::new());
    for target in named {
        let found = if repository.has_target(target).await? { &mut held } else { &mut lacking };
        found.push(target.clone());
    }
    Ok((held, lacking))
}

fn lacks(repository: &Repository, target: &TargetName) -> Error {
    not_found(format!("{repository} has no target '{target}'"))
}

fn not_found(message: String) -> Error {
    Error::new(ErrorKind::NotFound, Stage::Catalog, message).with_hint("'backup list' shows all targets")
}
