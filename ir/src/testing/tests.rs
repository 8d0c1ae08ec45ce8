#![allow(clippy::unwrap_used)]

use super::*;
use crate::Op;
use crate::eval::evaluate;
use crate::verify::verify;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;

/// The generator is worth something only while it reaches every op.
#[test]
fn every_op_occurs() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        let g = graphs().new_tree(&mut runner).unwrap().current();
        seen.extend(g.nodes.iter().map(|n| n.op));
    }
    let missing: Vec<&str> = Op::ALL.iter().filter(|op| !seen.contains(op)).map(|op| op.name()).collect();
    assert!(missing.is_empty(), "never generated: {missing:?}");
}

proptest! {
    #[test]
    fn generated_graphs_verify(g in graphs()) {
        if let Err(e) = verify(&g) {
            return Err(TestCaseError::fail(format!("{e}\n{g}")));
        }
    }

    /// Results have the inferred types and shapes, whatever the batch.
    #[test]
    fn evaluation_agrees_with_the_type_rules(g in graphs(), batch in batches(), seed: u64) {
        let sizes = batch.sizes();
        let mut wrong = vec![];
        let result = evaluate(&g, &sizes, &mut values(&g, &batch, seed), &mut |v, t| {
            if let Some(ty) = g.ty(v).tensor() {
                let shape: Vec<usize> = ty.shape.iter().map(|d| d.eval(&sizes) as usize).collect();
                if (ty.dtype, &shape) != (t.dtype, &t.shape) {
                    wrong.push(format!("value {}: inferred {ty}, evaluated {:?} {:?}", v.0, t.dtype, t.shape));
                }
            }
        });
        prop_assert!(wrong.is_empty(), "{wrong:?}\n{g}");
        prop_assert!(result.is_ok(), "{result:?}");
    }
}
