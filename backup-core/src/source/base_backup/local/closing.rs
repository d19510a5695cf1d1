//! The end of the data directory's first stream: what may be copied only when all else was.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::fs::{Stat, fstat};
use tokio::sync::watch;

use super::blocking;
use super::copy::BLOCK;
use super::damage::read_all;
use super::job::{Job, cannot};
use super::session::Session;
use super::tablespaces::all_copied;
use super::tree::Root;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::pipeline::Buffer;
use crate::postgres::backup_manifest::{ManifestFile, WalRange};
use crate::postgres::control::{PG_CONTROL, PG_CONTROL_BYTES, is_whole};
use crate::postgres::wire::WalPosition;
use crate::source::files_index::{EntryKind, FileEntry};
use crate::source::reader::source_error;
use crate::source::tar_header::Headers;
use crate::source::{Piece, ReaderSource, Source};

/// So many damaged relations are looked up in the catalogues of their databases.
const NAMED_MAX: usize = 10;
const BACKUP_LABEL: &str = "backup_label";
/// The control file is read so often until it was not read in the middle of a change, with a pause after each time.
const CONTROL_READS: u32 = 50;
const CONTROL_PAUSE: Duration = Duration::from_millis(20);

/// A stream of files that a thread reads, at the agreed rate.
#[derive(Debug)]
pub(super) struct CopySource {
    job: Arc<Job>,
    reader: ReaderSource,
}

/// The stream `base`: its share of the files, then the end of the backup.
#[derive(Debug)]
pub(super) struct BaseSource {
    files: CopySource,
    offset: u64,
    closing: Option<Box<Closing>>,
    over: bool,
}

/// What it takes to end the backup.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) session: Session,
    pub(super) data: Arc<Root>,
    /// Those that are copied.
    pub(super) tablespaces: Vec<u32>,
    /// Learns how far the log is needed.
    pub(super) ended: watch::Sender<Option<WalPosition>>,
    /// Whether the server is to wait until the log is archived.
    pub(super) wait_for_archive: bool,
}

impl CopySource {
    pub(super) fn new(job: Arc<Job>, reader: ReaderSource) -> Self {
        Self { job, reader }
    }

    async fn pull(&mut self, buffer: Buffer) -> Result<Option<Piece>> {
        let piece = self.reader.next(buffer).await?;
        if let Some(Piece::Buffer(buffer)) = &piece {
            self.job.rate.wait(buffer.len()).await;
        }
        Ok(piece)
    }
}

impl Source for CopySource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.pull(buffer).boxed()
    }
}

impl BaseSource {
    pub(super) fn new(files: CopySource, closing: Box<Closing>) -> Self {
        Self { files, offset: 0, closing: Some(closing), over: false }
    }

    async fn pull(&mut self, buffer: Buffer) -> Result<Option<Piece>> {
        if self.over {
            return Ok(None);
        }
        if let Some(piece) = self.files.pull(buffer).await? {
            return Ok(Some(match piece {
                Piece::Buffer(mut buffer) => {
                    self.offset += buffer.len() as u64;
                    if !buffer.spare().is_empty() {
                        // The last one stays with the cutter until more comes, and that waits for this.
                        buffer.inspect();
                    }
                    Piece::Buffer(buffer)
                }
                piece => piece,
            }));
        }
        self.over = true;
        let Some(closing) = self.closing.take() else { return Ok(None) };
        let end = closing.close(&self.files.job, self.offset).await?;
        Ok(Some(Piece::Bytes(end)))
    }
}

impl Source for BaseSource {
    fn next(&mut self, buffer: Buffer) -> BoxFuture<'_, Result<Option<Piece>>> {
        self.pull(buffer).boxed()
    }
}

