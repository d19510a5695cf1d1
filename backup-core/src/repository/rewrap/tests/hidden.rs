//! Rewraps behind heaps of forged ones, and key services that do not answer while one is looked for.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::keys::Wrap;

/// More than anybody looks at, if it costs something.
const HEAP: usize = 100;

/// A key that somebody has to be asked for. Its wraps are those of age, under another name.
#[derive(Debug, Clone)]
struct Service {
    key: AgeIdentity,
    is_away: bool,
    asked: Arc<AtomicUsize>,
}

const SERVICE: &str = "service";

impl Service {
    fn new() -> Self {
        Self { key: AgeIdentity::generate(), is_away: false, asked: Arc::default() }
    }

    fn recipient(&self) -> Arc<dyn Recipient> {
        Arc::new(self.clone())
    }

    fn identities(&self) -> Vec<Arc<dyn Identity>> {
        vec![Arc::new(self.clone())]
    }

    fn name(&self) -> Recipients {
        Recipients::from([named(self)])
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

impl Recipient for Service {
    fn describe(&self) -> (&'static str, String) {
        (SERVICE, name(&self.key).recipient)
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Wrap>> {
        Box::pin(async move { Ok(Wrap { kind: SERVICE.to_owned(), ..recipient(&self.key).wrap(key, context).await? }) })
    }
}

impl Identity for Service {
    fn is_costly(&self, wrap: &Wrap) -> bool {
        wrap.kind == SERVICE
    }

    fn unwrap<'a>(&'a self, wrap: &'a Wrap, context: &'a EncryptionContext) -> BoxFuture<'a, Result<Option<DataKey>>> {
        Box::pin(async move {
            if wrap.kind != SERVICE {
                return Ok(None);
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.is_away {
                return Err(Error::new(ErrorKind::Unavailable, Stage::Keys, "the key service is away"));
            }
            self.key.unwrap(&Wrap { kind: "age".to_owned(), ..wrap.clone() }, context).await
        })
    }
}

impl World {
    /// Puts a heap of rewraps beside a backup that are for `recipient` by their names and hold another key.
    async fn bury(&self, path: &BackupPath, recipient: Arc<dyn Recipient>, number: impl Fn(usize) -> usize) {
        let (folder, key) = self.key(path).await;
        let other = DataKey::generate();
        let wraps = wrap_for_all(&other, &context(), &[recipient]).await.unwrap();
        let forged = Rewrap { wraps, ..self.sound(&key).await }.encode(&other).unwrap();
        for n in 0..HEAP {
            let file = format!("{:08}-zzzzzzzzzzzzzzzz.json", number(n));
            self.put(&folder, &file, forged.clone()).await;
        }
    }
}

#[tokio::test]
async fn no_heap_of_forged_rewraps_hides_one_for_a_key_in_a_file() {
    let world = World::new().await;
    let path = world.save("one").await;
    world.rewrap(&world.options()).await.unwrap();
    world.bury(&path, recipient(&world.new), |n| 2 + n).await;
    world.bury(&path, Service::new().recipient(), |n| 2 + HEAP + n).await;
    assert_eq!(world.read(&path, &world.new).await.unwrap(), b"one");
    assert_eq!(world.rewrap(&world.options()).await.unwrap().unchanged, 1, "readers find it, so nothing is to be done");
    let census = world.census(&identities(&world.old)).await;
    assert_eq!(census.opened_by(&name(&world.new)).backups, 1);
}

#[tokio::test]
async fn a_heap_of_forged_rewraps_costs_a_key_service_few_calls_and_a_rewrap_comes_to_lie_on_top_of_it() {
    let world = World::new().await;
    let service = Service::new();
    let path = world.save("one").await;
    let mut options = RewrapOptions::new(vec![service.recipient()], identities(&world.old));
    assert_eq!(world.rewrap(&options).await.unwrap().data_keys, 1);
    OpenBackup::open(&world.repository, &path, &service.identities()).await.unwrap();
    service.asked();

    world.bury(&path, service.recipient(), |n| 2 + n).await;
    let error = OpenBackup::open(&world.repository, &path, &service.identities()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Key && error.in_one_line().contains("left untried"), "{error:?}");
    assert_eq!(service.asked(), 64);
    // What readers do not get to does not count, so it is made again.
    let census = world.census(&identities(&world.old)).await;
    assert_eq!(census.closed_to(&service.name()).backups, 1);
    options.identities.extend(service.identities());
    let done = world.rewrap(&options).await.unwrap();
    assert_eq!((done.data_keys, done.proved, done.problems()), (1, 1, &[][..]));
    service.asked();
    OpenBackup::open(&world.repository, &path, &service.identities()).await.unwrap();
    assert_eq!(service.asked(), 1);
    let census = world.census(&identities(&world.old)).await;
    assert!(census.closed_to(&service.name()).is_empty());
    assert_eq!(world.rewrap(&options).await.unwrap().unchanged, 1);
}

#[tokio::test]
async fn a_rewrap_that_readers_would_not_find_is_no_success() {
    let world = World::new().await;
    let (service, buried, other) = (Service::new(), world.save("one").await, world.save("two").await);
    // No number is above these.
    for last in ["cc", "dd", "ee", "ff", "gg", "hh", "ii", "jj", "kk", "ll", "mm", "nn", "oo", "pp", "qq", "rr", "ss"] {
        let (folder, key) = world.key(&buried).await;
        let wraps = wrap_for_all(&DataKey::generate(), &context(), &vec![service.recipient(); 4]).await.unwrap();
        let forged = Rewrap { wraps, ..world.sound(&key).await }.encode(&DataKey::generate()).unwrap();
        world.put(&folder, &format!("99999999-zzzzzzzzzzzzzz{last}.json"), forged).await;
    }
    let options = RewrapOptions::new(vec![service.recipient()], identities(&world.old));
    let done = world.rewrap(&options).await.unwrap();
    assert_eq!((done.data_keys, done.census.problem_count), (1, 1), "{:?}", done.problems());
    let problem = &done.problems()[0];
    assert!(!problem.no_key && problem.problem.contains("readers do not find it"), "{problem:?}");
    assert!(problem.object.contains(buried.id.as_str()), "{problem:?}");
    OpenBackup::open(&world.repository, &buried, &service.identities()).await.unwrap_err();
    OpenBackup::open(&world.repository, &other, &service.identities()).await.unwrap();
}

#[tokio::test]
async fn a_key_service_that_is_away_is_told_and_not_that_nobody_can_open_it() {
    let world = World::new().await;
    let (service, path) = (Service::new(), world.save("one").await);
    let options = RewrapOptions::new(vec![service.recipient()], identities(&world.old));
    world.rewrap(&options).await.unwrap();
    let (folder, _) = world.key(&path).await;
    // Damage on the way to it is passed over, and is not the reason.
    world.put(&folder, NEWEST, "junk").await;
    let away: Vec<Arc<dyn Identity>> =
        vec![Arc::new(AgeIdentity::generate()), Arc::new(Service { is_away: true, ..service.clone() })];
    let error = OpenBackup::open(&world.repository, &path, &away).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    // Another that is there opens it all the same.
    let both = [away, identities(&world.old)].concat();
    OpenBackup::open(&world.repository, &path, &both).await.unwrap();
}
