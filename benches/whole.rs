//! Whole backups to a null store and whole restores to a null sink, beside the bare libraries on as many threads.

use backup_benches::data::{CHUNK, Repeated};
use backup_benches::null_store::NullStore;
use backup_benches::run::World;
use backup_benches::{bare, data};
use backup_core::compress::Compression;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use object_store::memory::InMemory;

const CHUNKS: usize = 128;
/// A stream is the data several times over: long enough for what a run costs once not to count.
const TIMES: usize = 4;

/// How long streams are: short ones when all that is asked is whether the benchmark runs.
fn scale(c: &Criterion) -> (usize, usize) {
    let _ = c;
    if std::env::args().any(|arg| arg == "--bench") { (CHUNKS, TIMES) } else { (4, 1) }
}

fn backup(c: &mut Criterion) {
    let (chunks, times) = scale(c);
    let (dump, random) = (data::dump(chunks * CHUNK), data::random(chunks * CHUNK));
    let world = World::of_store(NullStore::default());
    let mut group = c.benchmark_group("backup");
    group.sample_size(10).throughput(Throughput::Bytes((chunks * times * CHUNK) as u64));
    for (name, compression, data) in [
        ("zstd 3", Compression::Zstd(3), &dump),
        ("zstd 1", Compression::Zstd(1), &dump),
        ("zstd 3, random data", Compression::Zstd(3), &random),
        ("none", Compression::None, &dump),
    ] {
        group.bench_function(name, |b| b.iter(|| world.backup(Repeated::new(data, times), compression)));
    }
    group.bench_function("bare zstd 3", |b| b.iter(|| bare::compress(&dump, times, 3, bare::threads())));
    group.bench_function("bare AES-256-GCM", |b| b.iter(|| bare::seal(chunks * times, bare::threads())));
}

fn restore(c: &mut Criterion) {
    let (chunks, times) = scale(c);
    let dump = data::dump(chunks * CHUNK);
    let world = World::of_store(InMemory::new());
    let mut group = c.benchmark_group("restore");
    group.sample_size(10).throughput(Throughput::Bytes((chunks * times * CHUNK) as u64));
    for (name, compression) in [("zstd 3", Compression::Zstd(3)), ("none", Compression::None)] {
        let path = world.backup(Repeated::new(&dump, times), compression);
        group.bench_function(name, |b| b.iter(|| world.restore(&path)));
    }
    let frames = bare::frames(&dump, 3);
    group.bench_function("bare zstd", |b| b.iter(|| bare::decompress(&frames, times, bare::threads())));
}

criterion_group!(whole, backup, restore);
criterion_main!(whole);
