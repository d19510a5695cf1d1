//! Which backups a repository holds: listings, and what a name given by a person means.
//!
//! There is no index to fall out of step: ids come from a listing of folders, everything else from the manifests. In memory are the ids of
//! one target (some 50 bytes each) and a few manifests at a time.

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::Repository;
use super::layout::{BackupId, BackupPath, TargetName, parse_volume_name};
use super::storage_error;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Condition, FormatError, MAGIC, MANIFEST_LEN_MAX, Manifest};

/// Manifests on their way at once. They are small; what takes time is asking.
const FETCHES: usize = 8;
/// How many candidates an error names.
const CANDIDATES_MAX: usize = 5;

/// The error of a backup that is not there.
pub(crate) fn no_backup(path: &BackupPath) -> Error {
    Error::new(ErrorKind::NotFound, Stage::Catalog, format!("there is no backup {path}"))
        .with_hint("'backup list' shows what there is")
}

/// The error of a manifest that cannot be read.
///
/// One of a later release is not damaged; but beside volumes of this release, a manifest that claims to be of another is.
pub(crate) async fn unreadable(repository: &Repository, path: &BackupPath, error: FormatError) -> Error {
    let later = matches!(error, FormatError::Version(_) | FormatError::Critical(_));
    let (kind, what) = if later && !has_volume_of_this_release(repository, path).await {
        (ErrorKind::Config, "needs a newer release of this program")
    } else {
        (ErrorKind::Integrity, "is damaged at offset 0")
    };
    let manifest = repository.address(&path.manifest());
    Error::new(kind, Stage::Catalog, format!("{manifest} {what}")).with_source(error)
}

/// `false` too when it cannot be found out.
async fn has_volume_of_this_release(repository: &Repository, path: &BackupPath) -> bool {
    let mut listing = repository.store().list(Some(&path.prefix()));
    while let Ok(Some(object)) = listing.try_next().await {
        if object.location.filename().is_some_and(|name| parse_volume_name(name).is_some()) {
            let magic = repository.store().get_range(&object.location, 0..MAGIC.len() as u64).await;
            return magic.is_ok_and(|magic| *magic == MAGIC);
        }
    }
    false
}

/// A backup that is complete: its manifest is there.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it is.
    pub path: BackupPath,
    /// What its manifest says. Not proved: that takes the data key and [`Manifest::open`].
    pub manifest: Manifest,
    /// The manifest as stored.
    pub raw: Bytes,
}

/// One folder of a listing.
#[derive(Debug)]
pub enum Listed {
    /// A complete backup.
    Backup(Box<Found>),
    /// No manifest: a run in progress, or what an interrupted one left.
    Unfinished(BackupPath),
    /// A manifest that cannot be read; one such must not hide all others.
    Unreadable(BackupPath, Error),
}

