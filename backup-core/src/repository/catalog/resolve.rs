//! What a name given by a person means.

use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{Found, concerns_one_target};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Condition;
use crate::repository::Repository;
use crate::repository::layout::{BackupId, TargetName};

/// How many candidates an error names.
const CANDIDATES_MAX: usize = 5;

impl Repository {
    /// The backup that a person means, tried in this order:
    ///
    /// 1. `latest`: the newest good backup, if the repository has one target;
    /// 2. `target@2026-11-20`: the newest good one of that target begun on that day or before, in UTC as ids are;
    /// 3. the id of a backup;
    /// 4. the name of a target: its newest good backup;
    /// 5. the beginning of an id, or of an id's random half, if only one complete backup has it.
    ///
    /// A good backup is one whose source reported no damage. A manifest that cannot be read is an error, never passed over for an older backup.
    /// A target that this host may not read is passed over, and an error only if nothing is found in the others.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none, [`ErrorKind::Config`] when there are several, which are named.
    pub async fn resolve(&self, reference: &str) -> Result<Found> {
        if reference.is_empty() {
            // It is a prefix of everything, and most likely an unset variable.
            return Err(Error::config("the name of the backup is empty").with_hint("'backup list' shows what there is"));
        }
        let targets = self.targets().await?;
        if reference == "latest" {
            // A target of which no backup was ever completed (a mistyped name, a first run that was killed) does not count.
            let mut targets = targets;
            if targets.len() > 1 {
                targets = self.targets_with_backups(targets).await?;
            }
            return match &targets[..] {
                [] => Err(self.none("there is no backup")),
                [target] => self.latest(target, None).await,
                _ => Err(ambiguous(
                    "latest",
                    "the repository has several targets",
                    targets.iter().map(TargetName::as_str),
                )
                .with_hint("name the target: that means its latest backup")),
            };
        }
        if let Some((target, day)) = reference.split_once('@') {
            let target: TargetName = target.parse()?;
            let day: Date = day.parse().map_err(|e: jiff::Error| {
                Error::config(format!("'{}' is not a day", day.escape_debug()))
                    .with_source(e)
                    .with_hint("write 'target@2026-11-20' for the latest backup of that day (UTC) or before")
            })?;
            return self.latest(&target, Some(day)).await;
        }
        if let Ok(id) = reference.parse::<BackupId>() {
            return self.by_id(&targets, &id).await;
        }
        match targets.iter().find(|target| target.as_str() == reference) {
            Some(target) => self.latest(target, None).await,
            None => self.by_prefix(&targets, reference).await,
        }
    }

    async fn targets_with_backups(&self, targets: Vec<TargetName>) -> Result<Vec<TargetName>> {
        let mut found = Vec::new();
        let mut refused = Refused::default();
        for target in targets {
            for id in refused.pass_over(self.backup_ids(&target).await)?.iter().rev() {
                if refused.pass_over(self.manifest(&target.backup(id)).await)?.is_some() {
                    found.push(target);
                    break;
                }
            }
        }
        match refused.0 {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    async fn latest(&self, target: &TargetName, until: Option<Date>) -> Result<Found> {
        let begun_by = |id: &BackupId| until.is_none_or(|day| id.timestamp().to_zoned(TimeZone::UTC).date() <= day);
        let mut damaged = 0;
        let mut latest: Option<Found> = None;
        for id in self.backup_ids(target).await?.iter().rev().filter(|id| begun_by(id)) {
            // Ids tell seconds; which of several in one second began last, the manifests say.
            if latest.as_ref().is_some_and(|found| found.path.id.timestamp() != id.timestamp()) {
                break;
            }
            match self.manifest(&target.backup(id)).await? {
                Some(found) if found.manifest.condition == Condition::Good => {
                    let later = |other: &Found| found.manifest.started > other.manifest.started;
                    if latest.as_ref().is_none_or(later) {
                        latest = Some(found);
                    }
                }
                Some(_) => damaged += 1,
                None => {}
            }
        }
        if let Some(found) = latest {
            return Ok(found);
        }
        let until = until.map(|day| format!(" of {day} (UTC) or before")).unwrap_or_default();
        Err(match damaged {
            0 => self.none(&format!("there is no backup of '{target}'{until}")),
            n => self
                .none(&format!("there is no good backup of '{target}'{until}"))
                .with_hint(format!("{n} whose source was damaged can be named by id; see 'backup list'")),
        })
    }

    async fn by_id(&self, targets: &[TargetName], id: &BackupId) -> Result<Found> {
        let mut refused = Refused::default();
        for target in targets {
            if let Some(found) = refused.pass_over(self.manifest(&target.backup(id)).await)? {
                return Ok(found);
            }
        }
        Err(refused.or(self.none(&format!("there is no backup {id}"))))
    }

    async fn by_prefix(&self, targets: &[TargetName], prefix: &str) -> Result<Found> {
        let mut found: Option<Found> = None;
        let mut names = Vec::new();
        let mut refused = Refused::default();
        for target in targets {
            let ids = refused.pass_over(self.backup_ids(target).await)?;
            let fits = |id: &&BackupId| id.as_str().starts_with(prefix) || id.random_half().starts_with(prefix);
            for id in ids.iter().rev().filter(fits) {
                let manifest = self.manifest(&target.backup(id)).await;
                let Some(complete) = refused.pass_over(manifest)? else { continue };
                names.push(complete.path.id.to_string());
                found.get_or_insert(complete);
                if names.len() > CANDIDATES_MAX {
                    return Err(several_fit(prefix, &names));
                }
            }
        }
        match found {
            Some(found) if names.len() == 1 => Ok(found),
            Some(_) => Err(several_fit(prefix, &names)),
            None => Err(refused.or(self.none(&format!("there is no backup or target '{}'", prefix.escape_debug())))),
        }
    }

    fn none(&self, what: &str) -> Error {
        Error::new(ErrorKind::NotFound, Stage::Catalog, format!("{what} in {self}"))
            .with_hint("'backup list' shows what there is")
    }
}

/// The first refusal of the store that concerns a single target: told if nothing is found elsewhere.
#[derive(Default)]
struct Refused(Option<Error>);

impl Refused {
    fn pass_over<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if concerns_one_target(&error) => {
                self.0.get_or_insert(error);
                Ok(T::default())
            }
            other => other,
        }
    }

    fn or(self, none: Error) -> Error {
        self.0.unwrap_or(none)
    }
}

fn several_fit(prefix: &str, names: &[String]) -> Error {
    ambiguous(prefix, "several backups begin so", names.iter().map(String::as_str)).with_hint("give more of the id")
}

fn ambiguous<'a>(reference: &str, why: &str, candidates: impl ExactSizeIterator<Item = &'a str>) -> Error {
    let more = if candidates.len() > CANDIDATES_MAX { ", …" } else { "" };
    let names: Vec<&str> = candidates.take(CANDIDATES_MAX).collect();
    let message = format!("'{}' is ambiguous: {why}: {}{more}", reference.escape_debug(), names.join(", "));
    Error::new(ErrorKind::Config, Stage::Catalog, message)
}
