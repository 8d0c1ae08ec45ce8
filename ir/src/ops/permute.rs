use super::*;
use crate::types::Quant;

pub const ATTRS: &[AttrSpec] = &[("axes", AttrKind::Ints)];

/// Axes in another order.
///
///     y's axis i is x's axis axes[i]
///
/// * `x` any tensor; of a quantized one the last two axes stay the last two, and their blocks turn with them
///
/// Errors: `ir::attribute` if `axes` is no permutation.
/// Source: `torch.permute`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = tensor(t, 0)?;
    let axes = axes_of(a, x.rank()).ok_or_else(|| TypeError::new("ir::attribute", format!("permute: `axes` is no permutation of the axes of {x}")))?;
    let mut dtype = x.dtype;
    if let DType::Quant(q) = dtype {
        let r = x.rank();
        let turned = r >= 2 && axes[r - 2..] == [r - 1, r - 2];
        if !(turned || r >= 2 && axes[r - 2..] == [r - 2, r - 1]) {
            return Err(TypeError::contract(format!("permute: blocks lie over the last two axes of {x}")));
        }
        if turned {
            dtype = DType::Quant(Quant { block: [q.block[1], q.block[0]], ..q });
        }
    }
    Ok(vec![with_shape(x, dtype, axes.iter().map(|i| x.shape[*i]))])
}

fn axes_of(a: &Attrs, rank: usize) -> Option<Vec<usize>> {
    let axes: Vec<usize> = a.ints("axes")?.iter().map(|i| usize::try_from(*i).ok()).collect::<Option<_>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    sorted.iter().copied().eq(0..rank).then_some(axes)
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let axes = axes_of(a, x[0].shape.len()).expect("the type rule checked this attribute");
    let mut y = x[0].permuted(&axes);
    if let (DType::Quant(q), [.., p, l]) = (y.dtype, axes.as_slice())
        && p > l
    {
        y.dtype = DType::Quant(Quant { block: [q.block[1], q.block[0]], ..q });
    }
    vec![y]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("permute", &["f32[2, 1, 3] = 0..6"], "axes = [2, 0, 1]", &["f32[3, 2, 1] = 0 3 1 4 2 5"]);
        gives("permute", &["fp8r128[1, 2, 2] = 1 2 3 4"], "axes = [0, 2, 1]", &["quant<e4m3, f32, 128x1>[1, 2, 2] = 1 3 2 4"]);
    }

    #[test]
    fn refused_types() {
        rejects("permute", &["f32[2, 3]"], "axes = [0, 0]", "ir::attribute", "no permutation");
        rejects("permute", &["f32[2, 3]"], "axes = [0]", "ir::attribute", "no permutation");
        rejects("permute", &["f32[2, 3]"], "axes = [0, -1]", "ir::attribute", "no permutation");
        rejects("permute", &["fp8b128[2, 3, 4]"], "axes = [1, 0, 2]", "ir::contract", "blocks lie over the last two axes");
    }
}
