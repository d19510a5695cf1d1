//! What goes of an archive beside the log that no backup needs.

use super::*;
use crate::wal_archive::Reference;

#[tokio::test]
async fn of_the_log_only_leftovers_go_that_are_old_and_need_nobody() {
    let world = World::filled().await;
    let archive = world.archive();
    let newest = segment(40 * 4 + 7);
    let (live, whole) = (segment(40 * 4 + 8), newest);
    let piece = |run: u8| TailPiece { start: 0, end: 100, run: format!("{run:016x}") };
    for (of, run, at) in [(live, 1, world.ago(50)), (whole, 2, world.ago(50)), (whole, 3, world.ago(1))] {
        world.put(&archive.tail_piece(of, &piece(run)), "piece", at).await;
    }
    let file = WalFile::Segment(newest);
    let (named, lost, new) = (archive.large_file(file), archive.large_file(file), archive.large_file(file));
    let reference = Reference { object: named.filename().unwrap().to_owned(), bytes: 5, critical: vec![] };
    world.put(&archive.file(file), reference.encode(), world.ago(50)).await;
    for (path, at) in [(&named, world.ago(50)), (&lost, world.ago(50)), (&new, world.ago(1))] {
        world.put(path, "large", at).await;
    }
    let expired = WalFile::Segment(segment(14));
    let (history, unknown) =
        (archive.file("00000002.history".parse().unwrap()), archive.prefix().join("00000001").join("x.bin"));
    let large = archive.large_file(expired);
    for path in [&history, &unknown, &large] {
        world.put(path, "old", world.ago(24 * 39)).await;
    }
    let report = world.pruned().await;
    for path in
        [&archive.tail_piece(live, &piece(1)), &archive.tail_piece(whole, &piece(3)), &named, &new, &history, &unknown]
    {
        assert!(world.has(path).await, "{path}");
    }
    for path in [&archive.tail_piece(whole, &piece(2)), &lost, &large, &archive.file(expired)] {
        assert!(!world.has(path).await, "{path}");
    }
    let fates: BTreeSet<&WalFate> = report.wal.iter().map(|wal| &wal.fate).collect();
    assert!(fates.contains(&WalFate::Superseded) && fates.contains(&WalFate::Orphaned), "{fates:?}");
    let deleted = world.store.0.deleted.lock().unwrap().clone();
    let place = |path: &Path| deleted.iter().position(|other| other == path);
    assert!(place(&archive.file(expired)) < place(&large), "what refers to it goes first");
}

#[tokio::test]
async fn a_large_object_that_expires_takes_only_what_refers_to_it_and_each_counts_once() {
    let world = World::filled().await;
    let archive = world.archive();
    let old = world.ago(24 * 39);
    let named = |n: u64| (WalFile::Segment(segment(n)), archive.large_file(WalFile::Segment(segment(n))));
    let refer = |object: &Path| {
        let object = object.filename().unwrap().to_owned();
        Reference { object, bytes: 5, critical: vec![] }.encode()
    };
    let [(gone, gone_large), (young, young_large), (whole, whole_large)] = [named(12), named(13), named(14)];
    for large in [&gone_large, &young_large, &whole_large] {
        world.put(large, "large", old).await;
    }
    // Two servers pushed it: what one of them sent is old, and what is called by the name came just now.
    world.put(&archive.file(whole), "segment", world.ago(1)).await;
    world.put(&archive.file(gone), refer(&gone_large), old).await;
    world.put(&archive.file(young), refer(&young_large), world.ago(1)).await;
    let before = world.objects().await.len();
    let told = world.prune().dry_run(true).run(std::slice::from_ref(&world.target)).await.unwrap();
    let done = world.prune().run(std::slice::from_ref(&world.target)).await.unwrap();
    for path in [&archive.file(whole), &archive.file(young), &young_large] {
        assert!(world.has(path).await, "{path}");
    }
    for path in [&archive.file(gone), &gone_large, &whole_large] {
        assert!(!world.has(path).await, "{path}");
    }
    assert_eq!(done.removed.objects, (before - world.objects().await.len()) as u64);
    assert_eq!((told.removed, &told.targets[0].wal), (done.removed, &done.targets[0].wal));
}
