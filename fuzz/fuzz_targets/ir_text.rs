//! The text form. What parses prints and parses to itself; whatever a text says, the verifier answers and every message renders.
#![no_main]

use deepfuse_ir::text::{parse, parse_unchecked};
use deepfuse_ir::verify::verify;

libfuzzer_sys::fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(graph) => {
            let printed = graph.to_string();
            let again = parse(&printed).unwrap_or_else(|e| panic!("{}\n{printed}", e[0].render(&printed)));
            assert_eq!(again, graph, "{printed}");
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for e in errors {
                assert!(!e.render(text).is_empty() && e.line > 0 && e.column > 0);
            }
        }
    }
    if let Ok(graph) = parse_unchecked(text) {
        let _ = graph.to_string();
        match verify(&graph) {
            // What the verifier accepts, the parser accepts: both ask the same type rules.
            Ok(()) => assert_eq!(parse(text).as_ref(), Ok(&graph)),
            Err(errors) => assert!(!errors.to_string().is_empty()),
        }
        let _ = (graph.constant_values(), graph.regions());
    }
});
