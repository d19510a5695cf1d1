//! Objects that somebody without the key made up or changed: a volume is read as it was written, or not at all.
#![no_main]

use backup_core::format::read_volume;
use backup_fuzz::{damaged, data_key, sample};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = read_volume(bytes, &data_key(), true);
    for (object, plain) in [sample(Some(3)), sample(None)] {
        let changed = damaged(&object, bytes);
        let read = read_volume(&changed, &data_key(), true);
        assert_eq!(read.ok(), (changed == object).then_some(plain));
    }
});
