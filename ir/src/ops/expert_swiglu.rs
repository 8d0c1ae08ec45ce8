use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Gate and up projection of every token by its experts, joined.
///
///     y[t, i, n] = silu(sum_k x[t, k] gate[e, n, k]) * sum_k x[t, k] up[e, n, k]        e = idx[t, i]
///
/// * `x` float `[T, K]`      * `idx` i32 `[T, k]`      * `gate`, `up` float or quantized `[E, N, K]`      * result: type of `x`, `[T, k, N]`
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: `mlp.experts.*.{gate,up}_proj`.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, idx) = (ranked(activation(t, 0)?, 0, 2)?, index(t, 1, 2)?);
    let (gate, up) = (ranked(matrix(t, 2)?, 2, 3)?, ranked(matrix(t, 3)?, 3, 3)?);
    if gate != up {
        return Err(TypeError::contract(format!("expert_swiglu: gate {gate} and up {up} differ")));
    }
    expert_linear::check(x, idx, gate)?;
    Ok(vec![with_shape(x, x.dtype.expressed(), [idx.shape[0], idx.shape[1], gate.shape[1]])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let project = |w: &Tensor| expert_linear::routed(x[0], x[1], w, DType::F32);
    let (gate, up) = (project(x[2]), project(x[3]));
    vec![add::zip(&gate.map(silu::value), &up, |g, u| g * u).narrow(x[0].dtype.expressed())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("expert_swiglu", &["f32[1, 2] = 1 2", "i32[1, 2] = 1 0", "f32[2, 1, 2] = 1 0 0 -1", "f32[2, 1, 2] = 1 1 0 1"], "", &["f32[1, 2, 1] = -0.476811688 2.19317574"]);
    }

    #[test]
    fn refused_types() {
        rejects("expert_swiglu", &["f32[T, 2, 2]", "i32[T, 2]", "f32[2, 1, 2]", "f32[2, 1, 2]"], "", "ir::rank", "operand 0");
        rejects("expert_swiglu", &["f32[T, 2]", "i32[T, 2]", "f32[2, 1, 2]", "f32[3, 1, 2]"], "", "ir::contract", "differ");
    }
}
