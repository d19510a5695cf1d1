//! Archiving and fetching with files and a store, and everything that may be in the way.

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tempfile::TempDir;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::format::FOOTER_LEN;
use crate::keys::Identity;
use crate::keys::age::AgeIdentity;
use crate::postgres::wal::{FirstPage, Lsn, SegmentName, SegmentSize, Timeline, WalFile};
use crate::repository::Location;
use crate::repository::census::Looked;
use crate::repository::layout::TailPiece;
use crate::repository::rewrap::{RewrapOptions, rewrap};

mod absent;
mod ahead;
mod copied;
mod rewrapped;
mod several;
mod signed;
mod verified;

const SYSTEM: SystemIdentifier = SystemIdentifier(7_412_345_678_901_234_567);
const MIB: u32 = 1 << 20;

/// A data directory, a repository, and the key to it.
struct World {
    data: TempDir,
    /// Where the repository is, when it is a directory.
    root: Option<TempDir>,
    repository: Repository,
    identity: AgeIdentity,
}

impl World {
    async fn in_memory() -> Self {
        Self::with(Repository::in_memory().await.unwrap(), None)
    }

    async fn in_directory() -> Self {
        let root = tempfile::tempdir().unwrap();
        let location = Location::directory(root.path()).unwrap();
        Self::with(Repository::init(&location, &SystemClock).await.unwrap().0, Some(root))
    }

    fn with(repository: Repository, root: Option<TempDir>) -> Self {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(data.path().join("pg_wal/archive_status")).unwrap();
        fs::create_dir(data.path().join("global")).unwrap();
        let control = [&SYSTEM.0.to_ne_bytes()[..], &1300u32.to_ne_bytes()].concat();
        fs::write(data.path().join("global/pg_control"), control).unwrap();
        Self { data, root, repository, identity: AgeIdentity::generate() }
    }

    fn target(&self) -> TargetName {
        "app".parse().unwrap()
    }

    fn pg_wal(&self, name: &str) -> PathBuf {
        self.data.path().join("pg_wal").join(name)
    }

    fn object(&self, name: &str) -> Path {
        self.target().wal_of(SYSTEM).file(name.parse().unwrap())
    }

    fn archiver(&self, look_ahead: usize) -> Archiver {
        let epochs = Epochs::new(vec![Arc::new(self.identity.recipients().remove(0))]).unwrap();
        let options = ArchiverOptions { look_ahead, ..ArchiverOptions::default() };
        Archiver::new(self.repository.clone(), self.target(), epochs, options).unwrap()
    }

    fn fetcher(&self, options: FetcherOptions) -> Fetcher {
        let identity: Arc<dyn Identity> = Arc::new(self.identity.clone());
        Fetcher::new(self.repository.clone(), self.target(), vec![identity], options).unwrap()
    }

    /// A segment in `pg_wal` that waits to be archived.
    fn segment(&self, number: u32, size: u32, seed: &str) -> String {
        let (name, bytes) = segment(1, number, size, seed);
        fs::write(self.pg_wal(&name), bytes).unwrap();
        fs::write(self.pg_wal("archive_status").join(format!("{name}.ready")), "").unwrap();
        name
    }

    async fn push(&self, name: &str) -> Result<Pushed> {
        self.archiver(0).push(&self.pg_wal(name)).await
    }

    async fn fetch(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.fetch_with(name, FetcherOptions { patience: Duration::ZERO, ..FetcherOptions::default() }).await
    }

    async fn fetch_with(&self, name: &str, options: FetcherOptions) -> Result<Option<Vec<u8>>> {
        let to = self.pg_wal("RECOVERYXLOG");
        let _ = fs::remove_file(&to);
        let fetched = self.fetcher(options).fetch(name.parse().unwrap(), &to).await;
        assert_eq!(self.temporaries(), [] as [String; 0], "nothing half-written stays");
        match fetched? {
            Fetched::Placed(_) => Ok(Some(fs::read(to).unwrap())),
            Fetched::Absent => {
                assert!(!to.exists());
                Ok(None)
            }
        }
    }

