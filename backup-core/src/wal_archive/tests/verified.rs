//! What the verification of an archive tells of files that it cannot judge, and of those that go while it looks.

use super::*;
use crate::pipeline::Counters;
use crate::repository::verify::{self, KeylessOptions, WalVerification};
use crate::tests::faulty::{Fault, Faulty, Of};

impl World {
    async fn verify(&self, deep: bool) -> Result<WalVerification> {
        let identities: [Arc<dyn Identity>; 1] = [Arc::new(self.identity.clone())];
        let options = KeylessOptions::new(&self.repository);
        let identities = deep.then_some(&identities[..]);
        verify::wal(&self.repository, &self.target(), identities, &options, &Counters::default()).await
    }
}

#[tokio::test]
async fn a_key_that_is_missing_hides_no_damage() {
    let mut world = World::in_memory().await;
    let before = std::mem::replace(&mut world.identity, AgeIdentity::generate());
    for number in 1..=3 {
        world.push(&world.segment(number, MIB, "new")).await.unwrap();
    }
    let new = std::mem::replace(&mut world.identity, before);
    for number in 4..=5 {
        world.push(&world.segment(number, MIB, "old")).await.unwrap();
    }
    world.identity = new;
    let damaged = world.object("000000010000000000000002");
    let mut bytes = world.repository.store().get(&damaged).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.repository.store().put(&damaged, bytes.into()).await.unwrap();
    let found = world.verify(true).await.unwrap();
    assert_eq!((found.files, found.unverified, found.findings.len()), (5, 2, 1), "{found:?}");
    assert_eq!(found.findings[0].object, damaged.as_ref());
    let named: Vec<&str> = found.unverified_examples.iter().map(|example| example.object.as_str()).collect();
    assert_eq!(named, [4, 5].map(|n| world.object(&format!("00000001000000000000000{n}")).to_string()));
    let keyless = world.verify(false).await.unwrap();
    assert_eq!((keyless.files, keyless.unverified, keyless.findings.len()), (5, 0, 1), "{keyless:?}");
}

#[tokio::test]
async fn a_file_that_is_removed_while_it_is_verified_is_not_damaged() {
    for (deep, well) in [(false, 0), (false, 1), (false, 2), (true, 1), (true, 2)] {
        let (store, repository) = Faulty::repository().await;
        let world = World::with(repository, None);
        world.push(&world.segment(1, MIB, "gone")).await.unwrap();
        store.inject_after(well, Fault::Removes, Of::Reads, "000000010000000000000001.vol");
        let found = world.verify(deep).await.unwrap();
        assert_eq!((found.files, found.findings.len()), (0, 0), "deep: {deep}, after {well}: {found:?}");
    }
}
