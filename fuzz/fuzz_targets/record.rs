//! Any bytes are either no tuning record or exactly those that it is written as.
#![no_main]

use deepfuse_cache::Record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = Record::from_json(bytes) {
        assert_eq!(record.to_json().as_bytes(), bytes);
    }
});
