//! A stream comes back whatever pieces it arrives in, at any level.
#![no_main]

use backup_core::format::read_volume;
use backup_core::pipeline::BufferPool;
use backup_fuzz::{CHUNK, data_key, pieces, write_volume};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((level, cuts)) = bytes.split_first() else { return };
    let level = (level % 8 != 0).then_some(i32::from(level % 8) - 3);
    let pool = BufferPool::new(CHUNK);
    let (pieces, plain) = pieces(cuts, &pool);
    assert_eq!(read_volume(&write_volume(pieces, &pool, level), &data_key(), true), Ok(plain));
});
