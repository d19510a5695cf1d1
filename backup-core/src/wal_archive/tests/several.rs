//! An archive in several repositories: durable in all that are required.

use super::*;
use crate::repository::Repositories;
use crate::tests::faulty::{Fault, Faulty, Of};

mod fetching;

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

#[tokio::test]
async fn a_repository_that_missed_a_segment_keeps_the_tail_of_it() {
    let (tail, bytes) = segment(1, 4, MIB, "tail");
    let WalFile::Segment(segment) = tail.parse().unwrap() else { panic!() };
    let two = Two::new(false).await;
    let archiver = two.archiver(0);
    let piece = TailPiece { start: 0, end: 500_000, run: "0123456789abcdef".to_owned() };
    archiver.store_piece(SYSTEM, segment, &piece, bytes[..500_000].to_vec().into()).await.unwrap();
    two.stores[1].inject(Fault::Away, Of::Writes, "wal");
    let has_it = archiver.store_received(SYSTEM, WalFile::Segment(segment), bytes.into()).await.unwrap();
    two.stores[1].mend();
    let archive = two.world.target().wal_of(SYSTEM);
    for (repository, leftovers) in two.repositories.iter().zip([&[segment][..], &[]]) {
        let inventory = Inventory::read(repository, &two.world.target()).await.unwrap();
        assert_eq!(inventory.clusters[0].timelines[0].leftovers, leftovers);
    }
    for repository in &has_it {
        tail::remove(repository, &archive, segment).await.unwrap();
    }
    let reach = async |i: usize| tail::reach(&two.repositories[i], &archive, segment).await.unwrap();
    assert_eq!((reach(0).await, reach(1).await), (0, 500_000));
}
