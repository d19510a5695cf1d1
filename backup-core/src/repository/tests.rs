//! Repositories on stores that behave, and on stores that do not.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
    PutResult, Result as StoreResult,
};

use super::*;
use crate::clock::SystemClock;

/// What happens to a put.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It is done, and the answer is lost.
    LostAnswer,
    /// It is not done, for want of a connection.
    Unreachable,
    /// It is not done, and said to be there already: two requests at once.
    Conflict,
}

/// Memory that goes wrong as told.
#[derive(Debug, Default)]
struct Misbehaving {
    memory: InMemory,
    faults: Mutex<VecDeque<Fault>>,
    ignores_conditions: bool,
    lacks_conditions: bool,
}

impl Misbehaving {
    async fn put(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> StoreResult<PutResult> {
        if self.lacks_conditions && !matches!(options.mode, PutMode::Overwrite) {
            return Err(StoreError::NotImplemented { operation: "If-None-Match".into(), implementer: "test".into() });
        }
        if self.ignores_conditions {
            options.mode = PutMode::Overwrite;
        }
        let fault = self.faults.lock().unwrap().pop_front();
        let failed = |kind| {
            let source = Box::new(HttpError::new(kind, std::io::Error::other("scripted")));
            Err(StoreError::Generic { store: "test", source })
        };
        match fault {
            None => self.memory.put_opts(path, payload, options).await,
            Some(Fault::LostAnswer) => {
                self.memory.put_opts(path, payload, options).await?;
                failed(HttpErrorKind::Timeout)
            }
            Some(Fault::Unreachable) => failed(HttpErrorKind::Connect),
            Some(Fault::Conflict) => Err(StoreError::AlreadyExists {
                path: path.to_string(),
                source: "409 ConditionalRequestConflict".into(),
            }),
        }
    }
}

impl fmt::Display for Misbehaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Misbehaving")
    }
}

#[async_trait]
impl ObjectStore for Misbehaving {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        self.put(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.memory.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.memory.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.memory.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.memory.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.memory.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.memory.copy_opts(from, to, options).await
    }
}

fn location(store: Misbehaving) -> (Arc<Misbehaving>, Location) {
    let store = Arc::new(store);
    let location = Location::store(Arc::clone(&store) as _, "test:", LOCAL_PART_BYTES);
    (store, location)
}

fn objects(location: &Location) -> Vec<String> {
    let store = location.connect().unwrap().store;
    let metas: Vec<ObjectMeta> = futures::executor::block_on(store.list(None).try_collect()).unwrap();
    metas.into_iter().map(|meta| meta.location.to_string()).collect()
}

async fn rewrite(location: &Location, change: impl Fn(&str) -> String) {
    let store = location.connect().unwrap().store;
    let bytes = store.get(&layout::repository()).await.unwrap().bytes().await.unwrap();
    let changed = change(std::str::from_utf8(&bytes).unwrap());
    store.put(&layout::repository(), changed.into()).await.unwrap();
}

