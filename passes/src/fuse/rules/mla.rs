//! Multi-head latent attention: absorbed and expanded forms. Letters: t tokens, x context rows, n heads, d key width, r rotated width,
//! v value width, l latent width. No rule multiplies two weights: W_UQ W_UK^T has three times the bytes of its factors at V3's sizes.

use super::Class::{Always, InF32};
use super::Rule;
use crate::fuse::Numerics::{Exact, Reassociates};
use deepfuse_ir::premise::{Build, Premise};

const ABSORBED: &str = "(mla_absorbed ?ql ?qr ?state ?pos ?seq ?pages ?start ?scale)";

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    let heads = Build::ShapeDim("?shape", 1);
    let shape = Build::SplitShape { rows: "?c", weight: "?w", heads: "?heads" };
    let splits = Premise::SplitsRows { rows: "?c", shape: "?shape" };
    vec![
        // q (c W_K)^T = (q W_K) c^T: keys are never rebuilt from the latent. Wins with few queries a sequence.
        Rule::new("absorb-key", InF32(Reassociates),
            "(einsum ?q (slice (reshape (linear ?c ?w) ?shape) 2 ?len ?from) ?eq)",
            "(einsum (head_linear ?q (permute (head_rows ?w ?heads ?len ?from) <0,2,1>)) ?c tnl,xl->tnx)")
            .when(&[Premise::Equation("?eq", "tnd,xnd->tnx"), Premise::Constant("?w"), splits]).with("?heads", heads),
        // The same read backwards: keys are rebuilt once for all queries. Wins with many queries a sequence.
        Rule::new("absorb-key", InF32(Reassociates),
            "(einsum (head_linear ?q (permute (head_rows ?w ?heads ?len ?from) <0,2,1>)) ?c ?eq)",
            "(einsum ?q (slice (reshape (linear ?c ?w) ?shape) 2 ?len ?from) tnd,xnd->tnx)")
            .when(&[Premise::Equation("?eq", "tnl,xl->tnx")]).with("?shape", shape).backward(),

        // p (c W_V) = (p c) W_V: values are never rebuilt from the latent.
        Rule::new("absorb-value", InF32(Reassociates),
            "(einsum ?p (slice (reshape (linear ?c ?w) ?shape) 2 ?len ?from) ?eq)",
            "(head_linear (einsum ?p ?c tnx,xl->tnl) (head_rows ?w ?heads ?len ?from))")
            .when(&[Premise::Equation("?eq", "tnx,xnv->tnv"), Premise::Constant("?w")]).with("?heads", heads),
        Rule::new("absorb-value", InF32(Reassociates),
            "(head_linear (einsum ?p ?c ?eq) (head_rows ?w ?heads ?len ?from))",
            "(einsum ?p (slice (reshape (linear ?c ?w) ?shape) 2 ?len ?from) tnx,xnv->tnv)")
            .when(&[Premise::Equation("?eq", "tnx,xl->tnl")]).with("?shape", shape).backward(),

        // Attention over the latent cache itself: scores stay in registers, the cached row is key and value. The two slices are one row.
        Rule::new("mla-absorbed", InF32(Exact),
            "(einsum (softmax (causal_mask (scale (add (einsum ?ql (slice (read ?state ?pages) 1 ?l 0) ?e1) (einsum ?qr (slice (read ?state ?pages) 1 ?r ?l) ?e2)) ?scale) ?pos ?seq ?start)) (slice (read ?state ?pages) 1 ?l 0) ?e3)",
            ABSORBED)
            .when(&[Premise::Equation("?e1", "tnl,xl->tnx"), Premise::Equation("?e2", "tnr,xr->tnx"), Premise::Equation("?e3", "tnx,xl->tnl")]),

        // The context in parts that are merged: work for many workers where tokens and heads are few ("flash decoding"). How many parts pay
        // depends on the machine and the context, so the costs choose.
        Rule::new("split-context", Always(Reassociates), ABSORBED, "(mla_absorbed_split ?ql ?qr ?state ?pos ?seq ?pages ?start ?scale 2)")
            .also(ABSORBED, "(mla_absorbed_split ?ql ?qr ?state ?pos ?seq ?pages ?start ?scale 4)")
            .also(ABSORBED, "(mla_absorbed_split ?ql ?qr ?state ?pos ?seq ?pages ?start ?scale 8)")
            .also(ABSORBED, "(mla_absorbed_split ?ql ?qr ?state ?pos ?seq ?pages ?start ?scale 16)")
            .also(ABSORBED, "(mla_absorbed_split ?ql ?qr ?state ?pos ?seq ?pages ?start ?scale 32)"),

        // Attention over rebuilt keys and values: scores stay in registers.
        Rule::new("mla-expanded", InF32(Exact),
            "(einsum (softmax (causal_mask (scale (add (einsum ?qn ?k ?e1) (einsum ?qr ?kr ?e2)) ?scale) ?pos ?seq ?start)) ?v ?e3)",
            "(mla_expanded ?qn ?qr ?k ?v ?kr ?pos ?seq ?start ?scale)")
            .when(&[Premise::Equation("?e1", "tnd,xnd->tnx"), Premise::Equation("?e2", "tnr,xr->tnx"), Premise::Equation("?e3", "tnx,xnv->tnv")]),
    ]
}
