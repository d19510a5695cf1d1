//! History files, read into memory: whoever chooses a backup needs to know which timeline descends from which.

use std::num::NonZero;
use std::sync::Arc;

use super::stored::StoredFile;
use super::unseal::DataKeys;
use super::{CHUNK_SIZE, TEXT_LEN_MAX, Tools};
use crate::error::{Error, Result, Stage};
use crate::keys::Identity;
use crate::postgres::wal::{History, Timeline, WalFile};
use crate::repository::Repository;
use crate::repository::layout::WalPath;

/// Reads histories of one archive. Keys and threads are made once.
pub(crate) struct Histories {
    keys: DataKeys,
    tools: Tools,
}

impl Histories {
    pub(crate) fn new(identities: &[Arc<dyn Identity>]) -> Result<Self> {
        Ok(Self { keys: DataKeys::new(identities.to_vec()), tools: Tools::new(NonZero::<usize>::MIN, CHUNK_SIZE)? })
    }

    /// The history of a timeline; `None` when it is not in the archive.
    ///
    /// # Errors
    /// `Integrity`, `Key`, and those of the store. Cancel safe.
    pub(crate) async fn read(
        &self,
        repository: &Repository,
        archive: &WalPath,
        timeline: Timeline,
    ) -> Result<Option<History>> {
        read_history(repository, archive, timeline, &self.keys, &self.tools).await
    }
}

/// The history of a timeline; `None` when it is not in the archive.
///
/// # Errors
/// `Integrity`, `Key`, and those of the store. Cancel safe.
pub(super) async fn read_history(
    repository: &Repository,
    archive: &WalPath,
    timeline: Timeline,
    keys: &DataKeys,
    tools: &Tools,
) -> Result<Option<History>> {
    let found = StoredFile::find(repository, archive, WalFile::History(timeline)).await?;
    let Some(found) = found else { return Ok(None) };
    let (path, plaintext) = (found.path().clone(), found.plaintext);
    let damaged = |problem: &str| Error::integrity(format!("{path} {problem} (offset 0)")).at(Stage::Fetch);
    if plaintext.bytes > TEXT_LEN_MAX {
        return Err(damaged("is too long for a history"));
    }
    let mut volume = found.open(keys).await?;
    let mut signed = volume.signed.take();
    let volume = Arc::new(volume);
    let buffers = tools.with_chunks_of(volume.header.chunk_size).buffers;
    let mut text = Vec::new();
    for place in &volume.places {
        let mut records = volume.stored.records(std::slice::from_ref(place), &buffers).await?;
        if let Some(signed) = &mut signed {
            signed.add(std::slice::from_ref(place), &mut records);
        }
        for record in records {
            let (volume, buffers, place) = (Arc::clone(&volume), buffers.clone(), *place);
            let plain = tools.pool.run(move |workspace| volume.open_chunk(place, record, &buffers, workspace));
            text.extend_from_slice(plain.wait().await??.filled());
            if text.len() as u64 > TEXT_LEN_MAX {
                return Err(damaged("is longer than its header says"));
            }
        }
    }
    if signed.is_some_and(|signed| !signed.holds()) {
        return Err(damaged("is not what its signature was made for"));
    }
    if *blake3::hash(&text).as_bytes() != plaintext.blake3 {
        return Err(damaged("holds other bytes than its header says"));
    }
    let text = std::str::from_utf8(&text).map_err(|_| damaged("is no text"))?;
    History::parse(timeline, text).map(Some)
}
