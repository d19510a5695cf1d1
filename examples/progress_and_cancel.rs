//! Watching a backup, and stopping one: whatever had been written of it is gone afterwards.
//!
//! ```text
//! cargo run -p backup-examples --example progress_and_cancel
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backup_core::clock::SystemClock;
use backup_core::compress::Compression;
use backup_core::keys::age::AgeIdentity;
use backup_core::pipeline::{Backup, Event, Observer};
use backup_core::repository::{Location, Repository};
use backup_core::source::{ReaderSource, Source};
use backup_core::{ErrorKind, Result};

/// Is told of events as they happen. Numbers are better asked for, as often as one likes.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<Event>>);

impl Observer for Log {
    fn event(&self, event: &Event) {
        println!("event: {event:?}");
        self.0.lock().expect("no holder panics").push(event.clone());
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (repository, _) = Repository::init(&Location::directory(directory.path())?, &SystemClock).await?;
    let identity = AgeIdentity::generate();
    let backup = |source: Box<dyn Source>| {
        Ok::<_, backup_core::Error>(
            Backup::new(repository.clone(), "app".parse()?)
                .recipient(Arc::new(identity.recipients().remove(0)))
                .compression(Compression::None)
                .boxed_stream("data".parse()?, source),
        )
    };

    // A backup that comes to its end.
    let len = 64 << 20;
    let zeros = std::io::Read::take(std::io::repeat(0), len);
    let log = Arc::new(Log::default());
    let handle = backup(Box::new(ReaderSource::new(zeros)?))?.observer(Arc::<Log>::clone(&log)).start()?;
    let counters = handle.counters(); // outlive the handle, which `wait` takes
    let mut done = std::pin::pin!(handle.wait());
    let manifest = loop {
        match tokio::time::timeout(Duration::from_millis(5), &mut done).await {
            Ok(ended) => break ended?,
            Err(_) => println!("{} of {len} bytes", counters.snapshot().plain_bytes),
        }
    };
    let progress = counters.snapshot();
    assert!(progress.plain_bytes >= len && progress.transferred_bytes >= len, "{progress:?}");
    let finished = Event::StreamFinished { stream: "data".to_owned(), bytes: len };
    let committed = Event::Committed { id: manifest.id.clone() };
    assert_eq!(*log.0.lock().expect("no holder panics"), [finished, committed]);

    // One that would never end, cancelled when some of it is on disk. Dropping the handle does the same, but nobody learns when it is over.
    let before = files(directory.path());
    let handle = backup(Box::new(ReaderSource::new(std::io::repeat(0))?))?.start()?;
    while handle.progress().transferred_bytes < len {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(files(directory.path()).len() > before.len());
    handle.cancel();
    let error = handle.wait().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.cleanup().is_none(), "removing what there was went well");
    assert_eq!(files(directory.path()), before);
    println!("{error}, and nothing is left of it");
    assert_eq!(repository.resolve("app").await?.manifest, manifest);
    Ok(())
}

/// All files below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}
