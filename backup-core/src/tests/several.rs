//! One pass into several repositories: what each of them ends up with, whatever the others do.

use std::collections::BTreeMap;

use super::faulty::{Fault, Faulty, Of};
use super::*;
use crate::pipeline::{Outcome, OutcomeState};
use crate::repository::Repositories;

const LAG: Duration = Duration::from_millis(500);

struct Three {
    stores: Vec<Faulty>,
    repositories: Repositories,
    identity: Arc<AgeIdentity>,
}

impl Three {
    /// The first is required, and the others as told.
    async fn new(required: bool) -> Self {
        let (mut stores, mut repositories) = (Vec::new(), Repositories::default());
        for i in 0..3 {
            let (store, repository) = Faulty::repository_at(&format!("faulty:{i}")).await;
            stores.push(store);
            repositories =
                if i == 0 || required { repositories.and(repository) } else { repositories.and_optional(repository) };
        }
        Self { stores, repositories, identity: Arc::new(AgeIdentity::generate()) }
    }

    fn backup(&self) -> Backup {
        let recipient: Arc<dyn Recipient> = Arc::new(self.identity.recipients().remove(0));
        let limits = Limits { volume_chunks: 50, ..small_limits(5000) };
        Backup::new(self.repositories.clone(), "app".parse().unwrap())
            .recipient(recipient)
            .limits(limits)
            .optional_lag(LAG)
    }

    /// Makes a backup of this, of which several volumes become.
    async fn save(&self, compression: Compression, data: &[u8]) -> (Result<BackupPath>, Vec<Outcome>) {
        let source = BytesSource::new(data.to_vec());
        let handle = self.backup().compression(compression).stream("data".parse().unwrap(), source).start().unwrap();
        let target: crate::repository::layout::TargetName = "app".parse().unwrap();
        let (path, outcomes) = (target.backup(handle.id()), handle.outcomes());
        let waited = tokio::time::timeout(Duration::from_secs(60), handle.wait()).await.expect("it ends");
        (waited.map(|_| path), outcomes.all())
    }

    /// All objects of one repository but what is its own.
    async fn objects(&self, i: usize) -> BTreeMap<String, Bytes> {
        let repository = self.repositories.open().nth(i).unwrap();
        let paths: Vec<_> = repository.store().list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
        let mut objects = BTreeMap::new();
        for path in paths.iter().filter(|path| path.as_ref() != "repository.json") {
            objects.insert(path.to_string(), repository.store().get(path).await.unwrap().bytes().await.unwrap());
        }
        objects
    }

    async fn read(&self, i: usize, path: &BackupPath) -> Vec<u8> {
        let identities: [Arc<dyn Identity>; 1] = [Arc::clone(&self.identity) as _];
        let repository = self.repositories.open().nth(i).unwrap();
        let backup = OpenBackup::open(repository, path, &identities).await.unwrap();
        let sink = MemorySink::new(1 << 30);
        backup.restore("data").unwrap().limits(small_limits(5000)).into(sink.clone()).wait().await.unwrap();
        sink.take().unwrap()
    }
}

fn states(outcomes: &[Outcome]) -> Vec<OutcomeState> {
    outcomes.iter().map(|outcome| outcome.state).collect()
}

use OutcomeState::{Dropped, NotStored, Stored, Unknown};

#[tokio::test]
async fn all_repositories_get_the_same_objects() {
    for compression in [Compression::Zstd(3), Compression::None] {
        let three = Three::new(true).await;
        let data = bytes(1 << 20);
        let (saved, outcomes) = three.save(compression, &data).await;
        let path = saved.unwrap();
        assert_eq!(states(&outcomes), [Stored; 3]);
        let first = three.objects(0).await;
        assert!(first.len() > 5 && first == three.objects(1).await && first == three.objects(2).await);
        assert!(three.read(2, &path).await == data);
    }
}

#[tokio::test]
async fn an_optional_repository_that_fails_is_left_behind_with_nothing_in_it() {
    for compression in [Compression::Zstd(3), Compression::None] {
        // At the heartbeat, in the middle, and at the end of the volumes.
        for at in ["running.json", "data.00002.vol", "details.00000.vol"] {
            let three = Three::new(false).await;
            three.stores[1].inject(Fault::Full, Of::Writes, at);
            let data = bytes(1 << 20);
            let (saved, outcomes) = three.save(compression, &data).await;
            let path = saved.unwrap();
            assert_eq!(states(&outcomes), [Stored, Dropped, Stored], "{at}");
            assert!(outcomes[1].error.as_ref().unwrap().contains("no space is left"), "{outcomes:?}");
            let first = three.objects(0).await;
            assert!(first == three.objects(2).await && three.objects(1).await.is_empty(), "{at}");
            assert!(three.read(0, &path).await == data);
        }
    }
}

