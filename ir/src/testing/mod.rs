//! Random well-typed graphs and values for them, for property tests of this and other crates (feature `testing`).
//!
//! ```ignore
//! proptest! {
//!     #[test]
//!     fn a_pass_keeps_the_meaning(g in testing::graphs(), batch in testing::batches(), seed: u64) {
//!         let (a, b) = (g.clone(), my_pass(g.clone()));
//!         let run = |g| evaluate(g, &batch.sizes(), &mut testing::values(g, &batch, seed), &mut |_, _| {});
//!         prop_assert_eq!(run(&a), run(&b));
//!     }
//! }
//! ```

mod build;
mod step;

pub use crate::values::{Batch, Sequence, values};
pub use build::{Builder, Ref};

use crate::graph::Graph;
use proptest::collection::vec;
use proptest::prelude::*;

/// Well-typed graphs that the verifier accepts, of up to about a hundred nodes over all ops. A shorter list of choices is a smaller graph.
pub fn graphs() -> impl Strategy<Value = Graph> {
    vec(any::<u16>(), 0..160).prop_map(|choices| graph_of(&choices))
}

/// The graph that a list of choices stands for; any list is legal.
pub fn graph_of(choices: &[u16]) -> Graph {
    let mut b = Builder::new(choices);
    while b.more() {
        b.step();
    }
    b.finish()
}

/// Ragged batches: 1 to 4 sequences with up to 130 cached and up to 5 new tokens each.
pub fn batches() -> impl Strategy<Value = Batch> {
    vec((0u32..130, 1u32..6), 1..5)
        .prop_map(|s| Batch { sequences: s.into_iter().map(|(cached, new)| Sequence { cached, new }).collect() })
}

#[cfg(test)]
mod tests;
