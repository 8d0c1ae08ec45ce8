//! Projections of one input.

use super::Class::{Always, InF32};
use super::Rule;
use crate::fuse::Numerics::Exact;
use deepfuse_ir::premise::{Build, Premise};

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    vec![
        // Two projections of one input (q_a and kv_a) become one: the input is read once and one kernel starts. Every output keeps its
        // own sum, so nothing changes. Weights as stored only: joined weights are not joined again. A quantized weight that ends inside
        // a block cannot be the first of two; the type rule of `concat` refuses it.
        Rule::new("join-projections", Always(Exact), "(linear ?x ?v)", "(slice (linear ?x (concat ?v ?w 0)) ?axis ?n 0)")
            .and("(linear ?x ?w)", "(slice (linear ?x (concat ?v ?w 0)) ?axis ?m ?n)")
            .when(&[Premise::Parameter("?v"), Premise::Parameter("?w"), Premise::Differ("?v", "?w")])
            .with("?axis", Build::LastAxis("?x")).with("?n", Build::Rows("?v")).with("?m", Build::Rows("?w")),

        // A part of a projection is the projection by a part of the weight. Weights as stored only: those that were joined stay joined. A cut
        // inside a quantization block is refused by the type rule of `slice`.
        Rule::new("split-projection", Always(Exact), "(slice (linear ?x ?w) ?axis ?len ?start)", "(linear ?x (slice ?w 0 ?len ?start))")
            .when(&[Premise::Parameter("?w"), Premise::IsLastAxis { axis: "?axis", of: "?x" }]),

        // The head is computed in f32 from rows that were bf16 until then. Widening adds nothing to a product, so it reads them as they are: by
        // dot products of bf16, where there are any, at twice the speed and more.
        Rule::new("linear-wide", InF32(Exact), "(linear (convert ?x f32) ?w)", "(linear_f32 ?x ?w)"),

        // Gate and up projection of an MLP in one pass over the input: the gate never reaches memory, nor its rounding.
        Rule::new("swiglu", InF32(Exact), "(mul (silu (linear ?x ?g)) (linear ?x ?u))", "(swiglu ?x ?g ?u)"),
    ]
}
