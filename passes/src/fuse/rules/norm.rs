//! Norms, residual sums and the cache row.

use super::Class::{Always, InF32};
use super::Rule;
use crate::fuse::Numerics::{Exact, Reassociates};
use deepfuse_ir::premise::Premise;

#[rustfmt::skip]
pub fn rules() -> Vec<Rule> {
    vec![
        // The residual sum is normed while it is still in registers. Both results are used: the sum goes on as the residual stream. The
        // norm is that of the rounded sum, as in the plain form.
        Rule::new("add-norm", Always(Exact), "(rms_norm (add ?x ?d) ?gain ?eps)", "(proj 1 (add_norm ?x ?d ?gain ?eps))")
            .also("(add ?x ?d)", "(proj 0 (add_norm ?x ?d ?gain ?eps))"),

        // Codes are made while the normed row is in cache: of the rounded norm, as in the plain form. Blocks within a row have no such kernel.
        Rule::new("norm-quantize", Always(Exact), "(quantize (rms_norm ?x ?gain ?eps) ?dtype)", "(norm_quantize ?x ?gain ?dtype ?eps)"),
        // The same with the residual sum. The router reads the normed row itself.
        Rule::new("add-norm-quantize", Always(Exact), "(quantize (rms_norm (add ?x ?d) ?gain ?eps) ?dtype)", "(proj 2 (add_norm_quantize ?x ?d ?gain ?dtype ?eps))")
            .also("(rms_norm (add ?x ?d) ?gain ?eps)", "(proj 1 (add_norm_quantize ?x ?d ?gain ?dtype ?eps))")
            .also("(add ?x ?d)", "(proj 0 (add_norm_quantize ?x ?d ?gain ?dtype ?eps))"),

        // x g / rms(x) W^T = x / rms(x) (W g)^T: the gain is multiplied into the weight when it is packed. A quantized weight keeps its codes:
        // the type rule of `mul` refuses it. So does one that is narrower than the rows keep its values: it would be
        // rounded once more, which rows of that type are anyway.
        Rule::new("norm-weight", InF32(Reassociates), "(linear (rms_norm ?x ?gain ?eps) ?w)", "(linear (rms_norm ?x ?eps) (mul ?w ?gain))").when(&[Premise::SameDType("?x", "?w")]),
        // (x s) W^T = (x W^T) s for a factor s of each row: the norm becomes a factor of the sums, its kernel and the normed rows go.
        Rule::new("norm-linear", InF32(Reassociates), "(linear (rms_norm ?x ?eps) ?w)", "(norm_linear ?x ?w ?eps)"),

        // The row of the latent cache is computed where it is stored: norm of the latent, rotation of the key, both rounded as before.
        Rule::new("rope-cache", Always(Exact),
            "(write ?state (concat (rms_norm (slice ?kv 1 ?l 0) ?gain ?eps) (rope (slice ?kv 1 ?r ?l) ?pos ?attn ?fast ?slow ?factor ?original ?theta) 1) ?pos ?seq ?pages ?start)",
            "(rope_cache ?kv ?gain ?state ?pos ?seq ?pages ?start ?attn ?fast ?slow ?eps ?factor ?original ?theta)"),
    ]
}
