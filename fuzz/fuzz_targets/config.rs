//! `config.json`. What is accepted has bounded sizes, and its graph can be built.
#![no_main]

use deepfuse_frontend::{Activations, Config, Model, build, parameters};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = Config::parse(data) else { return };
    let counts = parameters(&config);
    assert!(counts.active <= counts.total);
    assert!(config.softmax_scale.is_finite() && config.softmax_scale > 0.0);
    if config.layers > 8 {
        return; // more of the same, slowly
    }
    let model = Model { dir: "fuzz".into(), config, tensors: None, notices: vec![] };
    build(&model, Activations::Bf16).expect("an accepted configuration has a graph");
});
