//! Copies between stores in memory.

use super::*;
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
        let recipient: Arc<dyn Recipient> = Arc::new(self.identity.recipients().remove(0));
        let backup = Backup::new(self.from.clone(), self.target()).recipient(recipient);
        let handle = backup.stream("data".parse().unwrap(), BytesSource::new(vec![7; 10_000])).start().unwrap();
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
