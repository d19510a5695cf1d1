//! Who copies what: files are handed out one by one to whoever is free, the largest of a root first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::tree::{Choice, Item, Root, Walk};

/// Files from this size on are handed out before all others: so no lane is left with a large one in the end.
const LARGE_BYTES: u64 = 4 << 20;
/// As many of them, at most, are known at once; what is beyond comes as it is found.
const LARGE_MAX: usize = 4096;
/// So much of a root is worth a stream of its own.
const STREAM_BYTES: u64 = 32 << 20;

/// All that there is to copy.
#[derive(Debug)]
pub(super) struct Queue {
    choice: Choice,
    /// The tablespaces, and last the data directory: the control file is copied after everything else.
    roots: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    root: Arc<Root>,
    /// The largest last.
    large: Vec<Vec<u8>>,
    large_all: HashSet<Vec<u8>>,
    walk: Option<Walk>,
    /// Whether the directory that is walked was there.
    found: bool,
    /// How many streams there are of it, and how many there may be.
    streams: usize,
    streams_max: usize,
}

/// A stream that is to be read now.
#[derive(Debug)]
pub(super) struct Begun {
    /// Of which root, by its number.
    pub(super) of: usize,
    pub(super) root: Arc<Root>,
    /// Which of its streams, from 0.
    pub(super) number: usize,
    /// With what it begins.
    pub(super) first: Option<Item>,
}

/// Why something cannot be copied.
pub(super) type Failed = (Arc<Root>, Vec<u8>, Errno);

impl Queue {
    /// Looks at all files once. `lanes` read at once. Blocks.
    pub(super) fn new(roots: Vec<Arc<Root>>, choice: Choice, lanes: usize) -> Result<Self, Failed> {
        let pending: Result<_, _> = roots.into_iter().map(|root| Pending::survey(root, &choice, lanes)).collect();
        Ok(Self { choice, roots: pending? })
    }

    /// The tablespaces that are copied.
    pub(super) fn tablespaces(&self) -> Vec<u32> {
        self.roots.iter().filter(|pending| pending.found).filter_map(|pending| pending.root.oid).collect()
    }

    /// The next stream for a lane that has come to the root `from`. The main lane has the first stream of the data directory, and nobody else.
    pub(super) fn begin(&mut self, from: usize, main: bool) -> Result<Option<Begun>, Failed> {
        let last = self.roots.len() - 1;
        for of in from..self.roots.len() {
            let own = if of == last { main } else { self.roots[of].streams == 0 };
            let pending = &mut self.roots[of];
            // One of the data directory's is the main lane's, begun or not.
            if !own && pending.streams.max(usize::from(of == last)) >= pending.streams_max {
                continue;
            }
            let first = pending.next(&self.choice)?;
            if !own && first.is_none() {
                continue;
            }
            // That of the main lane is the first, however late it comes.
            let number = if own { 0 } else { pending.streams.max(1) };
            pending.streams = pending.streams.max(number + 1);
            return Ok(Some(Begun { of, root: Arc::clone(&pending.root), number, first }));
        }
        Ok(None)
    }

    /// What to copy next of a root.
    pub(super) fn next(&mut self, of: usize) -> Result<Option<Item>, Failed> {
        self.roots[of].next(&self.choice)
    }
}

