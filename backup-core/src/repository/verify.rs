//! Is what is stored what was written? Without a key: presence, sizes and digests. With one: everything opens and decompresses, and is what
//! it should be: archives are whole, and a cluster's files those of PostgreSQL's own manifest.

mod continuity;
mod deep;
mod files;
mod sample;
mod volume;

use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetResultPayload, ObjectStoreExt};
use serde::Serialize;

use super::Repository;
use super::budget::ByteBudget;
use super::layout::BackupPath;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{Manifest, VolumeEntry};
use crate::pipeline::{Counters, Limits};

pub use continuity::{Continuity, Gap, continuity};
pub use deep::deep;
pub use files::{WalVerification, wal};
pub use sample::Sample;
pub(crate) use volume::{Claim, VolumeCheck, Wanted, claimed};

/// Bytes asked for at a time, at most; of small objects less, since several pieces are in memory at once.
const READ_BYTES: u64 = 2 << 20;
const READ_BYTES_LEAST: u64 = 256 << 10;
/// Requests for one object on their way at once.
const READS: usize = 3;
/// Objects that are read at once.
const OBJECTS: usize = 4;
/// So much of the memory is used at most: more in flight gains nothing.
const MEMORY_MAX: usize = 48 << 20;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The object, below the repository's root.
    pub object: String,
    /// What is wrong with it, and where.
    pub problem: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verification {
    /// How many objects were looked at.
    pub objects: u64,
    /// Bytes that were read of them.
    pub bytes: u64,
    /// All that is wrong; empty when all is well.
    pub findings: Vec<Finding>,
    /// Which of the objects were read, where that was only a share of them; the others are there, and have their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Vec<String>>,
}

/// How to verify without a key.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeylessOptions {
    /// Memory, for the pieces that are on their way.
    pub limits: Limits,
    /// Which share of the objects is read; all of them unless set.
    pub sample: Option<Sample>,
    /// Whether a sample has at least one object of each backup.
    pub one_at_least: bool,
}

impl KeylessOptions {
    /// What suits a repository: everything is read.
    pub fn new(repository: &Repository) -> Self {
        Self { limits: Limits::for_parts_of(repository.part_bytes()), sample: None, one_at_least: true }
    }

    fn budget(&self) -> ByteBudget {
        ByteBudget::new((self.limits.memory() / 2).min(MEMORY_MAX))
    }
}

/// Verifies a backup without a key: every object is there, has its size, says in its header that it is what the manifest takes it for, and its
/// bytes have the digest that footer and manifest say.
///
/// What can only be found with a key (a manifest that somebody rewrote to fit) is for [`deep`]. An error means that the verification
/// could not be done, by this release for example, or `NotFound`, since the backup was removed meanwhile; what it found is not an error. Cancel safe.
pub async fn keyless(
    repository: &Repository,
    path: &BackupPath,
    options: &KeylessOptions,
    counters: &Counters,
) -> Result<Verification> {
    let found = look(repository, path, options, counters).await?;
    found.unless_removed(repository, path).await
}

async fn look(
    repository: &Repository,
    path: &BackupPath,
    options: &KeylessOptions,
    counters: &Counters,
) -> Result<Verification> {
    let object = path.manifest();
    let bytes = match repository.read_manifest(path).await {
        Ok(bytes) => bytes.ok_or_else(|| super::catalog::no_backup(path))?,
        Err(e) if super::is_untrusted(&e) => {
            let finding = Finding { object: object.to_string(), problem: e.in_one_line() };
            return Ok(Verification { objects: 1, findings: vec![finding], ..Verification::default() });
        }
        Err(e) => return Err(e),
    };
    let mut found = Verification { objects: 1, bytes: bytes.len() as u64, ..Verification::default() };
    let mut wrong = |object: &Path, problem: String| {
        found.findings.push(Finding { object: object.to_string(), problem });
    };
    let manifest = match Manifest::decode(&bytes) {
        Ok(manifest) => manifest,
        Err(e) => {
            let problem = format!("damaged at offset 0: {e}");
            let error = super::unreadable(repository, path, e).await;
            if error.kind() != ErrorKind::Integrity {
                return Err(error);
            }
            wrong(&object, problem);
            return Ok(found);
        }
    };
    if manifest.id != path.id.as_str() || manifest.target != path.target.as_str() {
        wrong(&object, format!("it is the manifest of {} of '{}'", manifest.id, manifest.target));
    }
    volumes(repository, path, &manifest, options, counters, &mut found).await?;
    Ok(found)
}

/// All volumes of a backup, several at once; findings come in the manifest's order.
async fn volumes(
    repository: &Repository,
    path: &BackupPath,
    manifest: &Manifest,
    options: &KeylessOptions,
    counters: &Counters,
    found: &mut Verification,
) -> Result<()> {
    let budget = &options.budget();
    let count = manifest.streams.iter().map(|stream| stream.volumes.len()).sum();
    let chosen = options.sample.map(|sample| sample.of(count, options.one_at_least));
    let listed = manifest.streams.iter().flat_map(|stream| (0..).zip(&stream.volumes).map(move |v| (stream, v)));
    let checks = stream::iter(listed.enumerate()).map(|(i, (stream, (number, volume)))| {
        let is_read = chosen.as_ref().is_none_or(|chosen| chosen[i]);
        async move {
            let object = path.named(&volume.path);
            let wanted = Wanted::listed(path, manifest, stream, number);
            let problem = match is_read {
                true => check_volume(repository, &object, volume, Some(&wanted), budget, counters).await?,
                false => check_size(repository, &object, volume.bytes).await?,
            };
            Ok::<_, Error>((object, volume.bytes, is_read, problem))
        }
    });
    let mut checks = checks.buffered(OBJECTS);
    let mut read = Vec::new();
    while let Some((object, bytes, is_read, problem)) = checks.try_next().await? {
        found.objects += 1;
        if is_read && chosen.is_some() {
            read.push(object.to_string());
        }
        match problem {
            Some(problem) => found.findings.push(Finding { object: object.to_string(), problem }),
            None if is_read => found.bytes += bytes,
            None => {}
        }
    }
    found.sample = chosen.is_some().then_some(read);
    Ok(())
}

