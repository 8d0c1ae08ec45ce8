//! Router and experts. Attributes of `route`: append, by, eps, fill, groups, k, keep, normalize, scale, scoring.

use super::Class::{Always, InF32};
use super::Rule;
use crate::fuse::Numerics::{Exact, Reassociates};
use deepfuse_ir::DType::F32;
use deepfuse_ir::premise::{Build, Premise};

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    let wide = [Premise::HasDType("?x", F32)];
    vec![
        // Gate and up projection of every token's experts: the gate never reaches memory, nor its rounding.
        Rule::new("expert-swiglu", InF32(Exact), "(mul (silu (expert_linear ?x ?i ?g)) (expert_linear ?x ?i ?u))", "(expert_swiglu ?x ?i ?g ?u)"),
        // Down projection and weighted sum: the k rows of a token never reach memory, nor their roundings.
        Rule::new("expert-down", InF32(Exact), "(combine (expert_linear ?h ?i ?d) ?w)", "(expert_down ?h ?i ?w ?d)"),

        // w (D h) = D (w h): the weight of an expert moves in front of its down projection, and its rows are added up as they are. Pays where these
        // rows are sent before they are added up; here the kernel of `expert_down` multiplies as it adds, for nothing. Codes have a scale of their
        // own: the type rule of `scale_rows` refuses them, and rows that the slots of a token share.
        Rule::new("weight-before-down", InF32(Reassociates), "(combine (expert_linear ?h ?i ?d) ?w)", "(combine (expert_linear (scale_rows ?h ?w) ?i ?d))"),

        // Token after token: no sorting, no gathered rows, a phase for three; but an expert that several tokens chose is read for each of them.
        // The kernels add up the slots of a token in another order.
        Rule::new("swiglu-by-token", Always(Exact), "(expert_swiglu ?x ?i ?g ?u)", "(expert_swiglu_by_token ?x ?i ?g ?u)"),
        Rule::new("down-by-token", Always(Reassociates), "(expert_down ?h ?i ?w ?d)", "(expert_down_by_token ?h ?i ?w ?d)"),

        // A shared expert is an expert that every token has, with weight 1; one of n times the routed width is n of them. Its three kernels
        // and the sum go. The routed scale is part of the weights, so that it does not touch the shared result.
        Rule::new("shared-expert", InF32(Reassociates),
            "(add (expert_down (expert_swiglu ?x ?i ?g ?u) ?i ?p ?d) (linear (swiglu ?x ?sg ?su) ?sd))",
            "(expert_down (expert_swiglu ?x (extend ?i ?n ?experts 1) (concat ?g (head_rows ?sg ?n ?width 0) 0) (concat ?u (head_rows ?su ?n ?width 0) 0)) (extend ?i ?n ?experts 1) (extend ?p ?n 1 0) (concat ?d (permute (head_rows (permute ?sd <1,0>) ?n ?width 0) <0,2,1>) 0))")
            .when(&["?g", "?u", "?d", "?sg", "?su", "?sd"].map(Premise::Parameter))
            .with("?n", Build::Parts { whole: "?sg", stack: "?g" }).with("?width", Build::Axis("?g", 1)).with("?experts", Build::Rows("?g")),

        // The router as one kernel. It grows: first the choice ..
        Rule::new("route-softmax", InF32(Exact),
            "(gather (softmax (linear ?x ?w)) (proj 1 (top_k (softmax (linear ?x ?w)) ?k)))",
            "(proj 1 (route ?x ?w 0 max 0.0 neg_inf 1 ?k 1 0 1.0 softmax))")
            .also("(proj 1 (top_k (softmax (linear ?x ?w)) ?k))", "(proj 0 (route ?x ?w 0 max 0.0 neg_inf 1 ?k 1 0 1.0 softmax))").when(&wide),
        Rule::new("route-softmax-groups", InF32(Exact),
            "(gather (softmax (linear ?x ?w)) (proj 1 (top_k (group_limit (softmax (linear ?x ?w)) ?by ?fill ?groups ?keep) ?k)))",
            "(proj 1 (route ?x ?w 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 softmax))")
            .also("(proj 1 (top_k (group_limit (softmax (linear ?x ?w)) ?by ?fill ?groups ?keep) ?k))", "(proj 0 (route ?x ?w 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 softmax))").when(&wide),
        // .. with a bias that steers the choice and not the weights ..
        Rule::new("route-sigmoid-bias", InF32(Exact),
            "(gather (sigmoid (linear ?x ?w)) (proj 1 (top_k (add (sigmoid (linear ?x ?w)) ?b) ?k)))",
            "(proj 1 (route ?x ?w ?b 0 max 0.0 neg_inf 1 ?k 1 0 1.0 sigmoid))")
            .also("(proj 1 (top_k (add (sigmoid (linear ?x ?w)) ?b) ?k))", "(proj 0 (route ?x ?w ?b 0 max 0.0 neg_inf 1 ?k 1 0 1.0 sigmoid))").when(&wide),
        Rule::new("route-sigmoid-bias-groups", InF32(Exact),
            "(gather (sigmoid (linear ?x ?w)) (proj 1 (top_k (group_limit (add (sigmoid (linear ?x ?w)) ?b) ?by ?fill ?groups ?keep) ?k)))",
            "(proj 1 (route ?x ?w ?b 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 sigmoid))")
            .also("(proj 1 (top_k (group_limit (add (sigmoid (linear ?x ?w)) ?b) ?by ?fill ?groups ?keep) ?k))", "(proj 0 (route ?x ?w ?b 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 sigmoid))").when(&wide),
        // .. then what is done to the weights: normalisation, once and before the scale ..
        Rule::new("route-normalize", InF32(Exact),
            "(normalize (proj 1 (route ?x ?w 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring)) ?eps)",
            "(proj 1 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))")
            .also("(proj 0 (route ?x ?w 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring))", "(proj 0 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))"),
        Rule::new("route-normalize-bias", InF32(Exact),
            "(normalize (proj 1 (route ?x ?w ?b 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring)) ?eps)",
            "(proj 1 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))")
            .also("(proj 0 (route ?x ?w ?b 0 ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring))", "(proj 0 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))"),
        // .. and the scale, once ..
        Rule::new("route-scale", InF32(Exact),
            "(scale (proj 1 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring)) ?scale)",
            "(proj 1 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .also("(proj 0 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring))", "(proj 0 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))"),
        Rule::new("route-scale-bias", InF32(Exact),
            "(scale (proj 1 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring)) ?scale)",
            "(proj 1 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .also("(proj 0 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring))", "(proj 0 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))"),
        // .. slots that every token has, behind the chosen ones ..
        Rule::new("route-append", InF32(Exact),
            "(extend (proj 1 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)) ?n 1 0)",
            "(proj 1 (route ?x ?w ?n ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .and("(extend (proj 0 (route ?x ?w 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)) ?n ?experts 1)", "(proj 0 (route ?x ?w ?n ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .when(&[Premise::IsRows("?experts", "?w")]),
        Rule::new("route-append-bias", InF32(Exact),
            "(extend (proj 1 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)) ?n 1 0)",
            "(proj 1 (route ?x ?w ?b ?n ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .and("(extend (proj 0 (route ?x ?w ?b 0 ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)) ?n ?experts 1)", "(proj 0 (route ?x ?w ?b ?n ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .when(&[Premise::IsRows("?experts", "?w")]),
        // .. and the widened input: the kernel computes in f32 from whatever it reads.
        Rule::new("route-input", InF32(Exact),
            "(route (convert ?x f32) ?w ?append ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)",
            "(route ?x ?w ?append ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)"),
        Rule::new("route-input-bias", InF32(Exact),
            "(route (convert ?x f32) ?w ?b ?append ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)",
            "(route ?x ?w ?b ?append ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)"),
    ]
}