    fn temporaries(&self) -> Vec<String> {
        let names = fs::read_dir(self.data.path().join("pg_wal")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".tmp-")).collect()
    }

    async fn objects(&self) -> Vec<String> {
        let all = self.repository.store().list(None).map_ok(|meta| meta.location.to_string());
        let mut all: Vec<String> = all.try_collect().await.unwrap();
        all.retain(|name| name != "repository.json");
        all.sort();
        all
    }

    async fn put(&self, path: &Path, bytes: Vec<u8>) {
        self.repository.store().put(path, bytes.into()).await.unwrap();
    }

    async fn get(&self, path: &Path) -> Vec<u8> {
        self.repository.store().get(path).await.unwrap().bytes().await.unwrap().to_vec()
    }

    fn marks(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.pg_wal(".backup/archived")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A segment by its number, and its bytes: noise, or zeros where `seed` is empty.
fn segment(timeline: u32, number: u32, size: u32, seed: &str) -> (String, Vec<u8>) {
    let (size, timeline) = (SegmentSize::new(size).unwrap(), Timeline::new(timeline).unwrap());
    let address = Lsn(u64::from(number) * size.bytes());
    let mut bytes = vec![0; usize::try_from(size.bytes()).unwrap()];
    if !seed.is_empty() {
        blake3::Hasher::new().update(seed.as_bytes()).update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    }
    let page = FirstPage { timeline: timeline.get(), address, system_identifier: SYSTEM, segment_size: size };
    bytes[..40].copy_from_slice(&page.encode());
    (size.segment_at(timeline, address).to_string(), bytes)
}

#[tokio::test]
async fn every_kind_of_file_comes_back_as_it_was() {
    for world in [World::in_memory().await, World::in_directory().await] {
        let name = world.segment(3, MIB, "noise");
        let (partial, bytes) = segment(1, 4, MIB, "partial");
        let partial = format!("{partial}.partial");
        fs::write(world.pg_wal(&partial), bytes).unwrap();
        fs::write(world.pg_wal("00000002.history"), "1\t0/300000\tno reason\n").unwrap();
        let label = format!("{name}.00000028.backup");
        fs::write(world.pg_wal(&label), "START WAL LOCATION: 0/300028\n").unwrap();
        for name in [&name, &partial, "00000002.history", &label] {
            assert_eq!(world.push(name).await.unwrap(), Pushed::Stored, "{name}");
            assert_eq!(world.push(name).await.unwrap(), Pushed::AlreadyThere, "{name}");
            let fetched = world.fetch(name).await.unwrap();
            assert!(fetched == Some(fs::read(world.pg_wal(name)).unwrap()), "{name}");
        }
        assert_eq!(world.objects().await.len(), 4);
    }
}

#[tokio::test]
async fn a_segment_of_zeros_becomes_tiny() {
    let world = World::in_directory().await;
    let name = world.segment(3, 16 * MIB, "");
    world.push(&name).await.unwrap();
    let stored = world.get(&world.object(&name)).await.len();
    assert!(stored < 8000, "{stored}");
    assert!(world.fetch(&name).await.unwrap() == Some(fs::read(world.pg_wal(&name)).unwrap()));
}

#[tokio::test]
async fn a_different_file_of_the_same_name_is_refused_and_the_first_one_stays() {
    for world in [World::in_memory().await, World::in_directory().await] {
        let name = world.segment(3, MIB, "first");
        world.push(&name).await.unwrap();
        let stored = world.get(&world.object(&name)).await;
        world.segment(3, MIB, "second");
        let error = world.push(&name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Storage);
        assert!(error.to_string().starts_with(&format!("another {name} is archived already")), "{error}");
        assert!(world.get(&world.object(&name)).await == stored);

        fs::write(world.pg_wal("00000002.history"), "1\t0/300000\tfirst\n").unwrap();
        world.push("00000002.history").await.unwrap();
        fs::write(world.pg_wal("00000002.history"), "1\t0/300000\tother\n").unwrap();
        let error = world.push("00000002.history").await.unwrap_err();
        assert!(error.to_string().starts_with("timeline 2 is taken"), "{error}");
        assert!(error.hint().unwrap().contains("When a timeline is taken"));
    }
}

#[tokio::test]
async fn of_two_that_push_different_files_at_once_one_succeeds() {
    for world in [World::in_memory().await, World::in_directory().await] {
        for round in 0..10 {
            let (name, first) = segment(1, round, MIB, "first");
            let (_, second) = segment(1, round, MIB, "second");
            let [a, b] = ["a", "b"].map(|folder| world.pg_wal(folder).join(&name));
            for (path, bytes) in [(&a, &first), (&b, &second)] {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            let (one, two) = (world.archiver(0), world.archiver(0));
            let (a, b) = tokio::join!(one.push(&a), two.push(&b));
            assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
            let expected = if a.is_ok() { first } else { second };
            assert!(world.fetch(&name).await.unwrap() == Some(expected));
        }
    }
}

#[tokio::test]
async fn files_that_are_not_what_their_names_say_are_refused() {
    let world = World::in_memory().await;
    let (name, mut bytes) = segment(1, 3, MIB, "x");
    let write = |name: &str, bytes: &[u8]| fs::write(world.pg_wal(name), bytes).unwrap();
    write("000000010000000000000004", &bytes);
    write("000000010000000000000005", b"not a segment");
    write("000000010000000000000006", &vec![0; MIB as usize]);
    bytes.truncate(1000);
    write(&name, &bytes);
    write("00000003.history", &vec![b'#'; (2 * MIB) as usize]);
    for name in
        [&name, "000000010000000000000004", "000000010000000000000005", "000000010000000000000006", "00000003.history"]
    {
        assert_eq!(world.push(name).await.unwrap_err().kind(), ErrorKind::Source, "{name}");
    }
    assert_eq!(world.push("missing").await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(world.push("000000010000000000000007").await.unwrap_err().kind(), ErrorKind::Source);
    assert_eq!(world.objects().await, [] as [String; 0]);
}

#[tokio::test]
async fn what_was_archived_and_is_damaged_is_not_called_archived() {
    let world = World::in_directory().await;
    let name = world.segment(3, MIB, "x");
    world.push(&name).await.unwrap();
    let path = world.root.as_ref().unwrap().path().join(world.object(&name).as_ref());
    let mut bytes = fs::read(&path).unwrap();
    bytes[500_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = world.push(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
    let error = world.fetch(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
    for len in [0, 11, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let error = world.fetch(&name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Integrity, "{len}: {error}");
        assert!(world.push(&name).await.is_err());
    }
}

#[tokio::test]
async fn every_byte_of_an_object_matters() {
    let world = World::in_memory().await;
    let name = "00000002.history";
    fs::write(world.pg_wal(name), "1\t0/300000\tno reason\n").unwrap();
    world.push(name).await.unwrap();
    let good = world.get(&world.object(name)).await;
    // The digest in the footer is for those who have no key; nothing that is delivered depends on it.
    let digest = good.len() - FOOTER_LEN + 16..good.len() - FOOTER_LEN + 48;
    for at in (0..good.len()).filter(|at| !digest.contains(at)) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        world.put(&world.object(name), bad).await;
        let error = world.fetch(name).await.map(|_| ()).expect_err(&format!("byte {at}"));
        // A changed wrap is one that nobody has the key to.
        assert!(
            matches!(error.kind(), ErrorKind::Integrity | ErrorKind::Key | ErrorKind::Config),
            "byte {at}: {error}"
        );
    }
}

#[tokio::test]
async fn an_object_under_another_name_is_refused() {
    let world = World::in_memory().await;
    let (first, second) = (world.segment(3, MIB, "x"), world.segment(4, MIB, "x"));
    world.push(&first).await.unwrap();
    let object = world.get(&world.object(&first)).await;
    world.put(&world.object(&second), object).await;
    let error = world.fetch(&second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Integrity, "{error}");
    assert!(error.in_one_line().contains("answers to another name"), "{}", error.in_one_line());
}

#[tokio::test]
async fn a_large_segment_goes_under_a_random_name_with_a_reference() {
    let world = World::in_memory().await;
    let name = world.segment(3, 32 * MIB, "noise");
    assert_eq!(world.push(&name).await.unwrap(), Pushed::Stored);
    let objects = world.objects().await;
    assert_eq!(objects.len(), 2, "{objects:?}");
    assert_eq!(world.get(&world.object(&name)).await[..8], *b"backupR\x01");
    assert_eq!(world.push(&name).await.unwrap(), Pushed::AlreadyThere);
    assert_eq!(world.objects().await, objects, "the second copy is removed again");
    assert!(world.fetch(&name).await.unwrap() == Some(fs::read(world.pg_wal(&name)).unwrap()));

    world.segment(3, 32 * MIB, "another");
    assert_eq!(world.push(&name).await.unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(world.objects().await, objects);

    let large = Path::from(objects.iter().find(|o| **o != world.object(&name).to_string()).unwrap().as_str());
    let bytes = world.get(&large).await;
    world.put(&large, bytes[..bytes.len() - 1].to_vec()).await;
    assert_eq!(world.fetch(&name).await.unwrap_err().kind(), ErrorKind::Integrity);
    world.repository.store().delete(&large).await.unwrap();
    assert_eq!(world.fetch(&name).await.unwrap_err().kind(), ErrorKind::Integrity, "missing is not absent");
}

#[tokio::test]
async fn a_large_segment_of_zeros_goes_in_one_request() {
    let world = World::in_memory().await;
    let name = world.segment(1, 64 * MIB, "");
    world.push(&name).await.unwrap();
    assert_eq!(world.objects().await, [world.object(&name).to_string()]);
    assert!(world.fetch(&name).await.unwrap() == Some(fs::read(world.pg_wal(&name)).unwrap()));
}

#[tokio::test]
async fn the_cluster_is_that_of_the_data_directory_else_the_only_one() {
    let world = World::in_memory().await;
    let name = world.segment(3, MIB, "x");
    world.push(&name).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let to = elsewhere.path().join("x");
    let fetcher = world.fetcher(FetcherOptions::default());
    fetcher.fetch(name.parse().unwrap(), &to).await.unwrap();
    assert!(to.exists());
    assert_eq!(clusters(&world.repository, &world.target()).await.unwrap(), [SYSTEM]);
    let other = world.target().wal_of(SystemIdentifier(9)).file(name.parse().unwrap());
    world.put(&other, vec![0]).await;
    let error = fetcher.fetch(name.parse().unwrap(), &to).await.unwrap_err();
    assert!(error.to_string().contains("WAL of 2 clusters"), "{error}");
    let options = FetcherOptions { system_identifier: Some(SYSTEM), ..FetcherOptions::default() };
    world.fetcher(options).fetch(name.parse().unwrap(), &to).await.unwrap();
}

#[tokio::test]
async fn ranges_gaps_and_missing_histories_are_found() {
    let world = World::in_memory().await;
    for number in [1, 2, 4094, 4096, 4097, 4099] {
        let name = world.segment(number, MIB, "");
        world.push(&name).await.unwrap();
    }
    let (name, bytes) = segment(3, 4099, MIB, "");
    fs::write(world.pg_wal(&name), bytes).unwrap();
    world.push(&name).await.unwrap();
    let inventory = Inventory::read(&world.repository, &world.target()).await.unwrap();
    let [cluster] = inventory.clusters.as_slice() else { panic!("{inventory:?}") };
    let [first, third] = cluster.timelines.as_slice() else { panic!("{inventory:?}") };
    let ranges: Vec<u64> = first.ranges.iter().map(|range| range.segments).collect();
    assert_eq!(ranges, [2, 1, 2, 1]);
    assert_eq!((first.ranges[2].start.to_string(), first.ranges[2].end.to_string()), ("1/0".into(), "1/200000".into()));
    let gaps: Vec<String> = first.gaps().iter().map(|(from, to)| format!("{from}-{to}")).collect();
    let number = |n| segment(1, n, MIB, "").0;
    assert_eq!(
        gaps,
        [
            format!("{}-{}", number(3), number(4093)),
            format!("{}-{}", number(4095), number(4095)),
            format!("{}-{}", number(4098), number(4098)),
        ]
    );
    assert!(!first.lacks_history() && third.lacks_history());
    assert_eq!(first.segment_size, SegmentSize::new(MIB));
    assert!(first.archived.is_some());

    let ready = ReadyFiles::read(world.data.path(), SystemClock.now()).unwrap();
    assert_eq!(ready.count, 6);
    assert!(ready.oldest.unwrap().1 < Duration::from_secs(600));
}

#[tokio::test]
async fn what_is_missing_before_a_later_timeline_is_a_gap() {
    let world = World::in_memory().await;
    let archived = async |timeline: u32, numbers: &[u32]| {
        for number in numbers {
            let (name, bytes) = segment(timeline, *number, MIB, "");
            fs::write(world.pg_wal(&name), bytes).unwrap();
            world.push(&name).await.unwrap();
        }
        let inventory = Inventory::read(&world.repository, &world.target()).await.unwrap();
        let gaps = inventory.clusters[0].gaps();
        gaps.iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>()
    };
    let name = |timeline, number| segment(timeline, number, MIB, "").0;
    let none: [String; 0] = [];
    assert_eq!(archived(2, &[7]).await, none, "an archive may begin with any timeline");
    assert_eq!(archived(1, &[3, 4]).await, [format!("{}-{}", name(1, 5), name(1, 6))]);
    // The segment in which it was left is that of the new one, too; the whole of the one before suffices.
    assert_eq!(archived(1, &[5, 6]).await, none);
    assert_eq!(archived(3, &[4]).await, none, "it left the first in the middle");
    assert_eq!(archived(5, &[9, 10]).await, [format!("{}-{}", name(2, 8), name(2, 8))]);
}

#[tokio::test]
async fn a_name_tells_where_a_segment_lies() {
    let name: WalFile = segment(1, 4099, MIB, "").0.parse().unwrap();
    let WalFile::Segment(SegmentName { log, segment, .. }) = name else { panic!("{name}") };
    assert_eq!((log, segment), (1, 3));
}
