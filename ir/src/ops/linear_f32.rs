use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Projection whose sums are not rounded to the type of its rows: what `linear` of rows that were widened first computes.
///
///     y[.., n] = sum_k x[.., k] * w[n, k]
///
/// * `x` float or int8 rows `[.., K]`      * `w` float or quantized `[N, K]`      * result: f32 `[.., N]`
///
/// Errors: `ir::contract` if the contracted sizes differ.
/// Source: the head, which all models of the family compute in f32 from bf16 rows.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let narrow = linear::infer(t, a)?;
    let shape = narrow[0].tensor().map_or(vec![], |t| t.shape.clone());
    Ok(vec![TensorType::new(DType::F32, shape).into()])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![linear::product(x[0], x[1], DType::F32)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        // 257 is no bf16.
        gives("linear_f32", &["bf16[1, 2] = 256 1", "f32[1, 2] = 1 1"], "", &["f32[1, 1] = 257"]);
        gives("linear_f32", &["int8r_bf16[1, 2] = 127 1", "int8r[1, 2] = 1 1"], "", &["f32[1, 1] = 128"]);
        gives("linear_f32", &["f32[T, 1, 2] = 1 2 3 4", "fp8b128[1, 2] = 0.5 1"], "", &["f32[T, 1, 1] = 2.5 5.5"]);
    }

    #[test]
    fn refused_types() {
        rejects("linear_f32", &["bf16[T, 3]", "f32[2, 4]"], "", "ir::contract", "k = 3 in bf16[T, 3], k = 4 in f32[2, 4]");
        rejects("linear_f32", &["i32[T, 3]", "f32[2, 3]"], "", "ir::dtype", "operand 0");
    }
}
