//! Several repositories that hold the same: all of them are written, one of them is read.
//!
//! A *required* repository must have everything, or nothing counts. An *optional* one is left behind when it fails or keeps the others
//! waiting; what it lacks then is copied later.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::{Location, Repository};
use crate::error::{Error, Result};

/// How long an optional repository may keep the others waiting, unless asked otherwise.
pub const LAG_DEFAULT: Duration = Duration::from_secs(30);

/// One of several repositories.
#[derive(Clone)]
pub struct Member {
    name: Arc<str>,
    required: bool,
    location: Option<Location>,
    opened: Arc<OnceCell<Repository>>,
    /// Whether somebody has begun to open it.
    tried: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<Arc<Error>>>>,
}

/// Repositories that hold the same, in the order in which they were added. Cheap to clone; clones share what was opened.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use backup_core::repository::{Repositories, Repository};
///
/// let (here, there) = (Repository::in_memory().await?, Repository::in_memory().await?);
/// let both = Repositories::from(here).and_optional(there);
/// assert_eq!(both.members().iter().filter(|member| member.is_required()).count(), 1);
/// # Ok::<(), backup_core::Error>(()) }).unwrap();
/// ```
#[derive(Debug, Clone, Default)]
pub struct Repositories(Vec<Member>);

impl Member {
    fn opened(repository: Repository, required: bool) -> Self {
        let name = repository.name().into();
        let opened = Arc::new(OnceCell::from(repository));
        Self { name, required, location: None, opened, tried: Arc::default(), failed: Arc::default() }
    }

    /// What it is called: the name that it was given, or its address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether everything must be in it.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// The repository, if it is open.
    pub fn repository(&self) -> Option<&Repository> {
        self.opened.get()
    }

    /// Opens it, unless it is open.
    ///
    /// # Errors
    /// Those of [`Repository::open`]; the next call tries again. Cancel safe.
    pub async fn open(&self) -> Result<&Repository> {
        let open = || async {
            self.tried.store(true, Ordering::Relaxed);
            match &self.location {
                Some(location) => Repository::open(location).await,
                None => Err(Error::config(format!("{self} has no address"))),
            }
        };
        self.opened.get_or_try_init(open).await
    }

    /// Whether it was to be opened before, and is not open: it failed, or takes longer than anybody has waited.
    pub(crate) fn is_away(&self) -> bool {
        self.tried.load(Ordering::Relaxed) && !self.opened.initialized()
    }

    /// Whether it is the same member, whatever it is called: clones are.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.opened, &other.opened)
    }

    /// Why it could not be opened when all were; none if it could.
    pub fn failure(&self) -> Option<Error> {
        if self.opened.initialized() {
            return None;
        }
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|error| error.repeated())
    }

    fn fail(&self, error: Error) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(error));
    }
}

impl Repositories {
    /// Adds one that must hold everything.
    #[must_use]
    pub fn and(mut self, repository: Repository) -> Self {
        self.0.push(Member::opened(repository, true));
        self
    }

    /// Adds one that may be left behind.
    #[must_use]
    pub fn and_optional(mut self, repository: Repository) -> Self {
        self.0.push(Member::opened(repository, false));
        self
    }

    /// Adds one that is not open yet, called `name` in messages.
    #[must_use]
    pub fn at(mut self, name: impl AsRef<str>, location: Location, required: bool) -> Self {
        let (name, location) = (name.as_ref().into(), Some(location));
        let (opened, tried, failed) = (Arc::default(), Arc::default(), Arc::default());
        self.0.push(Member { name, required, location, opened, tried, failed });
        self
    }

    /// All of them.
    pub fn members(&self) -> &[Member] {
        &self.0
    }

    /// All of them, in the order in which they are asked: the required ones hold everything, so they come first.
    pub fn to_read(&self) -> impl Iterator<Item = &Member> {
        let required = |wanted: bool| self.0.iter().filter(move |member| member.required == wanted);
        required(true).chain(required(false))
    }

    /// Those that are open.
    pub fn open(&self) -> impl Iterator<Item = &Repository> {
        self.0.iter().filter_map(Member::repository)
    }

    /// Those of which `choose` says so.
    #[must_use]
    pub fn filtered(&self, choose: impl Fn(&Member) -> bool) -> Self {
        Self(self.0.iter().filter(|member| choose(member)).cloned().collect())
    }

    /// The size of parts that suits all that are open.
    pub fn part_bytes(&self) -> usize {
        self.open().map(Repository::part_bytes).max().unwrap_or(super::LOCAL_PART_BYTES)
    }

