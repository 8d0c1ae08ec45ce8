use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Sum, element by element; `b` may lack outer axes.
///
///     y[.., i] = a[.., i] + b[i]
///
/// * `a` float      * `b` float, its shape equal to `a`'s or to the end of it      * result: type of `a`
///
/// Errors: `ir::contract` if the shapes do not fit.
/// Source: residual connections, biases.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (a, b) = (float(t, 0)?, float(t, 1)?);
    suffix("add", a, b)?;
    Ok(vec![Type::Tensor(a.clone())])
}

pub(crate) fn suffix(op: &str, a: &TensorType, b: &TensorType) -> Result<(), TypeError> {
    if a.shape.ends_with(&b.shape) && b.rank() > 0 {
        return Ok(());
    }
    Err(TypeError::contract(format!("{op}: the shape of {b} is not the end of the shape of {a}")))
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![zip(x[0], x[1], |a, b| a + b)]
}

/// `f` over the elements of `a` and `b`, `b` repeated.
pub(crate) fn zip(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Tensor {
    let values = a.floats().iter().zip(b.floats().iter().cycle()).map(|(x, y)| f(*x, *y)).collect();
    Tensor::float(a.dtype, &a.shape, values)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("add", &["f32[T, 2] = 1 2 3 4", "f32[T, 2] = 10 20 30 40"], "", &["f32[T, 2] = 11 22 33 44"]);
        gives("add", &["bf16[T, 2] = 256 2 3 4", "f32[2] = 1 -1"], "", &["bf16[T, 2] = 256 1 4 3"]);
    }

    #[test]
    fn refused_types() {
        rejects("add", &["f32[T, 2]", "f32[T]"], "", "ir::contract", "the shape of f32[T] is not the end of the shape of f32[T, 2]");
        rejects("add", &["f32[T, 2]", "f32[]"], "", "ir::contract", "add");
        rejects("add", &["i32[T]", "i32[T]"], "", "ir::dtype", "operand 0");
    }
}
