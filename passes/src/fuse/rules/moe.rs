//! Router and experts. Attributes of `route`: by, eps, fill, groups, k, keep, normalize, scale, scoring.

use super::Class::InF32;
use super::Rule;
use crate::fuse::Numerics::Exact;
use deepfuse_ir::DType::F32;
use deepfuse_ir::premise::Premise;

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    let wide = [Premise::HasDType("?x", F32)];
    vec![
        // Gate and up projection of every token's experts: the gate never reaches memory, nor its rounding.
        Rule::new("expert-swiglu", InF32(Exact), "(mul (silu (expert_linear ?x ?i ?g)) (expert_linear ?x ?i ?u))", "(expert_swiglu ?x ?i ?g ?u)"),
        // Down projection and weighted sum: the k rows of a token never reach memory, nor their roundings.
        Rule::new("expert-down", InF32(Exact), "(combine (expert_linear ?h ?i ?d) ?w)", "(expert_down ?h ?i ?w ?d)"),

        // The router as one kernel. It grows: first the choice ..
        Rule::new("route-softmax", InF32(Exact),
            "(gather (softmax (linear ?x ?w)) (proj 1 (top_k (softmax (linear ?x ?w)) ?k)))",
            "(proj 1 (route ?x ?w max 0.0 neg_inf 1 ?k 1 0 1.0 softmax))")
            .also("(proj 1 (top_k (softmax (linear ?x ?w)) ?k))", "(proj 0 (route ?x ?w max 0.0 neg_inf 1 ?k 1 0 1.0 softmax))").when(&wide),
        Rule::new("route-softmax-groups", InF32(Exact),
            "(gather (softmax (linear ?x ?w)) (proj 1 (top_k (group_limit (softmax (linear ?x ?w)) ?by ?fill ?groups ?keep) ?k)))",
            "(proj 1 (route ?x ?w ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 softmax))")
            .also("(proj 1 (top_k (group_limit (softmax (linear ?x ?w)) ?by ?fill ?groups ?keep) ?k))", "(proj 0 (route ?x ?w ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 softmax))").when(&wide),
        // .. with a bias that steers the choice and not the weights ..
        Rule::new("route-sigmoid-bias", InF32(Exact),
            "(gather (sigmoid (linear ?x ?w)) (proj 1 (top_k (add (sigmoid (linear ?x ?w)) ?b) ?k)))",
            "(proj 1 (route ?x ?w ?b max 0.0 neg_inf 1 ?k 1 0 1.0 sigmoid))")
            .also("(proj 1 (top_k (add (sigmoid (linear ?x ?w)) ?b) ?k))", "(proj 0 (route ?x ?w ?b max 0.0 neg_inf 1 ?k 1 0 1.0 sigmoid))").when(&wide),
        Rule::new("route-sigmoid-bias-groups", InF32(Exact),
            "(gather (sigmoid (linear ?x ?w)) (proj 1 (top_k (group_limit (add (sigmoid (linear ?x ?w)) ?b) ?by ?fill ?groups ?keep) ?k)))",
            "(proj 1 (route ?x ?w ?b ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 sigmoid))")
            .also("(proj 1 (top_k (group_limit (add (sigmoid (linear ?x ?w)) ?b) ?by ?fill ?groups ?keep) ?k))", "(proj 0 (route ?x ?w ?b ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 sigmoid))").when(&wide),
        // .. then what is done to the weights: normalisation, once and before the scale ..
        Rule::new("route-normalize", InF32(Exact),
            "(normalize (proj 1 (route ?x ?w ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring)) ?eps)",
            "(proj 1 (route ?x ?w ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))")
            .also("(proj 0 (route ?x ?w ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring))", "(proj 0 (route ?x ?w ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))"),
        Rule::new("route-normalize-bias", InF32(Exact),
            "(normalize (proj 1 (route ?x ?w ?b ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring)) ?eps)",
            "(proj 1 (route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))")
            .also("(proj 0 (route ?x ?w ?b ?by 0.0 ?fill ?groups ?k ?keep 0 1.0 ?scoring))", "(proj 0 (route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep 1 1.0 ?scoring))"),
        // .. and the scale, once ..
        Rule::new("route-scale", InF32(Exact),
            "(scale (proj 1 (route ?x ?w ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring)) ?scale)",
            "(proj 1 (route ?x ?w ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .also("(proj 0 (route ?x ?w ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring))", "(proj 0 (route ?x ?w ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))"),
        Rule::new("route-scale-bias", InF32(Exact),
            "(scale (proj 1 (route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring)) ?scale)",
            "(proj 1 (route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))")
            .also("(proj 0 (route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep ?normalize 1.0 ?scoring))", "(proj 0 (route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring))"),
        // .. and the widened input: the kernel computes in f32 from whatever it reads.
        Rule::new("route-input", InF32(Exact),
            "(route (convert ?x f32) ?w ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)",
            "(route ?x ?w ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)"),
        Rule::new("route-input-bias", InF32(Exact),
            "(route (convert ?x f32) ?w ?b ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)",
            "(route ?x ?w ?b ?by ?eps ?fill ?groups ?k ?keep ?normalize ?scale ?scoring)"),
    ]
}
