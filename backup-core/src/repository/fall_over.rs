//! Reading from whichever repository answers.
//!
//! Several repositories hold the same objects, byte for byte. A store over all of them asks the first, and when that fails the next one, also
//! in the middle of an object. What failed is asked last for a while, so that not every request waits for it.

mod body;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use tokio::time::Instant;

use super::Repository;
use super::failure::summary;
use super::several::{Member, Repositories};
use crate::error::{Error, ErrorKind, Result, Stage};

/// A repository that has not answered for so long is away, if there is another to ask.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that failed is asked last.
const AWAY: Duration = Duration::from_secs(60);
/// Of so many objects at most it is known that they were read from another than the first.
const ELSEWHERE_MAX: usize = 1000;

/// A repository that did not answer, failed, or lacked something, where another was asked instead.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FallOver {
    /// The repository, by the name that it was given, or else its address.
    pub repository: String,
    /// Why.
    pub error: String,
    /// Which one is asked instead.
    pub next: String,
    /// Whether that one is optional: it may lack what was made while it was away.
    pub next_is_optional: bool,
    /// What the repository lacks though it answered, and the next one has: the first such object. It may lack others, too.
    pub lacks: Option<String>,
}

/// Is told what was read from elsewhere. Called on the task that reads: return soon.
pub type FallOverCallback = Arc<dyn Fn(&FallOver) + Send + Sync>;

impl fmt::Display for FallOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repository, error, next, lacks, .. } = self;
        match lacks {
            Some(object) => write!(f, "{repository} lacks {object}, and perhaps more; reading it from {next}")?,
            None => write!(f, "{repository} cannot be read ({error}); reading from {next}")?,
        }
        if self.next_is_optional {
            f.write_str(", which is optional and may lack newer backups")?;
        }
        Ok(())
    }
}

impl Repositories {
    /// Opens the first that answers, in the order in which they are [read](Self::to_read); the others are told as left out.
    ///
    /// # Errors
    /// Of the first, when none can be opened. Cancel safe.
    pub async fn first(&self, told: &(dyn Fn(&FallOver) + Send + Sync)) -> Result<Repository> {
        self.first_of(told).await.map(|(_, repository)| repository)
    }

    /// A repository to read from: the first that answers, and, when that fails later, any other that has the same object. Its
    /// [`store`](Repository::store) reads from all of them and writes into the first alone. Only the first is listed, while it answers.
    ///
    /// # Errors
    /// As [`first`](Self::first). Cancel safe.
    pub async fn to_read_from(&self, told: FallOverCallback) -> Result<Repository> {
        let (place, first) = self.first_of(&*told).await?;
        if self.members().len() < 2 {
            return Ok(first);
        }
        let mut sources: Vec<Source> = self.to_read().map(Source::new).collect();
        for passed_over in &sources[..place] {
            passed_over.is_away();
        }
        // The one that is listed leads.
        sources[..=place].rotate_right(1);
        let first_store = Arc::clone(first.store());
        let sources = Arc::new(Sources { first: first_store, sources, told, elsewhere: Mutex::default() });
        let store = Arc::new(Store(Arc::clone(&sources)));
        Ok(Repository { store, sources: Some(sources), ..first })
    }

    async fn first_of(&self, told: &(dyn Fn(&FallOver) + Send + Sync)) -> Result<(usize, Repository)> {
        let members: Vec<&Member> = self.to_read().collect();
        let mut first_failure = None;
        for (i, member) in members.iter().enumerate() {
            let opened = match members.get(i + 1) {
                Some(_) => {
                    tokio::time::timeout(PATIENCE, member.open()).await.unwrap_or_else(|_| Err(no_answer(member)))
                }
                None => member.open().await,
            };
            match (opened, members.get(i + 1)) {
                (Ok(repository), _) => return Ok((i, repository.clone())),
                (Err(error), Some(next)) => {
                    told(&fall_over(member, error.in_one_line(), next));
                    first_failure.get_or_insert(error);
                }
                (Err(error), None) => drop(first_failure.get_or_insert(error)),
            }
        }
        Err(first_failure.unwrap_or_else(|| Error::config("no repository is given")))
    }
}

fn fall_over(member: &Member, error: String, next: &Member) -> FallOver {
    FallOver {
        repository: member.name().to_owned(),
        error,
        next: next.name().to_owned(),
        next_is_optional: !next.is_required(),
        lacks: None,
    }
}

fn no_answer(member: &Member) -> Error {
    let message = format!("{member} does not answer");
    Error::new(ErrorKind::Unavailable, Stage::Fetch, message)
}

/// One of the repositories that are read.
struct Source {
    member: Member,
    failed: Mutex<Option<Instant>>,
    /// Whether it was told that it lacks something.
    lacks: AtomicBool,
}

/// The repositories that are read, and what is known of them.
pub(super) struct Sources {
    /// Where is written.
    first: Arc<dyn ObjectStore>,
    sources: Vec<Source>,
    told: FallOverCallback,
    /// Objects that were last read from another than the first, and its place.
    elsewhere: Mutex<HashMap<Path, usize>>,
}

struct Store(Arc<Sources>);

impl Source {
    fn new(member: &Member) -> Self {
        Self { member: member.clone(), failed: Mutex::default(), lacks: AtomicBool::new(false) }
    }

    fn has_failed(&self) -> bool {
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|since| since.elapsed() < AWAY)
    }

    /// Takes note that it failed; whether that is news.
    fn is_away(&self) -> bool {
        let known = self.has_failed();
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        !known
    }

    async fn store(&self) -> StoreResult<Arc<dyn ObjectStore>> {
        let failed = |e: Error| StoreError::Generic { store: "repository", source: Box::new(e) };
        self.member.open().await.map(|repository| Arc::clone(repository.store())).map_err(failed)
    }
}

