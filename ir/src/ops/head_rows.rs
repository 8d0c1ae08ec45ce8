use super::*;

pub const ATTRS: &[AttrSpec] = &[("heads", AttrKind::Int), ("len", AttrKind::Int), ("start", AttrKind::Int)];

/// A range of each head's rows of a weight: W_UK or W_UV out of `kv_b_proj`.
///
///     y[h, i, k] = w[h n + start + i, k]        0 <= i < len, n = rows / heads
///
/// * `w` float or quantized `[heads n, K]`      * result `[heads, len, K]`
/// * a quantized weight keeps its type if every head's range lies on block borders, else it is widened to f32, which is exact
///
/// Errors: `ir::contract` if the rows do not divide or the range leaves a head.
/// Source: `wkv_b.view(n_heads, -1, kv_lora_rank)[:, :qk_nope_head_dim]` of `attn_impl = "absorb"`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let w = ranked(matrix(t, 0)?, 0, 2)?;
    let (heads, start, len) = (natural(a, "heads")?, natural(a, "start")?, natural(a, "len")?);
    let rows = w.shape[0].as_fixed().filter(|r| heads > 0 && r % heads == 0);
    let Some(n) = rows.map(|r| r / heads).filter(|n| len > 0 && start.checked_add(len).is_some_and(|e| e <= *n)) else {
        return Err(TypeError::contract(format!("head_rows: {w} has no rows {start}..{start}+{len} in each of {heads} heads")));
    };
    Ok(vec![with_shape(w, kept(w.dtype, heads, n, start, len), [Dim::fixed(heads), Dim::fixed(len), w.shape[1]])])
}

/// Type of the result: blocks must not be cut.
fn kept(dtype: DType, heads: u64, n: u64, start: u64, len: u64) -> DType {
    let DType::Quant(q) = dtype else { return dtype };
    let on_border = |at: u64| at == 0 || (q.block[0] > 0 && at.is_multiple_of(u64::from(q.block[0])));
    let heads_apart = heads == 1 || on_border(n);
    if heads_apart && on_border(start) && (start + len == n || on_border(start + len)) { dtype } else { DType::F32 }
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (heads, start, len) = (int_of(a, "heads"), int_of(a, "start"), int_of(a, "len"));
    let (n, k) = (x[0].shape[0] / heads, x[0].shape[1]);
    let mut y = x[0].gathered(&[heads, len, k], |i| (i[0] * n + start + i[1]) * k + i[2]);
    y.dtype = kept(x[0].dtype, heads as u64, n as u64, start as u64, len as u64);
    vec![y]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("head_rows", &["f32[6, 1] = 0..6"], "heads = 2, start = 1, len = 2", &["f32[2, 2, 1] = 1 2 4 5"]);
        // Off the block border: widened.
        gives("head_rows", &["fp8b128[4, 1] = 0..4"], "heads = 2, start = 1, len = 1", &["f32[2, 1, 1] = 1 3"]);
        gives("head_rows", &["fp8b128[256, 1] = 0..256"], "heads = 1, start = 128, len = 128", &["fp8b128[1, 128, 1] = 128..256"]);
    }

    #[test]
    fn refused_types() {
        rejects("head_rows", &["f32[6, 1]"], "heads = 4, start = 0, len = 1", "ir::contract", "4 heads");
        rejects("head_rows", &["f32[6, 1]"], "heads = 2, start = 2, len = 2", "ir::contract", "no rows 2..2+2");
        rejects("head_rows", &["f32[6, 1]"], "heads = 0, start = 0, len = 1", "ir::contract", "0 heads");
    }
}
