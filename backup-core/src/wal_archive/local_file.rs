//! A WAL file on its way into the archive, from `pg_wal` or from a server's stream: what it is, and whether it is what its name says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::digest::{ChunkDigest, Cut};
use super::{CHUNK_SIZE, FILE_LEN_MAX, TEXT_LEN_MAX, Tools, unknown_cluster};
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::Plaintext;
use crate::pipeline::Buffer;
use crate::postgres::control;
use crate::postgres::wal::page::{FIRST_PAGE_HEADER_LEN, FirstPage};
use crate::postgres::wal::{History, SegmentName, SystemIdentifier, Timeline, WalFile};

/// Where the bytes of a file are.
#[derive(Debug, Clone)]
enum Contents {
    File(Arc<File>),
    Memory(Bytes),
}

/// A file that is open, or was received, and is what its name says.
#[derive(Debug, Clone)]
pub(super) struct LocalFile {
    pub(super) name: WalFile,
    pub(super) path: PathBuf,
    pub(super) system_identifier: SystemIdentifier,
    pub(super) cut: Cut,
    contents: Contents,
}

/// What the first reading of a file found.
#[derive(Debug, Clone)]
pub(super) struct Digested {
    pub(super) plaintext: Plaintext,
    pub(super) chunks: Arc<[ChunkDigest]>,
}

impl LocalFile {
    /// Opens the file at `path`, whose last part is its name.
    ///
    /// # Errors
    /// `Config` when the name is none of a WAL file, or the cluster cannot be told; `Source` when the file cannot be read or is not what
    /// its name says. Cancel safe.
    pub(super) async fn open(path: &Path, system_identifier: Option<SystemIdentifier>) -> Result<Self> {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || Self::open_now(path, system_identifier)).await;
        opened.map_err(|e| Error::internal(Stage::Source, "a reading task panicked").with_source(e))?
    }

    fn open_now(path: PathBuf, wanted: Option<SystemIdentifier>) -> Result<Self> {
        let name: WalFile = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().parse()?;
        let failed = |e: io::Error| source_error(format!("cannot read {}", path.display())).with_source(e);
        let file = File::open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(source_error(format!("{} is not a regular file", path.display())));
        }
        let len = metadata.len();
        let system_identifier = match name {
            WalFile::Segment(segment) | WalFile::Partial(segment) => {
                let found = check_segment(&file, len, segment, &path)?;
                if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                    let message = format!("{} belongs to the cluster {found}, not to {wanted}", path.display());
                    return Err(source_error(message).with_hint("its first page says so; check --system-identifier"));
                }
                found
            }
            WalFile::History(_) | WalFile::BackupLabel(..) if len > TEXT_LEN_MAX => {
                return Err(source_error(format!("{} has {len} bytes: it is not what its name says", path.display())));
            }
            WalFile::History(_) | WalFile::BackupLabel(..) => match wanted {
                Some(wanted) => wanted,
                None => cluster_beside(&path)?.ok_or_else(|| {
                    unknown_cluster(format!("which cluster {} belongs to cannot be told", path.display()))
                })?,
            },
        };
        if let WalFile::History(timeline) = name {
            let mut text = vec![0; usize::try_from(len).unwrap_or_default()];
            file.read_exact_at(&mut text, 0).map_err(failed)?;
            check_history(timeline, &text, &path)?;
        }
        let cut = Cut { len, chunk_size: CHUNK_SIZE };
        Ok(Self { name, path, system_identifier, cut, contents: Contents::File(Arc::new(file)) })
    }

    /// A file, or the part of one, that was received. It is for the receiver to know that it is what it is called.
    pub(super) fn received(name: WalFile, system_identifier: SystemIdentifier, bytes: Bytes) -> Self {
        let cut = Cut { len: bytes.len() as u64, chunk_size: CHUNK_SIZE };
        Self { name, path: name.to_string().into(), system_identifier, cut, contents: Contents::Memory(bytes) }
    }

    /// Reads all of it once.
    ///
    /// Cancel safe.
    pub(super) async fn digest(&self, tools: &Tools) -> Result<Digested> {
        let chunks: Vec<ChunkDigest> = stream::iter(0..self.cut.chunks())
            .map(|index| {
                let (this, mut buffer) = (self.clone(), tools.buffers.lease());
                let job = tools.pool.run(move |_| {
                    this.read_chunk(index, &mut buffer)?;
                    Ok::<_, Error>(this.cut.digest_of_chunk(index, buffer.filled()))
                });
                async { job.wait().await? }
            })
            .buffered(tools.window)
            .try_collect()
            .await?;
        let plaintext = Plaintext { bytes: self.cut.len, blake3: Cut::digest(&chunks) };
        Ok(Digested { plaintext, chunks: chunks.into() })
    }

    /// Reads a chunk into `buffer`, which is empty. Blocks.
    pub(super) fn read_chunk(&self, index: u64, buffer: &mut Buffer) -> Result<()> {
        let (len, offset) = (self.cut.chunk_len(index), self.cut.offset(index));
        match &self.contents {
            Contents::File(file) => {
                file.read_exact_at(&mut buffer.spare()[..len], offset)
                    .map_err(|e| source_error(format!("cannot read {}", self.path.display())).with_source(e))?;
                buffer.advance(len);
            }
            Contents::Memory(bytes) => {
                let offset = usize::try_from(offset).expect("within bytes that are in memory");
                buffer.fill_from(&bytes[offset..offset + len]);
            }
        }
        Ok(())
    }

    /// The error of a file that was read twice and was not the same.
    pub(super) fn changed(&self) -> Error {
        source_error(format!("{} changed while it was read", self.path.display()))
            .with_hint("only PostgreSQL should write there, and it does not change what it asks to be archived")
    }
}

