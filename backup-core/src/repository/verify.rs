//! Is what is stored what was written? Without a key: presence, sizes and digests. With one: everything opens and decompresses.

use std::ops::Range;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Repository;
use super::layout::BackupPath;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::format::{
    FOOTER_LEN, Flag, Footer, Manifest, ObjectName, Preamble, StreamEntry, VolumeEntry, WORD_LEN, Word,
};
use crate::keys::Identity;
use crate::pipeline::{Counters, Limits};
use crate::restore::{NullSink, OpenBackup};

/// Bytes asked for at a time, at most; of small objects less, since several pieces are in memory at once.
const READ_BYTES: u64 = 2 << 20;
const READ_BYTES_LEAST: u64 = 256 << 10;
/// Requests on their way at once.
const READS: usize = 3;

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
}

/// Verifies a backup without a key: every object is there, has its size, says in its header that it is what the manifest takes it for, and its
/// bytes have the digest that footer and manifest say.
///
/// What can only be found with a key (a manifest that somebody rewrote to fit) is for [`deep`]. An error means that the verification
/// could not be done, by this release for example; what it found is not an error. Cancel safe.
pub async fn keyless(repository: &Repository, path: &BackupPath, counters: &Counters) -> Result<Verification> {
    let object = path.manifest();
    let bytes = match repository.read_manifest(path).await {
        Ok(bytes) => bytes.ok_or_else(|| super::catalog::no_backup(path))?,
        Err(e) if super::is_untrusted(&e) => {
            let finding = Finding { object: object.to_string(), problem: e.in_one_line() };
            return Ok(Verification { objects: 1, bytes: 0, findings: vec![finding] });
        }
        Err(e) => return Err(e),
    };
    let mut found = Verification { objects: 1, bytes: bytes.len() as u64, findings: Vec::new() };
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
    for stream in &manifest.streams {
        for (number, volume) in (0..).zip(&stream.volumes) {
            let object = path.named(&volume.path);
            let wanted = Wanted { path, manifest: &manifest, stream, number };
            found.objects += 1;
            match check_volume(repository, &object, volume, Some(&wanted), counters).await? {
                None => found.bytes += volume.bytes,
                Some(problem) => found.findings.push(Finding { object: object.to_string(), problem }),
            }
        }
    }
    Ok(found)
}

/// What the header of a volume must say, by the manifest and the name that it was asked for.
pub(crate) struct Wanted<'a> {
    path: &'a BackupPath,
    manifest: &'a Manifest,
    stream: &'a StreamEntry,
    number: u32,
}

impl Wanted<'_> {
    /// What is wrong with the beginning of a volume.
    fn contradicted_by(&self, head: &[u8]) -> Option<String> {
        let header = match Preamble::decode(head) {
            Ok(preamble) => preamble.header,
            Err(e) => return Some(format!("damaged at offset 0: {e}")),
        };
        let name = ObjectName::Backup {
            target: self.path.target.to_string(),
            backup: self.path.id.to_string(),
            stream: self.stream.name.clone(),
        };
        let is_other = header.name != name
            || header.stream_id != self.stream.stream_id
            || header.data_key != self.manifest.data_key
            || header.volume != self.number;
        is_other.then(|| "it is another volume than the manifest says (offset 0)".to_owned())
    }
}

