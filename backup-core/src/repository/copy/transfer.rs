//! One volume from the one repository to the other, proved while it passes: it is completed only when its digest is right.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::Run;
use crate::error::{Error, Result, Stage};
use crate::format::{FOOTER_LEN, VolumeEntry};
use crate::repository::Repository;
use crate::repository::verify::{Claim, VolumeCheck, Wanted, check_size, claimed, pieces_of, read_range};
use crate::upload::{ObjectUpload, Part};

/// Pieces of one volume on their way at once, as far as there is memory for them.
const READS: usize = 3;
/// How long giving up an unfinished upload may take.
const ABORT_DEADLINE: Duration = Duration::from_secs(10);
/// The most parts of one object, with room to S3's limit of 10,000.
const PARTS_MAX: u64 = 9_000;

impl Run<'_> {
    /// Bytes that are read and sent with one request: what suits the store that likes the larger ones.
    pub(super) fn piece_bytes(&self) -> u64 {
        self.from.part_bytes().max(self.to.part_bytes()) as u64
    }

    /// The same of an object of `bytes` bytes: a very large one has larger parts.
    fn piece_of(&self, bytes: u64) -> u64 {
        self.piece_bytes().max(bytes.div_ceil(PARTS_MAX))
    }

    /// Whether an object is sent with one request.
    pub(super) fn fits_one_piece(&self, bytes: u64) -> bool {
        bytes <= self.piece_bytes()
    }

    /// Sends the volume `source`, which should be as `entry` says, with `upload`. Returns what is wrong with it, if something is: then nothing was
    /// stored, as little as when this fails.
    pub(super) async fn transfer(
        &self,
        source: &Path,
        entry: &VolumeEntry,
        wanted: &Wanted<'_>,
        upload: &mut ObjectUpload,
    ) -> Result<Option<String>> {
        let sent = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::cancelled(Stage::Upload)),
            sent = self.send(source, entry, wanted, upload) => sent,
        };
        if matches!(sent, Ok(None)) {
            return sent;
        }
        match (sent, upload.abort(ABORT_DEADLINE).await) {
            (Err(error), Err(cleanup)) => Err(error.with_cleanup(cleanup)),
            (Ok(_), Err(cleanup)) => Err(cleanup),
            (sent, Ok(())) => sent,
        }
    }

    /// What the footer of an object of `bytes` bytes says; what is wrong with it otherwise. Cancel safe.
    pub(super) async fn footer(
        &self,
        repository: &Repository,
        object: &Path,
        bytes: u64,
    ) -> Result<std::result::Result<Claim, String>> {
        let start = bytes.saturating_sub(FOOTER_LEN as u64);
        if start == 0 {
            return Ok(Err("too short for a footer (offset 0)".to_owned()));
        }
        let tail = read_range(repository, object, start..bytes, bytes, &self.budget).await?;
        Ok(tail.and_then(|tail| claimed(object.filename().unwrap_or_default(), &tail, bytes)))
    }

    async fn send(
        &self,
        source: &Path,
        entry: &VolumeEntry,
        wanted: &Wanted<'_>,
        upload: &mut ObjectUpload,
    ) -> Result<Option<String>> {
        let piece = self.piece_of(entry.bytes);
        if piece > self.piece_bytes() {
            // A manifest may say anything.
            if let Some(problem) = check_size(self.from, source, entry.bytes).await? {
                return Ok(Some(problem));
            }
            self.check_memory(piece)?;
        }
        // Who asks first gets first, so no piece waits for memory that one behind it has.
        let mut pieces = stream::iter(pieces_of(entry.bytes, piece))
            .map(|range| async move {
                let permit = self.budget.take(range.end - range.start).await?;
                Ok::<_, Error>((read_range(self.from, source, range, entry.bytes, &self.budget).await?, permit))
            })
            .buffered(READS);
        let (mut check, mut read) = (VolumeCheck::new(entry, Some(wanted)), 0);
        while let Some((bytes, permit)) = pieces.try_next().await? {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(problem) => return Ok(Some(problem)),
            };
            if let Err(problem) = check.add(&bytes) {
                return Ok(Some(problem));
            }
            read += bytes.len() as u64;
            let part = Part { payload: bytes.into(), permits: Arc::new(vec![permit]), ticket: None };
            if read == entry.bytes {
                return match check.finish() {
                    Ok(()) => upload.finish(part).await.map(|()| None),
                    Err(problem) => Ok(Some(problem)),
                };
            }
            upload.push(part).await?;
        }
        Ok(Some("too short for a footer (offset 0)".to_owned()))
    }
}
