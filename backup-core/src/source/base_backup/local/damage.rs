//! Pages whose checksums do not hold: found while chunks are compressed, looked at again before anybody is told.
//!
//! A page that is read while the server writes it can be torn. It has then changed since the backup began, so its log brings it back, and once
//! the server has written all of it, its own header says so. So a suspect is read again at the end, when there was time enough; what is
//! wrong then is wrong on disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

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
/// As many runs of blocks are named in one warning.
const RUNS_NAMED_MAX: usize = 20;

/// One file of a relation.
#[derive(Debug)]
pub(super) struct Relation {
    pub(super) root: Arc<Root>,
    pub(super) path: Vec<u8>,
    /// The number in the relation of the block with which it begins.
    pub(super) first_block: u32,
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

#[derive(Debug, Default)]
struct Suspects {
    pages: Vec<(Arc<Relation>, u32)>,
    /// Those that could not be remembered.
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
enum Wrong {
    OnDisk(Verdict),
    /// It was read wrong, and then right, and it has not changed meanwhile: the copy has what was read first.
    InCopy,
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
        if page::judge(page, block, self.start) == Verdict::Sound {
            return;
        }
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.pages.len() < SUSPECTS_MAX {
            suspects.pages.push((Arc::clone(relation), block));
        } else {
            suspects.more += 1;
        }
    }

