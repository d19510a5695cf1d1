//! Whatever stands at the start of an object: a header that is read, or an error. What was read is read again as it was written.
#![no_main]

use backup_core::format::Preamble;

libfuzzer_sys::fuzz_target!(|object: &[u8]| {
    let Ok(read) = Preamble::decode(object) else { return };
    if let Ok(written) = Preamble::new(read.header.clone()) {
        assert_eq!(Preamble::decode(written.bytes()).map(|again| again.header), Ok(read.header));
    }
});
