//! What the machine can do: the bare libraries, on as many threads as we use, with nothing around them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zstd::bulk;

use crate::data::CHUNK;

/// One thread for each core that [`Limits`](backup_core::pipeline::Limits) would use.
pub fn threads() -> usize {
    backup_core::pipeline::Limits::for_parts_of(CHUNK).workers.get()
}

/// Compresses each chunk of `data`, `times` times over, with one-shot calls and one context for each thread.
pub fn compress(data: &Bytes, times: usize, level: i32, threads: usize) {
    let chunks: Vec<&[u8]> = data.chunks(CHUNK).collect();
    for_each(chunks.len() * times, threads, || {
        let mut context = bulk::Compressor::new(level).expect("a valid level");
        let mut out = vec![0; CHUNK + CHUNK / 128];
        let chunks = &chunks;
        move |i| {
            context.compress_to_buffer(chunks[i % chunks.len()], &mut out).expect("there is room");
        }
    });
}

/// The frames that [`decompress`] reads.
pub fn frames(data: &Bytes, level: i32) -> Vec<Vec<u8>> {
    data.chunks(CHUNK).map(|chunk| bulk::compress(chunk, level).expect("it fits into memory")).collect()
}

/// Decompresses each frame, `times` times over.
pub fn decompress(frames: &[Vec<u8>], times: usize, threads: usize) {
    for_each(frames.len() * times, threads, || {
        let mut context = bulk::Decompressor::new().expect("a context");
        let mut out = vec![0; CHUNK];
        move |i| {
            context.decompress_to_buffer(&frames[i % frames.len()], &mut out).expect("our own frame");
        }
    });
}

/// Seals `chunks` chunks with AES-256-GCM, in place.
pub fn seal(chunks: usize, threads: usize) {
    for_each(chunks, threads, || {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes"));
        let mut data = vec![0; CHUNK];
        move |_| {
            let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
            _ = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut data).expect("a short text");
        }
    });
}

/// The BLAKE3 digest of `data`, `times` times over, on one thread: a digest of one object is one computation.
pub fn hash(data: &Bytes, times: usize) {
    let mut hasher = blake3::Hasher::new();
    for _ in 0..times {
        for chunk in data.chunks(CHUNK) {
            hasher.update(chunk);
        }
    }
    std::hint::black_box(hasher.finalize());
}

/// Calls a job for each of `0..count`, on `threads` threads that make it once each.
fn for_each<J: FnMut(usize)>(count: usize, threads: usize, make: impl Fn() -> J + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut job = make();
                while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < count) {
                    job(i);
                }
            });
        }
    });
}
