//! Pages whose checksums do not hold: found while chunks are compressed, looked at again before anybody is told.
//!
//! A page that is read while the server writes it can be torn. It has then changed since the backup began, so its log brings it back, and once
//! the server has written all of it, its own header says so. So a suspect is read again at the end, when there was time enough; what is
//! wrong then is wrong on disk, whatever it belongs to. Only if its position is one that the log has reached since the backup began,
//! the log brings it back all the same; one beyond is rot, since no page is written before its log.
//!
//! A file that did not end with a whole page may have been in the middle of growing. It is damaged if it still ends there at the end.
//!
//! Some pages are written without that their headers tell of it, and what the copy has of them does no harm, either
//! ([`Pages::is_harmless`]): PostgreSQL clears what is torn, or its log makes the page anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Stat, fstat};
use rustix::io::Errno;

use super::tree::Root;
use crate::postgres::data_directory::RelationFile;
use crate::postgres::page::{self, Verdict};
use crate::postgres::wal::Lsn;

/// `pg_global`, in every cluster.
const GLOBAL_TABLESPACE: u32 = 1664;
/// As many suspects are remembered to be read again. Where there are more, a disk has died and not a page.
const SUSPECTS_MAX: usize = 1 << 16;
/// Suspects are read so often, with a pause before each time but the first, as long as any is wrong on disk.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);
/// Up to here, positions stand for none: 0, and 1 in GiST indexes that are being built (`GistBuildLSN` in `src/include/access/gist.h`).
const LSN_OF_NONE_MAX: Lsn = Lsn(1);
/// As many runs of blocks are named in one warning.
const RUNS_NAMED_MAX: usize = 20;

/// One file of a relation.
#[derive(Debug)]
pub(super) struct Relation {
    pub(super) root: Arc<Root>,
    pub(super) path: Vec<u8>,
    /// The number in the relation of the block with which it begins.
    pub(super) first_block: u32,
    /// When it was last written to, as it was opened.
    pub(super) written: Written,
}

/// Seconds and nanoseconds, by the clock of its file system.
pub(super) type Written = (i64, i64);

/// When a file was last written to.
#[expect(clippy::unnecessary_cast, reason = "the width of these fields differs between systems")]
pub(super) fn written(stat: &Stat) -> Written {
    (stat.st_mtime as i64, stat.st_mtime_nsec as i64)
}

/// Pages that stand together in a chunk.
#[derive(Debug)]
pub(super) struct Extent {
    /// Where in the chunk.
    pub(super) at: usize,
    pub(super) pages: usize,
    pub(super) relation: Arc<Relation>,
    /// The number of the first.
    pub(super) block: u32,
}

/// Looks at pages.
#[derive(Debug)]
pub(super) struct Pages {
    /// From where the log repairs.
    start: Lsn,
    pub(super) page_bytes: usize,
    suspects: Mutex<Suspects>,
}

#[derive(Debug)]
struct Suspect {
    relation: Arc<Relation>,
    block: u32,
    /// Whether its file ended in the middle of it.
    is_part: bool,
}

#[derive(Debug, Default)]
struct Suspects {
    pages: Vec<Suspect>,
    /// Those that could not be remembered.
    more: u64,
}

/// All suspects, read again.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Where the backup begins. What has changed from there on the log brings back.
    start: Lsn,
    wrong: Vec<(Suspect, Wrong)>,
    more: u64,
}

/// A file with wrong pages, in words.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) text: String,
    /// `None` for those that could not be told apart.
    pub(super) relation: Option<Arc<Relation>>,
}

/// Blocks, and what is wrong with each.
type Blocks = Vec<(u32, String)>;

/// What is wrong with a page on second sight.
#[derive(Debug)]
enum Wrong {
    /// And where its header says that its last change is in the log.
    OnDisk(Verdict, Lsn),
    /// It was read wrong, and then right, and it has not changed meanwhile: the copy has what was read first.
    InCopy,
    /// The file ends after so many bytes of it.
    Part(usize),
    /// It could not be read again.
    Unreadable(Errno),
}

impl Relation {
    /// The numbers by which the server knows it: its tablespace (0 for that of its database), its database (`None` for what all share), its own.
    pub(super) fn numbers(&self) -> Option<(u32, Option<u32>, u32)> {
        let path = std::str::from_utf8(&self.path).ok()?;
        let (directory, name) = path.rsplit_once('/')?;
        let number = RelationFile::parse(name.as_bytes())?.number.parse().ok()?;
        match directory.rsplit_once('/') {
            Some((_, database)) => Some((self.root.oid.unwrap_or(0), Some(database.parse().ok()?), number)),
            None => Some((GLOBAL_TABLESPACE, None, number)),
        }
    }