impl Sources {
    /// Those that have not failed lately first.
    fn in_order(&self) -> Vec<&Source> {
        let (away, present): (Vec<_>, Vec<_>) = self.sources.iter().partition(|source| source.has_failed());
        present.into_iter().chain(away).collect()
    }

    /// Asks one after the other about `object` until one answers. Of several that failed, that of the most preferred is told.
    async fn ask<T: Send, F>(
        &self,
        object: &Path,
        question: impl Fn(Arc<dyn ObjectStore>) -> F + Send + Sync,
    ) -> StoreResult<(T, &Source)>
    where
        F: Future<Output = StoreResult<T>> + Send,
    {
        let order = self.in_order();
        let mut failures: Vec<(usize, StoreError)> = Vec::new();
        for (i, source) in order.iter().enumerate() {
            let asking = async { question(source.store().await?).await };
            let answer = match order.get(i + 1) {
                Some(_) => tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(silent(&source.member))),
                None => asking.await,
            };
            let place = self.place_of(source);
            let error = match answer {
                Ok(answer) => {
                    self.read_from(object, place);
                    self.tell_lacks(object, &failures, source);
                    return Ok((answer, source));
                }
                Err(error) => error,
            };
            if !is_failure(&error) {
                // The store is well; but another may have what it lacks.
                if !matches!(error, StoreError::NotFound { .. }) {
                    self.read_from(object, place);
                    return Err(error);
                }
            } else if let Some(next) = order.get(i + 1) {
                self.left(source, &error, next);
            }
            failures.push((place, error));
        }
        failures.sort_by_key(|(place, _)| *place);
        let none = || StoreError::Generic { store: "repository", source: "there is none to ask".into() };
        let (place, error) = failures.into_iter().next().unwrap_or_else(|| (0, none()));
        self.read_from(object, place);
        Err(error)
    }

    /// Tells who said that it has no such object, now that another has it: a repository that holds the same should have it, too.
    fn tell_lacks(&self, object: &Path, failures: &[(usize, StoreError)], next: &Source) {
        for (place, error) in failures {
            let source = &self.sources[*place];
            if matches!(error, StoreError::NotFound { .. }) && !source.lacks.swap(true, Ordering::Relaxed) {
                let event = fall_over(&source.member, summary(error), &next.member);
                (self.told)(&FallOver { lacks: Some(object.to_string()), ..event });
            }
        }
    }

    /// Takes note of where what is known of an object comes from.
    fn read_from(&self, object: &Path, place: usize) {
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if place == 0 {
            elsewhere.remove(object);
            return;
        }
        if elsewhere.len() >= ELSEWHERE_MAX {
            elsewhere.clear();
        }
        elsewhere.insert(object.clone(), place);
    }

    /// The address of an object that was last read from another than the first.
    pub(super) fn address(&self, object: &Path) -> Option<String> {
        let place = *self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).get(object)?;
        self.sources.get(place)?.member.repository().map(|repository| repository.address(object))
    }

    fn place_of(&self, source: &Source) -> usize {
        self.sources.iter().position(|other| std::ptr::eq(other, source)).unwrap_or_default()
    }

    fn left(&self, source: &Source, error: &StoreError, next: &Source) {
        if source.is_away() {
            let error = summary(error);
            (self.told)(&fall_over(&source.member, error, &next.member));
        }
    }
}

/// Whether an error says that the store is not to be read now, and not something about the object or the request.
fn is_failure(error: &StoreError) -> bool {
    !matches!(
        error,
        StoreError::NotFound { .. }
            | StoreError::AlreadyExists { .. }
            | StoreError::Precondition { .. }
            | StoreError::NotModified { .. }
            | StoreError::InvalidPath { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::NotSupported { .. }
    )
}

fn silent(member: &Member) -> StoreError {
    StoreError::Generic { store: "repository", source: Box::new(no_answer(member)) }
}

/// A listing by the first store that gives its beginning.
fn listing(
    sources: &Arc<Sources>,
    prefix: Option<&Path>,
    list: impl Fn(&dyn ObjectStore) -> BoxStream<'static, StoreResult<ObjectMeta>> + Send + Sync + 'static,
) -> BoxStream<'static, StoreResult<ObjectMeta>> {
    let (sources, folder) = (Arc::clone(sources), prefix.cloned().unwrap_or_default());
    let begin = async move {
        let question = |store: Arc<dyn ObjectStore>| {
            let mut objects = list(&*store);
            async move {
                let first = objects.try_next().await?;
                Ok(stream::iter(first.map(Ok)).chain(objects))
            }
        };
        sources.ask(&folder, question).await.map(|(objects, _)| objects)
    };
    stream::once(begin).try_flatten().boxed()
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.0.first.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.0.first.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        body::get(Arc::clone(&self.0), location.clone(), options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.0.first.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let prefix = prefix.cloned();
        listing(&self.0, prefix.clone().as_ref(), move |store| store.list(prefix.as_ref()))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        listing(&self.0, prefix.clone().as_ref(), move |store| store.list_with_offset(prefix.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        let question = move |store: Arc<dyn ObjectStore>| async move { store.list_with_delimiter(prefix).await };
        let folder = prefix.cloned().unwrap_or_default();
        self.0.ask(&folder, question).await.map(|(listing, _)| listing)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.0.first.copy_opts(from, to, options).await
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.first.fmt(f)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("first", &self.0.first).finish_non_exhaustive()
    }
}