/// Whether an object is there, and has its size; says what is wrong otherwise.
pub(crate) async fn check_size(repository: &Repository, object: &Path, should: u64) -> Result<Option<String>> {
    match repository.store().head(object).await {
        Ok(meta) => Ok(wrong_size(meta.size, should)),
        Err(object_store::Error::NotFound { .. }) => Ok(Some("missing (offset 0)".to_owned())),
        Err(e) => Err(repository.error(e, "read", object).at(Stage::Fetch)),
    }
}

fn wrong_size(has: u64, should: u64) -> Option<String> {
    (has != should).then(|| format!("has {has} bytes and should have {should} (offset {})", has.min(should)))
}

/// Reads a volume once, in several requests at once; says what is wrong with it. With `wanted`, its header too is compared. Cancel safe.
pub(crate) async fn check_volume(
    repository: &Repository,
    object: &Path,
    volume: &VolumeEntry,
    wanted: Option<&Wanted<'_>>,
    budget: &ByteBudget,
    counters: &Counters,
) -> Result<Option<String>> {
    if let Some(problem) = check_size(repository, object, volume.bytes).await? {
        return Ok(Some(problem));
    }
    let should = volume.bytes;
    let read_bytes = (should / 16).clamp(READ_BYTES_LEAST, READ_BYTES);
    let mut pieces = stream::iter(pieces_of(should, read_bytes))
        .map(|range| async move {
            let permit = budget.take(range.end - range.start).await?;
            Ok::<_, Error>((read_range(repository, object, range, should, budget).await?, permit))
        })
        .buffered(READS);
    let mut check = VolumeCheck::new(volume, wanted);
    while let Some((bytes, _permit)) = pieces.try_next().await? {
        let added = bytes.and_then(|bytes| {
            counters.add_transferred(bytes.len());
            check.add(&bytes)
        });
        if let Err(problem) = added {
            return Ok(Some(problem));
        }
    }
    Ok(check.finish().err())
}

/// The ranges of an object of `bytes` bytes, in order.
pub(crate) fn pieces_of(bytes: u64, piece: u64) -> impl Iterator<Item = Range<u64>> {
    (0..bytes.div_ceil(piece)).map(move |i| i * piece..((i + 1) * piece).min(bytes))
}

/// Reads a range of an object that should have `should` bytes, into memory of `budget`; what is wrong with it otherwise. Cancel safe.
pub(crate) async fn read_range(
    repository: &Repository,
    object: &Path,
    range: Range<u64>,
    should: u64,
    budget: &ByteBudget,
) -> Result<Result<Bytes, String>> {
    let failed = |e| repository.error(e, "read", object).at(Stage::Fetch);
    let (start, len) = (range.start, usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
    let options = GetOptions::new().with_range(Some(range));
    let result = match repository.store().get_opts(object, options).await {
        Ok(result) => result,
        // Each store has an error of its own for a range that an object does not have.
        Err(e) => return check_size(repository, object, should).await?.map_or_else(|| Err(failed(e)), |p| Ok(Err(p))),
    };
    if let Some(problem) = wrong_size(result.meta.size, should) {
        return Ok(Err(problem));
    }
    let mut buffer = budget.buffer(len);
    match result.payload {
        GetResultPayload::File(file, _) => {
            let read = tokio::task::spawn_blocking(move || {
                buffer.bytes().resize(len, 0);
                file.read_exact_at(buffer.bytes(), start).map(|()| buffer)
            });
            let read =
                read.await.map_err(|e| Error::internal(Stage::Fetch, "a reading task panicked").with_source(e))?;
            buffer = match read {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Err(SHORT.to_owned())),
                Err(e) => return Err(failed(object_store::Error::Generic { store: "local", source: e.into() })),
            };
        }
        GetResultPayload::Stream(mut stream) => {
            while let Some(piece) = stream.try_next().await.map_err(failed)? {
                if buffer.as_ref().len() + piece.len() > len {
                    return Ok(Err("is longer than the store says (offset 0)".to_owned()));
                }
                buffer.bytes().extend_from_slice(&piece);
            }
        }
    }
    if buffer.as_ref().len() == len { Ok(Ok(buffer.freeze())) } else { Ok(Err(SHORT.to_owned())) }
}

const SHORT: &str = "is shorter than the store says (offset 0)";

impl Verification {
    /// The same, if the backup is there still: what is missing of one that a prune removed meanwhile is not damage. For whoever adds findings.
    ///
    /// # Errors
    /// `NotFound` when something was found and the manifest is gone, and those of the store. Cancel safe.
    pub async fn unless_removed(self, repository: &Repository, path: &BackupPath) -> Result<Self> {
        if self.findings.is_empty() || repository.still_has(&path.manifest()).await? {
            return Ok(self);
        }
        Err(Error::new(ErrorKind::NotFound, Stage::Fetch, format!("{path} was removed while it was verified")))
    }

    /// Damage is a finding; anything else keeps the verification from being done.
    fn finding_or_error(&mut self, object: String, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Integrity {
            return Err(error);
        }
        self.findings.push(Finding { object, problem: error.in_one_line() });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
