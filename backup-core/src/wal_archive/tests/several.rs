//! An archive in several repositories: durable in all that are required, absent only when all say so.

use super::*;
use crate::repository::Repositories;
use crate::tests::faulty::{Fault, Faulty, Of};

const LAG: Duration = Duration::from_millis(300);

/// Two repositories: a required one, and another.
struct Two {
    world: World,
    stores: [Faulty; 2],
    repositories: [Repository; 2],
    second_required: bool,
    missed: Arc<std::sync::Mutex<Vec<Missed>>>,
}

impl Two {
    async fn new(second_required: bool) -> Self {
        let ((first, a), (second, b)) = (Faulty::repository().await, Faulty::repository().await);
        let (stores, repositories) = ([first, second], [a, b]);
        Self {
            world: World::with(repositories[0].clone(), None),
            stores,
            repositories,
            second_required,
            missed: Arc::default(),
        }
    }

    fn all(&self) -> Repositories {
        let [a, b] = self.repositories.clone();
        let first = Repositories::from(a);
        if self.second_required { first.and(b) } else { first.and_optional(b) }
    }

    fn archiver(&self, look_ahead: usize) -> Archiver {
        self.archiver_of(self.all(), LAG, look_ahead)
    }

    fn archiver_of(&self, all: Repositories, optional_lag: Duration, look_ahead: usize) -> Archiver {
        let epochs = Epochs::new(vec![Arc::new(self.world.identity.recipients().remove(0))]).unwrap();
        let missed = Arc::clone(&self.missed);
        let options = ArchiverOptions {
            look_ahead,
            optional_lag,
            on_missed: Some(Arc::new(move |file: &Missed| missed.lock().unwrap().push(file.clone()))),
            ..ArchiverOptions::default()
        };
        Archiver::new(all, self.world.target(), epochs, options).unwrap()
    }

    /// The first, and the second as one that is still to be opened, which may keep the other waiting for `lag`.
    fn unopened(&self, lag: Duration, look_ahead: usize) -> Archiver {
        let second = Location::store(Arc::new(self.stores[1].clone()), "second:", 1 << 20);
        let all = Repositories::from(self.repositories[0].clone()).at("second", second, false);
        self.archiver_of(all, lag, look_ahead)
    }

    async fn push(&self, name: &str) -> Result<Pushed> {
        let pushing = self.archiver(0).push_owned(self.world.pg_wal(name));
        tokio::time::timeout(Duration::from_secs(30), pushing).await.expect("it ends")
    }

    fn missed(&self) -> Vec<String> {
        std::mem::take(&mut *self.missed.lock().unwrap()).into_iter().map(|missed| missed.file).collect()
    }

    async fn has(&self, i: usize, name: &str) -> bool {
        self.repositories[i].store().head(&self.world.object(name)).await.is_ok()
    }

    async fn bytes(&self, i: usize, name: &str) -> Vec<u8> {
        let object = self.repositories[i].store().get(&self.world.object(name)).await.unwrap();
        object.bytes().await.unwrap().to_vec()
    }

    async fn fetch(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let identity: Arc<dyn Identity> = Arc::new(self.world.identity.clone());
        let options = FetcherOptions { patience: Duration::ZERO, ..FetcherOptions::default() };
        let fetcher = Fetcher::new(self.all(), self.world.target(), vec![identity], options).unwrap();
        let to = self.world.pg_wal("RECOVERYXLOG");
        let _ = fs::remove_file(&to);
        let fetched = fetcher.fetch(name.parse().unwrap(), &to).await;
        assert_eq!(self.world.temporaries(), [] as [String; 0], "nothing half-written stays");
        match fetched? {
            Fetched::Placed(_) => Ok(Some(fs::read(to).unwrap())),
            Fetched::Absent => Ok(None),
        }
    }

    fn only(&self, i: usize) -> Archiver {
        let epochs = Epochs::new(vec![Arc::new(self.world.identity.recipients().remove(0))]).unwrap();
        Archiver::new(self.repositories[i].clone(), self.world.target(), epochs, ArchiverOptions::default()).unwrap()
    }

    /// Archives segments in one repository alone.
    async fn archived_in(&self, i: usize, numbers: &[u32]) {
        for number in numbers {
            let name = self.world.segment(*number, MIB, "x");
            self.only(i).push(&self.world.pg_wal(&name)).await.unwrap();
        }
    }
}

impl Archiver {
    async fn push_owned(self, path: PathBuf) -> Result<Pushed> {
        self.push(&path).await
    }
}

