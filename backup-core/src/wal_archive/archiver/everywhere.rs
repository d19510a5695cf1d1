//! One file into every repository of an archiver: sealed once, stored in each that does not have it.
//!
//! It is durable when every required repository has it. An optional one that fails, or keeps the others waiting, misses it, and is left alone
//! for a while.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Archiver, Pushed, compare, refer};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::ObjectName;
use crate::postgres::wal::WalFile;
use crate::repository::layout::WalPath;
use crate::repository::{Member, Repositories, Repository, too_late};
use crate::upload::{Race, Racer};
use crate::wal_archive::local_file::{Digested, LocalFile};
use crate::wal_archive::seal::{Room, Unsealed, Written};
use crate::wal_archive::stored::StoredFile;

/// How long an optional repository that failed is left alone.
const AWAY: Duration = Duration::from_secs(60);

/// An optional repository that a file is not in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Missed {
    /// The repository, by the name that it was given, or else its address.
    pub repository: String,
    /// The file.
    pub file: String,
    /// Why.
    pub error: String,
}

/// An optional repository that failed, and is left alone for a while.
#[derive(Debug, Clone)]
pub(super) struct Away {
    member: Member,
    since: Instant,
    why: String,
    /// Whether somebody knows; clones share it.
    told: Arc<AtomicBool>,
}

/// A file that is durable in every required repository.
#[derive(Debug)]
pub(in crate::wal_archive) struct Stored {
    pub(in crate::wal_archive) pushed: Pushed,
    /// Where it is, by the ids of repositories.
    pub(in crate::wal_archive) copies: Vec<(String, Written)>,
    pub(in crate::wal_archive) missed: Vec<Missed>,
}

/// What became of a file in one repository.
type Settled = Result<(Pushed, Written)>;

/// The repositories that a file goes to, and room for its parts.
struct Course {
    race: Arc<Race>,
    room: Room,
    /// Those that it does not go to.
    left_alone: Vec<Away>,
}

impl Archiver {
    /// Opens the repositories, but those optional ones that were away a moment ago. An optional one that cannot be opened is left alone, too.
    ///
    /// # Errors
    /// The first of a required one.
    pub(in crate::wal_archive) async fn open(&self) -> Result<()> {
        let (present, _) = self.present();
        present.open_all(self.0.optional_lag).await?;
        for member in present.members().iter().filter(|member| !member.is_required()) {
            if let Some(error) = member.failure() {
                self.leave_alone(member, &error, false);
            }
        }
        Ok(())
    }

    /// Opens the required repositories alone.
    ///
    /// # Errors
    /// The first of them.
    pub(in crate::wal_archive) async fn open_required(&self) -> Result<()> {
        self.0.repositories.filtered(Member::is_required).open_all(Duration::ZERO).await
    }

    /// All repositories but those that are left alone, and these.
    fn present(&self) -> (Repositories, Vec<Away>) {
        let mut away = self.0.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.retain(|away| away.since.elapsed() < AWAY);
        let present = self.0.repositories.filtered(|member| !away.iter().any(|away| away.member.is(member)));
        (present, away.clone())
    }

    fn course(&self) -> Result<Course> {
        let (present, left_alone) = self.present();
        let room = Room::for_all(present.open());
        let race = Race::new(&present, self.0.optional_lag, room.shared.waiting().clone(), None)?;
        Ok(Course { race: Arc::new(race), room, left_alone })
    }

