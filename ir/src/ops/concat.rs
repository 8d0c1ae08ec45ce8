use super::*;

pub const ATTRS: &[AttrSpec] = &[("axis", AttrKind::Int)];

/// Two tensors one after the other along an axis.
///
///     y[.., i, ..] = a[.., i, ..] for i < n, else b[.., i - n, ..]
///
/// * `a`, `b` of one type, shapes equal but for the axis, which is a number in both; a quantized `a` ends on a block border
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: `torch.cat`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, y) = (tensor(t, 0)?, tensor(t, 1)?);
    let axis = natural(a, "axis")? as usize;
    if x.dtype != y.dtype {
        return Err(TypeError::new("ir::dtype", format!("concat: {x} and {y} have different types")));
    }
    let fits = x.rank() == y.rank() && x.shape.iter().zip(&y.shape).enumerate().all(|(i, (p, q))| i == axis || p == q);
    let lengths = (x.shape.get(axis).and_then(Dim::as_fixed), y.shape.get(axis).and_then(Dim::as_fixed));
    let (true, (Some(n), Some(m))) = (fits, lengths) else {
        return Err(TypeError::contract(format!("concat: {x} and {y} differ besides axis {axis}, or it is not a number")));
    };
    let Some(sum) = n.checked_add(m) else {
        return Err(TypeError::contract(format!("concat: {n} + {m} elements of axis {axis} are beyond 2^64")));
    };
    if !slice::on_border(x, axis, n) {
        return Err(TypeError::contract(format!("concat: {x} ends inside a quantization block on axis {axis}")));
    }
    let mut shape = x.shape.clone();
    shape[axis] = Dim::fixed(sum);
    Ok(vec![with_shape(x, x.dtype, shape)])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let axis = int_of(a, "axis");
    let mut shape = x[0].shape.clone();
    shape[axis] += x[1].shape[axis];
    let outer: usize = shape[..axis].iter().product();
    let chunk = |t: &Tensor| t.shape[axis..].iter().product::<usize>();
    let (n, m) = (chunk(x[0]), chunk(x[1]));
    fn join<V: Copy>(a: &[V], b: &[V], outer: usize, n: usize, m: usize) -> Vec<V> {
        (0..outer).flat_map(|o| a[o * n..(o + 1) * n].iter().chain(&b[o * m..(o + 1) * m]).copied()).collect()
    }
    use crate::tensor::Data;
    let data = match (&x[0].data, &x[1].data) {
        (Data::Float(p), Data::Float(q)) => Data::Float(join(p, q, outer, n, m)),
        (Data::Int(p), Data::Int(q)) => Data::Int(join(p, q, outer, n, m)),
        _ => panic!("one type was verified here"),
    };
    vec![Tensor { dtype: x[0].dtype, shape, data }]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("concat", &["f32[T, 1] = 1 2", "f32[T, 2] = 3 4 5 6"], "axis = 1", &["f32[T, 3] = 1 3 4 2 5 6"]);
        gives("concat", &["i32[1, 2] = 1 2", "i32[2, 2] = 3 4 5 6"], "axis = 0", &["i32[3, 2] = 1..7"]);
    }

    #[test]
    fn refused_types() {
        rejects("concat", &["f32[T, 1]", "bf16[T, 2]"], "axis = 1", "ir::dtype", "different types");
        rejects("concat", &["f32[T, 1]", "f32[S, 2]"], "axis = 1", "ir::contract", "differ besides axis 1");
        rejects("concat", &["f32[T, 1]", "f32[T, 1]"], "axis = 0", "ir::contract", "not a number");
        rejects("concat", &["f32[T, 1]", "f32[T, 1]"], "axis = 2", "ir::contract", "differ besides axis 2");
        rejects("concat", &["fp8b128[100, 128]", "fp8b128[128, 128]"], "axis = 0", "ir::contract", "ends inside a quantization block");
        rejects("concat", &["f32[18446744073709551615]", "f32[1]"], "axis = 0", "ir::contract", "beyond 2^64");
    }
}
