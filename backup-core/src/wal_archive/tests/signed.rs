//! Who may write the log.

use super::*;
use crate::encrypt::signature::SigningKey;
use crate::error::ErrorKind;

/// A world that believes one signer, and its key.
async fn pinned() -> (World, SigningKey) {
    let (mut world, key) = (World::in_memory().await, SigningKey::generate());
    world.repository = world.repository.clone().trusting([key.signer()]);
    (world, key)
}

impl World {
    fn signing(&self, key: &SigningKey) -> Archiver {
        let epochs = Epochs::new(vec![Arc::new(self.identity.recipients().remove(0))]).unwrap();
        let options = ArchiverOptions { signing_key: Some(key.clone()), ..ArchiverOptions::default() };
        Archiver::new(self.repository.clone(), self.target(), epochs, options).unwrap()
    }

    async fn refused(&self, name: &str) -> String {
        let error = self.fetch(name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{error:?}");
        error.in_one_line()
    }
}

#[tokio::test]
async fn only_what_a_trusted_signer_archived_comes_back() {
    let (world, key) = pinned().await;
    let names: Vec<String> = (3..6).map(|number| world.segment(number, MIB, "noise")).collect();
    world.signing(&key).push(&world.pg_wal(&names[0])).await.unwrap();
    world.push(&names[1]).await.unwrap();
    let stranger = SigningKey::generate();
    world.signing(&stranger).push(&world.pg_wal(&names[2])).await.unwrap();

    assert!(world.fetch(&names[0]).await.unwrap() == Some(fs::read(world.pg_wal(&names[0])).unwrap()));
    let unsigned = world.refused(&names[1]).await;
    assert!(unsigned.contains("is not trusted") && unsigned.contains("not signed"), "{unsigned}");
    assert!(world.refused(&names[2]).await.contains(&stranger.signer().to_string()));
    // To archive the same file again is no way to make it trusted; and it does not count as archived.
    let again = world.signing(&key).push(&world.pg_wal(&names[1])).await.unwrap_err();
    assert!(again.in_one_line().contains("is not trusted"), "{again:?}");

    let everybody = World { repository: world.repository.clone().trusting([]), ..world };
    for name in &names {
        assert!(everybody.fetch(name).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_signature_that_was_made_for_another_file_does_not_make_a_file_trusted() {
    let (world, key) = pinned().await;
    let name = "00000002.history";
    fs::write(world.pg_wal(name), "1\t0/300000\twritten by our primary\n").unwrap();
    world.signing(&key).push(&world.pg_wal(name)).await.unwrap();
    let genuine = world.get(&world.object(name)).await;
    assert!(world.fetch(name).await.unwrap().is_some());

    // A stranger knows the recipients, and knows where the footer of the genuine object lies: it fits behind one of equal length.
    fs::write(world.pg_wal(name), "1\t0/FF0000\twritten by an impostor\n").unwrap();
    let mut forged = Vec::new();
    for _ in 0..10_000 {
        world.repository.store().delete(&world.object(name)).await.unwrap();
        world.push(name).await.unwrap();
        forged = world.get(&world.object(name)).await;
        if forged.len() == genuine.len() {
            break;
        }
    }
    assert_eq!(forged.len(), genuine.len(), "lengths vary a little, and did not fit once");
    let body = forged.len() - FOOTER_LEN;
    forged[body..].copy_from_slice(&genuine[body..]);
    world.put(&world.object(name), forged).await;
    assert!(world.refused(name).await.contains("is not what its signature was made for"));
    let histories = Histories::new(&[Arc::new(world.identity.clone())]).unwrap();
    let archive = world.target().wal_of(SYSTEM);
    let read = histories.read(&world.repository, &archive, Timeline::new(2).unwrap()).await;
    assert!(read.unwrap_err().to_string().contains("is not what its signature was made for"));

    // Without pins the stranger needs no signature at all.
    let everybody = World { repository: world.repository.clone().trusting([]), ..world };
    assert!(everybody.fetch(name).await.unwrap().is_some());
}