    /// Reads all suspects again; returns what is wrong with them, file by file. Blocks.
    pub(super) fn damage(&self) -> Vec<Damaged> {
        let Suspects { pages, more } =
            std::mem::take(&mut *self.suspects.lock().unwrap_or_else(PoisonError::into_inner));
        let mut damaged: BTreeMap<String, (Arc<Relation>, Blocks)> = BTreeMap::new();
        let mut pages = self.look_again(pages);
        pages.sort_by_key(|(_, block, _)| *block);
        for (relation, block, wrong) in pages {
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

    #[cfg(test)]
    pub(super) fn suspects(&self) -> Vec<(Arc<Relation>, u32)> {
        self.suspects.lock().unwrap().pages.clone()
    }

    fn look_again(&self, mut pages: Vec<(Arc<Relation>, u32)>) -> Vec<(Arc<Relation>, u32, Wrong)> {
        let mut look = 1;
        loop {
            let wrong = |(relation, block): (Arc<Relation>, u32)| {
                self.read_again(&relation, block).map(|wrong| (relation, block, wrong))
            };
            let found: Vec<_> = pages.into_iter().filter_map(wrong).collect();
            if look == LOOKS || !found.iter().any(|(_, _, wrong)| matches!(wrong, Wrong::OnDisk(_))) {
                return found;
            }
            pause();
            look += 1;
            pages = found.into_iter().map(|(relation, block, _)| (relation, block)).collect();
        }
    }

    /// What is wrong with a page now; `None` for nothing that the log would not repair.
    fn read_again(&self, relation: &Relation, block: u32) -> Option<Wrong> {
        let mut page = vec![0; self.page_bytes];
        let at = u64::from(block - relation.first_block) * self.page_bytes as u64;
        let read = relation.root.open_file(&relation.path).and_then(|file| read_all(&file, &mut page, at));
        match read {
            // Cut off, or gone: recovery does that again.
            Ok(n) if n < page.len() => None,
            Err(Errno::NOENT) => None,
            Err(_) => Some(Wrong::InCopy),
            Ok(_) => match page::judge(&page, block, self.start) {
                Verdict::Sound if page::lsn(&page) >= self.start => None,
                Verdict::Sound => Some(Wrong::InCopy),
                wrong => Some(Wrong::OnDisk(wrong)),
            },
        }
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OnDisk(Verdict::Checksum { stated, computed }) => {
                write!(f, "its checksum is {computed:04X} and should be {stated:04X}")
            }
            Self::OnDisk(_) => f.write_str("it is neither empty nor in use"),
            Self::InCopy => f.write_str("it was read with a wrong checksum, and with a right one later"),
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

fn pause() {
    let never = Mutex::new(());
    let guard = never.lock().unwrap_or_else(PoisonError::into_inner);
    drop(Condvar::new().wait_timeout(guard, PAUSE));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::postgres::page::PAGE_BYTES;

    fn page(block: u32, lsn: u8) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        page[4..8].copy_from_slice(&u32::from(lsn).to_ne_bytes());
        page[14..16].copy_from_slice(&4096u16.to_ne_bytes());
        page[5000] = 7;
        let sum = page::checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    fn relation(first_block: u32) -> (tempfile::TempDir, Arc<Relation>) {
        let temp = tempfile::tempdir().unwrap();
        let pages: Vec<u8> = (first_block..first_block + 8).flat_map(|block| page(block, 1)).collect();
        fs::write(temp.path().join("16384.1"), pages).unwrap();
        let root = Arc::new(Root::open(None, temp.path()).unwrap());
        (temp, Arc::new(Relation { root, path: b"16384.1".to_vec(), first_block }))
    }

    fn inspect(pages: &Pages, relation: &Arc<Relation>, chunk: &[u8]) {
        let extent = Extent {
            at: 0,
            pages: chunk.len() / PAGE_BYTES,
            relation: Arc::clone(relation),
            block: relation.first_block,
        };
        pages.inspect(&[extent], chunk);
    }

    fn texts(pages: &Pages) -> Vec<String> {
        pages.damage().into_iter().map(|damaged| damaged.text).collect()
    }

    #[test]
    fn a_relation_is_known_by_numbers() {
        let (_temp, relation) = relation(0);
        let numbers = |oid, path: &str| {
            let root = Arc::new(Root::open(oid, &relation.root.location).unwrap());
            Relation { root, path: path.into(), first_block: 0 }.numbers()
        };
        assert_eq!(numbers(None, "base/5/16384_fsm.1"), Some((0, Some(5), 16384)));
        assert_eq!(numbers(None, "global/1262"), Some((1664, None, 1262)));
        assert_eq!(numbers(Some(16385), "PG_15_202209061/5/16390"), Some((16385, Some(5), 16390)));
        assert_eq!(numbers(None, "PG_VERSION"), None);
    }

    #[test]
    fn damage_on_disk_is_named_by_file_and_block_of_the_relation() {
        let (temp, relation) = relation(131_072);
        let path = temp.path().join("16384.1");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        for block in [2, 3, 5] {
            file.write_all_at(b"rot", block * PAGE_BYTES as u64 + 5000).unwrap();
        }
        let pages = Pages::new(Lsn(2), PAGE_BYTES);
        inspect(&pages, &relation, &fs::read(&path).unwrap());
        let found = texts(&pages);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("in 16384.1, 3 blocks: 131074-131075, 131077; of the first, its checksum is"),
            "{found:?}"
        );
        assert!(texts(&pages).is_empty(), "it was told");
    }

    #[test]
    fn a_torn_page_is_no_damage_once_it_is_whole() {
        let (temp, relation) = relation(0);
        let path = temp.path().join("16384.1");
        let mut chunk = fs::read(&path).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        // The copy has the first half of the old page and the second of the new one, whose change came after the start.
        file.write_all_at(&page(4, 9), 4 * PAGE_BYTES as u64).unwrap();
        chunk[4 * PAGE_BYTES + 6000] = 9;
        // Another was cut off, and a third is where the file has none any more.
        file.set_len(6 * PAGE_BYTES as u64).unwrap();
        chunk[7 * PAGE_BYTES + 6000] = 9;
        let pages = Pages::new(Lsn(2), PAGE_BYTES);
        inspect(&pages, &relation, &chunk);
        assert_eq!(texts(&pages), Vec::<String>::new());
        fs::remove_file(&path).unwrap();
        inspect(&pages, &relation, &chunk);
        assert_eq!(texts(&pages), Vec::<String>::new());
    }

    #[test]
    fn a_page_that_the_log_does_not_repair_must_be_right_in_the_copy_too() {
        let (temp, relation) = relation(0);
        let mut chunk = fs::read(temp.path().join("16384.1")).unwrap();
        chunk[6000] ^= 1;
        let pages = Pages::new(Lsn(2), PAGE_BYTES);
        inspect(&pages, &relation, &chunk);
        let found = texts(&pages);
        assert!(found[0].contains("block 0") && found[0].ends_with("with a right one later"), "{found:?}");
    }
}
