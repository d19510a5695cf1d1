//! Verification of what changes meanwhile.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::keys::age::AgeIdentity;
use crate::keys::{Identity, Recipient};
use crate::pipeline::Backup;
use crate::repository::layout::TargetName;
use crate::source::BytesSource;
use crate::tests::faulty::{Fault, Faulty, Of};

#[tokio::test]
async fn a_backup_that_is_removed_while_it_is_verified_is_not_damaged() {
    let identity = AgeIdentity::generate();
    let identities: [Arc<dyn Identity>; 1] = [Arc::new(identity.clone())];
    // Before a volume is looked at, while it is read, and in the middle of several.
    for (deep, well) in [(false, 0), (false, 1), (false, 3), (true, 0), (true, 1), (true, 3)] {
        let (store, repository) = Faulty::repository().await;
        let recipient: Arc<dyn Recipient> = Arc::new(identity.recipients().remove(0));
        let target: TargetName = "app".parse().unwrap();
        let backup = Backup::new(repository.clone(), target.clone()).recipient(recipient);
        let limits = Limits { volume_chunks: 2, chunk_size: 4096, ..Limits::for_parts_of(1 << 20) };
        let source = BytesSource::new(vec![7; 30_000]);
        let handle = backup.limits(limits).stream("data".parse().unwrap(), source).start().unwrap();
        let path = target.backup(handle.id());
        handle.wait().await.unwrap();
        store.inject_after(well, Fault::Removes, Of::Reads, "data.0");
        let verified = match deep {
            true => super::deep(&repository, &path, &identities, limits, &CancellationToken::new()).await,
            false => keyless(&repository, &path, &KeylessOptions::new(&repository), &Counters::default()).await,
        };
        let error = verified.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "deep: {deep}, after {well}: {error}");
        assert!(error.to_string().contains("was removed while it was verified"), "{error}");
    }
}

#[tokio::test]
async fn a_repository_that_is_gone_is_no_backup_that_was_removed() {
    let (store, repository) = Faulty::repository().await;
    let target: TargetName = "app".parse().unwrap();
    let path = target.backup(&crate::repository::layout::BackupId::generate(&crate::clock::SystemClock));
    let mut found = Verification::default();
    assert_eq!(found.clone().unless_removed(&repository, &path).await.unwrap(), found);
    found.findings.push(Finding { object: "x".to_owned(), problem: "missing".to_owned() });
    let removed = found.clone().unless_removed(&repository, &path).await.unwrap_err();
    assert_eq!(removed.kind(), ErrorKind::NotFound);
    store.inject(Fault::Removes, Of::Reads, "repository.json");
    let gone = found.unless_removed(&repository, &path).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Unavailable, "{gone}");
}