impl Repository {
    /// All targets, by name.
    ///
    /// Cancel safe, as everything that lists or reads.
    pub async fn targets(&self) -> Result<Vec<TargetName>> {
        Ok(self.folders(None).await?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The ids of a target's backups, unfinished ones included, the oldest first.
    pub async fn backup_ids(&self, target: &TargetName) -> Result<Vec<BackupId>> {
        let names = self.folders(Some(&target.backups())).await?;
        let mut ids: Vec<BackupId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// What one target holds, or all: by target, the oldest first. An item is an error only when the store failed.
    pub fn list(&self, target: Option<&TargetName>) -> BoxStream<'_, Result<Listed>> {
        let one = target.cloned();
        let targets = async move {
            match one {
                Some(target) => Ok(vec![target]),
                None => self.targets().await,
            }
        };
        let targets = stream::once(targets).map_ok(|targets| stream::iter(targets).map(Ok)).try_flatten();
        let backups = targets.and_then(move |target| async move {
            let ids = self.backup_ids(&target).await?;
            Ok(stream::iter(ids).map(move |id| Ok::<_, Error>(target.backup(&id))))
        });
        let listed = backups.try_flatten().map_ok(move |path| self.look(path)).try_buffered(FETCHES);
        listed.try_filter_map(|listed| async move { Ok(listed) }).boxed()
    }

    /// Reads a manifest; `None` when the backup is unfinished or does not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Integrity`] when it is damaged or answers to another name, [`ErrorKind::Config`] when it needs a newer release.
    pub async fn manifest(&self, path: &BackupPath) -> Result<Option<Found>> {
        let Some(raw) = self.read_small(&path.manifest(), MANIFEST_LEN_MAX).await? else { return Ok(None) };
        let manifest = match Manifest::decode(&raw) {
            Ok(manifest) => manifest,
            Err(e) => return Err(unreadable(self, path, e).await),
        };
        if manifest.id != path.id.as_str() || manifest.target != path.target.as_str() {
            return Err(Error::new(
                ErrorKind::Integrity,
                Stage::Catalog,
                format!("{} belongs to another backup (offset 0)", self.address(&path.manifest())),
            ));
        }
        Ok(Some(Found { path: path.clone(), manifest, raw }))
    }

    /// The backup that a person means, tried in this order:
    ///
    /// 1. `latest`: the newest good backup, if the repository has one target;
    /// 2. `target@2026-11-20`: the newest good one of that target begun on that day or before, in UTC as ids are;
    /// 3. the id of a backup;
    /// 4. the name of a target: its newest good backup;
    /// 5. the beginning of an id, or of an id's random half, if only one complete backup has it.
    ///
    /// A good backup is one whose source reported no damage. A manifest that cannot be read is an error, never passed over for an older backup.
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
        for target in targets {
            for id in self.backup_ids(&target).await?.iter().rev() {
                if self.manifest(&target.backup(id)).await?.is_some() {
                    found.push(target);
                    break;
                }
            }
        }
        Ok(found)
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
        for target in targets {
            if let Some(found) = self.manifest(&target.backup(id)).await? {
                return Ok(found);
            }
        }
        Err(self.none(&format!("there is no backup {id}")))
    }

    async fn by_prefix(&self, targets: &[TargetName], prefix: &str) -> Result<Found> {
        let mut found: Option<Found> = None;
        let mut names = Vec::new();
        for target in targets {
            let ids = self.backup_ids(target).await?;
            let fits = |id: &&BackupId| id.as_str().starts_with(prefix) || id.random_half().starts_with(prefix);
            for id in ids.iter().rev().filter(fits) {
                let Some(complete) = self.manifest(&target.backup(id)).await? else { continue };
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
            None => Err(self.none(&format!("there is no backup or target '{}'", prefix.escape_debug()))),
        }
    }

    fn none(&self, what: &str) -> Error {
        Error::new(ErrorKind::NotFound, Stage::Catalog, format!("{what} in {self}"))
            .with_hint("'backup list' shows what there is")
    }

    async fn look(&self, path: BackupPath) -> Result<Option<Listed>> {
        match self.manifest(&path).await {
            Ok(Some(found)) => Ok(Some(Listed::Backup(Box::new(found)))),
            // A local directory may keep an empty folder.
            Ok(None) => Ok(self.holds_anything(&path).await?.then_some(Listed::Unfinished(path))),
            // A newer format, or damage.
            Err(e) if matches!(e.kind(), ErrorKind::Integrity) || is_newer(&e) => Ok(Some(Listed::Unreadable(path, e))),
            Err(e) => Err(e),
        }
    }

    async fn holds_anything(&self, path: &BackupPath) -> Result<bool> {
        let mut objects = self.store().list(Some(&path.prefix()));
        let first = objects.try_next().await;
        first.map(|object| object.is_some()).map_err(|e| self.error(e, "list", &path.prefix()))
    }

    /// The names of the folders directly below `prefix`.
    async fn folders(&self, prefix: Option<&Path>) -> Result<Vec<String>> {
        let listing = self.store().list_with_delimiter(prefix).await;
        let listing = listing.map_err(|e| storage_error(e, format!("cannot list {self}")))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listing.common_prefixes.iter().filter_map(name).collect())
    }
}

fn is_newer(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().is_some_and(|source| source.is::<FormatError>())
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

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;
    use crate::encrypt::DataKey;
    use crate::format::Kind;

    fn manifest(path: &BackupPath, condition: Condition) -> Vec<u8> {
        let manifest = Manifest {
            format: 1,
            id: path.id.to_string(),
            target: path.target.to_string(),
            kind: Kind::Stream,
            condition,
            warnings: 0,
            started: path.id.timestamp(),
            finished: path.id.timestamp(),
            data_key: "00".repeat(16),
            recipients: vec![],
            streams: vec![],
            cluster: None,
            requires: vec![],
            version: "0.1.0".to_owned(),
            critical: vec![],
        };
        manifest.encode(&DataKey::from_bytes([1; 32])).unwrap()
    }

    fn path(target: &str, id: &str) -> BackupPath {
        target.parse::<TargetName>().unwrap().backup(&id.parse().unwrap())
    }

    async fn put(repository: &Repository, path: &Path, bytes: Vec<u8>) {
        repository.store().put(path, PutPayload::from(bytes)).await.unwrap();
    }

    async fn add(repository: &Repository, target: &str, id: &str, condition: Condition) {
        let path = path(target, id);
        put(repository, &path.manifest(), manifest(&path, condition)).await;
    }

    const A1: &str = "20261119T020000Z-aaaaaaaaaaaaaaaa";
    const A2: &str = "20261120T235959Z-abbbbbbbbbbbbbbb";
    const A3: &str = "20261121T000000Z-cccccccccccccccc";
    const A4: &str = "20261122T020000Z-dddddddddddddddd";
    const UNFINISHED: &str = "20261123T020000Z-eeeeeeeeeeeeeeee";
    const B1: &str = "20261119T030000Z-ffffffffffffffff";

    /// Two targets, of which one has a damaged and an unfinished backup at its end; once in memory and once in a directory.
    async fn repositories(temp: &tempfile::TempDir) -> [Repository; 2] {
        let directory = crate::repository::Location::directory(temp.path().join("repo")).unwrap();
        let directory = Repository::init(&directory, &crate::clock::SystemClock).await.unwrap().0;
        let repositories = [Repository::in_memory().await.unwrap(), directory];
        for repository in &repositories {
            for id in [A1, A2, A3] {
                add(repository, "app", id, Condition::Good).await;
            }
            add(repository, "app", A4, Condition::Damaged).await;
            put(repository, &path("app", UNFINISHED).running(), b"{}".to_vec()).await;
            add(repository, "billing", B1, Condition::Good).await;
            put(repository, &Path::from("runs/2026/11/19/x.json"), b"{}".to_vec()).await;
            put(repository, &Path::from("app/backups/not-an-id/manifest.json"), b"{}".to_vec()).await;
        }
        repositories
    }

    async fn ids(repository: &Repository, target: Option<&str>) -> Vec<String> {
        let target = target.map(|t| t.parse().unwrap());
        let listed: Vec<Listed> = repository.list(target.as_ref()).try_collect().await.unwrap();
        let show = |listed: &Listed| match listed {
            Listed::Backup(found) => found.path.id.to_string(),
            Listed::Unfinished(path) => format!("unfinished {}", path.id),
            Listed::Unreadable(path, error) => {
                format!("unreadable {} {}", path.id, error.kind() == ErrorKind::Integrity)
            }
        };
        listed.iter().map(show).collect()
    }

    #[tokio::test]
    async fn listings_are_in_order_and_tell_what_is_unfinished() {
        let temp = tempfile::tempdir().unwrap();
        for repository in repositories(&temp).await {
            let unfinished = format!("unfinished {UNFINISHED}");
            assert_eq!(ids(&repository, None).await, [A1, A2, A3, A4, &unfinished, B1]);
            assert_eq!(ids(&repository, Some("billing")).await, [B1]);
            assert!(ids(&repository, Some("absent")).await.is_empty());
            let targets = repository.targets().await.unwrap();
            assert_eq!(targets.iter().map(TargetName::as_str).collect::<Vec<_>>(), ["app", "billing"]);
        }
    }

    #[tokio::test]
    async fn an_empty_folder_is_no_backup() {
        let temp = tempfile::tempdir().unwrap();
        let [_, repository] = repositories(&temp).await;
        std::fs::create_dir_all(temp.path().join("repo/app/backups/20261124T020000Z-gggggggggggggggg")).unwrap();
        assert_eq!(ids(&repository, Some("app")).await.len(), 5);
    }

    #[tokio::test]
    async fn names_mean_what_people_expect() {
        let temp = tempfile::tempdir().unwrap();
        for repository in repositories(&temp).await {
            for (reference, expected) in [
                (A2, A2),
                (A4, A4),
                ("app", A3),
                ("billing", B1),
                ("app@2026-11-20", A2),
                ("app@2026-11-19", A1),
                ("app@2030-01-01", A3),
                ("20261121", A3),
                ("cc", A3),
                ("ab", A2),
                ("20261119T03", B1),
            ] {
                let found = repository.resolve(reference).await.unwrap();
                assert_eq!(found.path.id.as_str(), expected, "{reference}");
                assert_eq!(Manifest::decode(&found.raw).unwrap(), found.manifest);
            }
            for (reference, kind, message) in [
                ("latest", ErrorKind::Config, "app, billing"),
                ("20261119", ErrorKind::Config, A1),
                ("", ErrorKind::Config, "is empty"),
                ("2", ErrorKind::Config, A4),
                ("ee", ErrorKind::NotFound, "no backup or target 'ee'"),
                ("absent", ErrorKind::NotFound, "no backup or target"),
                ("20261119T020000Z-aaaaaaaaaaaaaaab", ErrorKind::NotFound, "no backup 2026"),
                (UNFINISHED, ErrorKind::NotFound, "no backup"),
                ("app@2026-11-18", ErrorKind::NotFound, "of 2026-11-18 (UTC) or before"),
                ("absent@2026-11-18", ErrorKind::NotFound, "no backup of 'absent'"),
                ("app@yesterday", ErrorKind::Config, "not a day"),
                ("a/b@2026-11-18", ErrorKind::Config, "cannot name a target"),
            ] {
                let error = repository.resolve(reference).await.unwrap_err();
                assert_eq!(error.kind(), kind, "{reference}: {error}");
                assert!(error.to_string().contains(message), "{reference}: {error}");
                assert!(error.hint().is_some(), "{reference}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn latest_will_do_with_one_target_and_damaged_backups_are_not_good() {
        let repository = Repository::in_memory().await.unwrap();
        assert_eq!(repository.resolve("latest").await.unwrap_err().kind(), ErrorKind::NotFound);
        add(&repository, "app", A4, Condition::Damaged).await;
        let error = repository.resolve("latest").await.unwrap_err();
        assert!(
            error.to_string().contains("no good backup") && error.hint().unwrap().starts_with("1 whose source"),
            "{error}"
        );
        add(&repository, "app", A1, Condition::Good).await;
        assert_eq!(repository.resolve("latest").await.unwrap().path.id.as_str(), A1);
    }

    #[tokio::test]
    async fn a_manifest_that_cannot_be_read_neither_hides_others_nor_is_passed_over() {
        let repository = Repository::in_memory().await.unwrap();
        add(&repository, "app", A1, Condition::Good).await;
        for (bytes, kind) in [
            (b"garbage\n\n".to_vec(), ErrorKind::Integrity),
            (manifest(&path("app", A1), Condition::Good), ErrorKind::Integrity),
            (manifest(&path("other", A2), Condition::Good), ErrorKind::Integrity),
            (newer(), ErrorKind::Config),
        ] {
            put(&repository, &path("app", A2).manifest(), bytes).await;
            let error = repository.resolve("app").await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(A2), "{error}");
            let unreadable = format!("unreadable {A2} {}", kind == ErrorKind::Integrity);
            assert_eq!(ids(&repository, None).await, [A1, &unreadable]);
        }
    }

    fn newer() -> Vec<u8> {
        let text = String::from_utf8(manifest(&path("app", A2), Condition::Good)).unwrap();
        text.replace("\"format\":1", "\"format\":2").into_bytes()
    }

    #[tokio::test]
    async fn many_backups_are_listed_in_order() {
        let repository = Repository::in_memory().await.unwrap();
        for minute in 0..60 {
            add(&repository, "app", &format!("20261119T02{minute:02}00Z-aaaaaaaaaaaaaaaa"), Condition::Good).await;
        }
        let listed = ids(&repository, None).await;
        assert!(listed.len() == 60 && listed.is_sorted(), "{listed:?}");
    }
}
