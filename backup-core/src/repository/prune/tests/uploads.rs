//! Uploads into a bucket that nobody completed.

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::{MultipartId, PutResult, Result as StoreResult};

use super::*;
use crate::repository::uploads::Access;
use crate::repository::uploads::tests::{Answers, page};

/// Takes note of what it is to abort, and refuses when it is told to.
#[derive(Debug, Clone, Default)]
struct Aborted {
    uploads: Arc<Mutex<Vec<(String, String)>>>,
    refuses: bool,
    /// Is away when it is to abort.
    away: bool,
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl MultipartStore for Aborted {
    async fn create_multipart(&self, _: &Path) -> StoreResult<MultipartId> {
        unreachable!("nothing is written")
    }

    async fn put_part(&self, _: &Path, _: &MultipartId, _: usize, _: PutPayload) -> StoreResult<PartId> {
        unreachable!("nothing is written")
    }

    async fn complete_multipart(&self, _: &Path, _: &MultipartId, _: Vec<PartId>) -> StoreResult<PutResult> {
        unreachable!("nothing is written")
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> StoreResult<()> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away {
            return Err(object_store::Error::Generic {
                store: "test",
                source: "Server returned non-2xx status code: 503 Service Unavailable: ".into(),
            });
        }
        if self.refuses {
            return Err(object_store::Error::PermissionDenied { path: path.to_string(), source: "403".into() });
        }
        self.uploads.lock().unwrap().push((path.to_string(), id.clone()));
        if id == "gone" {
            return Err(object_store::Error::NotFound { path: path.to_string(), source: "NoSuchUpload".into() });
        }
        Ok(())
    }
}

impl World {
    /// Has the store list these: object, id, and how many hours ago each began.
    fn uploading(&mut self, uploads: &[(String, &str, i64)], aborted: &Aborted) {
        let dated: Vec<(String, &str, String)> = uploads
            .iter()
            .map(|(object, id, hours)| (format!("some/prefix/{object}"), *id, self.ago(*hours).to_string()))
            .collect();
        let uploads: Vec<_> = dated.iter().map(|(object, id, at)| (object.as_str(), *id, at.as_str())).collect();
        let answers = Answers::new([(200, page(&uploads, ""))]);
        self.repository.uploads = Some(Arc::new(answers.uploads(Access::Anonymous, aborted.clone())));
    }
}

#[tokio::test]
async fn an_upload_goes_when_it_is_old_and_its_run_is_not_alive() {
    let mut world = World::empty().await;
    let [alive, dead, unmarked, writing] = [30; 4].map(|days| world.target.backup(&id_at(world.ago(24 * days))));
    world.put(&alive.running(), "{}", world.ago(1)).await;
    world.put(&dead.running(), "{}", world.ago(48)).await;
    // Where nothing can be replaced, a mark is as old as its run.
    world.put(&writing.running(), "{}", world.ago(48)).await;
    world.put(&writing.named("base.00007.vol"), "", world.ago(1)).await;
    let archive = world.archive();
    let large = archive.large_file(WalFile::Segment(segment(7)));
    let volume = |run: &BackupPath| run.named("data.00000.vol").to_string();
    let uploads = [
        (volume(&alive), "alive", 700),
        (volume(&dead), "dead", 700),
        (volume(&writing), "writing", 48),
        (volume(&unmarked), "unmarked", 25),
        (volume(&unmarked), "young", 23),
        (volume(&unmarked), "gone", 25),
        (large.to_string(), "log", 25),
        // Not of this program, or of one that knows more than this.
        ("photos/2026.tar".to_owned(), "photos", 700),
        (dead.named("manifest.json").to_string(), "manifest", 700),
        (format!("app/new/{}/data.00000.vol", dead.id), "new", 700),
        ("runs/backups/x".to_owned(), "runs", 700),
    ];
    let aborted = Aborted::default();
    world.uploading(&uploads, &aborted);
    let report = world.prune().dry_run(true).run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!((report.uploads.aborted, aborted.uploads.lock().unwrap().len()), (4, 0));
    let report = world.prune().run(std::slice::from_ref(&world.target)).await.unwrap();
    let expected = [(volume(&dead), "dead"), (volume(&unmarked), "unmarked"), (volume(&unmarked), "gone")];
    let expected = expected.into_iter().chain([(large.to_string(), "log")]);
    let expected: Vec<_> = expected.map(|(path, id)| (format!("some/prefix/{path}"), id.to_owned())).collect();
    assert_eq!(*aborted.uploads.lock().unwrap(), expected);
    assert_eq!((report.uploads.aborted, report.uploads.refused, report.problem_count), (4, None, 0));
}

#[tokio::test]
async fn a_store_that_refuses_is_told_once_and_is_no_problem() {
    let mut world = World::empty().await;
    let run = world.target.backup(&id_at(world.ago(24 * 30)));
    let uploads = ["1", "2"].map(|id| (run.named("data.00000.vol").to_string(), id, 700));
    let refusing = Aborted { refuses: true, ..Aborted::default() };
    world.uploading(&uploads, &refusing);
    let report = world.prune().run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!((report.uploads.aborted, report.problem_count), (0, 0));
    assert!(report.uploads.refused.unwrap().contains("cannot abort an upload of test:"));
    assert_eq!(refusing.asked.load(Ordering::Relaxed), 2, "the second may be another target's");
    let away = Aborted { away: true, ..Aborted::default() };
    world.uploading(&uploads, &away);
    let report = world.prune().run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!((report.uploads.refused, report.problem_count), (None, 1));
    assert_eq!(away.asked.load(Ordering::Relaxed), 1, "it is away for the second, too");
    let answers = Answers::new([(501, String::new())]);
    world.repository.uploads = Some(Arc::new(answers.uploads(Access::Anonymous, Aborted::default())));
    let report = world.prune().run(std::slice::from_ref(&world.target)).await.unwrap();
    assert_eq!((report.uploads.aborted, report.problem_count), (0, 0));
    assert!(
        report
            .uploads
            .refused
            .unwrap()
            .contains("cannot list the unfinished uploads in test:: the store refused it (501")
    );
}
