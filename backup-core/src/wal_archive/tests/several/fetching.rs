//! Fetching from several repositories: from whichever has a file, absent only when all say so.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn a_file_comes_from_whichever_repository_has_it_sound() {
    let two = Two::new(true).await;
    two.archived_in(1, &[3]).await;
    let wanted = Some(fs::read(two.world.pg_wal(&name(3))).unwrap());
    assert!(two.fetch(&name(3)).await.unwrap() == wanted, "the first lacks it");
    for fault in [Fault::Away, Fault::Full, Fault::Hangs] {
        two.stores[0].inject(fault, Of::Reads, "");
        assert!(two.fetch(&name(3)).await.unwrap() == wanted, "{fault:?}");
        two.stores[0].mend();
    }
    two.archived_in(0, &[3]).await;
    let mut damaged = two.bytes(0, &name(3)).await;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    two.repositories[0].store().put(&two.world.object(&name(3)), damaged.into()).await.unwrap();
    assert!(two.fetch(&name(3)).await.unwrap() == wanted, "the first is damaged");
    // Broken in both: no absence.
    two.stores[1].inject(Fault::Away, Of::Reads, "");
    assert_eq!(two.fetch(&name(3)).await.unwrap_err().kind(), ErrorKind::Integrity);
}

#[tokio::test]
async fn a_file_is_absent_only_when_every_repository_says_so() {
    for file in [name(4), "00000002.history".to_owned()] {
        for optional in [false, true] {
            let two = Two::new(!optional).await;
            two.archived_in(0, &[3]).await;
            two.archived_in(1, &[3]).await;
            assert_eq!(two.fetch(&file).await.unwrap(), None);
            for (i, at) in [(0, ""), (1, ""), (0, "repository.json"), (1, "repository.json")] {
                two.stores[i].inject(Fault::Away, Of::Reads, at);
                let doubt = two.fetch(&file).await;
                assert!(doubt.is_err(), "{file}, {i} away at '{at}', optional: {optional}");
                two.stores[i].mend();
            }
            // A repository that is another now, or gone, cannot tell.
            let document = Path::from("repository.json");
            for i in 0..2 {
                let kept = two.repositories[i].store().get(&document).await.unwrap().bytes().await.unwrap();
                two.repositories[i].store().delete(&document).await.unwrap();
                assert!(two.fetch(&file).await.is_err(), "{file}, {i} gone");
                two.repositories[i].store().put(&document, kept.into()).await.unwrap();
            }
            assert_eq!(two.fetch(&file).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn a_repository_that_cannot_be_opened_leaves_a_doubt_and_does_not_keep_files_away() {
    let two = Two::new(true).await;
    two.archived_in(0, &[3]).await;
    let nowhere = Location::directory("/nonexistent/repository").unwrap();
    for required in [true, false] {
        let all = Repositories::from(two.repositories[0].clone()).at("away", nowhere.clone(), required);
        let identity: Arc<dyn Identity> = Arc::new(two.world.identity.clone());
        let options = FetcherOptions { patience: Duration::ZERO, ..FetcherOptions::default() };
        let fetcher = Fetcher::new(all, two.world.target(), vec![identity], options).unwrap();
        let to = two.world.pg_wal("RECOVERYXLOG");
        assert!(matches!(fetcher.fetch(name(3).parse().unwrap(), &to).await.unwrap(), Fetched::Placed(_)));
        let doubt = fetcher.fetch(name(4).parse().unwrap(), &to).await.unwrap_err();
        assert!(doubt.hint().is_some(), "{doubt}");
    }
}

#[tokio::test]
async fn a_first_repository_that_is_away_is_waited_for_once_and_not_at_every_step() {
    let two = Two::new(true).await;
    two.archived_in(1, &[3]).await;
    two.stores[0].inject(Fault::Hangs, Of::All, "");
    let first = Location::store(Arc::new(two.stores[0].clone()), "first:", 1 << 20);
    let all = Repositories::default().at("first", first, true).and(two.repositories[1].clone());
    let identity: Arc<dyn Identity> = Arc::new(two.world.identity.clone());
    let options = FetcherOptions { prefetch: 4, ..FetcherOptions::default() };
    let mut took = Vec::new();
    for to in ["RECOVERYXLOG", "AGAIN"] {
        let begun = Instant::now();
        let fetcher =
            Fetcher::new(all.clone(), two.world.target(), vec![Arc::clone(&identity)], options.clone()).unwrap();
        fetcher.fetch(name(3).parse().unwrap(), &two.world.pg_wal(to)).await.unwrap();
        took.push(begun.elapsed());
    }
    // A second is what the next one waits for, the first time.
    assert!(took[0] >= Duration::from_secs(1) && took[1] < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn of_two_clusters_in_different_repositories_none_is_guessed() {
    let two = Two::new(true).await;
    two.archived_in(0, &[3]).await;
    two.archived_in(1, &[3]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let to = elsewhere.path().join("x");
    let identity: Arc<dyn Identity> = Arc::new(two.world.identity.clone());
    let fetcher = Fetcher::new(two.all(), two.world.target(), vec![identity], FetcherOptions::default()).unwrap();
    let fetch = async || fetcher.fetch(name(3).parse().unwrap(), &to).await;
    fetch().await.unwrap();
    let other = two.world.target().wal_of(SystemIdentifier(9)).file(name(3).parse().unwrap());
    for i in 0..2 {
        two.repositories[i].store().put(&other, vec![0].into()).await.unwrap();
        assert!(fetch().await.unwrap_err().to_string().contains("WAL of 2 clusters"), "{i}");
        two.repositories[i].store().delete(&other).await.unwrap();
        // What cannot be asked keeps nothing away.
        two.stores[i].inject(Fault::Away, Of::Reads, "");
        fetch().await.unwrap();
        two.stores[i].mend();
    }
}

#[tokio::test]
async fn a_hole_is_one_when_any_repository_has_what_comes_later() {
    for i in 0..2 {
        let two = Two::new(true).await;
        two.archived_in(i, &[3, 5]).await;
        two.archived_in(1 - i, &[3]).await;
        let error = two.fetch(&name(4)).await.unwrap_err();
        assert!(error.to_string().contains("the archive has a hole"), "{error}");
        assert_eq!(two.fetch(&name(6)).await.unwrap(), None);
        // The other fills it.
        two.archived_in(1 - i, &[4]).await;
        assert!(two.fetch(&name(4)).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn of_two_tails_the_longest_wins_and_no_shorter_one_stands_in_for_it() {
    let (tail, bytes) = segment(1, 4, MIB, "tail");
    let WalFile::Segment(segment) = tail.parse().unwrap() else { panic!() };
    for longest in 0..2 {
        let two = Two::new(true).await;
        two.archived_in(0, &[3]).await;
        two.archived_in(1, &[3]).await;
        for (i, len) in [(longest, 500_000), (1 - longest, 300_000)] {
            let piece = TailPiece { start: 0, end: len, run: "0123456789abcdef".to_owned() };
            let sent = bytes[..len as usize].to_vec().into();
            two.only(i).store_piece(SYSTEM, segment, &piece, sent).await.unwrap();
        }
        let fetched = two.fetch(&tail).await.unwrap().unwrap();
        assert!(fetched[..500_000] == bytes[..500_000] && fetched[500_000..].iter().all(|byte| *byte == 0));
        // What it held was told to be durable.
        for at in [".tail", "repository.json"] {
            for i in 0..2 {
                two.stores[i].inject(Fault::Away, Of::Reads, at);
                assert!(two.fetch(&tail).await.is_err(), "{i} away at {at}");
                two.stores[i].mend();
            }
        }
        // A whole one anywhere wins, and what comes later makes it a hole.
        two.archived_in(1 - longest, &[5]).await;
        assert!(two.fetch(&tail).await.unwrap_err().to_string().contains("a hole"));
    }
}
