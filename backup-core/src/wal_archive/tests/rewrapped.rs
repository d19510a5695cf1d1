//! Files whose data key was wrapped again.

use super::*;

/// Wraps all that `world` keeps for `recipient`, with its own identity.
async fn rewrap_for(world: &World, recipient: &AgeIdentity) -> crate::repository::rewrap::Rewrapped {
    let recipients: Vec<Arc<dyn crate::keys::Recipient>> = vec![Arc::new(recipient.recipients().remove(0))];
    let options = RewrapOptions::new(recipients, vec![Arc::new(world.identity.clone())]);
    rewrap(&world.repository, &[world.target()], &options, &Looked::default()).await.unwrap()
}

#[tokio::test]
async fn files_of_one_data_key_need_one_rewrap_whatever_form_they_have() {
    let mut world = World::in_memory().await;
    let archiver = world.archiver(0);
    let names = [world.segment(3, MIB, "one"), world.segment(4, MIB, "two"), world.segment(5, 32 * MIB, "large")];
    for name in &names {
        archiver.push(&world.pg_wal(name)).await.unwrap();
    }
    let (tail, bytes) = segment(1, 6, MIB, "tail");
    let WalFile::Segment(tail) = tail.parse().unwrap() else { panic!() };
    let piece = TailPiece { start: 0, end: 500_000, run: "0123456789abcdef".to_owned() };
    archiver.store_piece(SYSTEM, tail, &piece, bytes[..500_000].to_vec().into()).await.unwrap();
    assert!(world.objects().await.len() >= 4);
    let before = world.objects().await;

    let new = AgeIdentity::generate();
    let done = rewrap_for(&world, &new).await;
    assert_eq!((done.data_keys, done.census.problem_count, done.census.all().wal_files), (1, 0, 4));
    let added: Vec<String> = world.objects().await.into_iter().filter(|name| !before.contains(name)).collect();
    assert!(added.len() == 1 && added[0].starts_with("app/keys/"), "{added:?}");

    world.identity = new;
    for name in &names {
        assert!(world.fetch(name).await.unwrap() == Some(fs::read(world.pg_wal(name)).unwrap()), "{name}");
    }
    let fetched = world.fetch(&tail.to_string()).await.unwrap().unwrap();
    assert!(fetched[..500_000] == bytes[..500_000]);
    world.identity = AgeIdentity::generate();
    assert_eq!(world.fetch(&names[0]).await.unwrap_err().kind(), ErrorKind::Key);
}

#[tokio::test]
async fn a_damaged_header_does_not_keep_the_other_files_of_its_data_key_from_being_rewrapped() {
    let mut world = World::in_memory().await;
    let archiver = world.archiver(0);
    let names = [world.segment(3, MIB, "one"), world.segment(4, MIB, "two"), world.segment(5, MIB, "three")];
    for name in &names {
        archiver.push(&world.pg_wal(name)).await.unwrap();
    }
    // The first is looked at first: its header still can be read, and is not what was written.
    let damaged = world.object(&names[0]);
    let mut bytes = world.get(&damaged).await;
    let at = bytes.windows(9).position(|window| window == b"stream_id").unwrap();
    let digit = at + "stream_id\":\"".len();
    bytes[digit] = if bytes[digit] == b'0' { b'1' } else { b'0' };
    world.put(&damaged, bytes).await;
    let new = AgeIdentity::generate();
    assert_eq!(rewrap_for(&world, &new).await.data_keys, 1);
    world.identity = new;
    assert_eq!(world.fetch(&names[0]).await.unwrap_err().kind(), ErrorKind::Integrity);
    for name in &names[1..] {
        assert!(world.fetch(name).await.unwrap() == Some(fs::read(world.pg_wal(name)).unwrap()), "{name}");
    }
}
