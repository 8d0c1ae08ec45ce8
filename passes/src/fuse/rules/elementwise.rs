//! Chains of operations that move or scale elements: shorter ones, and scales on their way to where they cost nothing.

use super::Class::{Always, InF32};
use super::Rule;
use crate::fuse::Numerics::{Exact, Reassociates};
use deepfuse_ir::premise::{Build, Premise};

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    let left = Premise::IsLength { len: "?len", of: "?x", axis: "?axis" };
    let right = [Premise::IsLength { len: "?start", of: "?x", axis: "?axis" }, Premise::IsLength { len: "?len", of: "?y", axis: "?axis" }];
    vec![
        // A scale moves towards weights: two are one, and 1 is none.
        Rule::new("scale-scale", InF32(Reassociates), "(scale (scale ?x ?a) ?b)", "(scale ?x ?ab)").with("?ab", Build::Product("?a", "?b")),
        Rule::new("scale-one", Always(Exact), "(scale ?x 1.0)", "?x"),
        // The scale of the routed experts is that of their weights: k numbers a token, and the router has a scale already.
        Rule::new("scale-combine", InF32(Reassociates), "(scale (combine ?y ?w) ?s)", "(combine ?y (scale ?w ?s))"),
        Rule::new("scale-linear", InF32(Reassociates), "(scale (linear ?x ?w) ?s)", "(linear (scale ?x ?s) ?w)"),
        Rule::new("scale-einsum", InF32(Reassociates), "(scale (einsum ?x ?y ?eq) ?s)", "(einsum (scale ?x ?s) ?y ?eq)"),
        // Into a weight as stored; a quantized one is refused by the type rule of `scale`.
        Rule::new("scale-weight", InF32(Reassociates), "(linear (scale ?x ?s) ?w)", "(linear ?x (scale ?w ?s))").when(&[Premise::Parameter("?w")]),

        // What rewrites leave behind of copies. The plain graph has none of these: `canonicalize` removed them.
        Rule::new("reshape-reshape", Always(Exact), "(reshape (reshape ?x ?inner) ?shape)", "(reshape ?x ?shape)"),
        Rule::new("slice-slice", Always(Exact), "(slice (slice ?x ?axis ?most ?a) ?axis ?len ?b)", "(slice ?x ?axis ?len ?ab)").with("?ab", Build::Sum("?a", "?b")),
        Rule::new("slice-concat", Always(Exact), "(slice (concat ?x ?y ?axis) ?axis ?len 0)", "?x").when(&[left]),
        Rule::new("slice-concat-end", Always(Exact), "(slice (concat ?x ?y ?axis) ?axis ?len ?start)", "?y").when(&right),
        // f32 holds every value of the narrower types: there and back is where it began.
        Rule::new("widen-narrow", Always(Exact), "(convert (convert ?x f32) ?dtype)", "?x").when(&[Premise::IsDType { dtype: "?dtype", of: "?x" }]),
    ]
}
