//! Each stage alone, on one thread.

use backup_benches::data::{self, CHUNK};
use backup_core::chunk::{Cutter, RECORD_HEAD, RECORD_TAIL_MAX};
use backup_core::compress::{Compressor, Content, Decompressor};
use backup_core::encrypt::{DataKey, SALT_LEN, Suite, VolumeKey, open_record, seal_record};
use backup_core::format::Flag;
use backup_core::pipeline::BufferPool;
use backup_core::source::Piece;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// As many different chunks as are in no cache at once, or zstd learns the way through one of them by heart.
const CHUNKS: usize = 16;

fn cut(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunk");
    let pool = BufferPool::new(CHUNK);
    let dump = data::dump(CHUNKS * CHUNK);
    group.throughput(Throughput::Bytes(dump.len() as u64));
    let whole = [dump.clone()];
    let messages: Vec<Bytes> = dump.chunks(64 << 10).map(|piece| dump.slice_ref(piece)).collect();
    for (name, pieces) in [("slices of large bytes", &whole[..]), ("gathered from 64 KiB", &messages)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut cutter = Cutter::new(pool.clone());
                for piece in pieces {
                    cutter.push(Piece::Bytes(piece.clone()));
                    while let Some(chunk) = cutter.next_chunk() {
                        std::hint::black_box(chunk.as_slice());
                    }
                }
                cutter.finish()
            });
        });
    }
}

fn compress(c: &mut Criterion) {
    let mut group = c.benchmark_group("compress");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    let (dump, random) = (data::dump(CHUNKS * CHUNK), data::random(CHUNKS * CHUNK));
    for (name, level, data) in [("zstd 3", 3, &dump), ("zstd 1", 1, &dump), ("zstd 3, random data", 3, &random)] {
        let mut compressor = Compressor::new(level, Content::Any);
        let mut frame = vec![0; CHUNK + RECORD_TAIL_MAX];
        let mut chunks = data.chunks(CHUNK).cycle();
        group.bench_function(name, |b| {
            b.iter(|| compressor.compress(chunks.next().expect("endless"), &mut frame));
        });
    }
}

fn decompress(c: &mut Criterion) {
    let mut group = c.benchmark_group("decompress");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    for (name, data) in [("zstd 3", data::dump(CHUNKS * CHUNK)), ("raw blocks", data::random(CHUNKS * CHUNK))] {
        let mut compressor = Compressor::new(3, Content::Any);
        let frame = |chunk| {
            let mut frame = vec![0; CHUNK + RECORD_TAIL_MAX];
            let len = compressor.compress(chunk, &mut frame);
            frame.truncate(len);
            frame
        };
        let frames: Vec<Vec<u8>> = data.chunks(CHUNK).map(frame).collect();
        let mut frames = frames.iter().cycle();
        let (mut decompressor, mut plain) = (Decompressor::new(), vec![0; CHUNK]);
        group.bench_function(name, |b| {
            b.iter(|| decompressor.decompress(frames.next().expect("endless"), &mut plain));
        });
    }
}

fn seal_and_open(c: &mut Criterion) {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let key = VolumeKey::derive(&DataKey::from_bytes([7; 32]), suite, &[0; SALT_LEN], b"header");
        let mut slab = vec![0; RECORD_HEAD + CHUNK + RECORD_TAIL_MAX];
        let mut group = c.benchmark_group("seal");
        group.throughput(Throughput::Bytes(CHUNK as u64));
        group.bench_function(format!("{suite:?}"), |b| {
            b.iter(|| seal_record(&key, 0, Flag::Data, &mut slab, CHUNK));
        });
        group.finish();
        let sealed = seal_record(&key, 0, Flag::Data, &mut slab, CHUNK);
        let mut group = c.benchmark_group("open");
        group.throughput(Throughput::Bytes(CHUNK as u64));
        group.bench_function(format!("{suite:?}"), |b| {
            b.iter_batched_ref(
                || slab[..sealed].to_vec(),
                |record| open_record(&key, 0, &[Flag::Data], record, CHUNK),
                BatchSize::LargeInput,
            );
        });
    }
}

fn hash(c: &mut Criterion) {
    let mut group = c.benchmark_group("blake3");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    let data = data::random(CHUNK);
    let mut hasher = blake3::Hasher::new();
    group.bench_function("a record", |b| b.iter(|| hasher.update(&data).count()));
}

criterion_group!(stages, cut, compress, decompress, seal_and_open, hash);
criterion_main!(stages);