/// Reads a volume once; says what is wrong with it. With `wanted`, its header too is compared.
pub(crate) async fn check_volume(
    repository: &Repository,
    object: &Path,
    volume: &VolumeEntry,
    wanted: Option<&Wanted<'_>>,
    counters: &Counters,
) -> Result<Option<String>> {
    let failed = |e| repository.error(e, "read", object).at(Stage::Fetch);
    let store = repository.store();
    let has = match store.head(object).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => return Ok(Some("missing (offset 0)".to_owned())),
        Err(e) => return Err(failed(e)),
    };
    let should = volume.bytes;
    if has != should {
        return Ok(Some(format!("has {has} bytes and should have {should} (offset {})", has.min(should))));
    }
    let mut hasher = blake3::Hasher::new();
    let mut hashed_left = volume.bytes.saturating_sub(FOOTER_LEN as u64);
    let mut footer = Vec::with_capacity(FOOTER_LEN);
    let read_bytes = (should / 16).clamp(READ_BYTES_LEAST, READ_BYTES);
    let ranges = (0..should.div_ceil(read_bytes)).map(|i| i * read_bytes..((i + 1) * read_bytes).min(should));
    let mut pieces = stream::iter(ranges).map(|range| store.get_range(object, range)).buffered(READS);
    let mut at_start = true;
    while let Some(bytes) = pieces.try_next().await.map_err(failed)? {
        counters.add_transferred(bytes.len());
        // The first piece holds the longest header.
        if std::mem::take(&mut at_start)
            && let Some(problem) = wanted.and_then(|wanted| wanted.contradicted_by(&bytes))
        {
            return Ok(Some(problem));
        }
        let n = usize::try_from(hashed_left).unwrap_or(usize::MAX).min(bytes.len());
        hasher.update(&bytes[..n]);
        footer.extend_from_slice(&bytes[n..]);
        hashed_left -= n as u64;
    }
    let footer_offset = volume.bytes.saturating_sub(FOOTER_LEN as u64);
    let Ok(footer) = <[u8; FOOTER_LEN]>::try_from(footer) else {
        return Ok(Some("too short for a footer (offset 0)".to_owned()));
    };
    let footer = match Footer::decode(&footer, volume.bytes) {
        Ok(footer) => footer,
        Err(e) => return Ok(Some(format!("damaged at offset {footer_offset}: {e}"))),
    };
    if footer.digest != volume.digest || footer.chunks != volume.chunks {
        return Ok(Some(format!("damaged at offset {footer_offset}: footer and manifest contradict each other")));
    }
    if *hasher.finalize().as_bytes() != volume.digest {
        return Ok(Some(format!(
            "damaged between offset 0 and {footer_offset}: its digest is another; 'verify --deep' tells where"
        )));
    }
    if !ends_with_index(&**store, object, footer.index_offset..footer_offset).await.map_err(failed)? {
        return Ok(Some(format!("damaged at offset {footer_offset}: the index does not lie where the footer says")));
    }
    Ok(None)
}

/// Whether an index chunk fills `range`. The digest covers its word, and the footer's word for where it lies is covered by nothing else.
async fn ends_with_index(store: &dyn ObjectStore, object: &Path, range: Range<u64>) -> object_store::Result<bool> {
    let word_end = range.start + WORD_LEN as u64;
    let Some(content_max) = range.end.checked_sub(word_end) else { return Ok(false) };
    let bytes = store.get_range(object, range.start..word_end).await?;
    let Some(bytes) = bytes.first_chunk() else { return Ok(false) };
    let word = Word::decode(*bytes, usize::try_from(content_max).unwrap_or(0));
    Ok(word.is_ok_and(|word| word.flag != Flag::Data && u64::from(word.len) == content_max))
}

/// Verifies a backup with a key: restores every stream to nowhere. Digests are not compared: every byte is authenticated instead.
///
/// Finds the first problem in each stream. Errors mean that the verification could not be done: no identity opens the backup, the store
/// cannot be reached. Not cancel safe; cancel with `cancel`.
pub async fn deep(
    repository: &Repository,
    path: &BackupPath,
    identities: &[Arc<dyn Identity>],
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<Verification> {
    let mut found = Verification { objects: 1, ..Verification::default() };
    let backup = match OpenBackup::open(repository, path, identities).await {
        Ok(backup) => backup,
        Err(e) => return found.finding_or_error(path.prefix().to_string(), e).map(|()| found),
    };
    for stream in &backup.manifest().streams {
        let restored = backup.restore(&stream.name)?.limits(limits).cancel_on(cancel).into(NullSink).wait().await;
        found.objects += stream.volumes.len() as u64;
        match restored {
            Ok(_) => found.bytes += stream.volumes.iter().map(|volume| volume.bytes).fold(0, u64::saturating_add),
            Err(e) => found.finding_or_error(format!("{}/{}", path.prefix(), stream.name), e)?,
        }
    }
    Ok(found)
}

impl Verification {
    /// Damage is a finding; anything else keeps the verification from being done.
    fn finding_or_error(&mut self, object: String, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Integrity {
            return Err(error);
        }
        self.findings.push(Finding { object, problem: error.in_one_line() });
        Ok(())
    }
}
