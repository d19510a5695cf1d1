//! A source of one's own: rows are asked for page by page and written straight into the pipeline's buffers, so nothing is copied and no
//! more than a page is ever in memory.
//!
//! ```text
//! cargo run -p backup-examples --example custom_source
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;

use backup_core::keys::Identity;
use backup_core::keys::age::AgeIdentity;
use backup_core::pipeline::{Backup, Buffer};
use backup_core::repository::Repository;
use backup_core::restore::{MemorySink, OpenBackup};
use backup_core::source::{Piece, Source};
use backup_core::{Error, ErrorKind, Result, Stage};
use futures::future::{BoxFuture, FutureExt};

/// Stands for a database: gives rows by page, and may go away.
#[derive(Debug)]
struct Database {
    rows: u64,
    fails_at: Option<u64>,
}

impl Database {
    const PAGE: u64 = 1000;

    async fn page(&self, from: u64) -> std::io::Result<Vec<String>> {
        tokio::task::yield_now().await; // a request over the network
        if self.fails_at.is_some_and(|row| (from..from + Self::PAGE).contains(&row)) {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        Ok((from..self.rows.min(from + Self::PAGE)).map(|n| format!("{n}\trow number {n}\n")).collect())
    }
}

/// The rows of a table as a stream of text.
#[derive(Debug)]
struct Rows {
    database: Database,
    next: u64,
    /// What did not fit into the buffer before.
    rest: Vec<u8>,
}

impl Rows {
    fn of(database: Database) -> Self {
        Self { database, next: 0, rest: Vec::new() }
    }

    async fn fill(&mut self, mut buffer: Buffer) -> Result<Option<Piece>> {
        loop {
            let n = buffer.fill_from(&self.rest);
            self.rest.drain(..n);
            if !self.rest.is_empty() {
                return Ok(Some(Piece::Buffer(buffer)));
            }
            // An error ends the backup, and nothing of it stays. `None` would be a promise that these were all rows.
            let page = self.database.page(self.next).await.map_err(|e| {
                Error::new(ErrorKind::Source, Stage::Source, format!("cannot read row {}", self.next)).with_source(e)
            })?;
            if page.is_empty() {
                return Ok((!buffer.is_empty()).then_some(Piece::Buffer(buffer)));
            }
            self.next += page.len() as u64;
            self.rest = page.concat().into_bytes();
        }
    }
}

impl Source for Rows {
    /// The buffer belongs to the memory budget. As full as possible is best, but any filling is right.
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.fill(buffer).boxed()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let repository = Repository::in_memory().await?;
    let identity = Arc::new(AgeIdentity::generate());
    let backup = |database| {
        let recipient = Arc::new(identity.recipients().remove(0));
        Ok::<_, Error>(
            Backup::new(repository.clone(), "app".parse()?)
                .recipient(recipient)
                .stream("rows".parse()?, Rows::of(database)),
        )
    };

    let rows = 200_000;
    let manifest = backup(Database { rows, fails_at: None })?.start()?.wait().await?;
    println!("{}: {} bytes", manifest.id, manifest.stream("rows").expect("it was written").bytes);

    let error = backup(Database { rows, fails_at: Some(150_000) })?.start()?.wait().await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Source, "cannot read row 150000"));
    println!("the second one failed, as it should: {error}");

    // So the latest backup is still the complete one, and it is all there.
    let found = repository.resolve("app").await?;
    assert_eq!(found.manifest, manifest);
    let identities: [Arc<dyn Identity>; 1] = [identity];
    let sink = MemorySink::new(64 << 20);
    let open = OpenBackup::open(&repository, &found.path, &identities).await?;
    open.restore("rows")?.into(sink.clone()).wait().await?;
    let restored = String::from_utf8(sink.take().expect("the restore is complete")).expect("it was text");
    assert!(restored.lines().eq((0..rows).map(|n| format!("{n}\trow number {n}"))));
    Ok(())
}