impl Closing {
    /// Ends the backup; returns the end of the archive, which stands at `offset`.
    async fn close(mut self, job: &Arc<Job>, offset: u64) -> Result<Bytes> {
        let looked = job.copied().await?;
        // Asked afterwards: no page that was read says more than that of itself, unless it is wrong.
        let reached = self.session.reached().await?;
        for (n, damaged) in looked.damage(reached).into_iter().enumerate() {
            let numbers = damaged.relation.as_ref().filter(|_| n < NAMED_MAX).and_then(|relation| relation.numbers());
            let name = match numbers {
                Some(numbers) => self.session.name_of(numbers).await,
                None => None,
            };
            job.facts.findings.damaged();
            job.facts.warnings.push(damaged.text + &name.map_or_else(String::new, |name| format!(" ({name})")));
        }
        let (control, stat) = self.control().await?;
        let stopped = self.session.stop(job.start, self.wait_for_archive).await?;
        self.session.close().await;
        let (data, began_with, copied) = (self.data, stopped.tablespaces, self.tablespaces);
        blocking(move || all_copied(&data, &began_with, &copied)).await?;

        let mut end = Tail { job: Arc::clone(job), offset, bytes: Vec::new() };
        end.file(PG_CONTROL, &control, &stat).await?;
        let mut stat = stat;
        stat.st_mtime = stopped.time.as_second();
        stat.st_mtime_nsec = 0;
        end.file(BACKUP_LABEL, stopped.label.as_bytes(), &stat).await?;
        end.bytes.resize(end.bytes.len() + 2 * BLOCK, 0);
        job.index.lock().await.finish().await;
        let range = WalRange { timeline: job.start.timeline, start: job.start.lsn, end: stopped.position.lsn };
        job.manifest.lock().await.finish(range).await;
        if !job.facts.wal_included {
            job.facts.report(job.start, stopped.position, stopped.time);
        }
        // Nobody listens when the log is not wanted.
        self.ended.send_replace(Some(stopped.position));
        Ok(end.bytes.into())
    }

    /// The control file, which the server rewrites whenever it likes.
    async fn control(&self) -> Result<(Vec<u8>, Stat)> {
        for _ in 0..CONTROL_READS {
            let data = Arc::clone(&self.data);
            let read = move || {
                let opened = data.open_file(PG_CONTROL.as_bytes()).and_then(|file| {
                    let mut bytes = vec![0; PG_CONTROL_BYTES];
                    let n = read_all(&file, &mut bytes, 0)?;
                    bytes.truncate(n);
                    Ok((bytes, fstat(&file)?))
                });
                opened.map_err(|errno| cannot("read", &data, PG_CONTROL.as_bytes(), errno))
            };
            let (bytes, stat) = blocking(read).await?;
            if is_whole(&bytes) {
                return Ok((bytes, stat));
            }
            tokio::time::sleep(CONTROL_PAUSE).await;
        }
        Err(Error::new(ErrorKind::Source, Stage::Source, format!("the checksum of {PG_CONTROL} does not hold")))
    }
}

/// The last entries of an archive.
struct Tail {
    job: Arc<Job>,
    /// Where they begin in it.
    offset: u64,
    bytes: Vec<u8>,
}

impl Tail {
    async fn file(&mut self, path: &str, contents: &[u8], stat: &Stat) -> Result<()> {
        let size = contents.len() as u64;
        let header = Headers { path: path.as_bytes(), link: &[], kind: EntryKind::File, size, stat };
        header.write(&mut self.bytes).map_err(|e| source_error("cannot write a tar header", e))?;
        let at = self.offset + self.bytes.len() as u64;
        let entry = FileEntry::of(&header, Some("base"), at);
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self.job.index.lock().await.push(&entry).await;
        let mut hasher = self.job.algorithm.hasher();
        hasher.update(contents);
        let (path, checksum) = (path.as_bytes().to_vec(), hasher.finish());
        let file = ManifestFile { path, size, algorithm: self.job.algorithm, checksum };
        let modified = jiff::Timestamp::from_second(stat.st_mtime).unwrap_or_default();
        self.job.manifest.lock().await.file(&file, modified).await;
        Ok(())
    }
}
