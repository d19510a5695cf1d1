//! Copies between stores in memory.

use object_store::ObjectStoreExt;

use super::*;
use crate::compress::Compression;
use crate::keys::Recipient;
use crate::keys::age::AgeIdentity;
use crate::pipeline::Backup;
use crate::repository::runs::Who;
use crate::source::BytesSource;
use crate::tests::faulty::{Fault, Faulty, Of};

mod pins;

/// Two repositories whose stores can fail, and what the first is written with.
struct World {
    from: Repository,
    to: Repository,
    to_store: Faulty,
    identity: AgeIdentity,
}

impl World {
    async fn new() -> Self {
        let ((_, from), (to_store, to)) = (Faulty::repository().await, Faulty::repository().await);
        Self { from, to, to_store, identity: AgeIdentity::generate() }
    }

    fn target(&self) -> TargetName {
        "app".parse().unwrap()
    }

    async fn save(&self) -> BackupPath {
        self.save_bytes(10_000).await
    }

    async fn save_bytes(&self, bytes: usize) -> BackupPath {
        let recipient: Arc<dyn Recipient> = Arc::new(self.identity.recipients().remove(0));
        let backup = Backup::new(self.from.clone(), self.target()).recipient(recipient).compression(Compression::None);
        let data = vec![7; bytes];
        let handle = backup.stream("data".parse().unwrap(), BytesSource::new(data)).start().unwrap();
        let path = self.target().backup(handle.id());
        handle.wait().await.unwrap();
        path
    }

    async fn copy(&self, selection: Selection) -> Result<Copied> {
        self.copy_with(|options| options.selection = selection).await
    }

    async fn copy_with(&self, set: impl FnOnce(&mut CopyOptions)) -> Result<Copied> {
        let mut options = CopyOptions::new(&self.to);
        set(&mut options);
        copy(&self.from, &self.to, &options, &Arc::default(), &CancellationToken::new()).await
    }
}

/// A store that replaces what is there when an upload of several parts is completed, as S3 does.
#[tokio::test]
async fn two_copies_at_once_put_the_same_bytes_under_the_same_names() {
    let world = World::new().await;
    let path = world.save_bytes(5_000_000).await;
    let (one, two) = tokio::join!(world.copy(Selection::Everything), world.copy(Selection::Everything));
    one.unwrap();
    two.unwrap();
    let volume = path.volume(&"data".parse().unwrap(), 0);
    let read =
        async |repository: &Repository, object: &Path| repository.read_small(object, 8_000_000).await.unwrap().unwrap();
    for object in [volume, path.manifest()] {
        assert!(read(&world.from, &object).await == read(&world.to, &object).await, "{object}");
    }
    assert_eq!(world.copy(Selection::Everything).await.unwrap().backups.same, 1);
}

#[tokio::test]
async fn what_a_copy_left_that_was_killed_when_all_was_there_is_removed_by_the_next() {
    let world = World::new().await;
    let path = world.save().await;
    world.copy(Selection::Everything).await.unwrap();
    let running = async || world.to.store().head(&path.running()).await.is_ok();
    assert!(!running().await);
    world.to.store().put(&path.running(), "{}".into()).await.unwrap();
    world.copy_with(|options| options.dry_run = true).await.unwrap();
    assert!(running().await);
    assert_eq!(world.copy(Selection::Everything).await.unwrap().backups.same, 1);
    assert!(!running().await);
}
