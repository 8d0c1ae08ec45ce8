use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Gate and up projection of one input, joined: the gate never reaches memory.
///
///     y[t, n] = silu(sum_k x[t, k] gate[n, k]) * sum_k x[t, k] up[n, k]
///
/// * `x` float `[T, K]`      * `gate`, `up` float or quantized `[N, K]`, of one type      * result: type of `x`, one rounding
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: `mlp.gate_proj`, `mlp.up_proj` of V2 and V3.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, gate, up) = (float(t, 0)?, ranked(matrix(t, 1)?, 1, 2)?, ranked(matrix(t, 2)?, 2, 2)?);
    if gate != up {
        return Err(TypeError::contract(format!("swiglu: gate {gate} and up {up} differ")));
    }
    same("swiglu: contracted sizes", last(x, 0)?, gate.shape[1])?;
    Ok(vec![with_last(x, gate.shape[0])])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (gate, up) = (linear::product(x[0], x[1], DType::F32), linear::product(x[0], x[2], DType::F32));
    vec![add::zip(&gate.map(silu::value), &up, |g, u| g * u).narrow(x[0].dtype)]
}