    /// Stores a file, in each repository unless it is there.
    pub(in crate::wal_archive) async fn store(
        &self,
        file: &LocalFile,
        digested: &Digested,
        stop: &CancellationToken,
    ) -> Result<Stored> {
        let Course { race, room, left_alone } = self.course()?;
        let archive = self.archive_of(file);
        let found = tokio::select! {
            found = look(&race, &archive, file, digested) => found?,
            () = stop.cancelled() => return Err(Error::cancelled(Stage::Upload)),
        };
        let lacks = |racer: &Racer| !found.contains_key(racer.repository.id());
        let mut written = HashMap::new();
        if race.running().any(|racer| lacks(racer)) {
            let epoch = self.epoch().await?;
            let unsealed = Unsealed { file, digested, name: archive.name(file.name), epoch: &epoch };
            let paths = (archive.file(file.name), archive.large_file(file.name));
            let sent = self.sealing().write(&race, lacks, &room, paths, &unsealed, stop.cancelled()).await?;
            written.extend(sent.into_iter().map(|(racer, written)| (racer.repository.id().to_owned(), written)));
        }
        let mut settling = Vec::new();
        for racer in race.racers().filter(|racer| lacks(racer)) {
            let sent = match written.remove(racer.repository.id()) {
                Some(written) => Ok(written),
                None => Err(racer.take_why().unwrap_or_else(|| not_stored(racer))),
            };
            settling.push((Arc::clone(racer), sent));
        }
        let settled = settle(&race, &archive, file, digested, settling).await;
        let mut stored = self.conclude(&race, file.name, found, settled)?;
        stored.missed.extend(left_alone.iter().map(|away| away.misses(file.name)));
        Ok(stored)
    }

    /// Stores an object under a name that is nobody else's. What is left alone misses many of these: that is told once each time.
    pub(in crate::wal_archive) async fn store_object(
        &self,
        file: &LocalFile,
        digested: &Digested,
        name: ObjectName,
        path: Path,
    ) -> Result<()> {
        let Course { race, room, left_alone } = self.course()?;
        let epoch = self.epoch().await?;
        let unsealed = Unsealed { file, digested, name, epoch: &epoch };
        let sealing = self.sealing();
        let sent =
            sealing.write(&race, |_| true, &room, (path.clone(), path), &unsealed, self.0.stop.cancelled()).await?;
        let mut settled: HashMap<String, Settled> =
            sent.into_iter().map(|(racer, w)| (racer.repository.id().to_owned(), Ok((Pushed::Stored, w)))).collect();
        for racer in race.racers() {
            let id = racer.repository.id();
            if !settled.contains_key(id) {
                settled.insert(id.to_owned(), Err(racer.take_why().unwrap_or_else(|| not_stored(racer))));
            }
        }
        let mut stored = self.conclude(&race, file.name, HashMap::new(), settled)?;
        let untold = left_alone.iter().filter(|away| !away.told.load(Ordering::Relaxed));
        stored.missed.extend(untold.map(|away| away.misses(file.name)));
        self.tell_missed(&stored.missed);
        Ok(())
    }

    /// What it all comes to: the first error of a required repository, or where the file is and who misses it.
    fn conclude(
        &self,
        race: &Race,
        file: WalFile,
        mut found: HashMap<String, (Pushed, Written)>,
        mut settled: HashMap<String, Settled>,
    ) -> Result<Stored> {
        let mut stored = Stored { pushed: Pushed::AlreadyThere, copies: Vec::new(), missed: Vec::new() };
        for (member, racer) in race.members() {
            let id = racer.as_ref().map(|racer| racer.repository.id().to_owned());
            let outcome = match (&id, racer) {
                (Some(id), Some(racer)) => match (found.remove(id), settled.remove(id)) {
                    (Some(found), _) => Ok(found),
                    (None, Some(settled)) => settled,
                    (None, None) => Err(racer.take_why().unwrap_or_else(|| not_stored(racer))),
                },
                _ => Err(member.failure().unwrap_or_else(|| Error::config(format!("{member} is not open")))),
            };
            match (outcome, id) {
                (Ok((pushed, written)), Some(id)) => {
                    if pushed == Pushed::Stored && member.is_required() {
                        stored.pushed = Pushed::Stored;
                    }
                    stored.copies.push((id, written));
                }
                (Ok(_), None) => {}
                (Err(error), _) if member.is_required() => return Err(error),
                (Err(error), _) => stored.missed.push(self.missed(member, file, &error)),
            }
        }
        Ok(stored)
    }

