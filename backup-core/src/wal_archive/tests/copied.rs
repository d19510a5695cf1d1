//! Archives that are copied: what is compared, and what is taken along.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::encrypt::signature::SigningKey;
use crate::error::ErrorKind;
use crate::format::{ClusterEntry, Kind};
use crate::keys::Recipient;
use crate::pipeline::{Backup, Findings};
use crate::repository::copy::{Copied, CopyOptions, Selection, copy};
use crate::repository::layout::BackupPath;
use crate::source::BytesSource;
use crate::tests::faulty::Faulty;

impl World {
    async fn copy(&self, to: &Repository, set: impl FnOnce(&mut CopyOptions)) -> Result<Copied> {
        let mut options = CopyOptions::new(to);
        set(&mut options);
        copy(&self.repository, to, &options, &Arc::default(), &CancellationToken::new()).await
    }

    /// A base backup without its log, which says that it needs all from `start` to `stop`.
    async fn base_backup(&self, start: u64, stop: u64) -> BackupPath {
        let findings = Findings::default();
        findings.set_cluster(ClusterEntry {
            system_identifier: SYSTEM,
            server_version_num: 150_018,
            wal_segment_bytes: SegmentSize::new(MIB).unwrap(),
            timeline: Timeline::FIRST,
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            stopped: "2026-11-22T02:00:00Z".parse().unwrap(),
            wal_included: false,
        });
        let recipient: Arc<dyn Recipient> = Arc::new(self.identity.recipients().remove(0));
        let backup = Backup::new(self.repository.clone(), self.target()).recipient(recipient);
        let backup = backup.kind(Kind::BaseBackup).findings(findings);
        let handle = backup.stream("base".parse().unwrap(), BytesSource::new("files")).start().unwrap();
        let path = self.target().backup(handle.id());
        handle.wait().await.unwrap();
        path
    }
}

fn quick(options: &mut CopyOptions) {
    options.quick = true;
}

