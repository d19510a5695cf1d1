//! What is told of a file that is not there.

use super::*;

#[tokio::test]
async fn only_the_end_of_the_archive_is_absent() {
    for world in [World::in_memory().await, World::in_directory().await] {
        for number in [3, 4, 6, 8] {
            let name = world.segment(number, MIB, "x");
            world.push(&name).await.unwrap();
            fs::remove_file(world.pg_wal(&name)).unwrap();
        }
        let name = |number| segment(1, number, MIB, "").0;
        assert_eq!(world.fetch(&name(9)).await.unwrap(), None);
        assert_eq!(world.fetch(&segment(2, 4, MIB, "").0).await.unwrap(), None, "nothing of that timeline is there");
        assert_eq!(world.fetch("00000002.history").await.unwrap(), None);
        for number in [2, 5, 7] {
            let error = world.fetch(&name(number)).await.unwrap_err();
            assert!(error.to_string().starts_with("the archive has a hole"), "{error}");
        }
        let standby = FetcherOptions { standby: true, ..FetcherOptions::default() };
        assert_eq!(world.fetch_with(&name(5), standby).await.unwrap(), None, "it asks again");
        // A primary that recovers from its crash has the segment still.
        world.segment(5, MIB, "x");
        assert_eq!(world.fetch(&name(5)).await.unwrap(), None);
        // A segment that was used before and waits under its next name is not the one.
        let (_, old) = segment(1, 1, MIB, "x");
        fs::write(world.pg_wal(&name(5)), old).unwrap();
        assert!(world.fetch(&name(5)).await.is_err());
    }
}

#[tokio::test]
async fn what_follows_a_missing_segment_in_any_form_makes_it_a_hole() {
    let world = World::in_memory().await;
    let archive = world.target().wal_of(SYSTEM);
    let folder = archive.timeline(Timeline::FIRST);
    let name = |number| segment(1, number, MIB, "").0;
    for later in [".partial.vol", ".00000028.backup.vol", ".tail/00000000.vol"] {
        let path = Path::from(format!("{folder}/{}{later}", name(6)));
        world.put(&path, vec![0]).await;
        assert!(world.fetch(&name(5)).await.is_err(), "{later}");
        assert_eq!(world.fetch(&name(7)).await.unwrap(), None, "{later}");
        world.repository.store().delete(&path).await.unwrap();
    }
    assert_eq!(world.fetch(&name(5)).await.unwrap(), None);
    // What nobody can read yet is not nothing.
    world.put(&Path::from(format!("{folder}/{}.tail/00000000.vol", name(5))), vec![0]).await;
    assert!(world.fetch(&name(5)).await.is_err());
    assert_eq!(world.fetch(&format!("{}.partial", name(5))).await.unwrap(), None);
}

#[tokio::test]
async fn a_repository_that_is_gone_or_another_says_nothing_about_absence() {
    let world = World::in_directory().await;
    let name = segment(1, 5, MIB, "").0;
    assert_eq!(world.fetch(&name).await.unwrap(), None);
    let root = world.root.as_ref().unwrap().path();
    let document = fs::read_to_string(root.join("repository.json")).unwrap();
    fs::write(root.join("repository.json"), document.replace(world.repository.id(), "another")).unwrap();
    let error = world.fetch(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    fs::remove_file(root.join("repository.json")).unwrap();
    assert!(world.fetch(&name).await.is_err());
    fs::remove_dir(root).unwrap();
    assert!(world.fetch(&name).await.is_err());
    fs::create_dir(root).unwrap();
}

#[tokio::test]
async fn a_key_that_does_not_open_it_is_no_absence() {
    let mut world = World::in_memory().await;
    let name = world.segment(3, MIB, "x");
    world.push(&name).await.unwrap();
    world.identity = AgeIdentity::generate();
    assert_eq!(world.fetch(&name).await.unwrap_err().kind(), ErrorKind::Key);
}
