//! The manifest's text: round trip, and no panic whatever the bytes are.
#![allow(clippy::unwrap_used)]

mod common;

use deepfuse_artifact::elements::{Element, Elements};
use deepfuse_artifact::manifest::Manifest;
use proptest::prelude::*;
use std::sync::OnceLock;

fn sample() -> String {
    static SAMPLE: OnceLock<String> = OnceLock::new();
    let write = || common::write_default(&tempfile::tempdir().unwrap().path().join("m.dfz")).to_json();
    SAMPLE.get_or_init(write).clone()
}

#[test]
fn json_reads_what_it_wrote() {
    let text = sample();
    let manifest = Manifest::from_json(text.as_bytes()).unwrap();
    assert_eq!(manifest.to_json(), text);
    assert!(text.contains("\"elements\": \"f8e4m3:1024 f32:16\""), "{text}");
}

#[test]
fn elements_have_a_text_form() {
    for e in Element::ALL {
        assert_eq!(e.name().parse(), Ok(Elements::all(e)));
    }
    let runs = Elements::runs(&[(Element::I8, 5), (Element::F32, 4)]).unwrap();
    assert_eq!(runs.to_string(), "i8:5 f32:4");
    assert_eq!("i8:5 f32:4".parse(), Ok(runs));
    for bad in ["", "f99", "i8:0", "i8:5 f32", "i8:x", "i8: f32:4", "i8:5  f32:4"] {
        assert!(bad.parse::<Elements>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::from_json(&bytes);
    }

    #[test]
    fn a_changed_manifest_never_panics(at in 0..2000usize, len in 0..30usize, new in "[ -~]{0,8}") {
        let mut text = sample();
        let at = at.min(text.len());
        text.replace_range(at..(at + len).min(text.len()), &new);
        if let Ok(m) = Manifest::from_json(text.as_bytes()) {
            prop_assert_eq!(Manifest::from_json(m.to_json().as_bytes()), Ok(m));
        }
    }
}