    /// Takes note that an optional repository misses a file; one that is away is left alone for a while.
    fn missed(&self, member: &Member, file: WalFile, error: &Error) -> Missed {
        // Another file of that name, or a full disk, says nothing of the next file.
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound | ErrorKind::Config) {
            self.leave_alone(member, error, true);
        }
        Missed { repository: member.name().to_owned(), file: file.to_string(), error: error.in_one_line() }
    }

    fn leave_alone(&self, member: &Member, error: &Error, told: bool) {
        let mut away = self.0.away.lock().unwrap_or_else(PoisonError::into_inner);
        if !away.iter().any(|away| away.member.is(member)) {
            let (member, why, told) = (member.clone(), error.in_one_line(), Arc::new(AtomicBool::new(told)));
            away.push(Away { member, since: Instant::now(), why, told });
        }
    }

    pub(in crate::wal_archive) fn tell_missed(&self, missed: &[Missed]) {
        if let Some(callback) = &self.0.on_missed {
            missed.iter().for_each(|missed| callback(missed));
        }
    }
}

impl Away {
    fn misses(&self, file: WalFile) -> Missed {
        self.told.store(true, Ordering::Relaxed);
        Missed { repository: self.member.name().to_owned(), file: file.to_string(), error: self.why.clone() }
    }
}

/// Which repositories have the file already. Looking is cheap in a directory, and all that can be done where conditions are ignored. Elsewhere
/// the create tells.
async fn look(
    race: &Race,
    archive: &WalPath,
    file: &LocalFile,
    digested: &Digested,
) -> Result<HashMap<String, (Pushed, Written)>> {
    let found: Arc<std::sync::Mutex<HashMap<String, (Pushed, Written)>>> = Arc::default();
    let step = |racer: Arc<Racer>| {
        let (archive, file, digested, found) = (archive.clone(), file.clone(), digested.clone(), Arc::clone(&found));
        async move {
            let repository = &racer.repository;
            if repository.conditional_put() && !repository.publishes_once() {
                return Ok(());
            }
            if let Some(stored) = StoredFile::find(repository, &archive, file.name).await? {
                let same = compare(stored, &file, &digested).await?;
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(repository.id().to_owned(), same);
            }
            Ok(())
        }
    };
    race.everywhere(step).await?;
    Ok(std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Makes what was sent the file's, or finds out why it could not be: in required repositories as long as it takes, and in optional ones no longer
/// than the lag after that.
async fn settle(
    race: &Race,
    archive: &WalPath,
    file: &LocalFile,
    digested: &Digested,
    sent: Vec<(Arc<Racer>, Result<Written>)>,
) -> HashMap<String, Settled> {
    let (required, optional): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(racer, _)| racer.is_required());
    let one = |(racer, sent): (Arc<Racer>, Result<Written>)| async move {
        let settled = settle_one(&racer.repository, archive, file, digested, sent).await;
        (racer.repository.id().to_owned(), settled)
    };
    let required = join_all(required.into_iter().map(one));
    let lag = race.lag();
    let optional = join_all(optional.into_iter().map(|(racer, sent)| {
        let id = racer.repository.id().to_owned();
        async move {
            if let Err(error) = &sent
                && error.kind() == ErrorKind::Unavailable
            {
                // It is away, or was too slow: no more questions.
                return (id, sent.map(|written| (Pushed::Stored, written)));
            }
            let late = || (id.clone(), Err(too_late(racer.repository.name(), lag)));
            let settling = one((Arc::clone(&racer), sent));
            tokio::time::timeout(lag, settling).await.unwrap_or_else(|_| late())
        }
    }));
    let (required, optional) = tokio::join!(required, optional);
    required.into_iter().chain(optional).collect()
}

async fn settle_one(
    repository: &Repository,
    archive: &WalPath,
    file: &LocalFile,
    digested: &Digested,
    sent: Result<Written>,
) -> Settled {
    let referred = match sent {
        Ok(written) if written.path != archive.file(file.name) => {
            refer(repository, archive, file.name, &written).await.map(|()| written)
        }
        sent => sent,
    };
    let error = match referred {
        Ok(written) => return Ok((Pushed::Stored, written)),
        Err(error) => error,
    };
    if !matches!(error.kind(), ErrorKind::Storage | ErrorKind::Unavailable) {
        return Err(error);
    }
    // Somebody was faster, an answer was lost, or it failed.
    match StoredFile::find(repository, archive, file.name).await {
        Ok(Some(found)) => compare(found, file, digested).await,
        Ok(None) | Err(_) => Err(error),
    }
}

fn not_stored(racer: &Racer) -> Error {
    Error::internal(Stage::Upload, format!("it is not known what became of an upload to {}", racer.repository))
}