    /// Whether it is a map of free space, or of what is visible to all.
    fn is_map(&self) -> bool {
        let name = self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        RelationFile::parse(name).is_some_and(|file| matches!(file.fork, Some("fsm" | "vm")))
    }
}

impl Pages {
    pub(super) fn new(start: Lsn, page_bytes: usize) -> Self {
        Self { start, page_bytes, suspects: Mutex::default() }
    }

    /// Looks at the pages of a chunk.
    pub(super) fn inspect(&self, extents: &[Extent], chunk: &[u8]) {
        for extent in extents {
            let pages = chunk[extent.at..].chunks_exact(self.page_bytes).take(extent.pages);
            for (page, block) in pages.zip(extent.block..) {
                self.look_at(&extent.relation, page, block);
            }
        }
    }

    pub(super) fn look_at(&self, relation: &Arc<Relation>, page: &[u8], block: u32) {
        if page::judge(page, block) != Verdict::Sound {
            self.suspect(Suspect { relation: Arc::clone(relation), block, is_part: false });
        }
    }

    /// Takes account of a file that ended in the middle of a page.
    pub(super) fn ended_within(&self, relation: &Arc<Relation>, block: u32) {
        self.suspect(Suspect { relation: Arc::clone(relation), block, is_part: true });
    }

    fn suspect(&self, suspect: Suspect) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.pages.len() < SUSPECTS_MAX {
            suspects.pages.push(suspect);
        } else {
            suspects.more += 1;
        }
    }

    /// Reads all suspects again. Blocks.
    pub(super) fn look_again(&self) -> Looked {
        let Suspects { pages, more } =
            std::mem::take(&mut *self.suspects.lock().unwrap_or_else(PoisonError::into_inner));
        Looked { start: self.start, wrong: self.wrong(pages), more }
    }

    #[cfg(test)]
    pub(super) fn suspects(&self) -> Vec<(Arc<Relation>, u32)> {
        let suspects = self.suspects.lock().unwrap();
        suspects.pages.iter().map(|suspect| (Arc::clone(&suspect.relation), suspect.block)).collect()
    }

    fn wrong(&self, mut pages: Vec<Suspect>) -> Vec<(Suspect, Wrong)> {
        let mut look = 1;
        loop {
            let wrong = |suspect: Suspect| self.read_again(&suspect).map(|wrong| (suspect, wrong));
            let found: Vec<_> = pages.into_iter().filter_map(wrong).collect();
            if look == LOOKS || !found.iter().any(|(_, wrong)| matches!(wrong, Wrong::OnDisk(..) | Wrong::Part(_))) {
                return found;
            }
            pause();
            look += 1;
            pages = found.into_iter().map(|(suspect, _)| suspect).collect();
        }
    }

    /// What is wrong with a page now; `None` for nothing that the log would not repair.
    fn read_again(&self, suspect: &Suspect) -> Option<Wrong> {
        let Suspect { relation, block, is_part } = suspect;
        let mut page = vec![0; self.page_bytes];
        let at = u64::from(*block - relation.first_block) * self.page_bytes as u64;
        let read = relation.root.open_file(&relation.path);
        let read = read.and_then(|file| Ok((read_all(&file, &mut page, at)?, fstat(&file)?)));
        match read {
            Ok((n, _)) if *is_part => (1..page.len()).contains(&n).then_some(Wrong::Part(n)),
            // Cut off, or gone: recovery does that again.
            Ok((n, _)) if n < page.len() => None,
            Err(Errno::NOENT) => None,
            Err(errno) => Some(Wrong::Unreadable(errno)),
            Ok((_, stat)) => match page::judge(&page, *block) {
                Verdict::Sound if self.is_harmless(relation, &page, written(&stat)) => None,
                Verdict::Sound => Some(Wrong::InCopy),
                wrong => Some(Wrong::OnDisk(wrong, page::lsn(&page))),
            },
        }
    }

    /// Whether it does not matter what the copy has of a page that was read wrong and is sound by now.
    ///
    /// - It has changed since the start: the log brings it back.
    /// - It is of a map. Bits of the visibility map are cleared with nothing but the heap's own record, and its page keeps its position in the log
    ///   (`visibilitymap_clear`); a standby cuts both maps off so (`visibilitymap_prepare_truncate`, `FreeSpaceMapPrepareTruncateRel`). They can be
    ///   torn after a crash, too, so PostgreSQL reads them with `RBM_ZERO_ON_ERROR` (`vm_readbuf`, `fsm_readbuf`): a page whose checksum does
    ///   not hold is cleared, and that loses nothing.
    /// - It is empty, or has no position, and the file was written to since it was opened. Empty: it was cut off and came back, and of both there is
    ///   log. Without a position: it is of a GIN, GiST or SP-GiST index in the making, whose pages are all logged at its end (`log_newpage_range`); should that not
    ///   come, nobody needs the file.
    ///
    /// The server's own look at pages (`BASE_BACKUP`) is satisfied by any of these on its second reading.
    fn is_harmless(&self, relation: &Relation, page: &[u8], written: Written) -> bool {
        let lsn = page::lsn(page);
        lsn >= self.start || relation.is_map() || lsn <= LSN_OF_NONE_MAX && written != relation.written
    }
}

