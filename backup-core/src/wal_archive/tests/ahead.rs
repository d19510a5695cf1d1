//! What is archived and fetched before it is asked for.

use super::*;

#[tokio::test]
async fn what_waits_behind_is_archived_ahead_and_answered_for_at_once() {
    for world in [World::in_memory().await, World::in_directory().await] {
        let names: Vec<String> = (3..10).map(|number| world.segment(number, MIB, "x")).collect();
        let archiver = world.archiver(4);
        assert_eq!(archiver.push(&world.pg_wal(&names[0])).await.unwrap(), Pushed::Stored);
        assert_eq!(world.objects().await.len(), 5);
        assert_eq!(world.marks(), names[1..5]);
        assert_eq!(archiver.push(&world.pg_wal(&names[1])).await.unwrap(), Pushed::Ahead);

        // A mark is believed only for the bytes, the object and the repository that it is about.
        world.segment(5, MIB, "another");
        assert_eq!(archiver.push(&world.pg_wal(&names[2])).await.unwrap_err().kind(), ErrorKind::Storage);
        world.repository.store().delete(&world.object(&names[3])).await.unwrap();
        assert_eq!(archiver.push(&world.pg_wal(&names[3])).await.unwrap(), Pushed::Stored);
        let other = World { repository: Repository::in_memory().await.unwrap(), ..world };
        assert_eq!(other.archiver(0).push(&other.pg_wal(&names[4])).await.unwrap(), Pushed::Stored);
        assert!(other.fetch(&names[4]).await.unwrap().is_some());

        // Marks go when PostgreSQL has taken note.
        for name in &names[..5] {
            fs::remove_file(other.pg_wal("archive_status").join(format!("{name}.ready"))).unwrap();
        }
        fs::write(other.pg_wal(".backup/archived").join(&names[6]), "no mark").unwrap();
        assert_eq!(other.archiver(0).push(&other.pg_wal(&names[6])).await.unwrap(), Pushed::Stored);
        assert_eq!(other.marks(), names[5..], "these wait still");
    }
}

#[tokio::test]
async fn a_file_behind_that_cannot_be_archived_is_no_failure() {
    let world = World::in_directory().await;
    let name = world.segment(3, MIB, "x");
    world.segment(4, MIB, "x");
    let (bad, _) = segment(1, 4, MIB, "x");
    fs::write(world.pg_wal(&bad), "changed").unwrap();
    fs::write(world.pg_wal("archive_status/000000010000000000000009.ready"), "").unwrap();
    assert_eq!(world.archiver(8).push(&world.pg_wal(&name)).await.unwrap(), Pushed::Stored);
    assert_eq!(world.marks(), [] as [String; 0]);
}

#[tokio::test]
async fn what_was_fetched_ahead_is_taken_once_and_only_when_it_is_whole() {
    let world = World::in_directory().await;
    let names: Vec<String> = (3..9).map(|number| world.segment(number, MIB, "x")).collect();
    for name in &names {
        world.push(name).await.unwrap();
    }
    let options = FetcherOptions { prefetch: 3, ..FetcherOptions::default() };
    let fetcher = world.fetcher(options);
    let to = world.pg_wal("RECOVERYXLOG");
    let fetch = async |name: &str| match fetcher.fetch(name.parse().unwrap(), &to).await.unwrap() {
        Fetched::Placed(placed) => {
            assert!(fs::read(&to).unwrap() == fs::read(world.pg_wal(name)).unwrap(), "{name}");
            placed
        }
        Fetched::Absent => panic!("{name} is there"),
    };
    let placed = fetch(&names[0]).await;
    assert!(!placed.ahead);
    let size = placed.prefetch.unwrap();
    assert_eq!(fetcher.prefetch(names[0].parse().unwrap(), size, &to).await.unwrap(), 3);
    let folder = fs::read_dir(world.pg_wal(".backup/prefetch")).unwrap();
    let folder = folder.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let waiting = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(waiting().len(), 3);
    assert!(fetch(&names[1]).await.ahead);
    assert_eq!(waiting().len(), 2, "it is taken");

    // As a crash leaves it, or somebody who writes there.
    let second = waiting().into_iter().find(|path| path.to_str().unwrap().contains(&names[2])).unwrap();
    fs::write(&second, vec![0; MIB as usize]).unwrap();
    assert!(!fetch(&names[2]).await.ahead);
    assert_eq!(waiting().len(), 1);
    assert!(fetch(&names[3]).await.ahead);

    // At the end of the archive.
    assert_eq!(fetcher.prefetch(names[3].parse().unwrap(), size, &to).await.unwrap(), 2);
    assert_eq!(fetcher.prefetch(names[5].parse().unwrap(), size, &to).await.unwrap(), 0);
    assert_eq!(waiting(), [] as [PathBuf; 0], "what is behind is forgotten");
}

#[tokio::test]
async fn what_was_left_behind_is_removed_when_it_is_old() {
    let world = World::in_directory().await;
    let name = world.segment(3, MIB, "x");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let folder = world.pg_wal(".backup/prefetch/another");
    fs::create_dir_all(&folder).unwrap();
    let write = |path: &FilePath, old: Option<SystemTime>| {
        fs::write(path, "x").unwrap();
        if let Some(time) = old {
            fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
    };
    write(&folder.join("segment"), Some(old));
    write(&world.pg_wal(".RECOVERYXLOG.tmp-0123456789abcdef"), Some(old));
    write(&world.pg_wal(".RECOVERYXLOG.tmp-fedcba9876543210"), None);
    write(&world.pg_wal("not-ours"), Some(old));
    world.push(&name).await.unwrap();
    assert!(!folder.exists());
    assert_eq!(world.temporaries(), [".RECOVERYXLOG.tmp-fedcba9876543210"]);
    assert!(world.pg_wal("not-ours").exists());
}
