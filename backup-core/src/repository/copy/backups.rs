//! Backups: volumes first, the manifest last.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio_util::sync::CancellationToken;

use super::{BACKUPS, CopyProblem, Kind, OBJECTS, Run, Seen, concerns_one_object, folder};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Kind as BackupKind, MANIFEST_LEN_MAX, Manifest, StreamEntry, VolumeEntry};
use crate::pipeline::HEARTBEAT;
use crate::repository::layout::{BackupId, BackupPath, MANIFEST, RUNNING, TargetName};
use crate::repository::running::Running;
use crate::repository::verify::Wanted;
use crate::repository::{Found, is_taken, no_backup};
use crate::upload::ObjectUpload;

/// Volumes of one backup that are copied at once.
const VOLUMES: usize = 3;

/// A volume in its manifest.
#[derive(Clone, Copy)]
struct Listed<'a> {
    stream: &'a StreamEntry,
    number: u32,
    volume: &'a VolumeEntry,
}

impl Run<'_> {
    /// The complete backups of a target, the oldest first; counts what else lies in their folders.
    pub(super) async fn backups_of(&self, target: &TargetName) -> Result<Vec<BackupPath>> {
        let prefix = target.backups();
        let mut folders: BTreeMap<BackupId, bool> = BTreeMap::new();
        let mut objects = self.from.store().list(Some(&prefix));
        let failed = |e| self.from.error(e, "list", &prefix).at(Stage::Catalog);
        while let Some(object) = objects.try_next().await.map_err(failed)? {
            let mut parts = object.location.prefix_match(&prefix).into_iter().flatten();
            let id = parts.next().and_then(|id| id.as_ref().parse::<BackupId>().ok());
            match (id, parts.next(), parts.next()) {
                (Some(id), Some(name), None) => {
                    let is_complete = folders.entry(id).or_default();
                    match name.as_ref() {
                        MANIFEST => *is_complete = true,
                        RUNNING => {}
                        // Which objects are volumes the manifest says; none has another ending.
                        name if name.ends_with(".vol") => {}
                        _ => self.tally().leave_alone(&object.location),
                    }
                }
                _ => self.tally().leave_alone(&object.location),
            }
        }
        self.tally().unfinished += folders.values().filter(|is_complete| !**is_complete).count() as u64;
        let complete = folders.into_iter().filter(|(_, is_complete)| *is_complete);
        Ok(complete.map(|(id, _)| target.backup(&id)).collect())
    }

    /// These backups, each after those that it requires.
    pub(super) async fn backups(&self, paths: Vec<BackupPath>) -> Result<()> {
        let (dependent, seen) = (Mutex::new(Vec::new()), &Mutex::new(Seen::new()));
        let lock = || dependent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let work = |path: BackupPath| async move {
            let Some(found) = self.found(&path).await? else { return Ok(()) };
            if !found.manifest.requires.is_empty() {
                lock().push(path);
                return Ok(());
            }
            if let Ok(mut seen) = seen.lock() {
                seen.insert(path);
            }
            self.backup(&found).await
        };
        self.each(stream::iter(paths).map(Ok), BACKUPS, work).await?;
        let mut dependent = std::mem::take(&mut *lock());
        dependent.sort();
        self.each(stream::iter(dependent).map(Ok), 1, |path| self.with_required(path, seen)).await
    }

    /// Only these backups, and all that they cannot be restored without.
    pub(super) async fn chosen(&self, paths: &[BackupPath]) -> Result<()> {
        let (mut seen, mut open): (Seen, _) = (paths.iter().cloned().collect(), paths.to_vec());
        while let Some(path) = open.pop() {
            let is_chosen = paths.contains(&path);
            let found = match self.from.manifest(&path).await {
                Ok(Some(found)) => found,
                Ok(None) if is_chosen => return Err(no_backup(&path)),
                Err(e) if is_chosen || !concerns_one_object(&e) => return Err(e),
                // What a backup requires and cannot have is told when that is copied.
                Ok(None) | Err(_) => continue,
            };
            self.around(&found).await?;
            let required = found.manifest.requires.iter().filter_map(|id| id.parse().ok());
            open.extend(required.map(|id| path.target.backup(&id)).filter(|path| seen.insert(path.clone())));
        }
        self.backups(paths.to_vec()).await
    }

    /// What belongs to a backup and lies elsewhere: its pins, the wraps of its data key, and the log that it does not hold itself.
    async fn around(&self, found: &Found) -> Result<()> {
        let (path, manifest) = (&found.path, &found.manifest);
        self.pins_below(&path.target, &path.pins()).await?;
        if let Some(key) = path.target.key(&manifest.data_key) {
            self.rewraps_below(&path.target, &key.prefix()).await?;
        }
        match (&manifest.kind, &manifest.cluster) {
            (BackupKind::BaseBackup, Some(cluster)) if !cluster.wal_included => self.wal_needed_by(path, cluster).await,
            _ => Ok(()),
        }
    }

    /// A backup behind those that it requires, and that these require.
    async fn with_required(&self, path: BackupPath, seen: &Mutex<Seen>) -> Result<()> {
        let is_new = |path: &BackupPath| seen.lock().is_ok_and(|mut seen| seen.insert(path.clone()));
        let mut stack: Vec<BackupPath> = Some(path).into_iter().filter(is_new).collect();
        while let Some(top) = stack.last().cloned() {
            let Some(found) = self.found(&top).await? else {
                stack.pop();
                continue;
            };
            let required = found.manifest.requires.iter().filter_map(|id| id.parse().ok());
            let new: Vec<BackupPath> = required.map(|id| top.target.backup(&id)).filter(is_new).collect();
            if new.is_empty() {
                self.backup(&found).await?;
                stack.pop();
            }
            stack.extend(new);
        }
        Ok(())
    }

    /// The manifest at the source; one that cannot be read is a problem and hides no others.
    async fn found(&self, path: &BackupPath) -> Result<Option<Found>> {
        match self.from.manifest(path).await {
            // Removed meanwhile.
            Ok(found) => Ok(found),
            Err(e) if concerns_one_object(&e) => {
                let damage = e.kind() == ErrorKind::Integrity;
                let object = path.manifest().to_string();
                self.tally().add_problem(CopyProblem { object, problem: e.in_one_line(), damage });
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    async fn backup(&self, found: &Found) -> Result<()> {
        let path = &found.path;
        let is_there = self.holds(&path.manifest(), &found.raw, MANIFEST_LEN_MAX).await?;
        let held = folder(self.to, &path.prefix()).await?;
        let missing = self.missing(path, &found.manifest, &held).await?;
        if is_there && missing.is_empty() {
            // Of a copy that was killed when all was there.
            if held.contains_key(RUNNING) && !self.options.dry_run {
                self.remove_running(path).await;
            }
            self.tally().same(Kind::Backup);
            return Ok(());
        }
        if !self.has_required(path, &found.manifest).await? {
            return Ok(());
        }
        let bytes = if self.options.dry_run { Some(bytes_of(&missing)) } else { self.bring(found).await? };
        if let Some(bytes) = bytes {
            let manifest_bytes = if is_there { 0 } else { found.raw.len() as u64 };
            self.tally().copied(Kind::Backup, bytes.saturating_add(manifest_bytes));
        }
        Ok(())
    }

    /// Copies what the destination lacks of a backup, and makes it visible. Returns the bytes of its volumes; `None` when some are damaged.
    async fn bring(&self, found: &Found) -> Result<Option<u64>> {
        let Found { path, manifest, .. } = found;
        let (started, done) = (self.options.clock.now(), CancellationToken::new());
        // A prune there takes what an interrupted copy left, unless it sees this: so what is there is looked at only now.
        self.beat(path, started).await;
        let work = async {
            let copied = async {
                let held = folder(self.to, &path.prefix()).await?;
                let missing = self.missing(path, manifest, &held).await?;
                let bytes = bytes_of(&missing);
                self.volumes(path, manifest, missing).await.map(|problems| (bytes, problems))
            };
            let copied = copied.await;
            done.cancel();
            copied
        };
        let (copied, ()) = tokio::join!(work, self.keep_alive(path, started, &done));
        let committed = match copied {
            Ok((bytes, problems)) if problems.is_empty() => self.commit(found).await.map(|()| Some(bytes)),
            Ok((_, problems)) => self.damaged(path, problems).await.map(|()| None),
            Err(e) => Err(e),
        };
        self.remove_running(path).await;
        committed
    }

    /// Only a leftover, which nobody waits for.
    async fn remove_running(&self, path: &BackupPath) {
        if let Err(error) = self.to.store().delete(&path.running()).await {
            tracing::debug!(%error, "cannot remove running.json");
        }
    }

    /// The volumes that the destination lacks, of which it holds these objects; another one under the name of one is an error.
    async fn missing<'m>(
        &self,
        path: &BackupPath,
        manifest: &'m Manifest,
        held: &HashMap<String, u64>,
    ) -> Result<Vec<Listed<'m>>> {
        let mut listed = Vec::new();
        for stream in &manifest.streams {
            listed.extend((0..).zip(&stream.volumes).map(|(number, volume)| Listed { stream, number, volume }));
        }
        // As a list of futures: a closure that borrows could not be sent to another thread.
        let looked: Vec<_> = listed.into_iter().map(|listed| self.lacks(path, held, listed).boxed()).collect();
        stream::iter(looked)
            .buffered(OBJECTS)
            .try_filter_map(|lacking| std::future::ready(Ok(lacking)))
            .try_collect()
            .await
    }

    /// A volume, if the destination lacks it.
    async fn lacks<'m>(
        &self,
        path: &BackupPath,
        held: &HashMap<String, u64>,
        listed: Listed<'m>,
    ) -> Result<Option<Listed<'m>>> {
        let object = path.named(&listed.volume.path);
        let Some(size) = held.get(&listed.volume.path) else { return Ok(Some(listed)) };
        if *size != listed.volume.bytes {
            return Err(self.differs(&object));
        }
        if self.options.quick {
            return Ok(None);
        }
        match self.footer(self.to, &object, *size).await? {
            Ok(there) if there.entry == *listed.volume => Ok(None),
            _ => Err(self.differs(&object)),
        }
    }

    /// Whether the destination has all that the backup requires. It may be that some of it is damaged at the source.
    async fn has_required(&self, path: &BackupPath, manifest: &Manifest) -> Result<bool> {
        for id in &manifest.requires {
            let id_parsed: Option<BackupId> = id.parse().ok();
            let is_there = match id_parsed.map(|id| path.target.backup(&id).manifest()) {
                // What would be copied is not there yet.
                Some(_) if self.options.dry_run => true,
                Some(object) => match self.to.store().head(&object).await {
                    Ok(_) => true,
                    Err(object_store::Error::NotFound { .. }) => false,
                    Err(e) => return Err(self.to.error(e, "read", &object).at(Stage::Catalog)),
                },
                None => false,
            };
            if !is_there {
                self.problem(&path.manifest(), format!("it requires the backup {id}, which was not copied"));
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Remembers what is wrong with a backup, if it is there still: a backup that is being removed is not damaged.
    async fn damaged(&self, path: &BackupPath, problems: Vec<(Path, String)>) -> Result<()> {
        if self.from.still_has(&path.manifest()).await? {
            for (object, problem) in problems {
                self.problem(&object, problem);
            }
        }
        Ok(())
    }

    /// Copies what is missing; tells what could not be.
    async fn volumes(
        &self,
        path: &BackupPath,
        manifest: &Manifest,
        missing: Vec<Listed<'_>>,
    ) -> Result<Vec<(Path, String)>> {
        let sent: Vec<_> =
            missing.into_iter().map(|listed| self.listed_volume(path, manifest, listed).boxed()).collect();
        let sent = stream::iter(sent);
        let results: Vec<Result<Option<(Path, String)>>> = sent.buffer_unordered(VOLUMES).collect().await;
        let (mut problems, mut failure): (Vec<(Path, String)>, Option<Error>) = (Vec::new(), None);
        for result in results {
            match result {
                Ok(problem) => problems.extend(problem),
                // Whoever was stopped is not the cause.
                Err(e) if failure.as_ref().is_none_or(|e| e.kind() == ErrorKind::Cancelled) => failure = Some(e),
                Err(_) => {}
            }
        }
        failure.map_or(Ok(problems), Err)
    }

    /// Copies one; tells what is wrong with it.
    async fn listed_volume(
        &self,
        path: &BackupPath,
        manifest: &Manifest,
        Listed { stream, number, volume }: Listed<'_>,
    ) -> Result<Option<(Path, String)>> {
        let object = path.named(&volume.path);
        let wanted = Wanted::listed(path, manifest, stream, number);
        let mut upload = ObjectUpload::new(self.to.clone(), object.clone(), Arc::clone(&self.counters));
        match self.transfer(&object, volume, &wanted, &mut upload).await {
            Ok(problem) => Ok(problem.map(|problem| (object, problem))),
            Err(e) => {
                // The others end their uploads before this is told.
                self.stop.cancel();
                Err(if is_taken(&e) { self.differs(&object) } else { e })
            }
        }
    }

    /// Makes the backup visible, after a last look at all that it needs.
    async fn commit(&self, found: &Found) -> Result<()> {
        let Found { path, manifest, raw, .. } = found;
        self.rewraps_again(&path.target, &manifest.data_key).await?;
        let held = folder(self.to, &path.prefix()).await?;
        for volume in manifest.streams.iter().flat_map(|stream| &stream.volumes) {
            if held.get(&volume.path) != Some(&volume.bytes) {
                let object = self.to.address(&path.named(&volume.path));
                let problem = format!("{object} was written, and is not in the store with its {} bytes", volume.bytes);
                return Err(Error::new(ErrorKind::Storage, Stage::Commit, problem));
            }
        }
        self.create(&path.manifest(), raw.clone()).await.map_err(|e| e.at(Stage::Commit))
    }

    /// Tells whoever cleans up there, until it is done, that these volumes will have a manifest.
    async fn keep_alive(&self, path: &BackupPath, started: Timestamp, done: &CancellationToken) {
        let interval: Duration = HEARTBEAT;
        while tokio::time::timeout(interval, done.cancelled()).await.is_err() {
            self.beat(path, started).await;
        }
    }

    async fn beat(&self, path: &BackupPath, started: Timestamp) {
        let beat = async {
            // Of what it will need of the log nothing is said, so a prune leaves all of it alone.
            let payload = Running::new(path, started, self.options.clock.now(), None, None).encode()?;
            let put = self.to.store().put(&path.running(), payload).await;
            put.map(drop).map_err(|e| self.to.error(e, "write", &path.running()))
        };
        if let Err(error) = beat.await {
            tracing::warn!(error = error.in_one_line(), "cannot renew running.json");
        }
    }
}

fn bytes_of(missing: &[Listed<'_>]) -> u64 {
    missing.iter().map(|listed| listed.volume.bytes).fold(0, u64::saturating_add)
}