#[tokio::test]
async fn an_optional_repository_that_hangs_is_left_behind_after_the_lag() {
    for compression in [Compression::Zstd(3), Compression::None] {
        for at in ["running.json", "data.00002.vol", "details.00000.vol"] {
            let three = Three::new(false).await;
            three.stores[2].inject(Fault::Hangs, Of::Writes, at);
            let data = bytes(4 << 20);
            let (saved, outcomes) = three.save(compression, &data).await;
            saved.unwrap();
            assert_eq!(states(&outcomes), [Stored, Stored, Dropped], "{at}");
            assert!(outcomes[2].error.as_ref().unwrap().contains("kept the others waiting"), "{outcomes:?}");
            assert!(three.objects(0).await == three.objects(1).await);
            assert_eq!(three.objects(2).await, BTreeMap::new(), "{at}");
        }
    }
}

#[tokio::test]
async fn a_required_repository_that_fails_at_any_object_fails_the_backup_and_leaves_nothing_anywhere() {
    for fault in [Fault::Full, Fault::Away] {
        for at in ["running.json", "data.00000.vol", "data.00002.vol", "details.00000.vol", "manifest.json"] {
            let three = Three::new(true).await;
            three.stores[1].inject(fault, Of::Writes, at);
            let (saved, outcomes) = three.save(Compression::Zstd(3), &bytes(1 << 20)).await;
            let error = saved.unwrap_err();
            assert!(error.to_string().contains("faulty:1/app/backups"), "{error}");
            assert_eq!(states(&outcomes), [NotStored; 3], "{at}");
            assert!(outcomes[1].error.is_some() && outcomes[0].error.is_none(), "{outcomes:?}");
            for i in 0..3 {
                assert_eq!(three.objects(i).await, BTreeMap::new(), "{at}");
            }
        }
    }
}

#[tokio::test]
async fn a_volume_that_a_repository_has_lost_is_noticed_before_the_backup_is_visible() {
    for required in [true, false] {
        let three = Three::new(required).await;
        three.stores[1].inject(Fault::Away, Of::Reads, "app/backups");
        let (saved, outcomes) = three.save(Compression::Zstd(3), &bytes(100_000)).await;
        assert_eq!(saved.is_ok(), !required);
        three.stores[1].mend();
        let all = if required { [NotStored; 3] } else { [Stored, Dropped, Stored] };
        assert_eq!(states(&outcomes), all);
        assert!(!three.objects(1).await.keys().any(|name| name.ends_with("manifest.json")));
    }
}

#[tokio::test]
async fn where_it_is_not_known_whether_a_backup_became_visible_all_of_it_stays() {
    for fault in [Fault::Hangs, Fault::Away] {
        let three = Three::new(false).await;
        three.stores[1].inject(fault, Of::Writes, "manifest.json");
        let (saved, outcomes) = three.save(Compression::Zstd(3), &bytes(100_000)).await;
        saved.unwrap();
        assert_eq!(states(&outcomes), [Stored, Unknown, Stored]);
        let (mut first, second) = (three.objects(0).await, three.objects(1).await);
        first.retain(|name, _| !name.ends_with("manifest.json"));
        assert!(first.iter().all(|(name, bytes)| second.get(name) == Some(bytes)));
    }
}

#[tokio::test]
async fn a_backup_that_is_cancelled_leaves_nothing_in_any_repository() {
    #[derive(Debug)]
    struct Endless;
    impl Source for Endless {
        fn next(&mut self, mut buffer: Buffer) -> futures::future::BoxFuture<'_, Result<Option<Piece>>> {
            Box::pin(async move {
                tokio::task::yield_now().await;
                buffer.fill_from(&random::bytes::<512>());
                Ok(Some(Piece::Buffer(buffer)))
            })
        }
    }
    let three = Three::new(false).await;
    let handle = three.backup().stream("data".parse().unwrap(), Endless).start().unwrap();
    while handle.progress().transferred_bytes == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    handle.cancel();
    assert_eq!(handle.wait().await.unwrap_err().kind(), ErrorKind::Cancelled);
    for i in 0..3 {
        assert_eq!(three.objects(i).await, BTreeMap::new());
    }
}

#[tokio::test]
async fn a_backup_that_no_repository_must_have_or_that_one_would_have_twice_is_refused() {
    let identity = AgeIdentity::generate();
    let refused = |repositories: Repositories| {
        let recipient: Arc<dyn Recipient> = Arc::new(identity.recipients().remove(0));
        let backup = Backup::new(repositories, "app".parse().unwrap()).recipient(recipient);
        backup.stream("data".parse().unwrap(), BytesSource::new("x")).start().unwrap_err().to_string()
    };
    let repository = Repository::in_memory().await.unwrap();
    assert!(refused(Repositories::default().and_optional(repository.clone())).contains("none of the repositories"));
    assert!(refused(Repositories::from(repository.clone()).and(repository)).contains("are one repository"));
}

