//! What others do between two requests of a prune: runs that go on, copies that come, people who pin, a machine that is suspended.

use futures::FutureExt;

use super::store::{Others, Request};
use super::*;
use crate::keys::age::AgeIdentity;
use crate::pipeline::Backup;
use crate::repository::copy::{CopyOptions, copy};
use crate::source::BytesSource;

/// A clock that somebody sets.
#[derive(Debug, Clone)]
struct Set(Arc<Mutex<Timestamp>>);

impl Clock for Set {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

impl World {
    /// Has this done right before the `nth` request of its kind from now on.
    fn before(&self, request: Request, path: &Path, nth: usize, act: impl Future<Output = ()> + Send + 'static) {
        let others = Others { request, path: path.clone(), nth, act: Box::new(|| act.boxed()) };
        *self.store.0.others.lock().unwrap() = Some(others);
    }

    /// Whether that has been done.
    fn was_done(&self) -> bool {
        self.store.0.others.lock().unwrap().take().is_none()
    }

    /// Puts it, as young as it is.
    fn putting(&self, path: Path, bytes: &'static str) -> impl Future<Output = ()> + Send + 'static {
        let store = self.store.clone();
        async move { drop(store.put(&path, bytes.into()).await.unwrap()) }
    }

    fn target(&self) -> &[TargetName] {
        std::slice::from_ref(&self.target)
    }
}

#[tokio::test]
async fn a_run_that_ends_between_two_looks_loses_nothing() {
    let mut done = 0;
    for nth in 1..10 {
        let world = World::empty().await;
        let run = world.target.backup(&id_at(world.ago(24 * 35)));
        let (volume, mark) = (run.named("data.00000.vol"), run.running());
        for path in [&volume, &mark] {
            world.put(path, "old", world.ago(24 * 35)).await;
        }
        world.before(Request::List, &run.prefix(), nth, world.putting(run.manifest(), "{}"));
        world.prune().run(world.target()).await.unwrap();
        if !world.was_done() {
            break;
        }
        done += 1;
        assert!(world.has(&run.manifest()).await && world.has(&volume).await, "before look {nth}");
    }
    assert!(done > 1, "{done}");
}

#[tokio::test]
async fn what_is_pinned_or_filled_up_before_its_last_look_stays() {
    for fills_up in [false, true] {
        let mut done = 0;
        for nth in 1..10 {
            let world = World::empty().await;
            let doomed = world.backup(world.ago(24 * 500), |_| {}).await;
            world.backup(world.ago(24), |_| {}).await;
            let came = if fills_up { doomed.running() } else { doomed.new_pin() };
            world.before(Request::List, &doomed.prefix(), nth, world.putting(came, "x"));
            let report = world.pruned().await;
            if !world.was_done() {
                break;
            }
            done += 1;
            assert!(world.has(&doomed.manifest()).await, "before look {nth}: {:?}", report.backups[0]);
            assert!(matches!(report.backups[0].reasons[..], [Reason::Pinned { .. } | Reason::Young]));
        }
        assert!(done > 1, "{done}");
    }
}

#[tokio::test]
async fn who_was_suspended_since_the_last_look_leaves_it_to_the_next_prune() {
    let world = World::empty().await;
    let doomed = world.backup(world.ago(24 * 500), |_| {}).await;
    world.backup(world.ago(24), |_| {}).await;
    let dead = world.target.backup(&id_at(world.ago(24 * 35)));
    world.put(&dead.named("data.00000.vol"), "old", world.ago(24 * 35)).await;
    let clock = Arc::new(Mutex::new(world.now));
    let suspend = || {
        let clock = Arc::clone(&clock);
        async move { *clock.lock().unwrap() += SignedDuration::from_mins(11) }
    };
    let prune = async || world.prune().clock(Arc::new(Set(Arc::clone(&clock)))).run(world.target()).await.unwrap();
    // Before anything is removed: what was seen may not be so any more.
    world.before(Request::List, &doomed.pins(), 1, suspend());
    let report = prune().await;
    assert!(world.was_done() && world.has(&doomed.manifest()).await);
    assert_eq!(report.targets[0].backups[0].reasons, [Reason::NotDeleted]);
    // Between the manifest and the volumes: somebody may have begun to bring it again.
    world.before(Request::Delete, &doomed.manifest(), 1, suspend());
    assert_eq!(prune().await.targets[0].backups[0].reasons, []);
    assert!(world.was_done() && !world.has(&doomed.manifest()).await);
    assert!(world.has(&doomed.named("base.00000.vol")).await);
    prune().await;
    assert!(!world.objects().await.iter().any(|name| name.contains(doomed.id.as_str())));
}

#[tokio::test]
async fn rewraps_stay_while_a_backup_may_come_that_has_their_data_key() {
    let world = World::empty().await;
    world.backup(world.ago(1), |_| {}).await;
    let rewrap = world.rewrap(&"ab".repeat(16), "backup").await;
    // A copy brings a backup.
    let coming = world.target.backup(&id_at(world.ago(24 * 35)));
    let mark = "no JSON";
    world.put(&coming.running(), mark, world.now).await;
    world.pruned().await;
    assert!(world.has(&rewrap).await);
    // It died, and another one comes when all was looked at.
    world.put(&coming.running(), mark, world.ago(25)).await;
    let other = world.target.backup(&id_at(world.now));
    world.before(Request::List, &world.target.keys(), 1, world.putting(other.running(), mark));
    world.pruned().await;
    assert!(world.was_done() && world.has(&rewrap).await && !world.has(&coming.running()).await);
    // That died, too.
    world.put(&other.running(), mark, world.ago(25)).await;
    for dry_run in [true, false] {
        assert!(world.has(&rewrap).await);
        let report = world.prune().dry_run(dry_run).run(world.target()).await.unwrap();
        assert_eq!(report.targets[0].rewraps.objects, 1);
    }
    assert!(!world.has(&rewrap).await);
}

/// A repository with a backup that can be copied, and where that is.
async fn source() -> (Repository, BackupPath) {
    let repository = Repository::in_memory().await.unwrap();
    let recipient = Arc::new(AgeIdentity::generate().recipients().remove(0));
    let backup = Backup::new(repository.clone(), "app".parse().unwrap()).recipient(recipient);
    let handle = backup.stream("data".parse().unwrap(), BytesSource::new(b"data".to_vec())).start().unwrap();
    let target: TargetName = "app".parse().unwrap();
    let path = target.backup(handle.id());
    handle.wait().await.unwrap();
    (repository, path)
}

async fn copied(from: &Repository, to: &Repository) {
    let copied = copy(from, to, &CopyOptions::new(to), &Arc::default(), &Default::default()).await.unwrap();
    assert_eq!((copied.problems, copied.backups.copied), (vec![], 1));
}

#[tokio::test]
async fn a_copy_brings_again_the_rewraps_that_a_prune_took_meanwhile() {
    let ((from, path), world) = (source().await, World::empty().await);
    let key = from.manifest(&path).await.unwrap().unwrap().manifest.data_key;
    let rewrap = world.rewrap(&key, "backup").await;
    let bytes = world.repository.read_small(&rewrap, 1 << 16).await.unwrap().unwrap();
    from.store().put(&rewrap, bytes.into()).await.unwrap();
    // It is there already, and so old that nobody seems to need it.
    let prune = world.prune();
    let target = world.target.clone();
    let act = async move { drop(prune.run(&[target]).await.unwrap()) };
    world.before(Request::Put, &path.running(), 1, act);
    copied(&from, &world.repository).await;
    assert!(world.was_done() && world.store.0.deleted.lock().unwrap().contains(&rewrap));
    assert!(world.has(&path.manifest()).await && world.has(&rewrap).await);
}

#[tokio::test]
async fn a_copy_that_goes_on_does_not_count_on_what_a_prune_takes() {
    let ((from, path), world) = (source().await, World::empty().await);
    // What an interrupted copy left long ago.
    let volume = path.named("data.00000.vol");
    let bytes = from.store().get(&volume).await.unwrap().bytes().await.unwrap();
    world.put(&volume, bytes, world.ago(24 * 35)).await;
    let (prune, target) = (world.prune(), world.target.clone());
    let act = async move { drop(prune.run(&[target]).await.unwrap()) };
    world.before(Request::Put, &path.running(), 1, act);
    copied(&from, &world.repository).await;
    assert!(world.was_done() && world.store.0.deleted.lock().unwrap().contains(&volume));
    assert!(world.has(&path.manifest()).await && world.has(&volume).await);
}
