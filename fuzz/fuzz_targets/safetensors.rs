//! A shard, and the index of shards. The first byte says which of them the rest is.
#![no_main]

use deepfuse_frontend::{parse_index, safetensors};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        // A header text with its length put before it, so that the fuzzer need not guess eight bytes.
        0 => check(&[&(rest.len() as u64).to_le_bytes(), rest, &[0; 64]].concat()),
        1 => check(rest),
        _ => {
            let _ = parse_index(rest);
        }
    }
});

/// What is accepted lies in the file and has the size of its shape.
fn check(file: &[u8]) {
    let Ok(tensors) = safetensors::parse(file) else { return };
    for (name, e) in &tensors {
        let bytes = file.get(e.range.clone()).unwrap_or_else(|| panic!("{name} lies in the file"));
        let elements: u64 = e.shape.iter().product();
        assert_eq!(elements * e.dtype.bits(), 8 * bytes.len() as u64, "{name}");
    }
}
