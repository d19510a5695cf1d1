//! When a file is certainly absent: what PostgreSQL takes for the end of the log.
//!
//! Without a recovery target it ends its recovery there and starts up, and what came later is lost. So "not found" alone is no proof: a
//! bucket that is gone, a directory that is not mounted and a wrong prefix say it, too, and an archive can have holes.

use std::path::Path as FilePath;

use futures::TryStreamExt;
use futures::future::try_join_all;
use object_store::path::Path;

use super::local_file::is_segment_of;
use super::prefetched::folder_of;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::{SegmentName, WalFile};
use crate::repository::Repository;
use crate::repository::layout::WalPath;

pub(super) const GAP_HINT: &str =
    "see 'When the archive has a gap' in docs/ARCHIVING.md; 'backup wal check' shows the gaps of each timeline";

/// What stands in the place of a file that was not found.
#[derive(Debug)]
pub(super) enum Absence {
    /// Nothing: the archive ends here.
    Certain,
    /// The beginning of the segment, which was being received when it was last written to.
    Tail(SegmentName),
    /// Nothing, though the archive goes on behind it.
    Hole(Error),
}

/// What it means that the stores of all these repositories said "not found" of `file`, which is wanted at `to`. They must be all that are
/// configured: what one of them lacks, or cannot tell, another may have.
///
/// # Errors
/// When nothing is certain. Cancel safe.
pub(super) async fn absence(
    repositories: &[&Repository],
    archive: &WalPath,
    file: WalFile,
    to: &FilePath,
) -> Result<Absence> {
    if repositories.is_empty() {
        // Nobody said anything.
        return Err(Error::internal(Stage::Fetch, "no repository was asked"));
    }
    let looked = try_join_all(repositories.iter().map(|repository| look(repository, archive, file))).await?;
    let WalFile::Segment(segment) = file else { return Ok(Absence::Certain) };
    match looked.into_iter().max_by_key(Around::rank) {
        None | Some(Around::Nothing) => Ok(Absence::Certain),
        Some(Around::Tail) => Ok(Absence::Tail(segment)),
        Some(Around::Later(later)) => {
            // A primary that recovers from its own crash, or a standby that had streamed it: then PostgreSQL need not have it from us.
            let (at_hand, cluster) = (folder_of(to).join(segment.to_string()), archive.system_identifier);
            let at_hand = tokio::task::spawn_blocking(move || is_segment_of(&at_hand, segment, cluster)).await;
            if at_hand.unwrap_or(false) {
                return Ok(Absence::Certain);
            }
            let message = format!("the archive has a hole: {} is missing, and {later} is there", archive.file(file));
            Ok(Absence::Hole(Error::new(ErrorKind::Integrity, Stage::Fetch, message).with_hint(GAP_HINT)))
        }
    }
}

/// What one repository has in the place of a file.
async fn look(repository: &Repository, archive: &WalPath, file: WalFile) -> Result<Around> {
    // After "not found", and from the same store.
    repository.confirm().await?;
    match file {
        WalFile::Segment(segment) => around(repository, archive, segment).await,
        _ => Ok(Around::Nothing),
    }
}

enum Around {
    Nothing,
    Tail,
    /// The name of an object of a later segment.
    Later(String),
}

impl Around {
    /// What one repository has counts more than what others lack; and that the log goes on, more than where it seems to end.
    fn rank(&self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Tail => 1,
            Self::Later(_) => 2,
        }
    }
}

/// What is stored of `segment` beside a whole one, and whether anything of a later segment is there on its timeline.
///
/// One request, whatever the archive's size: stores list by name, so the first that is later tells.
async fn around(repository: &Repository, archive: &WalPath, segment: SegmentName) -> Result<Around> {
    let folder = archive.timeline(segment.timeline);
    let offset = folder.clone().join(segment.to_string());
    let failed = |e| repository.error(e, "list", &folder).at(Stage::Catalog);
    let mut listing = repository.store().list_with_offset(Some(&folder), &offset);
    let mut tail = false;
    while let Some(object) = listing.try_next().await.map_err(failed)? {
        match segment_of(&folder, &object.location) {
            Some((found, _)) if found > segment => return Ok(Around::Later(object.location.to_string())),
            Some((found, is_tail)) if found == segment => tail |= is_tail,
            _ => {}
        }
    }
    Ok(if tail { Around::Tail } else { Around::Nothing })
}

/// Which segment an object in the folder of a timeline belongs to, and whether it is part of its tail.
fn segment_of(folder: &Path, object: &Path) -> Option<(SegmentName, bool)> {
    let mut parts = object.prefix_match(folder)?;
    let name = parts.next()?;
    let name = name.as_ref().get(..24)?;
    let WalFile::Segment(segment) = name.parse().ok()? else { return None };
    Some((segment, parts.next().is_some()))
}
