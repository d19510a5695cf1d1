//! What is stored of a segment that was being received: pieces, each with new bytes only.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures::TryStreamExt;

use super::Tools;
use super::fetcher::blocking;
use super::local_file::check_segment;
use super::stored::StoredFile;
use super::unseal::DataKeys;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::postgres::wal::SegmentName;
use crate::postgres::wal::page::{FIRST_PAGE_HEADER_LEN, FirstPage};
use crate::repository::Repository;
use crate::repository::layout::{TailPiece, WalPath};

/// The pieces of a segment, in the order in which they begin. Cancel safe.
pub(super) async fn pieces(repository: &Repository, archive: &WalPath, segment: SegmentName) -> Result<Vec<TailPiece>> {
    let folder = archive.tail(segment);
    let failed = |e| repository.error(e, "list", &folder).at(Stage::Catalog);
    let objects = repository.store().list(Some(&folder)).map_err(failed);
    let found =
        objects.try_filter_map(|object| async move { Ok(object.location.filename().and_then(TailPiece::parse)) });
    let mut pieces: Vec<TailPiece> = found.try_collect().await?;
    pieces.sort_unstable();
    Ok(pieces)
}

/// As few of them as reach as far as all of them do without a gap. `pieces` are in the order in which they begin.
pub(super) fn chain(pieces: &[TailPiece]) -> Vec<&TailPiece> {
    let (mut chain, mut covered): (Vec<&TailPiece>, u32) = (Vec::new(), 0);
    let mut rest = pieces;
    loop {
        let reachable = rest.partition_point(|piece| piece.start <= covered);
        let (candidates, later) = rest.split_at(reachable);
        match candidates.iter().max_by_key(|piece| piece.end).filter(|piece| piece.end > covered) {
            Some(piece) => {
                covered = piece.end;
                chain.push(piece);
                rest = later;
            }
            None => return chain,
        }
    }
}

/// How many bytes of a segment its pieces reach without a gap. Cancel safe.
pub(super) async fn reach(repository: &Repository, archive: &WalPath, segment: SegmentName) -> Result<u32> {
    let pieces = pieces(repository, archive, segment).await?;
    Ok(chain(&pieces).last().map_or(0, |piece| piece.end))
}

/// Removes the pieces of a segment.
pub(super) async fn remove(repository: &Repository, archive: &WalPath, segment: SegmentName) -> Result<()> {
    let pieces = pieces(repository, archive, segment).await?;
    let paths: Vec<_> = pieces.iter().map(|piece| Ok(archive.tail_piece(segment, piece))).collect();
    let removed = repository.store().delete_stream(Box::pin(futures::stream::iter(paths)));
    let failed = |e| repository.error(e, "remove", &archive.tail(segment));
    removed.try_for_each(|_| async { Ok(()) }).await.map_err(failed)
}

/// Writes a segment of which there are pieces to `file`, which is empty, and zeros behind them; proves each, and that it is that segment.
///
/// # Errors
/// As [`StoredFile::write_to`]. Cancel safe, in that sense.
pub(super) async fn write(
    repository: &Repository,
    archive: &WalPath,
    segment: SegmentName,
    keys: &DataKeys,
    tools: &Tools,
    file: &Arc<File>,
) -> Result<()> {
    let pieces = pieces(repository, archive, segment).await?;
    let chain = chain(&pieces);
    let damaged =
        |problem: &str| Error::integrity(format!("{} {problem} (offset 0)", archive.tail(segment))).at(Stage::Fetch);
    if chain.is_empty() {
        return Err(damaged("does not have the beginning of its segment"));
    }
    for piece in chain {
        let Some(found) = StoredFile::find_piece(repository, archive, segment, piece).await? else {
            // Whoever received the rest of the segment has removed it.
            let message = format!("{} was listed, and is gone", archive.tail_piece(segment, piece));
            return Err(Error::new(ErrorKind::Unavailable, Stage::Fetch, message).with_hint("try again"));
        };
        if found.plaintext.bytes != u64::from(piece.end - piece.start) {
            return Err(damaged("has a piece of another length than its name says"));
        }
        found.write_at(keys, tools, file, piece.start.into()).await?;
    }
    let written = Arc::clone(file);
    let cluster = blocking(move || complete(&written, segment)).await?;
    match cluster {
        Ok(cluster) if cluster == archive.system_identifier => Ok(()),
        Ok(cluster) => {
            Err(damaged("holds another file").with_source(Error::integrity(format!("it is of the cluster {cluster}"))))
        }
        Err(error) => Err(damaged("holds another file").with_source(error)),
    }
}

/// Zeros up to the size that the first page tells. Blocks.
fn complete(file: &File, segment: SegmentName) -> Result<crate::postgres::wal::SystemIdentifier> {
    let mut page = [0; FIRST_PAGE_HEADER_LEN];
    let unreadable = |e: std::io::Error| Error::integrity("it has no first page").with_source(e);
    file.read_exact_at(&mut page, 0).map_err(unreadable)?;
    let page = FirstPage::parse(&page).map_err(|e| Error::integrity("its first page is not one").with_source(e))?;
    let size = page.segment_size.bytes();
    file.set_len(size).map_err(|e| Error::new(ErrorKind::Sink, Stage::Sink, "cannot write the file").with_source(e))?;
    check_segment(file, size, segment, segment.to_string().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(pieces: &[(u32, u32)]) -> (usize, u32) {
        let mut pieces: Vec<TailPiece> =
            pieces.iter().map(|&(start, end)| TailPiece { start, end, run: "0".repeat(16) }).collect();
        pieces.sort_unstable();
        let chain = chain(&pieces);
        (chain.len(), chain.last().map_or(0, |piece| piece.end))
    }

    #[test]
    fn pieces_reach_as_far_as_there_is_no_gap() {
        assert_eq!(reach(&[]), (0, 0));
        assert_eq!(reach(&[(5, 9)]), (0, 0));
        assert_eq!(reach(&[(0, 4), (4, 6), (6, 9)]), (3, 9));
        assert_eq!(reach(&[(0, 4), (5, 9)]), (1, 4));
        // Of a run that was killed, and of the one after it, which began anew.
        assert_eq!(reach(&[(0, 4), (4, 6), (0, 5), (5, 20), (7, 8)]), (2, 20));
        assert_eq!(reach(&[(0, 3), (0, 8), (2, 12), (11, 12)]), (2, 12));
    }
}
