use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// [`expert_down`] token after token: each slot reads its expert's matrix, rows are neither sorted by expert nor gathered.
///
///     y[t, n] = sum_i w[t, i] * sum_k h[t, i, k] down[idx[t, i], n, k]
///
/// * operands and result as in `expert_down`      * one phase for three; slots are added up in order, not by expert
///
/// Errors: as `expert_down`.
/// Source: the decode kernels of serving engines, where few tokens meet distinct experts.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    expert_down::infer(t, a)
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    expert_down::eval(x, a, sizes)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("expert_down_by_token", &["f32[1, 2, 2] = 1 2 3 4", "i32[1, 2] = 1 0", "f32[1, 2] = 10 1", "f32[2, 1, 2] = 1 0 0 1"], "", &["f32[1, 1] = 23"]);
    }

    #[test]
    fn refused_types() {
        rejects("expert_down_by_token", &["f32[T, 2, 2]", "i32[T, 2]", "f32[T, 3]", "f32[2, 1, 2]"], "", "ir::contract", "slots: 3 and 2");
    }
}
