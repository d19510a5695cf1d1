//! Reading from whichever repository answers.
//!
//! Several repositories hold the same objects, byte for byte. A store over all of them asks the first, and when that fails the next one, also
//! in the middle of an object. What failed is asked last for a while, so that not every request waits for it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
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

/// A repository that did not answer, or failed, where another was asked instead.
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
}

/// Is told what was read from elsewhere. Called on the task that reads: return soon.
pub type FallOverCallback = Arc<dyn Fn(&FallOver) + Send + Sync>;

impl fmt::Display for FallOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repository, error, next, .. } = self;
        write!(f, "{repository} cannot be read ({error}); reading from {next}")?;
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
        let store = Arc::new(Store(Arc::new(Sources { first: Arc::clone(first.store()), sources, told })));
        Ok(Repository { store, ..first })
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
}

struct Sources {
    /// Where is written.
    first: Arc<dyn ObjectStore>,
    sources: Vec<Source>,
    told: FallOverCallback,
}

struct Store(Arc<Sources>);

impl Source {
    fn new(member: &Member) -> Self {
        Self { member: member.clone(), failed: Mutex::default() }
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

    /// Asks one after the other until one answers. Of several that failed, that of the most preferred is told.
    async fn ask<T: Send, F>(
        &self,
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
            let error = match answer {
                Ok(answer) => return Ok((answer, source)),
                Err(error) => error,
            };
            if !is_failure(&error) {
                // The store is well; but another may have what it lacks.
                if !matches!(error, StoreError::NotFound { .. }) {
                    return Err(error);
                }
            } else if let Some(next) = order.get(i + 1) {
                self.left(source, &error, next);
            }
            failures.push((self.place_of(source), error));
        }
        failures.sort_by_key(|(place, _)| *place);
        let none = || StoreError::Generic { store: "repository", source: "there is none to ask".into() };
        Err(failures.into_iter().next().map_or_else(none, |(_, error)| error))
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

/// The body of an object that goes on elsewhere when it breaks off.
struct Body {
    sources: Arc<Sources>,
    /// Which source it comes from.
    place: usize,
    location: Path,
    body: BoxStream<'static, StoreResult<Bytes>>,
    /// What is still to come.
    left: Range<u64>,
    /// The whole object's size.
    size: u64,
    /// How often it may still go on elsewhere.
    tries: usize,
}

async fn get(sources: Arc<Sources>, location: Path, options: GetOptions) -> StoreResult<GetResult> {
    let question = |store: Arc<dyn ObjectStore>| {
        let (location, options) = (location.clone(), options.clone());
        async move { store.get_opts(&location, options).await }
    };
    let (result, source) = sources.ask(question).await?;
    let place = sources.place_of(source);
    let GetResult { payload, meta, range, attributes, extensions } = result;
    let payload = match payload {
        GetResultPayload::Stream(body) if !options.head => {
            let (left, size, tries) = (range.clone(), meta.size, sources.sources.len());
            let body = Body { sources: Arc::clone(&sources), place, location, body, left, size, tries };
            GetResultPayload::Stream(stream::try_unfold(body, Body::next).boxed())
        }
        payload => payload,
    };
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

impl Body {
    async fn next(mut self) -> StoreResult<Option<(Bytes, Self)>> {
        loop {
            let piece = match self.tries {
                0 => self.body.try_next().await,
                _ => tokio::time::timeout(PATIENCE, self.body.try_next()).await.unwrap_or_else(|_| Err(broken_off())),
            };
            let error = match piece {
                Ok(Some(bytes)) => {
                    self.left.start += bytes.len() as u64;
                    return Ok(Some((bytes, self)));
                }
                Ok(None) if self.left.is_empty() => return Ok(None),
                Ok(None) => broken_off(),
                Err(error) => error,
            };
            if self.tries == 0 {
                return Err(error);
            }
            self.tries -= 1;
            self.go_on(error).await?;
        }
    }

    /// Asks for the rest; from the same source last of all.
    async fn go_on(&mut self, error: StoreError) -> StoreResult<()> {
        let source = &self.sources.sources[self.place];
        let others = self.sources.in_order();
        if let Some(next) = others.into_iter().find(|other| !std::ptr::eq(*other, source)) {
            self.sources.left(source, &error, next);
        }
        let (location, rest) = (&self.location, GetRange::Bounded(self.left.clone()));
        let question = |store: Arc<dyn ObjectStore>| {
            let (location, options) = (location.clone(), GetOptions::new().with_range(Some(rest.clone())));
            async move { store.get_opts(&location, options).await }
        };
        let (found, source) = self.sources.ask(question).await?;
        if found.meta.size != self.size {
            return Err(error);
        }
        self.place = self.sources.place_of(source);
        self.body = found.into_stream();
        Ok(())
    }
}

fn broken_off() -> StoreError {
    StoreError::Generic { store: "repository", source: "the body broke off".into() }
}

/// A listing by the first store that gives its beginning.
fn listing(
    sources: &Arc<Sources>,
    list: impl Fn(&dyn ObjectStore) -> BoxStream<'static, StoreResult<ObjectMeta>> + Send + Sync + 'static,
) -> BoxStream<'static, StoreResult<ObjectMeta>> {
    let sources = Arc::clone(sources);
    let begin = async move {
        let question = |store: Arc<dyn ObjectStore>| {
            let mut objects = list(&*store);
            async move {
                let first = objects.try_next().await?;
                Ok(stream::iter(first.map(Ok)).chain(objects))
            }
        };
        sources.ask(question).await.map(|(objects, _)| objects)
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
        get(Arc::clone(&self.0), location.clone(), options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.0.first.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let prefix = prefix.cloned();
        listing(&self.0, move |store| store.list(prefix.as_ref()))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        listing(&self.0, move |store| store.list_with_offset(prefix.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        let question = move |store: Arc<dyn ObjectStore>| async move { store.list_with_delimiter(prefix).await };
        self.0.ask(question).await.map(|(listing, _)| listing)
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