    /// Opens all that are not open, at once, to write into them. Optional ones get no more than `lag` after the required ones are open; one that
    /// fails is left out, and says why ([`Member::failure`]).
    ///
    /// # Errors
    /// The first of a required one; `Config` when none is required, or two are the same repository. Cancel safe.
    pub async fn open_all(&self, lag: Duration) -> Result<()> {
        if !self.0.iter().any(Member::is_required) {
            return Err(no_required());
        }
        let mut opening: FuturesUnordered<_> =
            self.0.iter().map(|member| async move { (member, member.open().await.map(drop)) }).collect();
        let mut required = self.0.iter().filter(|member| member.required).count();
        let mut deadline = None;
        loop {
            if required == 0 && deadline.is_none() {
                deadline = Some(Instant::now() + lag);
            }
            let next = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, opening.next()).await,
                None => Ok(opening.next().await),
            };
            match next {
                Ok(Some((member, opened))) => {
                    required -= usize::from(member.required);
                    match opened {
                        Err(error) if member.required => return Err(error),
                        Err(error) => member.fail(error),
                        Ok(()) => {}
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    self.0.iter().filter(|member| !member.opened.initialized()).for_each(|member| {
                        if member.failure().is_none() {
                            member.fail(too_late(&member.name, lag));
                        }
                    });
                    break;
                }
            }
        }
        self.check_distinct()
    }

    /// Two names for one repository would make two copies look like more than one.
    pub(crate) fn check_distinct(&self) -> Result<()> {
        let open: Vec<&Member> = self.0.iter().filter(|member| member.opened.initialized()).collect();
        for (i, member) in open.iter().enumerate() {
            let id = |member: &Member| member.repository().map(|repository| repository.id().to_owned());
            if let Some(same) = open[..i].iter().find(|other| id(other) == id(member)) {
                return Err(Error::config(format!("{same} and {member} are one repository, under two names")));
            }
        }
        Ok(())
    }
}

/// The error of an optional repository that keeps the others waiting.
pub(crate) fn too_late(name: &str, lag: Duration) -> Error {
    let message = format!("{name} kept the others waiting for {} s", lag.as_secs_f64().ceil());
    Error::new(crate::ErrorKind::Unavailable, crate::Stage::Upload, message)
}

pub(crate) fn no_required() -> Error {
    Error::config("none of the repositories is required").with_hint("a backup must be in at least one, or it is none")
}

impl From<Repository> for Repositories {
    fn from(repository: Repository) -> Self {
        Self::default().and(repository)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, required, .. } = self;
        f.debug_struct("Member").field("name", name).field("required", required).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::clock::SystemClock;

    fn nowhere() -> Location {
        Location::directory("/nonexistent/repository").unwrap()
    }

    #[tokio::test]
    async fn a_required_repository_must_open_and_an_optional_one_need_not() {
        let (location, _temp) = directory().await;
        let optional = Repositories::default().at("a", location.clone(), true).at("b", nowhere(), false);
        optional.open_all(Duration::from_secs(5)).await.unwrap();
        assert_eq!(optional.open().count(), 1);
        assert_eq!(optional.members()[1].failure().unwrap().kind(), ErrorKind::NotFound);
        assert!(optional.members()[0].failure().is_none());

        let required = Repositories::default().at("a", location.clone(), true).at("b", nowhere(), true);
        assert_eq!(required.open_all(Duration::from_secs(5)).await.unwrap_err().kind(), ErrorKind::NotFound);
        let none = Repositories::default().at("a", location, false);
        assert_eq!(none.open_all(Duration::ZERO).await.unwrap_err().kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn one_repository_under_two_names_is_refused() {
        let (location, _temp) = directory().await;
        let twice = Repositories::default().at("a", location.clone(), true).at("b", location, false);
        let error = twice.open_all(Duration::from_secs(5)).await.unwrap_err();
        assert!(error.to_string().contains("a and b are one repository"), "{error}");
    }

    #[tokio::test]
    async fn required_ones_are_read_first() {
        let (a, b, c) = (Repository::in_memory(), Repository::in_memory(), Repository::in_memory());
        let (a, b, c) = futures::try_join!(a, b, c).unwrap();
        let ids = [b.id().to_owned(), a.id().to_owned(), c.id().to_owned()];
        let all = Repositories::default().and_optional(a).and(b).and_optional(c);
        let order: Vec<_> = all.to_read().map(|member| member.repository().unwrap().id().to_owned()).collect();
        assert_eq!(order, ids);
    }

    async fn directory() -> (Location, tempfile::TempDir) {
        let temp = tempfile::tempdir().unwrap();
        let location = Location::directory(temp.path()).unwrap();
        Repository::init(&location, &SystemClock).await.unwrap();
        (location, temp)
    }
}
