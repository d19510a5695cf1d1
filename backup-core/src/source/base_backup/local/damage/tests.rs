use std::fs;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use super::*;
use crate::postgres::page::PAGE_BYTES;

pub(in super::super) fn page(block: u32, lsn: u8) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    page[4..8].copy_from_slice(&u32::from(lsn).to_ne_bytes());
    page[14..16].copy_from_slice(&4096u16.to_ne_bytes());
    page[5000] = 7;
    let sum = page::checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_ne_bytes());
    page
}

/// Where the backups of these tests begin.
const START: Lsn = Lsn(5);
/// How far the server has come when they end.
const REACHED: Lsn = Lsn(20);

/// A file with eight pages, from before the start.
fn relation(first_block: u32) -> (tempfile::TempDir, Arc<Relation>) {
    relation_called("16384.1", first_block)
}

fn relation_called(name: &str, first_block: u32) -> (tempfile::TempDir, Arc<Relation>) {
    let temp = tempfile::tempdir().unwrap();
    let pages: Vec<u8> = (first_block..first_block + 8).flat_map(|block| page(block, 2)).collect();
    let path = temp.path().join(name);
    fs::write(&path, pages).unwrap();
    let file = fs::File::open(&path).unwrap();
    // Whoever writes to it afterwards does that at another time.
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let root = Arc::new(Root::open(None, temp.path()).unwrap());
    let written = written(&fstat(&file).unwrap());
    (temp, Arc::new(Relation { root, path: name.into(), first_block, written }))
}

fn inspect(pages: &Pages, relation: &Arc<Relation>, chunk: &[u8]) {
    let extent =
        Extent { at: 0, pages: chunk.len() / PAGE_BYTES, relation: Arc::clone(relation), block: relation.first_block };
    pages.inspect(&[extent], chunk);
}

fn texts(pages: &Pages) -> Vec<String> {
    pages.look_again().damage(REACHED).into_iter().map(|damaged| damaged.text).collect()
}

#[test]
fn a_relation_is_known_by_numbers() {
    let (_temp, relation) = relation(0);
    let numbers = |oid, path: &str| {
        let root = Arc::new(Root::open(oid, &relation.root.location).unwrap());
        Relation { root, path: path.into(), first_block: 0, written: (0, 0) }.numbers()
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
    let pages = Pages::new(START, PAGE_BYTES);
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
    let pages = Pages::new(START, PAGE_BYTES);
    inspect(&pages, &relation, &chunk);
    assert_eq!(texts(&pages), Vec::<String>::new());
    fs::remove_file(&path).unwrap();
    inspect(&pages, &relation, &chunk);
    assert_eq!(texts(&pages), Vec::<String>::new());
}

#[test]
fn a_wrong_page_is_the_logs_only_as_far_as_there_is_log() {
    // A page that the server writes all the time may be torn whenever it is read; and a flipped bit of a position makes it any number.
    for (lsn, is_damage) in [(4, true), (5, false), (20, false), (21, true), (255, true)] {
        let (temp, relation) = relation(0);
        let path = temp.path().join("16384.1");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let mut wrong = page(3, lsn);
        wrong[6000] ^= 1;
        file.write_all_at(&wrong, 3 * PAGE_BYTES as u64).unwrap();
        let pages = Pages::new(START, PAGE_BYTES);
        inspect(&pages, &relation, &fs::read(&path).unwrap());
        let found = texts(&pages);
        assert_eq!(found.len(), usize::from(is_damage), "{lsn}: {found:?}");
        assert!(found.iter().all(|text| text.contains("block 3: its checksum is")), "{found:?}");
    }
}

#[test]
fn garbage_in_the_copy_is_found_whatever_position_it_says() {
    let (temp, relation) = relation(0);
    let mut chunk = fs::read(temp.path().join("16384.1")).unwrap();
    chunk[PAGE_BYTES..2 * PAGE_BYTES].fill(0xA5);
    let pages = Pages::new(START, PAGE_BYTES);
    inspect(&pages, &relation, &chunk);
    let found = texts(&pages);
    assert!(found[0].contains("block 1") && found[0].ends_with("with a right one later"), "{found:?}");
}

#[test]
fn a_page_that_the_log_does_not_repair_must_be_right_in_the_copy_too() {
    let (temp, relation) = relation(0);
    let mut chunk = fs::read(temp.path().join("16384.1")).unwrap();
    chunk[6000] ^= 1;
    let pages = Pages::new(START, PAGE_BYTES);
    inspect(&pages, &relation, &chunk);
    let found = texts(&pages);
    assert!(found[0].contains("block 0") && found[0].ends_with("with a right one later"), "{found:?}");
}

#[test]
fn a_torn_page_of_a_map_is_no_damage_and_a_flipped_bit_in_one_is() {
    for (name, is_map) in [("16384_vm", true), ("16384_fsm", true), ("16384_init", false), ("16384", false)] {
        let (temp, relation) = relation_called(name, 0);
        let path = temp.path().join(name);
        // Its bits are cleared without a position in the log: torn, and then whole.
        let mut chunk = fs::read(&path).unwrap();
        chunk[6000] ^= 1;
        let pages = Pages::new(START, PAGE_BYTES);
        inspect(&pages, &relation, &chunk);
        assert_eq!(texts(&pages).is_empty(), is_map, "{name}");
        // What is wrong on disk is wrong on disk.
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"rot", 6000).unwrap();
        inspect(&pages, &relation, &fs::read(&path).unwrap());
        let found = texts(&pages);
        assert!(found.len() == 1 && found[0].contains("block 0: its checksum is"), "{name}: {found:?}");
    }
}

