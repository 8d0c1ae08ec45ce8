use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// [`expert_swiglu`] token after token: each slot reads its expert's matrices, rows are neither sorted by expert nor gathered.
///
///     y[t, i, n] = silu(sum_k x[t, k] gate[e, n, k]) * sum_k x[t, k] up[e, n, k]        e = idx[t, i]
///
/// * operands and result as in `expert_swiglu`      * one phase for three; an expert of several tokens is read once for each of them
///
/// Errors: as `expert_swiglu`.
/// Source: the decode kernels of serving engines, where few tokens meet distinct experts.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    expert_swiglu::infer(t, a)
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    expert_swiglu::eval(x, a, sizes)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("expert_swiglu_by_token", &["f32[1, 2] = 1 2", "i32[1, 2] = 1 0", "f32[2, 1, 2] = 1 0 0 -1", "f32[2, 1, 2] = 1 1 0 1"], "", &["f32[1, 2, 1] = -0.476811688 2.19317574"]);
    }

    #[test]
    fn refused_types() {
        rejects("expert_swiglu_by_token", &["f32[T, 2]", "i32[T, 2]", "f32[2, 1, 2]", "f32[3, 1, 2]"], "", "ir::contract", "differ");
    }
}
