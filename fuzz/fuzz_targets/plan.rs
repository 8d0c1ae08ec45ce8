//! Any text is either no plan or one that prints and parses to itself.
#![no_main]

use deepfuse_artifact::plan_text;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(plan) = plan_text::parse(text) {
        assert_eq!(plan_text::parse(&plan_text::print(&plan)), Ok(plan));
    }
});