#[test]
fn a_page_that_was_cut_off_and_came_back_empty_is_no_damage() {
    let (temp, relation) = relation(0);
    let path = temp.path().join("16384.1");
    let mut chunk = fs::read(&path).unwrap();
    chunk[6 * PAGE_BYTES + 6000] ^= 1;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(6 * PAGE_BYTES as u64).unwrap();
    file.set_len(8 * PAGE_BYTES as u64).unwrap();
    let pages = Pages::new(START, PAGE_BYTES);
    inspect(&pages, &relation, &chunk);
    assert_eq!(texts(&pages), Vec::<String>::new());

    // Where nobody has written to the file, it is the disk that has lost a page.
    let relation = Relation {
        written: written(&fstat(&file).unwrap()),
        root: Arc::clone(&relation.root),
        path: relation.path.clone(),
        first_block: 0,
    };
    inspect(&pages, &Arc::new(relation), &chunk);
    assert!(texts(&pages)[0].contains("block 6"));
}

#[test]
fn a_page_of_an_index_in_the_making_may_be_torn() {
    for lsn in [0, 1, 2] {
        let (temp, relation) = relation(0);
        let path = temp.path().join("16384.1");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let mut chunk = fs::read(&path).unwrap();
        file.write_all_at(&page(3, lsn), 3 * PAGE_BYTES as u64).unwrap();
        chunk[3 * PAGE_BYTES + 6000] ^= 1;
        let pages = Pages::new(START, PAGE_BYTES);
        inspect(&pages, &relation, &chunk);
        assert_eq!(texts(&pages).is_empty(), lsn < 2, "{lsn}");
    }
}

#[test]
fn a_page_that_cannot_be_read_again_is_told_as_that() {
    let (temp, relation) = relation(0);
    let path = temp.path().join("16384.1");
    let mut chunk = fs::read(&path).unwrap();
    chunk[6000] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let pages = Pages::new(START, PAGE_BYTES);
    inspect(&pages, &relation, &chunk);
    assert!(texts(&pages)[0].contains("and then not at all: Is a directory"));
}

#[test]
fn a_file_that_ends_within_a_page_is_damaged_unless_it_was_growing() {
    let (temp, relation) = relation(131_072);
    let path = temp.path().join("16384.1");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let pages = Pages::new(START, PAGE_BYTES);
    // Extended, or cut off, since; still as it was.
    for (bytes, is_damage) in [(8, false), (7, false), (0, false)]
        .map(|(n, is)| (n * PAGE_BYTES as u64, is))
        .into_iter()
        .chain([(8 * PAGE_BYTES as u64 - 100, true), (8 * PAGE_BYTES as u64 + 100, false)])
    {
        file.set_len(bytes).unwrap();
        pages.ended_within(&relation, 131_079);
        let found = texts(&pages);
        assert_eq!(found.len(), usize::from(is_damage), "{bytes}: {found:?}");
        let words = "failed in 16384.1, block 131079: the file ends after 8092 bytes of it";
        assert!(found.iter().all(|text| text.contains(words)), "{found:?}");
    }
    fs::remove_file(&path).unwrap();
    pages.ended_within(&relation, 131_079);
    assert!(texts(&pages).is_empty());
}