impl Pending {
    fn survey(root: Arc<Root>, choice: &Choice, lanes: usize) -> Result<Self, Failed> {
        let failed = |path: Vec<u8>, errno| (Arc::clone(&root), path, errno);
        let mut walk = Walk::new(&root, choice).map_err(|errno| failed(Vec::new(), errno))?;
        let mut heap = BinaryHeap::new();
        let mut bytes = 0u64;
        while let Some(item) = walk.next(&root, choice) {
            let Item::File(path) = item.map_err(|(path, errno)| failed(path, errno))? else { continue };
            // Whatever is wrong with it shows when it is copied.
            let Ok(stat) = root.stat(&path, false) else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                continue;
            }
            let size = u64::try_from(stat.st_size).unwrap_or_default();
            bytes = bytes.saturating_add(size);
            if size >= LARGE_BYTES {
                heap.push(Reverse((size, path)));
            }
            if heap.len() > LARGE_MAX {
                heap.pop();
            }
        }
        // The order is that of `Reverse`: what comes last is the smallest.
        let mut large: Vec<Vec<u8>> = heap.into_sorted_vec().into_iter().map(|Reverse((_, path))| path).collect();
        large.reverse();
        let walk = Walk::new(&root, choice).map_err(|errno| failed(Vec::new(), errno))?;
        let streams_max = usize::try_from(bytes / STREAM_BYTES).unwrap_or(lanes).clamp(1, lanes.max(1));
        let (large_all, found) = (large.iter().cloned().collect(), walk.has_begun());
        Ok(Self { large_all, large, walk: Some(walk), found, streams: 0, streams_max, root })
    }

    fn next(&mut self, choice: &Choice) -> Result<Option<Item>, Failed> {
        if let Some(path) = self.large.pop() {
            return Ok(Some(Item::File(path)));
        }
        while let Some(walk) = &mut self.walk {
            match walk.next(&self.root, choice) {
                Some(Ok(Item::File(path))) if self.large_all.contains(&path) => {}
                Some(Ok(item)) => return Ok(Some(item)),
                Some(Err((path, errno))) => return Err((Arc::clone(&self.root), path, errno)),
                None => self.walk = None,
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn root(oid: Option<u32>, files: &[(&str, u64)]) -> (tempfile::TempDir, Arc<Root>) {
        let temp = tempfile::tempdir().unwrap();
        for (name, size) in files {
            let path = temp.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_len(*size).unwrap();
        }
        let root = Root::open(oid, temp.path()).unwrap();
        (temp, Arc::new(root))
    }

    fn queue(roots: Vec<Arc<Root>>, lanes: usize) -> Queue {
        let choice = Choice { version_directory: "PG".to_owned(), major: 15, ..Choice::default() };
        Queue::new(roots, choice, lanes).unwrap()
    }

    #[test]
    fn everything_is_handed_out_once_and_the_largest_first() {
        let (_temp, data) = root(
            None,
            &[
                ("base/1/10", 5 << 20),
                ("base/1/11", 1),
                ("base/1/12", 70 << 20),
                ("base/2/13", 6 << 20),
                ("global/1", 3),
            ],
        );
        let mut queue = queue(vec![data], 2);
        let mut items: Vec<Item> = std::iter::from_fn(|| queue.next(0).unwrap()).collect();
        let file = |path: &str| Item::File(path.as_bytes().to_vec());
        assert_eq!(items[..3], [file("base/1/12"), file("base/2/13"), file("base/1/10")]);
        items.sort_by_key(|item| format!("{item:?}"));
        items.dedup();
        assert_eq!(items.len(), 5 + 4, "five files, four directories, none twice");
    }

    #[test]
    fn a_small_root_is_one_stream_and_the_main_lane_has_the_first_of_the_data_directory() {
        let (_a, small) = root(Some(1), &[("PG/5/1", 1)]);
        let (_b, data) = root(None, &[("base/1/1", 40 << 20), ("base/1/2", 40 << 20), ("base/1/3", 1)]);
        let mut queue = queue(vec![small, data], 3);
        let mut begin = |from, main| queue.begin(from, main).unwrap().map(|b| (b.of, b.number, b.first.is_some()));
        assert_eq!(begin(0, false), Some((0, 0, true)));
        // The other lane comes first to the data directory, and does not take its first stream.
        assert_eq!(begin(0, false), Some((1, 1, true)));
        assert_eq!(begin(0, true), Some((1, 0, true)));
        assert_eq!(begin(1, false), None, "80 MiB are worth two streams, and no more");
    }

    #[test]
    fn a_root_without_anything_has_a_stream_all_the_same() {
        let (_a, empty) = root(Some(1), &[]);
        let (_b, data) = root(None, &[]);
        let mut queue = queue(vec![empty, data], 2);
        let mut begin = |from, main| queue.begin(from, main).unwrap().map(|b| (b.of, b.number, b.first.is_some()));
        assert_eq!(begin(0, true), Some((0, 0, false)));
        assert_eq!(begin(1, true), Some((1, 0, false)));
        assert_eq!(begin(0, false), None);
    }
}
