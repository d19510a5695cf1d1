//! What a name given by a person means.

use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{Found, concerns_one_target};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Condition;
use crate::repository::layout::{BackupId, TargetName};
use crate::repository::{Repository, is_untrusted};

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
    /// With [trusted signers](Repository::trusting), what none of them signed is passed over too, damaged or not: whoever can write to the store could
    /// otherwise keep every backup from being restored. It is told in [`Found::passed_over`], and an error only if nothing else is found.
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
            let (mut targets, mut refused) = (targets, Refused::default());
            if targets.len() > 1 {
                targets = self.targets_with_backups(targets, &mut refused).await?;
            }
            return match &targets[..] {
                [] => Err(self.none("there is no backup")),
                [target] => self.latest(target, None, refused).await,
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
            return self.latest(&target, Some(day), Refused::default()).await;
        }
        if let Ok(id) = reference.parse::<BackupId>() {
            return self.by_id(&targets, &id).await;
        }
        match targets.iter().find(|target| target.as_str() == reference) {
            Some(target) => self.latest(target, None, Refused::default()).await,
            None => self.by_prefix(&targets, reference).await,
        }
    }

    async fn targets_with_backups(&self, targets: Vec<TargetName>, refused: &mut Refused) -> Result<Vec<TargetName>> {
        let mut found = Vec::new();
        for target in targets {
            for id in refused.pass_over(self.backup_ids(&target).await)?.iter().rev() {
                if refused.pass_over(self.manifest(&target.backup(id)).await)?.is_some() {
                    found.push(target);
                    break;
                }
            }
        }
        match refused.first.take() {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    async fn latest(&self, target: &TargetName, until: Option<Date>, mut refused: Refused) -> Result<Found> {
        let begun_by = |id: &BackupId| until.is_none_or(|day| id.timestamp().to_zoned(TimeZone::UTC).date() <= day);
        let mut damaged = 0;
        let mut latest: Option<Found> = None;
        for id in self.backup_ids(target).await?.iter().rev().filter(|id| begun_by(id)) {
            // Ids tell seconds; which of several in one second began last, the manifests say.
            if latest.as_ref().is_some_and(|found| found.path.id.timestamp() != id.timestamp()) {
                break;
            }
            match refused.pass_over_untrusted(self.manifest(&target.backup(id)).await)? {
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
            return Ok(refused.tell(found));
        }
        let until = until.map(|day| format!(" of {day} (UTC) or before")).unwrap_or_default();
        if damaged == 0 {
            return Err(refused.or(self.none(&format!("there is no backup of '{target}'{until}"))));
        }
        let none = self
            .none(&format!("there is no good backup of '{target}'{until}"))
            .with_hint(format!("{damaged} whose source was damaged can be named by id; see 'backup list'"));
        Err(match refused.first {
            // It may be the good one.
            Some(untrusted) => none.with_source(untrusted),
            None => none,
        })
    }

    async fn by_id(&self, targets: &[TargetName], id: &BackupId) -> Result<Found> {
        let mut refused = Refused::default();
        for target in targets {
            if let Some(found) = refused.pass_over(self.manifest(&target.backup(id)).await)? {
                return Ok(refused.tell(found));
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
            Some(found) if names.len() == 1 => Ok(refused.tell(found)),
            Some(_) => Err(several_fit(prefix, &names)),
            None => Err(refused.or(self.none(&format!("there is no backup or target '{}'", prefix.escape_debug())))),
        }
    }

    fn none(&self, what: &str) -> Error {
        Error::new(ErrorKind::NotFound, Stage::Catalog, format!("{what} in {self}"))
            .with_hint("'backup list' shows what there is")
    }
}

/// What was passed over: a target that the store does not show to this host, a manifest that nobody trusted has signed.
#[derive(Default)]
struct Refused {
    /// Told if nothing is found elsewhere.
    first: Option<Error>,
    /// Told in any case: a few of them, and how many there are.
    untrusted: Vec<String>,
    untrusted_count: usize,
}

impl Refused {
    fn pass_over<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if concerns_one_target(&error) => {
                self.first.get_or_insert(error);
                Ok(T::default())
            }
            other => self.pass_over_untrusted(other),
        }
    }

    fn pass_over_untrusted<T: Default>(&mut self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if is_untrusted(&error) => {
                self.untrusted_count += 1;
                if self.untrusted.len() < CANDIDATES_MAX {
                    self.untrusted.push(error.in_one_line());
                }
                self.first.get_or_insert(error);
                Ok(T::default())
            }
            other => other,
        }
    }

    fn tell(self, found: Found) -> Found {
        let mut passed_over = self.untrusted;
        if self.untrusted_count > passed_over.len() {
            passed_over.push(format!("{} more are not trusted", self.untrusted_count - passed_over.len()));
        }
        Found { passed_over, ..found }
    }

    fn or(self, none: Error) -> Error {
        self.first.unwrap_or(none)
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
