//! Any bytes are either no manifest or one that survives writing and reading.
#![no_main]

use deepfuse_artifact::manifest::Manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::from_json(bytes) {
        assert_eq!(Manifest::from_json(manifest.to_json().as_bytes()), Ok(manifest));
    }
});