fn name(number: u32) -> String {
    segment(1, number, MIB, "").0
}

#[tokio::test]
async fn a_file_is_sealed_once_and_is_the_same_in_all_repositories() {
    for large in [MIB, 32 * MIB] {
        let two = Two::new(true).await;
        let name = two.world.segment(3, large, "x");
        assert_eq!(two.push(&name).await.unwrap(), Pushed::Stored);
        assert!(two.bytes(0, &name).await == two.bytes(1, &name).await);
        assert_eq!(two.push(&name).await.unwrap(), Pushed::AlreadyThere);
        let fetched = two.fetch(&name).await.unwrap();
        assert!(fetched == Some(fs::read(two.world.pg_wal(&name)).unwrap()));
    }
}

#[tokio::test]
async fn nothing_is_archived_before_every_required_repository_has_it() {
    for fault in [Fault::Away, Fault::Full] {
        let two = Two::new(true).await;
        let name = two.world.segment(3, MIB, "x");
        two.stores[1].inject(fault, Of::Writes, "wal");
        assert!(two.push(&name).await.is_err());
        two.stores[1].mend();
        // What the first has already is the same, and no reason to refuse.
        assert_eq!(two.push(&name).await.unwrap(), Pushed::Stored);
        assert!(two.has(0, &name).await && two.has(1, &name).await);
    }
}

#[tokio::test]
async fn an_optional_repository_that_fails_or_hangs_is_told_and_no_failure() {
    for fault in [Fault::Away, Fault::Full, Fault::Hangs] {
        let two = Two::new(false).await;
        let name = two.world.segment(3, MIB, "x");
        two.stores[1].inject(fault, Of::Writes, "wal");
        assert_eq!(two.push(&name).await.unwrap(), Pushed::Stored, "{fault:?}");
        assert_eq!(two.missed(), [name.as_str()]);
        assert!(two.has(0, &name).await && !two.has(1, &name).await);
        two.stores[1].mend();
        two.push(&name).await.unwrap();
        assert!(two.missed().is_empty() && two.has(1, &name).await, "the next attempt fills it");
    }
}

#[tokio::test]
async fn whether_a_file_is_there_already_is_judged_in_each_repository() {
    for second_required in [true, false] {
        let two = Two::new(second_required).await;
        let name = two.world.segment(3, MIB, "x");
        two.only(1).push(&two.world.pg_wal(&name)).await.unwrap();
        assert_eq!(two.push(&name).await.unwrap(), Pushed::Stored);
        assert!(two.missed().is_empty());
        // Another of that name in the second: there it stays.
        let other = two.world.segment(4, MIB, "other");
        two.only(1).push(&two.world.pg_wal(&other)).await.unwrap();
        let before = two.bytes(1, &other).await;
        two.world.segment(4, MIB, "this");
        let pushed = two.push(&other).await;
        if second_required {
            assert!(pushed.unwrap_err().to_string().contains("is archived already"));
        } else {
            assert_eq!(pushed.unwrap(), Pushed::Stored);
            assert_eq!(two.missed(), [other.as_str()]);
        }
        assert!(two.bytes(1, &other).await == before);
    }
}

#[tokio::test]
async fn one_that_is_away_is_left_alone_for_a_while_and_told_of_each_file_that_it_misses() {
    let two = Two::new(false).await;
    let (first, second) = (two.world.segment(3, MIB, "x"), two.world.segment(4, MIB, "x"));
    two.stores[1].inject(Fault::Hangs, Of::Writes, "wal");
    let archiver = two.archiver(1);
    // The one behind waits, or it would be tried together with the first.
    let ready = two.world.pg_wal("archive_status").join(format!("{second}.ready"));
    fs::remove_file(&ready).unwrap();
    archiver.push(&two.world.pg_wal(&first)).await.unwrap();
    two.stores[1].mend();
    assert_eq!(two.missed(), [first.as_str()]);
    let third = two.world.segment(5, MIB, "x");
    archiver.push(&two.world.pg_wal(&second)).await.unwrap();
    assert!(two.has(0, &second).await && !two.has(1, &second).await);
    assert_eq!(two.missed(), [second.as_str()]);
    assert_eq!(archiver.push(&two.world.pg_wal(&third)).await.unwrap(), Pushed::Ahead);
    assert!(!two.has(1, &third).await);
    assert_eq!(two.missed(), [third.as_str()], "also of one that was archived ahead");
}

