//! What the pipeline keeps of the machine's speed: ours beside the bare libraries in one run, alternating, and the ratios of both.
//!
//! ```text
//! cargo bench -p backup-benches --bench ratios [-- [--rounds N] [--mib N] [--only TEXT] [--check]]
//! ```
//!
//! `--check` makes it fail when a ratio is below what is `promised` below. Ratios are medians of those of the rounds; each is given
//! twice, by the clock and by processor time, since only the latter means much where others use the machine.
#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

use std::cell::OnceCell;
use std::process::{Command, ExitCode};

use backup_benches::data::{CHUNK, Repeated, RepeatedReader};
use backup_benches::measure::{Took, median, peak_rss, time};
use backup_benches::null_store::NullStore;
use backup_benches::run::World;
use backup_benches::{bare, data};
use backup_core::compress::Compression;
use backup_core::repository::Location;
use backup_core::repository::layout::BackupPath;
use backup_core::source::ReaderSource;
use bytes::Bytes;
use object_store::memory::InMemory;

const ZSTD: Compression = Compression::Zstd(3);

/// What the memory of one process with default limits and a local repository is to stay below.
const PEAK_PROMISED: u64 = 48 << 20;

struct Options {
    rounds: usize,
    /// Length of each stream.
    mib: usize,
    check: bool,
    /// Only rows that have this in their name.
    only: String,
    /// Only this, once, then say how much memory it took.
    peak: Option<String>,
}

impl Options {
    fn parse() -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        // Without cargo bench's own flag it is a test that this runs at all.
        let measuring = args.iter().any(|arg| arg == "--bench");
        let after = |name: &str| args.iter().skip_while(|arg| *arg != name).nth(1);
        let number = |name: &str| after(name).map(|n| n.parse().expect("a number"));
        Self {
            rounds: number("--rounds").unwrap_or(if measuring { 7 } else { 1 }),
            mib: number("--mib").unwrap_or(if measuring { 1024 } else { 4 }),
            check: args.iter().any(|arg| arg == "--check"),
            only: after("--only").cloned().unwrap_or_default(),
            peak: after("--peak").cloned(),
        }
    }
}

/// What the rows work on. Made when first used, so that a single row costs no more than itself.
struct Fixture {
    dump: Bytes,
    random: Bytes,
    /// Streams are the data so many times over.
    times: usize,
    /// A store that drops, and one that keeps.
    null: World,
    memory: World,
    frames: OnceCell<Vec<Vec<u8>>>,
    zstd_backup: OnceCell<BackupPath>,
    plain_backup: OnceCell<BackupPath>,
}

impl Fixture {
    fn new(mib: usize) -> Self {
        // Large enough to be in no cache, small enough to be made quickly.
        let unit = mib.min(128);
        Self {
            dump: data::dump(unit << 20),
            random: data::random(unit << 20),
            times: mib / unit,
            null: World::of_store(NullStore::default()),
            memory: World::of_store(InMemory::new()),
            frames: OnceCell::new(),
            zstd_backup: OnceCell::new(),
            plain_backup: OnceCell::new(),
        }
    }

    fn backup(&self, data: &Bytes, compression: Compression) {
        self.null.backup(Repeated::new(data, self.times), compression);
    }

    fn restore(&self, backup: &OnceCell<BackupPath>, compression: Compression) {
        let made = || self.memory.backup(Repeated::new(&self.dump, self.times), compression);
        self.memory.restore(backup.get_or_init(made));
    }

    fn reader(&self) -> ReaderSource {
        ReaderSource::new(RepeatedReader::new(&self.dump, self.times)).expect("a thread")
    }

    fn bare_seal(&self) {
        bare::seal(self.times * self.dump.len() / CHUNK, bare::threads());
    }

    fn bare_decompress(&self) {
        bare::decompress(self.frames.get_or_init(|| bare::frames(&self.dump, 3)), self.times, bare::threads());
    }
}

/// Two ways to do the same.
struct Row {
    name: &'static str,
    /// What `bare` is.
    beside: &'static str,
    /// The least ratio of `ours` to `bare`.
    promised: Option<f64>,
    ours: fn(&Fixture),
    bare: fn(&Fixture),
}