#[tokio::test]
async fn what_is_read_comes_from_the_next_repository_when_one_fails_also_in_the_middle() {
    let three = Three::new(true).await;
    let data = bytes(300_000);
    let path = three.save(Compression::Zstd(3), &data).await.0.unwrap();
    let identities: [Arc<dyn Identity>; 1] = [Arc::clone(&three.identity) as _];
    for (fault, at) in [
        (Fault::Away, ".vol"),
        (Fault::BreaksOff, ".vol"),
        (Fault::Unreadable, ".vol"),
        (Fault::Away, ""),
        (Fault::Full, "data.00001"),
    ] {
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let callback = Arc::new(move |event: &crate::repository::FallOver| telling.lock().unwrap().push(event.clone()));
        let reading = three.repositories.to_read_from(callback).await.unwrap();
        three.stores[0].inject(fault, Of::Reads, at);
        let found = reading.resolve("app").await.unwrap();
        let backup = OpenBackup::open(&reading, &found.path, &identities).await.unwrap();
        let sink = MemorySink::new(1 << 30);
        backup.restore("data").unwrap().limits(small_limits(5000)).into(sink.clone()).wait().await.unwrap();
        assert!(sink.take().unwrap() == data, "{fault:?} {at}");
        assert_eq!(told.lock().unwrap().len(), 1, "it is told, and once: {fault:?} {at}");
        three.stores[0].mend();
    }
    // What all of them lack is not found, and nobody is blamed for it.
    let callback = Arc::new(|event: &crate::repository::FallOver| panic!("{event}"));
    let reading = three.repositories.to_read_from(callback).await.unwrap();
    let missing = path.target.backup(&"20260101T000000Z-aaaaaaaaaaaaaaaa".parse().unwrap());
    assert!(reading.manifest(&missing).await.unwrap().is_none());
}

#[tokio::test]
async fn what_a_repository_has_lost_comes_from_the_next_one_and_is_told_once() {
    let three = Three::new(true).await;
    let data = bytes(300_000);
    let path = three.save(Compression::Zstd(3), &data).await.0.unwrap();
    let volume = |n: u32| path.volume(&"data".parse().unwrap(), n);
    for lost in [volume(0), volume(1)] {
        three.repositories.open().next().unwrap().store().delete(&lost).await.unwrap();
    }
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let callback = Arc::new(move |event: &crate::repository::FallOver| telling.lock().unwrap().push(event.clone()));
    let reading = three.repositories.to_read_from(callback).await.unwrap();
    let identities: [Arc<dyn Identity>; 1] = [Arc::clone(&three.identity) as _];
    let backup = OpenBackup::open(&reading, &path, &identities).await.unwrap();
    let sink = MemorySink::new(1 << 30);
    backup.restore("data").unwrap().limits(small_limits(5000)).into(sink.clone()).wait().await.unwrap();
    assert!(sink.take().unwrap() == data);
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].lacks.as_ref().is_some_and(|lacks| lacks.ends_with(".vol")), "{told:?}");
    assert_eq!((told[0].repository.as_str(), told[0].next.as_str()), ("faulty:0", "faulty:1"));
    assert!(told[0].to_string().starts_with("faulty:0 lacks app/backups/"), "{}", told[0]);
}

#[tokio::test]
async fn damage_is_told_with_the_address_of_the_repository_that_it_was_read_from() {
    let three = Three::new(true).await;
    let path = three.save(Compression::Zstd(3), &bytes(300_000)).await.0.unwrap();
    let damage = async |i: usize| {
        let store = Arc::clone(three.repositories.open().nth(i).unwrap().store());
        let volume = path.volume(&"data".parse().unwrap(), 1);
        let mut bytes = store.get(&volume).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.put(&volume, bytes.into()).await.unwrap();
    };
    let identities: [Arc<dyn Identity>; 1] = [Arc::clone(&three.identity) as _];
    damage(0).await;
    damage(1).await;
    for (fault, at) in [(None, 0), (Some(Fault::Away), 1), (Some(Fault::BreaksOff), 1)] {
        let reading = three.repositories.to_read_from(Arc::new(|_: &crate::repository::FallOver| {})).await.unwrap();
        fault.inspect(|fault| three.stores[0].inject(*fault, Of::Reads, "data.00001"));
        let backup = OpenBackup::open(&reading, &path, &identities).await.unwrap();
        let sink = MemorySink::new(1 << 30);
        let restored = backup.restore("data").unwrap().limits(small_limits(5000)).into(sink).wait().await;
        let error = restored.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Integrity, "{error:?}");
        let address = format!("faulty:{at}/app/backups/");
        assert!(error.in_one_line().contains(&address), "{fault:?}: {}", error.in_one_line());
        three.stores[0].mend();
    }
}
