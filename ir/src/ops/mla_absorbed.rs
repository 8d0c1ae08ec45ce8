use super::*;

pub const ATTRS: &[AttrSpec] = &[("scale", AttrKind::Float)];

/// Multi-head latent attention over the latent cache itself: keys and values are the cached rows, shared by all heads.
///
///     s[t, h, x] = scale (sum_l ql[t, h, l] c[x, l] + sum_r qr[t, h, r] k[x, r]), masked causally        [c | k] = cached row x
///     y[t, h, l] = sum_x softmax_x(s)[t, h, x] c[x, l]
///
/// * `ql` float `[T, H, L]`      * `qr` float `[T, H, R]`      * `state` paged, width L + R, after this step's write
/// * `pos`, `seq` i32 `[T]`, `pages` i32 `[P]`, `page_start` i32 `[S + 1]`      * result: type of `ql`, `[T, H, L]`; scores stay in f32
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: DeepSeek-V3 `inference/model.py`, `attn_impl = "absorb"`; FlashMLA.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (ql, qr, s) = (ranked(float(t, 0)?, 0, 3)?, ranked(float(t, 1)?, 1, 3)?, write::paged(t, 2)?);
    same("mla_absorbed: tokens", ql.shape[0], qr.shape[0])?;
    same("mla_absorbed: heads", ql.shape[1], qr.shape[1])?;
    let sum = ql.shape[2].as_fixed().unwrap_or(0).saturating_add(qr.shape[2].as_fixed().unwrap_or(0));
    same("mla_absorbed: cache row width", Dim::fixed(sum), Dim::fixed(s.width))?;
    if ql.dtype != qr.dtype || ql.dtype != s.dtype {
        return Err(TypeError::new("ir::dtype", format!("mla_absorbed: {ql}, {qr} and {s} must have one type")));
    }
    write::addressing(t, 3, ql.shape[0])?;
    finite(a, "scale")?;
    Ok(vec![Type::Tensor(ql.clone())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let (c, k) = context(x, a, sizes);
    let p = probabilities((x[0], &c, "tnl,xl->tnx"), (x[1], &k, "tnr,xr->tnx"), [x[3], x[4], x[6]], a, sizes);
    vec![contract(&p, &c, "tnx,xl->tnl", sizes).narrow(x[0].dtype)]
}

/// The cached rows of all pages in f32: latents and rotated keys.
pub(crate) fn context(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> (Tensor, Tensor) {
    let rows = read::eval(&[x[2], x[5]], a, sizes).remove(0).widen();
    let (latent, width) = (x[0].width(), rows.width());
    let part = |start: usize, len: usize| rows.gathered(&[rows.rows(), len], |i| i[0] * width + start + i[1]);
    (part(0, latent), part(latent, width - latent))
}

/// `einsum` in f32.
pub(crate) fn contract(a: &Tensor, b: &Tensor, eq: &str, sizes: &Sizes) -> Tensor {
    einsum::eval(&[&a.widen(), &b.widen()], &attrs(&[("eq", Attr::Str(eq.into()))]), sizes).remove(0)
}

/// Attention weights in f32 from the two parts of the scores; `mask` is `pos, seq, page_start`.
pub(crate) fn probabilities(
    main: (&Tensor, &Tensor, &str),
    rotated: (&Tensor, &Tensor, &str),
    mask: [&Tensor; 3],
    a: &Attrs,
    sizes: &Sizes,
) -> Tensor {
    let scores = scores(main, rotated, a, sizes);
    let masked = causal_mask::eval(&[&scores, mask[0], mask[1], mask[2]], a, sizes).remove(0);
    softmax::eval(&[&masked], a, sizes).remove(0)
}

/// Scaled scores in f32 from their two parts, not masked.
pub(crate) fn scores(
    main: (&Tensor, &Tensor, &str),
    rotated: (&Tensor, &Tensor, &str),
    a: &Attrs,
    sizes: &Sizes,
) -> Tensor {
    let scale = float_of(a, "scale") as f32;
    let (s1, s2) = (contract(main.0, main.1, main.2, sizes), contract(rotated.0, rotated.1, rotated.2, sizes));
    add::zip(&s1, &s2, |p, q| (p + q) * scale)
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        // Token 0 sees rows (1, 2), (3, -1) of page 1, token 1 the row (5, 1) of page 0; the rows of 9 are hidden.
        gives("mla_absorbed", &["f32[T, 1, 1] = 0.5 1", "f32[T, 1, 1] = 1 1", "paged f32[2] = 5 1 9*126 1 2 3 -1 9*124", "i32[T] = 1 0", "i32[T] = 0 1", "i32[P] = 1 0", "i32[S+1] = 0 1 2"], "scale = 0.5", &["f32[T, 1, 1] = 1.53788284 5"]);
    }

    #[test]
    fn refused_types() {
        rejects("mla_absorbed", &["f32[T, 2, 4]", "f32[T, 2, 2]", "paged f32[7]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "scale = 1", "ir::contract", "cache row width: 6 and 7");
        rejects("mla_absorbed", &["f32[T, 2, 4]", "f32[T, 3, 2]", "paged f32[6]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "scale = 1", "ir::contract", "heads: 2 and 3");
        rejects("mla_absorbed", &["f32[T, 2, 4]", "f32[T, 2, 2]", "paged bf16[6]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "scale = 1", "ir::dtype", "one type");
    }
}
