//! What each rule means, in a sentence for people who read a report.

/// Name of a rule, and what it says. A row for every rule.
#[rustfmt::skip]
const SENTENCES: &[(&str, &str)] = &[
    ("join-projections", "Two projections of one input become one matrix: the input is read once and one kernel starts."),
    ("linear-wide", "The head reads its rows as they are and keeps its sums in f32: no copy in f32, and products of the narrow type."),
    ("swiglu", "Gate and up projection run in one pass over the input: the gate never reaches memory."),
    ("add-norm", "The residual sum is normed while it is still in registers; both results are used."),
    ("norm-quantize", "The normed row becomes codes while it is in cache: only the codes reach memory."),
    ("add-norm-quantize", "Residual sum, norm and codes of a row are one kernel; each is used."),
    ("norm-weight", "The gain of a norm is multiplied into the weight behind it when that is packed."),
    ("norm-linear", "The norm becomes a factor of each row of the projection behind it: normed rows never reach memory."),
    ("rope-cache", "The cache row is normed, rotated and written by one kernel, where it is stored."),
    ("absorb-key", "q (c W)ᵀ = (q W) cᵀ: queries move into the latent space, or keys are rebuilt once for many queries."),
    ("absorb-value", "p (c W) = (p c) W: values stay latent until the heads are summed, or are rebuilt once for many queries."),
    ("mla-absorbed", "Attention runs over the latent cache itself: scores stay in registers, one cached row is key and value."),
    ("mla-expanded", "Attention runs over rebuilt keys and values: scores stay in registers."),
    ("split-context", "Attention over a long context runs in parts, whose results are merged by their maxima and sums."),
    ("expert-swiglu", "Gate and up projection of every token's experts run in one pass: the gate never reaches memory."),
    ("expert-down", "The experts' down projection and the weighted sum are one kernel: the rows of a token never reach memory."),
    ("weight-before-down", "The router's weights multiply the hidden rows, so that the experts' rows are added up as they are."),
    ("swiglu-by-token", "Few tokens read their experts' gate and up matrices one after the other: no sorting, no gathered rows."),
    ("down-by-token", "Few tokens read their experts' down matrices one after the other: no sorting, no gathered rows."),
    ("shared-expert", "A shared expert is one more expert that every token has, with weight 1: its own kernels and the sum go."),
    ("route-softmax", "Router scores, softmax and choice of experts are one kernel."),
    ("route-softmax-groups", "Router scores, softmax, limit to groups and choice of experts are one kernel."),
    ("route-sigmoid-bias", "Router scores, sigmoid, bias of the choice and choice of experts are one kernel."),
    ("route-sigmoid-bias-groups", "Router scores, sigmoid, bias, limit to groups and choice of experts are one kernel."),
    ("route-normalize", "The weights of the chosen experts are normalised where they are chosen."),
    ("route-normalize-bias", "The weights of the chosen experts are normalised where they are chosen."),
    ("route-scale", "The factor of the routed experts is applied where their weights are made."),
    ("route-scale-bias", "The factor of the routed experts is applied where their weights are made."),
    ("route-append", "The router writes the slots that every token has behind the chosen ones."),
    ("route-append-bias", "The router writes the slots that every token has behind the chosen ones."),
    ("route-input", "The router widens its input itself: no copy in f32."),
    ("route-input-bias", "The router widens its input itself: no copy in f32."),
    ("split-projection", "A part of a projection's outputs is the projection by that part of the weight: the rest is not read."),
    ("scale-scale", "Two factors in a row are one factor."),
    ("scale-one", "A factor of 1 is left out."),
    ("scale-combine", "The factor of a weighted sum is applied to its weights: k numbers a token."),
    ("scale-linear", "The factor of a projection is applied to its input."),
    ("scale-einsum", "The factor of a product is applied to its first operand."),
    ("scale-weight", "A factor in front of a projection is multiplied into the weight when it is packed."),
    ("reshape-reshape", "Two views in a row are one view."),
    ("slice-slice", "A range of a range is one range."),
    ("slice-concat", "The first of two joined parts, taken out again, is that part."),
    ("slice-concat-end", "The second of two joined parts, taken out again, is that part."),
    ("widen-narrow", "A conversion to f32 and back gives what it began with."),
    ("select-add", "The sum is computed for the rows that want logits alone."),
    ("select-add-vector", "The sum with a vector is computed for the rows that want logits alone."),
    ("select-mul", "The product is computed for the rows that want logits alone."),
    ("select-mul-vector", "The product with a vector is computed for the rows that want logits alone."),
    ("select-scale", "The factor is computed for the rows that want logits alone."),
    ("select-silu", "The activation is computed for the rows that want logits alone."),
    ("select-sigmoid", "The sigmoid is computed for the rows that want logits alone."),
    ("select-convert", "The conversion is computed for the rows that want logits alone."),
    ("select-embed", "The embedding is computed for the rows that want logits alone."),
    ("select-softmax", "The softmax is computed for the rows that want logits alone."),
    ("select-rms-norm", "The norm is computed for the rows that want logits alone."),
    ("select-quantize", "The quantization is computed for the rows that want logits alone."),
    ("select-linear", "The projection is computed for the rows that want logits alone."),
    ("select-head-linear", "The projection by heads is computed for the rows that want logits alone."),
    ("select-reshape", "The view is computed for the rows that want logits alone."),
    ("select-slice", "The range is computed for the rows that want logits alone."),
    ("select-concat", "The joined rows are computed for the rows that want logits alone."),
    ("select-permute", "The permutation is computed for the rows that want logits alone."),
    ("select-rope", "The rotation is computed for the rows that want logits alone."),
    ("select-einsum", "The product with context rows is computed for the rows that want logits alone."),
    ("select-causal-mask", "The mask is computed for the rows that want logits alone."),
    ("select-group-limit", "The limit to groups is computed for the rows that want logits alone."),
    ("select-top-k", "The choice of experts is computed for the rows that want logits alone."),
    ("select-gather", "The weights of the chosen experts are computed for the rows that want logits alone."),
    ("select-normalize", "The normalisation is computed for the rows that want logits alone."),
    ("select-expert-linear", "The experts' projection is computed for the rows that want logits alone."),
    ("select-combine", "The weighted sum of experts is computed for the rows that want logits alone."),
];

/// What a rule means; empty for a name that no rule has.
pub fn sentence(rule: &str) -> &'static str {
    SENTENCES.iter().find(|(name, _)| *name == rule).map_or("", |(_, sentence)| sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_sentence() {
        for rule in crate::fuse::rules::all() {
            let text = sentence(rule.name);
            let hint = "add a row to passes/src/fuse/sentences.rs";
            assert!(text.len() > 20 && text.ends_with('.'), "rule `{}` has no sentence: {hint}", rule.name);
        }
        let mut names: Vec<&str> = SENTENCES.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SENTENCES.len(), "a rule has two sentences");
    }
}