#[tokio::test]
async fn init_is_idempotent_and_leaves_one_object() {
    let temp = tempfile::tempdir().unwrap();
    for location in [Location::memory(), Location::directory(temp.path().join("new/repo")).unwrap()] {
        let (made, init) = Repository::init(&location, &SystemClock).await.unwrap();
        assert_eq!(init, Init { created: true, warning: None });
        assert!(made.conditional_put());
        let (again, init) = Repository::init(&location, &SystemClock).await.unwrap();
        assert_eq!(init, Init { created: false, warning: None });
        let opened = Repository::open(&location).await.unwrap();
        assert_eq!((made.id(), made.id().len(), opened.conditional_put()), (again.id(), 32, true));
        assert_eq!(made.id(), opened.id());
        assert_eq!(objects(&location), ["repository.json"]);
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out_and_marked() {
    for lacking in [false, true] {
        let (_, location) =
            location(Misbehaving { ignores_conditions: !lacking, lacks_conditions: lacking, ..Misbehaving::default() });
        let (repository, init) = Repository::init(&location, &SystemClock).await.unwrap();
        assert!(init.created && !repository.conditional_put());
        assert!(init.warning.unwrap().contains("If-None-Match"));
        assert_eq!(objects(&location), ["repository.json"]);
        let opened = Repository::open(&location).await.unwrap();
        assert!(!opened.conditional_put());
        assert_eq!(opened.id(), repository.id());

        let path = Path::from("x");
        repository.put_once(&path, PutPayload::from_static(b"one")).await.unwrap();
        repository.put_once(&path, PutPayload::from_static(b"one")).await.unwrap();
        assert_eq!(
            repository.put_once(&path, PutPayload::from_static(b"two")).await.unwrap_err().kind(),
            ErrorKind::Storage
        );
        assert_eq!(repository.read_small(&path, 3).await.unwrap().unwrap(), "one");
    }
}

#[tokio::test]
async fn an_init_that_ended_half_way_is_completed_and_keeps_what_it_does_not_know() {
    let location = Location::memory();
    let (first, _) = Repository::init(&location, &SystemClock).await.unwrap();
    rewrite(&location, |text| text.replace("\"yes\"", "\"no\"").replace("{\n", "{\n\"later\": [1],\n")).await;
    assert!(!Repository::open(&location).await.unwrap().conditional_put());
    let (second, init) = Repository::init(&location, &SystemClock).await.unwrap();
    assert_eq!((init.created, init.warning, second.id()), (false, None, first.id()));
    assert!(Repository::open(&location).await.unwrap().conditional_put());
    rewrite(&location, |text| {
        assert!(text.contains("\"later\""), "{text}");
        text.to_owned()
    })
    .await;
}

#[tokio::test]
async fn a_lost_answer_to_init_is_no_failure() {
    let (store, location) = location(Misbehaving::default());
    *store.faults.lock().unwrap() = [Fault::Unreachable].into();
    let error = Repository::init(&location, &SystemClock).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    *store.faults.lock().unwrap() = [Fault::LostAnswer].into();
    let (repository, init) = Repository::init(&location, &SystemClock).await.unwrap();
    assert_eq!(init, Init { created: true, warning: None });
    assert!(repository.conditional_put());
}

#[tokio::test]
async fn what_is_not_a_repository_is_said_to_be_none() {
    let temp = tempfile::tempdir().unwrap();
    let directory = Location::directory(temp.path()).unwrap();
    let missing = Location::directory(temp.path().join("missing")).unwrap();
    for location in [Location::memory(), directory, missing.clone()] {
        let error = Repository::open(&location).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.hint().unwrap().contains("backup init"), "{error}");
        assert!(objects_or_none(&location).is_empty());
    }
    assert!(!temp.path().join("missing").exists());
}

fn objects_or_none(location: &Location) -> Vec<String> {
    location.connect().map(|_| objects(location)).unwrap_or_default()
}

#[tokio::test]
async fn later_formats_are_refused_and_later_fields_are_not() {
    for (from, to, kind) in [
        ("\"format\": 1", "\"format\": 2", Some(ErrorKind::Config)),
        ("\"critical\": []", "\"critical\": [\"sharding\"]", Some(ErrorKind::Config)),
        ("{\n", "{\n\"new\": {},\n", None),
        ("\"yes\"", "\"sometimes\"", None),
        ("{\n", "{\n\"format\": 1,\n", Some(ErrorKind::Integrity)),
        ("\"id\"", "\"other\"", Some(ErrorKind::Integrity)),
        ("{\n", "", Some(ErrorKind::Integrity)),
    ] {
        let location = Location::memory();
        Repository::init(&location, &SystemClock).await.unwrap();
        rewrite(&location, |text| text.replacen(from, to, 1)).await;
        let result = Repository::open(&location).await;
        assert_eq!(result.as_ref().err().map(Error::kind), kind, "{from} -> {to}");
        if kind == Some(ErrorKind::Config) {
            assert!(result.unwrap_err().to_string().contains("newer release"));
        }
    }
}

#[tokio::test]
async fn put_once_resolves_ambiguous_answers_by_reading_back() {
    let (store, location) = location(Misbehaving::default());
    let (repository, _) = Repository::init(&location, &SystemClock).await.unwrap();
    let script = |faults: &[Fault]| *store.faults.lock().unwrap() = faults.iter().copied().collect();
    let (one, two) = (PutPayload::from_static(b"one"), PutPayload::from_static(b"two"));

    for (name, faults) in [
        ("a", &[Fault::LostAnswer][..]),
        ("b", &[Fault::Unreachable, Fault::LostAnswer]),
        ("c", &[Fault::Conflict, Fault::Unreachable, Fault::Conflict]),
    ] {
        script(faults);
        repository.put_once(&Path::from(name), one.clone()).await.unwrap();
        assert_eq!(repository.read_small(&Path::from(name), 3).await.unwrap().unwrap(), "one");
    }
    script(&[]);
    repository.put_once(&Path::from("a"), one.clone()).await.unwrap();
    for other in [two, PutPayload::from_static(b"o"), PutPayload::from_static(b"longer")] {
        let error = repository.put_once(&Path::from("a"), other).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.to_string().contains("cannot create test:/a: it exists already"), "{error}");
    }
    script(&[Fault::Unreachable; put::ATTEMPTS as usize]);
    let error = repository.put_once(&Path::from("d"), one).await.unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Unavailable, Stage::Commit));
    assert_eq!(repository.read_small(&Path::from("d"), 3).await.unwrap(), None);
}

#[tokio::test]
async fn an_object_that_is_too_long_is_not_read() {
    let location = Location::memory();
    let (repository, _) = Repository::init(&location, &SystemClock).await.unwrap();
    repository.put_once(&Path::from("x"), PutPayload::from_static(b"four")).await.unwrap();
    assert_eq!(repository.read_small(&Path::from("x"), 4).await.unwrap().unwrap(), "four");
    assert_eq!(repository.read_small(&Path::from("x"), 3).await.unwrap_err().kind(), ErrorKind::Integrity);
}
