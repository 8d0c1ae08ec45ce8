//! Rows that want logits, selected as early as possible: what works row by row is done for those rows alone. Prompts want one row of many, so
//! that the last layer's queries, MLP and experts shrink to nothing there; the cache is written for all tokens.
//!
//! Only plain operations have a rule: a fused value's class holds its plain form, and what is selected below it fuses again.

use super::Class::Always;
use super::Rule;
use crate::fuse::Numerics::Exact;
use deepfuse_ir::premise::{Build, Premise};

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    let select = |name, from, to| Rule::new(name, Always(Exact), from, to);
    vec![
        // Element by element. A second operand of fewer axes is the same for all rows.
        select("select-add", "(gather_rows (add ?x ?y) ?rows)", "(add (gather_rows ?x ?rows) (gather_rows ?y ?rows))").when(&[Premise::SameRank("?x", "?y")]),
        select("select-add-vector", "(gather_rows (add ?x ?y) ?rows)", "(add (gather_rows ?x ?rows) ?y)").when(&[Premise::MoreAxes("?x", "?y")]),
        select("select-mul", "(gather_rows (mul ?x ?y) ?rows)", "(mul (gather_rows ?x ?rows) (gather_rows ?y ?rows))").when(&[Premise::SameRank("?x", "?y")]),
        select("select-mul-vector", "(gather_rows (mul ?x ?y) ?rows)", "(mul (gather_rows ?x ?rows) ?y)").when(&[Premise::MoreAxes("?x", "?y")]),
        select("select-scale", "(gather_rows (scale ?x ?value) ?rows)", "(scale (gather_rows ?x ?rows) ?value)"),
        select("select-silu", "(gather_rows (silu ?x) ?rows)", "(silu (gather_rows ?x ?rows))"),
        select("select-sigmoid", "(gather_rows (sigmoid ?x) ?rows)", "(sigmoid (gather_rows ?x ?rows))"),
        select("select-convert", "(gather_rows (convert ?x ?dtype) ?rows)", "(convert (gather_rows ?x ?rows) ?dtype)"),
        select("select-embed", "(gather_rows (embed ?ids ?table) ?rows)", "(embed (gather_rows ?ids ?rows) ?table)"),

        // Along the last axis, which must not be that of the rows.
        select("select-softmax", "(gather_rows (softmax ?x) ?rows)", "(softmax (gather_rows ?x ?rows))").when(&[Premise::HasRows("?x")]),
        select("select-rms-norm", "(gather_rows (rms_norm ?x ?gain ?eps) ?rows)", "(rms_norm (gather_rows ?x ?rows) ?gain ?eps)").when(&[Premise::HasRows("?x")]),
        select("select-quantize", "(gather_rows (quantize ?x ?dtype) ?rows)", "(quantize (gather_rows ?x ?rows) ?dtype)").when(&[Premise::HasRows("?x")]),
        select("select-linear", "(gather_rows (linear ?x ?w) ?rows)", "(linear (gather_rows ?x ?rows) ?w)").when(&[Premise::HasRows("?x")]),
        select("select-head-linear", "(gather_rows (head_linear ?x ?w) ?rows)", "(head_linear (gather_rows ?x ?rows) ?w)"),

        // Shapes, as long as a row stays a row; the types see to it for `reshape` and `slice`.
        select("select-reshape", "(gather_rows (reshape ?x ?shape) ?rows)", "(reshape (gather_rows ?x ?rows) ?of_rows)")
            .with("?of_rows", Build::WithRows { rows: "?rows", shape: "?shape" }),
        select("select-slice", "(gather_rows (slice ?x ?axis ?len ?start) ?rows)", "(slice (gather_rows ?x ?rows) ?axis ?len ?start)"),
        select("select-concat", "(gather_rows (concat ?x ?y ?axis) ?rows)", "(concat (gather_rows ?x ?rows) (gather_rows ?y ?rows) ?axis)").when(&[Premise::Inner("?axis")]),
        select("select-permute", "(gather_rows (permute ?x ?axes) ?rows)", "(permute (gather_rows ?x ?rows) ?axes)").when(&[Premise::KeepsFirst("?axes")]),

        // Queries of attention: a row takes its position and sequence along.
        select("select-rope", "(gather_rows (rope ?x ?pos ?attn ?fast ?slow ?factor ?original ?theta) ?rows)",
            "(rope (gather_rows ?x ?rows) (gather_rows ?pos ?rows) ?attn ?fast ?slow ?factor ?original ?theta)"),
        select("select-einsum", "(gather_rows (einsum ?x ?y ?eq) ?rows)", "(einsum (gather_rows ?x ?rows) ?y ?eq)").when(&[Premise::ByRows("?eq")]),
        select("select-causal-mask", "(gather_rows (causal_mask ?x ?pos ?seq ?start) ?rows)",
            "(causal_mask (gather_rows ?x ?rows) (gather_rows ?pos ?rows) (gather_rows ?seq ?rows) ?start)"),

        // Router and experts: a row takes its choice along.
        select("select-group-limit", "(gather_rows (group_limit ?x ?by ?fill ?groups ?keep) ?rows)", "(group_limit (gather_rows ?x ?rows) ?by ?fill ?groups ?keep)"),
        select("select-top-k", "(gather_rows (proj ?i (top_k ?x ?k)) ?rows)", "(proj ?i (top_k (gather_rows ?x ?rows) ?k))"),
        select("select-gather", "(gather_rows (gather ?x ?idx) ?rows)", "(gather (gather_rows ?x ?rows) (gather_rows ?idx ?rows))"),
        select("select-normalize", "(gather_rows (normalize ?x ?eps) ?rows)", "(normalize (gather_rows ?x ?rows) ?eps)"),
        select("select-expert-linear", "(gather_rows (expert_linear ?x ?idx ?w) ?rows)", "(expert_linear (gather_rows ?x ?rows) (gather_rows ?idx ?rows) ?w)"),
        select("select-combine", "(gather_rows (combine ?y ?w) ?rows)", "(combine (gather_rows ?y ?rows) (gather_rows ?w ?rows))"),
    ]
}