/// The cluster whose data directory the file at `path` lies in. Blocks.
pub(super) fn cluster_beside(path: &Path) -> Result<Option<SystemIdentifier>> {
    for directory in control::data_directories_of(path) {
        let found = control::system_identifier(&directory);
        let found = found.map_err(|e| {
            unknown_cluster(format!("cannot read global/pg_control in {}", directory.display())).with_source(e)
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Checks that `text` is the history of a timeline: every restore reads what is archived, and nothing takes its place.
pub(super) fn check_history(timeline: Timeline, text: &[u8], path: &Path) -> Result<()> {
    let not_it = || source_error(format!("{} is not what its name says", path.display()));
    let history = std::str::from_utf8(text).map_err(|e| not_it().with_source(e))?;
    match History::parse(timeline, history).map_err(|e| not_it().with_source(e))?.ancestors() {
        [] => Err(source_error(format!("{} is not what its name says: no timeline is in it", path.display()))),
        _ => Ok(()),
    }
}

/// Whether the file at `path` is the segment `name` of the cluster. Blocks.
pub(super) fn is_segment_of(path: &Path, name: SegmentName, cluster: SystemIdentifier) -> bool {
    let checked = File::open(path).and_then(|file| {
        let len = file.metadata()?.len();
        Ok(check_segment(&file, len, name, path).is_ok_and(|found| found == cluster))
    });
    checked.unwrap_or(false)
}

/// Checks that a file of `len` bytes is the segment `name`; returns the cluster that it belongs to. Blocks.
pub(super) fn check_segment(file: &File, len: u64, name: SegmentName, path: &Path) -> Result<SystemIdentifier> {
    let not_it = |why: crate::postgres::wal::page::NotTheSegment| {
        source_error(format!("{} is not the segment {name}", path.display())).with_source(why)
    };
    let mut bytes = [0; FIRST_PAGE_HEADER_LEN];
    if len < bytes.len() as u64 || len > FILE_LEN_MAX {
        return Err(not_it(crate::postgres::wal::page::NotTheSegment::Short(len)));
    }
    file.read_exact_at(&mut bytes, 0)
        .map_err(|e| source_error(format!("cannot read {}", path.display())).with_source(e))?;
    let page = FirstPage::parse(&bytes).map_err(not_it)?;
    page.check(name, len).map_err(not_it)?;
    Ok(page.system_identifier)
}

fn source_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Source, Stage::Source, message)
}