#[tokio::test]
async fn an_optional_repository_that_cannot_be_opened_is_waited_for_once() {
    let two = Two::new(false).await;
    let (first, second) = (two.world.segment(3, MIB, "x"), two.world.segment(4, MIB, "x"));
    two.stores[1].inject(Fault::Hangs, Of::All, "");
    two.stores[0].inject(Fault::Away, Of::Writes, "wal");
    let lag = Duration::from_secs(4);
    let archiver = two.unopened(lag, 0);
    archiver.push(&two.world.pg_wal(&first)).await.unwrap_err();
    two.stores[0].mend();
    for name in [first, second] {
        let again = tokio::time::timeout(lag, archiver.push(&two.world.pg_wal(&name))).await.expect("it is left alone");
        assert_eq!(again.unwrap(), Pushed::Stored);
        assert_eq!(two.missed(), [name.as_str()]);
    }
}

#[tokio::test]
async fn what_was_archived_ahead_is_answered_for_without_opening_an_optional_repository() {
    let two = Two::new(false).await;
    let names: Vec<String> = (3..5).map(|number| two.world.segment(number, MIB, "x")).collect();
    two.archiver(1).push(&two.world.pg_wal(&names[0])).await.unwrap();
    two.stores[1].inject(Fault::Hangs, Of::All, "");
    let lag = Duration::from_secs(20);
    let archiver = two.unopened(lag, 0);
    let pushed = tokio::time::timeout(lag / 2, archiver.push(&two.world.pg_wal(&names[1]))).await;
    assert_eq!(pushed.expect("nobody is waited for").unwrap(), Pushed::Ahead);
}

#[tokio::test]
async fn what_was_archived_ahead_is_believed_only_when_every_required_repository_has_it() {
    let two = Two::new(true).await;
    let names: Vec<String> = (3..6).map(|number| two.world.segment(number, MIB, "x")).collect();
    let archiver = two.archiver(2);
    archiver.push(&two.world.pg_wal(&names[0])).await.unwrap();
    assert_eq!(archiver.push(&two.world.pg_wal(&names[1])).await.unwrap(), Pushed::Ahead);
    two.repositories[1].store().delete(&two.world.object(&names[2])).await.unwrap();
    assert_eq!(archiver.push(&two.world.pg_wal(&names[2])).await.unwrap(), Pushed::Stored);
    assert!(two.has(1, &names[2]).await);
}

#[tokio::test]
async fn who_misses_what_was_archived_ahead_is_told_when_it_is_asked_for() {
    let two = Two::new(false).await;
    let names: Vec<String> = (3..5).map(|number| two.world.segment(number, MIB, "x")).collect();
    two.stores[1].inject(Fault::Full, Of::Writes, "wal");
    let archiver = two.archiver(1);
    archiver.push(&two.world.pg_wal(&names[0])).await.unwrap();
    assert_eq!(two.missed(), [names[0].as_str()]);
    assert_eq!(archiver.push(&two.world.pg_wal(&names[1])).await.unwrap(), Pushed::Ahead);
    assert_eq!(two.missed(), [names[1].as_str()]);
}

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

#[tokio::test]
async fn a_piece_is_durable_when_every_required_repository_has_it() {
    let (tail, bytes) = segment(1, 4, MIB, "tail");
    let WalFile::Segment(segment) = tail.parse().unwrap() else { panic!() };
    let piece = TailPiece { start: 0, end: 500_000, run: "0123456789abcdef".to_owned() };
    for second_required in [true, false] {
        let two = Two::new(second_required).await;
        two.stores[1].inject(Fault::Away, Of::Writes, ".tail");
        let stored = two.archiver(0).store_piece(SYSTEM, segment, &piece, bytes[..500_000].to_vec().into()).await;
        assert_eq!(stored.is_ok(), !second_required);
        assert_eq!(two.missed().len(), usize::from(!second_required));
    }
    // One that cannot be opened is told of the first piece that it misses, and then of what is whole.
    let two = Two::new(false).await;
    two.stores[1].inject(Fault::Away, Of::All, "");
    let archiver = two.unopened(LAG, 0);
    for run in ["0123456789abcdef", "fedcba9876543210"] {
        let piece = TailPiece { run: run.to_owned(), ..piece.clone() };
        archiver.store_piece(SYSTEM, segment, &piece, bytes[..500_000].to_vec().into()).await.unwrap();
    }
    assert_eq!(two.missed(), [tail.as_str()]);
    archiver.store_received(SYSTEM, WalFile::Segment(segment), bytes.into()).await.unwrap();
    assert_eq!(two.missed(), [tail.as_str()]);
}
