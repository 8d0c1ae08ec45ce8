//! Arbitrary bytes and arbitrary JSON never panic the parsers; what they accept is within bounds.
#![allow(clippy::unwrap_used)]

use deepfuse_frontend::{Config, parameters, parse_index, safetensors};
use proptest::prelude::*;
use serde_json::{Value, json};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        "[a-z0-9_/.\\\\]{0,12}".prop_map(Value::from),
        prop_oneof![Just("F32"), Just("BF16"), Just("F8_E4M3"), Just("yarn"), Just("fp8")].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{1,10}", inner), 0..5).prop_map(|v| Value::Object(v.into_iter().collect())),
        ]
    })
}

fn base() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/checkpoints/deepseek-v3-config/config.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A header entry whose numbers are near the truth.
fn entry() -> impl Strategy<Value = Value> {
    let dtype = prop_oneof![Just("F32"), Just("BF16"), Just("F4"), Just("U8"), Just("X")];
    let shape = prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4);
    (dtype, shape, 0u64..32, 0u64..64)
        .prop_map(|(d, s, from, to)| json!({"dtype": d, "shape": s, "data_offsets": [from, to]}))
}

proptest! {
    #[test]
    fn config_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Config::parse(&bytes);
        let _ = parse_index(&bytes);
        let _ = safetensors::parse(&bytes);
    }

    /// A released configuration with one to three fields replaced by anything.
    #[test]
    fn config_with_any_fields(edits in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..4)) {
        let mut value = base();
        let map = value.as_object_mut().unwrap();
        for (index, new) in edits {
            let key = map.keys().nth(index.index(map.len())).unwrap().clone();
            map.insert(key, new);
        }
        if let Ok(c) = Config::parse(value.to_string().as_bytes()) {
            prop_assert!(c.layers <= 4096 && c.hidden <= 1 << 24 && c.rope_dim % 2 == 0);
            prop_assert!(c.softmax_scale.is_finite() && c.softmax_scale > 0.0);
            prop_assert!(parameters(&c).active <= parameters(&c).total);
        }
    }

    /// The same in `rope_scaling` and `quantization_config`.
    #[test]
    fn config_with_any_nested_fields(
        inner in prop_oneof![Just("rope_scaling"), Just("quantization_config")],
        index in any::<prop::sample::Index>(),
        new in any_json(),
    ) {
        let mut value = base();
        let map = value[inner].as_object_mut().unwrap();
        let key = map.keys().nth(index.index(map.len())).unwrap().clone();
        map.insert(key, new);
        if let Ok(c) = Config::parse(value.to_string().as_bytes()) {
            prop_assert!(c.softmax_scale.is_finite() && c.softmax_scale > 0.0);
        }
    }

    #[test]
    fn header_of_any_json(header in any_json(), data in 0usize..64) {
        let text = header.to_string();
        let file = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat();
        let _ = safetensors::parse(&file);
    }

    /// What is accepted lies in the file, touches, and has the size of its shape.
    #[test]
    fn header_near_the_truth(entries in prop::collection::vec(("[a-d]", entry()), 0..4), data in 0usize..80, cut in 0usize..8) {
        let header = Value::Object(entries.into_iter().collect()).to_string();
        let mut file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
        file.truncate(file.len() - cut.min(file.len()));
        if let Ok(tensors) = safetensors::parse(&file) {
            let mut end = 8 + header.len();
            for e in tensors.values() {
                prop_assert_eq!(e.range.start, end);
                prop_assert_eq!(e.shape.iter().product::<u64>() * e.dtype.bits(), 8 * e.range.len() as u64);
                end = e.range.end;
            }
            prop_assert_eq!(end, file.len());
        }
    }

    #[test]
    fn index_of_any_json(map in any_json()) {
        if let Ok(index) = parse_index(json!({"weight_map": map}).to_string().as_bytes()) {
            prop_assert!(index.values().all(|f| !f.contains('/') && !f.is_empty() && f != ".." && f != "."));
        }
    }
}
