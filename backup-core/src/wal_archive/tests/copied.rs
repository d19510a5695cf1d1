//! Archives that are copied: what is compared, and what is taken along.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::*;
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

async fn names(repository: &Repository) -> Vec<String> {
    let objects = repository.store().list(Some(&Path::from("app/wal")));
    let names: Vec<Path> = objects.map_ok(|object| object.location).try_collect().await.unwrap();
    let mut names: Vec<String> = names.iter().map(|name| name.filename().unwrap().to_owned()).collect();
    names.sort();
    names
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
