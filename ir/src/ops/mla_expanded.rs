use super::*;

pub const ATTRS: &[AttrSpec] = &[("scale", AttrKind::Float)];

/// Multi-head attention over keys and values rebuilt from the latent cache, one set a head; the rotated key is shared by all heads.
///
///     s[t, h, x] = scale (sum_d qn[t, h, d] k[x, h, d] + sum_r qr[t, h, r] kr[x, r]), masked causally
///     y[t, h, v] = sum_x softmax_x(s)[t, h, x] v[x, h, v]
///
/// * `qn` float `[T, H, D]`, `qr` float `[T, H, R]`      * `k` `[X, H, D]`, `v` `[X, H, V]`, `kr` `[X, R]`, X = 64 P
/// * `pos`, `seq` i32 `[T]`, `page_start` i32 `[S + 1]`      * result: type of `qn`, `[T, H, V]`; scores stay in f32
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: DeepSeek-V3 `inference/model.py`, `attn_impl = "naive"`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (qn, qr) = (ranked(float(t, 0)?, 0, 3)?, ranked(float(t, 1)?, 1, 3)?);
    let (k, v, kr) = (ranked(float(t, 2)?, 2, 3)?, ranked(float(t, 3)?, 3, 3)?, ranked(float(t, 4)?, 4, 2)?);
    if [qr, k, v, kr].iter().any(|o| o.dtype != qn.dtype) {
        return Err(TypeError::new("ir::dtype", format!("mla_expanded: all operands must have the type of {qn}")));
    }
    same("mla_expanded: tokens", qn.shape[0], qr.shape[0])?;
    for (what, p, q) in [("heads of qr", qn.shape[1], qr.shape[1]), ("heads of k", qn.shape[1], k.shape[1]), ("heads of v", qn.shape[1], v.shape[1])] {
        same(&format!("mla_expanded: {what}"), p, q)?;
    }
    same("mla_expanded: key width", qn.shape[2], k.shape[2])?;
    same("mla_expanded: rotated width", qr.shape[2], kr.shape[1])?;
    same("mla_expanded: context of v", k.shape[0], v.shape[0])?;
    same("mla_expanded: context of kr", k.shape[0], kr.shape[0])?;
    same("mla_expanded: tokens of `pos`", index(t, 5, 1)?.shape[0], qn.shape[0])?;
    same("mla_expanded: tokens of `seq`", index(t, 6, 1)?.shape[0], qn.shape[0])?;
    index(t, 7, 1)?;
    finite(a, "scale")?;
    Ok(vec![with_last(qn, v.shape[2])])
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let p = mla_absorbed::probabilities((x[0], x[2], "tnd,xnd->tnx"), (x[1], x[4], "tnr,xr->tnx"), [x[5], x[6], x[7]], a, sizes);
    vec![mla_absorbed::contract(&p, x[3], "tnx,xnv->tnv", sizes).narrow(x[0].dtype)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        // The same rows with k = c and v = 2 c.
        gives("mla_expanded", &["f32[T, 1, 1] = 0.5 1", "f32[T, 1, 1] = 1 1", "f32[64*P, 1, 1] = 1 3 9*62 5 9*63", "f32[64*P, 1, 1] = 2 6 9*62 10 9*63", "f32[64*P, 1] = 2 -1 9*62 1 9*63", "i32[T] = 1 0", "i32[T] = 0 1", "i32[S+1] = 0 1 2"], "scale = 0.5", &["f32[T, 1, 1] = 3.07576569 10"]);
    }

    #[test]
    fn refused_types() {
        rejects("mla_expanded", &["f32[T, 2, 4]", "f32[T, 2, 2]", "f32[64*P, 2, 5]", "f32[64*P, 2, 3]", "f32[64*P, 2]", "i32[T]", "i32[T]", "i32[S+1]"], "scale = 1", "ir::contract", "key width: 4 and 5");
        rejects("mla_expanded", &["f32[T, 2, 4]", "f32[T, 2, 2]", "f32[64*P, 2, 4]", "f32[P, 2, 3]", "f32[64*P, 2]", "i32[T]", "i32[T]", "i32[S+1]"], "scale = 1", "ir::contract", "context of v: 64*P and P");
        rejects("mla_expanded", &["f32[T, 2, 4]", "f32[T, 2, 2]", "f32[64*P, 2, 4]", "f32[64*P, 2, 3]", "f32[64*P, 3]", "i32[T]", "i32[T]", "i32[S+1]"], "scale = 1", "ir::contract", "rotated width: 2 and 3");
        rejects("mla_expanded", &["f32[T, 2, 4]", "f32[T, 2, 2]", "f32[64*P, 2, 4]", "f32[64*P, 3, 3]", "f32[64*P, 2]", "i32[T]", "i32[T]", "i32[S+1]"], "scale = 1", "ir::contract", "heads of v: 2 and 3");
        rejects("mla_expanded", &["f32[T, 2, 4]", "f32[T, 2, 2]", "f32[64*P, 2, 4]", "bf16[64*P, 2, 3]", "f32[64*P, 2]", "i32[T]", "i32[T]", "i32[S+1]"], "scale = 1", "ir::dtype", "must have the type of");
    }
}
