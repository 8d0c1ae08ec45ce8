use super::*;

pub const ATTRS: &[AttrSpec] = &[];

/// Product, element by element; `b` may lack outer axes.
///
///     y[.., i] = a[.., i] * b[i]
///
/// * `a` float      * `b` float, its shape equal to `a`'s or to the end of it      * result: type of `a`
///
/// Errors: `ir::contract` if the shapes do not fit.
/// Source: SwiGLU's gate times up.
pub fn infer(t: &[&Type], _: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (a, b) = (float(t, 0)?, float(t, 1)?);
    add::suffix("mul", a, b)?;
    Ok(vec![Type::Tensor(a.clone())])
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![add::zip(x[0], x[1], |a, b| a * b)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("mul", &["f32[T, 2] = 1 2 3 4", "f32[2] = 10 -1"], "", &["f32[T, 2] = 10 -2 30 -4"]);
    }

    #[test]
    fn refused_types() {
        rejects("mul", &["f32[2]", "f32[T, 2]"], "", "ir::contract", "mul: the shape of f32[T, 2]");
    }
}