impl Looked {
    /// What is wrong, file by file. `reached` is how far the server had come with its log after the pages were read again.
    pub(super) fn damage(self, reached: Lsn) -> Vec<Damaged> {
        let Self { start, mut wrong, more } = self;
        // Written over and over, so it was torn each time.
        wrong.retain(|(_, wrong)| match wrong {
            Wrong::OnDisk(Verdict::Checksum { .. }, lsn) => !(start..=reached).contains(lsn),
            _ => true,
        });
        wrong.sort_by_key(|(suspect, _)| suspect.block);
        let mut damaged: BTreeMap<String, (Arc<Relation>, Blocks)> = BTreeMap::new();
        for (Suspect { relation, block, .. }, wrong) in wrong {
            let shown = relation.root.shown(&relation.path);
            damaged.entry(shown).or_insert_with(|| (relation, Vec::new())).1.push((block, wrong.to_string()));
        }
        let told = damaged.iter().map(|(path, (relation, blocks))| Damaged {
            text: describe(path, blocks),
            relation: Some(Arc::clone(relation)),
        });
        let mut told: Vec<Damaged> = told.collect();
        if more > 0 {
            let text = format!("{more} more pages were read with wrong checksums");
            told.push(Damaged { text, relation: None });
        }
        told
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OnDisk(Verdict::Checksum { stated, computed }, _) => {
                write!(f, "its checksum is {computed:04X} and should be {stated:04X}")
            }
            Self::OnDisk(..) => f.write_str("it is neither empty nor in use"),
            Self::InCopy => f.write_str("it was read with a wrong checksum, and with a right one later"),
            Self::Part(bytes) => write!(f, "the file ends after {bytes} bytes of it"),
            Self::Unreadable(errno) => {
                write!(f, "it was read with a wrong checksum, and then not at all: {}", std::io::Error::from(*errno))
            }
        }
    }
}

/// A warning about one file: the first block with what is wrong, and all others by their numbers.
fn describe(path: &str, blocks: &[(u32, String)]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (block, _) in blocks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 >= *block => *last = *block,
            _ => runs.push((*block, *block)),
        }
    }
    let shown = runs.iter().take(RUNS_NAMED_MAX).map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    let shown = shown.collect::<Vec<_>>().join(", ") + if runs.len() > RUNS_NAMED_MAX { ", …" } else { "" };
    let first = blocks.first().map_or("", |(_, what)| what);
    match blocks.len() {
        1 => format!("checksum verification failed in {path}, block {shown}: {first}"),
        n => format!("checksum verification failed in {path}, {n} blocks: {shown}; of the first, {first}"),
    }
}

/// Reads until `room` is full or the file ends.
pub(super) fn read_all(file: &impl std::os::fd::AsFd, room: &mut [u8], at: u64) -> rustix::io::Result<usize> {
    let mut n = 0;
    while n < room.len() {
        match rustix::io::pread(file, &mut room[n..], at + n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(n)
}

pub(super) fn pause() {
    let never = Mutex::new(());
    let guard = never.lock().unwrap_or_else(PoisonError::into_inner);
    drop(Condvar::new().wait_timeout(guard, PAUSE));
}

#[cfg(test)]
pub(super) mod tests;
