//! Lanes over files that stand for a cluster's, without a server.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use futures::poll;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use super::super::super::{Facts, Warned};
use super::super::damage::Pages;
use super::super::damage::tests::page;
use super::super::job::ManifestLines;
use super::super::queue::Queue;
use super::super::rate::Rate;
use super::super::tree::{Choice, Root};
use super::*;
use crate::pipeline::{BufferPool, Findings};
use crate::postgres::backup_manifest::{Algorithm, ManifestWriter};
use crate::postgres::page::{PAGE_BYTES, SEGMENT_PAGES};
use crate::postgres::wal::{Lsn, SegmentSize, SystemIdentifier, Timeline};
use crate::postgres::wire::WalPosition;
use crate::source::lines::LineSource;
use crate::source::{Piece, files_index, lines};

/// As large as is worth a stream of its own, and a little more.
const FILE_BYTES: u64 = 40 << 20;

/// A copy of `data` that has begun, and who reads what is written meanwhile.
fn job(data: &Path) -> (Arc<Job>, files_index::FilesIndexSource, LineSource) {
    let findings = Findings::default();
    let facts = Facts {
        system_identifier: SystemIdentifier(1),
        server_version_num: 150_000,
        server_version: String::new(),
        segment_size: SegmentSize::new(16 << 20).unwrap(),
        connected: Timestamp::UNIX_EPOCH,
        wal_included: false,
        findings: findings.clone(),
        warnings: Warned { findings, told: None },
    };
    let (index, files) = files_index::channel();
    let (manifest, manifest_source) = lines::channel("");
    let choice = Choice { version_directory: "PG".to_owned(), major: 15, ..Choice::default() };
    let queue = Queue::new(vec![Arc::new(Root::open(None, data).unwrap())], choice, 2).unwrap();
    let job = Job {
        start: WalPosition { lsn: Lsn(5), timeline: Timeline::FIRST },
        index: index.into(),
        manifest: ManifestLines::new(ManifestWriter::new(15, facts.system_identifier), manifest).into(),
        algorithm: Algorithm::Crc32c,
        pages: Some(Arc::new(Pages::new(Lsn(5), PAGE_BYTES))),
        segment_pages: SEGMENT_PAGES,
        rate: Rate::new(None),
        tracker: TaskTracker::new(),
        queue: Mutex::new(queue),
        facts: Arc::new(facts),
    };
    (Arc::new(job), files, manifest_source)
}

/// Two files of pages, of which only the last is not empty, and wrong.
fn damaged_files(data: &Path) {
    fs::create_dir_all(data.join("base/5")).unwrap();
    for name in ["1", "2"] {
        let file = File::create(data.join("base/5").join(name)).unwrap();
        let last = u32::try_from(FILE_BYTES / PAGE_BYTES as u64).unwrap() - 1;
        let mut page = page(last, 2);
        page[6000] ^= 1;
        file.write_all_at(&page, u64::from(last) * PAGE_BYTES as u64).unwrap();
    }
}

fn side_lane(job: &Arc<Job>) -> SideLane {
    SideLane::new(watch::channel(Some(Arc::clone(job))).1)
}

#[test]
fn streams_of_a_root_are_told_apart() {
    let name = |oid, number| stream_name(oid, number).unwrap().as_str().to_owned();
    assert_eq!(
        [name(None, 0), name(None, 1), name(Some(16385), 0), name(Some(16385), 12)],
        ["base", "base-01", "tablespace-16385", "tablespace-16385-12"]
    );
}

#[tokio::test]
async fn a_directory_that_is_slow_to_read_holds_up_no_task() {
    let temp = tempfile::tempdir().unwrap();
    damaged_files(temp.path());
    let (job, _files, _manifest) = job(temp.path());
    // Somebody is reading a directory, and goes on with that until this thread has had its turn.
    let (reading, began) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let of = Arc::clone(&job);
    let reader = std::thread::spawn(move || {
        let _queue = of.queue.lock().unwrap();
        reading.send(()).unwrap();
        released.recv_timeout(Duration::from_secs(20)).is_ok()
    });
    began.recv().unwrap();
    let mut lane = side_lane(&job);
    let mut next = lane.next();
    assert!(poll!(&mut next).is_pending(), "it waited on the thread that all tasks share");
    release.send(()).unwrap();
    assert!(reader.join().unwrap());
    assert_eq!(next.await.unwrap().unwrap().0.as_str(), "base-01");
}

#[tokio::test]
async fn the_backup_does_not_end_before_every_lane_has_copied_its_files() {
    let temp = tempfile::tempdir().unwrap();
    damaged_files(temp.path());
    let (job, _files, _manifest) = job(temp.path());
    let mut lane = side_lane(&job);
    let (name, mut source) = lane.next().await.unwrap().unwrap();
    assert_eq!(name.as_str(), "base-01");
    let copied = job.copied();
    tokio::pin!(copied);
    let pool = BufferPool::new(1 << 20);
    let mut last = None;
    while let Some(piece) = source.next(pool.lease()).await.unwrap() {
        assert!(poll!(&mut copied).is_pending(), "its stream has not ended");
        let Piece::Buffer(buffer) = piece else { panic!("a buffer was filled") };
        if let Some(mut before) = last.replace(buffer) {
            before.inspect();
        }
    }
    drop(source);
    assert!(lane.next().await.unwrap().is_none());
    assert!(poll!(&mut copied).is_pending(), "a chunk of it is still to be looked at");
    last.unwrap().inspect();
    let found: Vec<String> = copied.await.unwrap().damage(Lsn(5)).into_iter().map(|damaged| damaged.text).collect();
    let of = |file: &str| format!("checksum verification failed in base/5/{file}, block 5119: its checksum is");
    assert!(found.len() == 2 && found[0].starts_with(&of("1")) && found[1].starts_with(&of("2")), "{found:?}");
}