const ROWS: [Row; 6] = [
    Row {
        name: "backup, zstd 3",
        beside: "zstd 3 on as many threads",
        promised: Some(0.95),
        ours: |f| f.backup(&f.dump, ZSTD),
        bare: |f| bare::compress(&f.dump, f.times, 3, bare::threads()),
    },
    Row {
        name: "backup, none",
        beside: "AES-256-GCM on as many threads",
        promised: Some(0.8),
        ours: |f| f.backup(&f.dump, Compression::None),
        bare: Fixture::bare_seal,
    },
    Row {
        name: "backup, none, from a reader",
        beside: "the reader alone",
        promised: None,
        ours: |f| _ = f.null.backup(f.reader(), Compression::None),
        bare: |f| f.null.drain(f.reader()),
    },
    Row {
        name: "backup, zstd 3, random data",
        beside: "AES-256-GCM on as many threads",
        promised: None,
        ours: |f| f.backup(&f.random, ZSTD),
        bare: Fixture::bare_seal,
    },
    Row {
        name: "restore, zstd 3",
        beside: "decompression on as many threads",
        promised: Some(0.9),
        ours: |f| f.restore(&f.zstd_backup, ZSTD),
        bare: Fixture::bare_decompress,
    },
    Row {
        name: "restore, none",
        beside: "AES-256-GCM on as many threads",
        promised: None,
        ours: |f| f.restore(&f.plain_backup, Compression::None),
        bare: Fixture::bare_seal,
    },
];

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(what) = &options.peak {
        return peak(what, options.mib);
    }
    let kept = measure_speed(&options);
    let small = !options.only.is_empty() || measure_memory(options.mib);
    if options.check && !(kept && small) {
        println!("\nsomething is below what was promised");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure_speed(options: &Options) -> bool {
    let fixture = Fixture::new(options.mib);
    println!("{} MiB streams, {} threads, {} rounds\n", options.mib, bare::threads(), options.rounds);
    println!("{:28} {:>6}  {:>6}  {:34} {:>6} {:>6}  promised", "", "GB/s", "bare", "which is", "ratio", "of CPU");
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.name.contains(&options.only)).collect();
    let mut took: Vec<Vec<(Took, Took)>> = rows.iter().map(|_| Vec::new()).collect();
    for row in &rows {
        (row.ours)(&fixture);
        (row.bare)(&fixture);
    }
    for round in 0..options.rounds {
        for (row, took) in rows.iter().zip(&mut took) {
            took.push(alternate(row, &fixture, round % 2 == 0));
        }
    }
    // All are printed, also below the first that fails.
    let kept: Vec<bool> = rows.iter().zip(&took).map(|(row, took)| print_row(row, took, options.mib << 20)).collect();
    kept.iter().all(|kept| *kept)
}

/// Ours and bare, one after the other: who goes first finds other caches.
fn alternate(row: &Row, fixture: &Fixture, ours_first: bool) -> (Took, Took) {
    let (ours, bare) = (|| time(|| (row.ours)(fixture)), || time(|| (row.bare)(fixture)));
    if ours_first {
        let ours = ours();
        (ours, bare())
    } else {
        let bare = bare();
        (ours(), bare)
    }
}

fn print_row(row: &Row, took: &[(Took, Took)], bytes: usize) -> bool {
    let of = |value: fn(&(Took, Took)) -> f64| median(&mut took.iter().map(value).collect::<Vec<_>>());
    let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
    let (ours, bare) = (of(|(ours, _)| ours.wall.as_secs_f64()), of(|(_, bare)| bare.wall.as_secs_f64()));
    let ratio = of(|(ours, bare)| bare.wall.as_secs_f64() / ours.wall.as_secs_f64());
    let cpu = of(|(ours, bare)| bare.cpu.as_secs_f64() / ours.cpu.as_secs_f64());
    let promised = row.promised.map_or(String::new(), |least| format!("{least:.2}"));
    println!(
        "{:28} {:>6.2}  {:>6.2}  {:34} {ratio:>6.3} {cpu:>6.3}  {promised}",
        row.name,
        rate(ours),
        rate(bare),
        row.beside
    );
    row.promised.is_none_or(|least| ratio >= least)
}

/// Peaks of processes of their own: in this one the data for all rows is resident.
fn measure_memory(mib: usize) -> bool {
    println!("\n{:28} {:>8}  promised", "peak memory", "MiB");
    let own = std::env::current_exe().expect("this program has a path");
    let mut small = true;
    for what in ["backup-zstd", "backup-none", "restore-zstd", "restore-none"] {
        let run = Command::new(&own).args(["--peak", what, "--mib", &mib.to_string()]).output();
        let run = run.expect("this program can be run again");
        let text = String::from_utf8_lossy(&run.stdout);
        let peak: u64 = text.trim().parse().unwrap_or_else(|_| panic!("no figure from --peak {what}: {run:?}"));
        println!("{what:28} {:>8.1}  {}", peak as f64 / f64::from(1 << 20), PEAK_PROMISED >> 20);
        small &= peak <= PEAK_PROMISED;
    }
    small
}

/// One run against a local repository, with its stream read from a reader; prints the bytes that it had resident at most.
fn peak(what: &str, mib: usize) -> ExitCode {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let location = Location::directory(temp.path()).expect("a directory");
    let world = World::new(&location);
    let compression = if what.ends_with("zstd") { ZSTD } else { Compression::None };
    let source = || ReaderSource::new(RepeatedReader::new(&data::dump(2 << 20), mib / 2)).expect("a thread");
    let path = world.backup(source(), compression);
    if what.starts_with("restore") {
        // 5: forget the peak so far.
        let forgotten = std::fs::write("/proc/self/clear_refs", "5");
        if forgotten.is_err() {
            println!("the peak of the backup cannot be forgotten");
            return ExitCode::FAILURE;
        }
        world.restore(&path);
    }
    match peak_rss() {
        Some(bytes) => println!("{bytes}"),
        None => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}
