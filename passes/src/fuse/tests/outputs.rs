//! Extraction: a value that somebody else uses is not fused away.
#![allow(clippy::unwrap_used)]

use super::near;
use super::near_misses::Case;
use crate::fuse::{FuseOptions, fuse, rules};
use deepfuse_ir::cost::Roofline;
use deepfuse_ir::eval::evaluate;
use deepfuse_ir::testing::{Batch, Sequence, values};
use deepfuse_ir::{Bucket, Graph, Tensor};

fn results(graph: &Graph, batch: &Batch) -> Vec<Tensor> {
    evaluate(graph, &batch.sizes(), &mut values(graph, batch, 1), &mut |_, _| {}).unwrap().outputs
}

/// In the case of every rule, every value in turn is a result of the graph too: fused, all results are there and what they were.
#[test]
fn no_result_is_fused_away() {
    let batch = Batch { sequences: vec![Sequence { cached: 3, new: 2 }, Sequence { cached: 64, new: 1 }] };
    let mut checked = 0;
    for case in Case::all().iter().filter(|c| rules::all().iter().any(|r| r.name == c.name)) {
        let others = rules::all().into_iter().filter(|r| !case.only.iter().any(|o| o == r.name));
        let disabled = others.map(|r| r.name.to_owned()).collect();
        let options = FuseOptions { disabled, ..FuseOptions::new(case.numerics) };
        let constant = case.graph.constant_values();
        for v in case.graph.nodes.iter().flat_map(|n| &n.results) {
            if case.graph.outputs.contains(v) || constant[v.index()] || case.graph.ty(*v).tensor().is_none() {
                continue;
            }
            let mut plain = case.graph.clone();
            plain.outputs.push(*v);
            let fused = fuse(&plain, &Roofline::SMALL_SERVER, &[Bucket::decode()], &options);
            let fused = fused.unwrap_or_else(|e| panic!("{}: {e}", case.name)).graphs.remove(0).1;
            for (a, b) in results(&plain, &batch).iter().zip(&results(&fused, &batch)) {
                near(a, b, case.numerics).unwrap_or_else(|e| panic!("{}: {e}\n{plain}{fused}", case.name));
            }
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked} values");
}
