//! Volumes that somebody who has the key filled with anything: the index says what it likes, frames are what they are. Nothing panics, and
//! nothing becomes longer than the index says.
#![no_main]

use backup_core::format::{Codec, Flag, SeekTable, read_volume};
use backup_fuzz::{Volume, data_key};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some(([codec, chunks, index_len], rest)) = bytes.split_first_chunk() else { return };
    let mut volume = Volume::begin(if codec % 2 == 0 { Codec::Zstd } else { Codec::None });
    let (index, frames) = rest.split_at(usize::from(*index_len).min(rest.len()));
    let mut table = SeekTable::default();
    for frame in frames.chunks(frames.len() / (usize::from(*chunks % 4) + 1) + 1) {
        volume.push(Flag::Data, frame);
        table.frames.push((frame.len() as u32, 4096));
    }
    // Any index at all, or a proper one whose last chunk has any length.
    let object = match index.first_chunk() {
        Some(plain_len) if codec & 2 != 0 => {
            table
                .frames
                .iter_mut()
                .next_back()
                .into_iter()
                .for_each(|last| last.1 = u16::from_le_bytes(*plain_len).into());
            volume.finish(&table.encode())
        }
        _ => volume.finish(index),
    };
    let longest = table.frames.len() * 4096;
    assert!(!read_volume(&object, &data_key(), true).is_ok_and(|plain| plain.len() > longest));
});
