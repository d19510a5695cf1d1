//! Whatever is stored as a rewrap. What was read is read again as it was written, and nothing is believed without its MAC.
#![no_main]

use backup_core::format::Rewrap;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(read) = Rewrap::decode(bytes) else { return };
    if let Ok(written) = read.encode(&backup_fuzz::data_key()) {
        assert_eq!(Rewrap::open(&written, &backup_fuzz::data_key()), Ok(read));
    }
});
