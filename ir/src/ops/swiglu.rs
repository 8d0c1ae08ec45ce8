use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Gate and up projection of one input, joined: the gate never reaches memory.
///
///     y[t, n] = silu(sum_k x[t, k] gate[n, k]) * sum_k x[t, k] up[n, k]
///
/// * `x` float or int8 rows `[T, K]`      * `gate`, `up` float or quantized `[N, K]`, of one type
/// * result: type that `x` stands for, one rounding
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: `mlp.gate_proj`, `mlp.up_proj` of V2 and V3.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, gate, up) = (activation(t, 0)?, ranked(matrix(t, 1)?, 1, 2)?, ranked(matrix(t, 2)?, 2, 2)?);
    if gate != up {
        return Err(TypeError::contract(format!("swiglu: gate {gate} and up {up} differ")));
    }
    same("swiglu: contracted sizes", last(x, 0)?, gate.shape[1])?;
    Ok(vec![with_last(x, gate.shape[0])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (gate, up) = (linear::product(x[0], x[1], DType::F32), linear::product(x[0], x[2], DType::F32));
    vec![add::zip(&gate.map(silu::value), &up, |g, u| g * u).narrow(x[0].dtype.expressed())]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("swiglu", &["f32[1, 2] = 1 2", "f32[2, 2] = 1 0 0 -1", "f32[2, 2] = 1 1 0 1"], "", &["f32[1, 2] = 2.19317574 -0.476811688"]);
    }

    #[test]
    fn refused_types() {
        rejects("swiglu", &["f32[T, 2]", "f32[2, 2]", "f32[3, 2]"], "", "ir::contract", "gate f32[2, 2] and up f32[3, 2] differ");
        rejects("swiglu", &["f32[T, 2]", "f32[2, 2]", "bf16[2, 2]"], "", "ir::contract", "differ");
        rejects("swiglu", &["f32[T, 3]", "f32[2, 2]", "f32[2, 2]"], "", "ir::contract", "contracted sizes: 3 and 2");
    }
}