async fn names(repository: &Repository) -> Vec<String> {
    let objects = repository.store().list(Some(&Path::from("app/wal")));
    let names: Vec<Path> = objects.map_ok(|object| object.location).try_collect().await.unwrap();
    let mut names: Vec<String> = names.iter().map(|name| name.filename().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// A segment is too large here for one part: a reference leads to it, but in a directory.
#[tokio::test]
async fn what_lies_behind_a_reference_is_compared_by_its_footer_and_quickly_by_a_listing() {
    let (from_store, behind_references) = Faulty::repository().await;
    for (source, world) in
        [("directory", World::in_directory().await), ("references", World::with(behind_references, None))]
    {
        for number in 1..=4 {
            world.push(&world.segment(number, 2 * MIB, "large")).await.unwrap();
        }
        let (to_store, to) = Faulty::repository().await;
        let copied = world.copy(&to, |_| {}).await.unwrap();
        assert_eq!((copied.wal_files.copied, names(&to).await.len()), (4, 8), "{source}: {copied:?}");

        from_store.take_reads();
        to_store.take_reads();
        let again = world.copy(&to, quick).await.unwrap();
        assert_eq!((again.wal_files.same, again.wal_files.copied), (4, 0), "{source}: {again:?}");
        assert_eq!((from_store.take_reads(), to_store.take_reads()), (vec![], vec![]), "{source}: nothing is read");

        let again = world.copy(&to, |_| {}).await.unwrap();
        assert_eq!((again.wal_files.same, again.wal_files.copied), (4, 0), "{source}: {again:?}");
        assert_eq!(to_store.take_reads().len(), 8, "{source}: the reference and the footer of each");

        // Back to where the files lie under their own names.
        if source == "references" {
            continue;
        }
        let back = World { repository: to, ..world };
        let (to, _) = Repository::init(&Location::memory(), &SystemClock).await.unwrap();
        back.copy(&to, |_| {}).await.unwrap();
        let again = back.copy(&to, quick).await.unwrap();
        assert_eq!((again.wal_files.same, again.wal_files.copied), (4, 0), "{again:?}");
    }
}

#[tokio::test]
async fn another_file_behind_a_reference_stops_a_copy() {
    let (world, other) = (World::in_directory().await, World::in_directory().await);
    world.push(&world.segment(1, 2 * MIB, "one")).await.unwrap();
    other.push(&other.segment(1, 2 * MIB, "another")).await.unwrap();
    let (store, to) = Faulty::repository().await;
    world.copy(&to, |_| {}).await.unwrap();
    store.take_reads();
    for set in [|_: &mut CopyOptions| {}, quick] {
        let sized = other.copy(&to, set).await;
        assert_eq!(sized.unwrap_err().kind(), ErrorKind::Integrity);
    }
}

#[tokio::test]
async fn a_file_that_was_sealed_twice_is_proved_where_it_was_copied_to_unless_time_matters() {
    let world = World::in_memory().await;
    let name = world.segment(1, MIB, "twice");
    world.push(&name).await.unwrap();
    let (store, to) = Faulty::repository().await;
    // With another recipient, so that sizes differ.
    let identities = [world.identity.clone(), AgeIdentity::generate()];
    let epochs = identities.iter().map(|identity| Arc::new(identity.recipients().remove(0)) as Arc<dyn Recipient>);
    let epochs = Epochs::new(epochs.collect()).unwrap();
    let archiver = Archiver::new(to.clone(), world.target(), epochs, ArchiverOptions::default()).unwrap();
    archiver.push(&world.pg_wal(&name)).await.unwrap();
    let object = world.object(&name);
    let size = async |repository: &Repository| repository.store().head(&object).await.unwrap().size;
    assert_ne!(size(&world.repository).await, size(&to).await);
    store.take_reads();
    assert_eq!(world.copy(&to, |_| {}).await.unwrap().wal_files.same, 1);
    let all = store.take_reads().len();
    assert_eq!(world.copy(&to, quick).await.unwrap().wal_files.same, 1);
    let few = store.take_reads().len();
    assert!(few == 2 && all > 3, "{few} and {all}");
}

#[tokio::test]
async fn what_nobody_trusted_has_signed_is_not_stored_and_keeps_nothing_away() {
    let (key, stranger) = (SigningKey::generate(), SigningKey::generate());
    let mut world = World::in_memory().await;
    let (_, to) = Faulty::repository().await;
    let to = to.trusting([key.signer()]);
    let archiver = |world: &World, key: Option<&SigningKey>| {
        let epochs = Epochs::new(vec![Arc::new(world.identity.recipients().remove(0))]).unwrap();
        let options = ArchiverOptions { signing_key: key.cloned(), ..ArchiverOptions::default() };
        Archiver::new(world.repository.clone(), world.target(), epochs, options).unwrap()
    };
    // Of one part, and of several.
    let signers = [Some(&key), Some(&stranger), None];
    for (number, signer) in (2..).zip(signers) {
        let history = format!("{number:08X}.history");
        fs::write(world.pg_wal(&history), "1\t0/300000\tat the source\n").unwrap();
        for name in [history, world.segment(number, 4 * MIB, "noise")] {
            archiver(&world, signer).push(&world.pg_wal(&name)).await.unwrap();
        }
    }
    world.repository = world.repository.clone().trusting([key.signer()]);
    let copied = world.copy(&to, |_| {}).await.unwrap();
    assert_eq!((copied.wal_files.copied, copied.problem_count), (2, 4), "{copied:?}");
    assert!(copied.problems.iter().all(|problem| problem.problem.contains("is not trusted")), "{copied:?}");

    // The genuine one comes from elsewhere; what a stranger put at the source says nothing against it.
    let name = "00000003.history";
    let genuine = World { repository: to.clone(), ..World::in_memory().await };
    fs::write(genuine.pg_wal(name), "1\t0/300000\tand this is the genuine one\n").unwrap();
    archiver(&genuine, Some(&key)).push(&genuine.pg_wal(name)).await.unwrap();
    for set in [|_: &mut CopyOptions| {}, quick] {
        let again = world.copy(&to, set).await.unwrap();
        assert_eq!(again.wal_files.copied, 0, "{again:?}");
    }
}

#[tokio::test]
async fn only_what_there_is_of_the_log_of_a_backup_is_asked_for_whatever_it_claims_to_need() {
    let (from_store, repository) = Faulty::repository().await;
    let world = World::with(repository, None);
    for number in [1, 3, 4, 6, 7] {
        world.push(&world.segment(number, MIB, "needed")).await.unwrap();
    }
    // Of the next one there is a beginning.
    let archiver = world.archiver(0);
    let (name, bytes) = segment(1, 8, MIB, "needed");
    let WalFile::Segment(unfinished) = name.parse().unwrap() else { panic!("a segment") };
    let piece = TailPiece { start: 0, end: 8192, run: "0123456789abcdef".to_owned() };
    archiver.store_piece(SYSTEM, unfinished, &piece, Bytes::from(bytes).slice(..8192)).await.unwrap();

    let mib = u64::from(MIB);
    let sound = world.base_backup(3 * mib + 40, 4 * mib + 300).await;
    let open = world.base_backup(7 * mib, 8 * mib + 300).await;
    let (_, to) = Faulty::repository().await;
    let chosen =
        |paths: Vec<BackupPath>| move |options: &mut CopyOptions| options.selection = Selection::Backups(paths);
    let copied = world.copy(&to, chosen(vec![sound.clone()])).await.unwrap();
    assert_eq!((copied.backups.copied, copied.wal_files.copied, copied.problem_count), (1, 2, 0), "{copied:?}");
    let copied = world.copy(&to, chosen(vec![open.clone()])).await.unwrap();
    assert_eq!((copied.backups.copied, copied.wal_files.copied, copied.problem_count), (1, 2, 0), "{copied:?}");
    assert_eq!(names(&to).await.len(), 7, "three segments behind references, and the piece");
    // What a backup requires needs its own log, too. Who has no key does not see that this manifest is not authentic.
    let manifest = open.manifest();
    let text = world.repository.store().get(&manifest).await.unwrap().bytes().await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let requires = text.replace("\"requires\":[]", &format!("\"requires\":[\"{}\"]", sound.id));
    assert_ne!(text, requires);
    world.repository.store().put(&manifest, requires.into()).await.unwrap();
    let (_, other) = Faulty::repository().await;
    let copied = world.copy(&other, chosen(vec![open])).await.unwrap();
    assert_eq!((copied.backups.copied, copied.wal_files.copied, copied.problem_count), (2, 4, 0), "{copied:?}");

    let mad = world.base_backup(3 * mib, u64::MAX).await;
    from_store.take_reads();
    let copied = world.copy(&to, chosen(vec![mad])).await.unwrap();
    assert_eq!((copied.backups.copied, copied.problem_count), (1, 2), "{copied:?}");
    assert!(copied.problems[0].object.ends_with("000000010000000000000005.vol"), "{copied:?}");
    assert!(copied.problems[1].problem.contains("all others up to 00000001FFFFFFFF00000FFF"), "{copied:?}");
    assert!(from_store.take_reads().len() < 30);
}
