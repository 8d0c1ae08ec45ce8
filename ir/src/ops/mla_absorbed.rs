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
    let context = read::eval(&[x[2], x[5]], a, sizes).remove(0).widen();
    let (latent, width) = (x[0].width(), context.width());
    let part = |start: usize, len: usize| context.gathered(&[context.rows(), len], |i| i[0] * width + start + i[1]);
    let (c, k) = (part(0, latent), part(latent, width - latent));
    let p = probabilities((x[0], &c, "tnl,xl->tnx"), (x[1], &k, "tnr,xr->tnx"), [x[3], x[4], x[6]], a, sizes);
    vec![contract(&p, &c, "tnx,xl->tnl", sizes).narrow(x[0].dtype)]
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
    let scale = float_of(a, "scale") as f32;
    let (s1, s2) = (contract(main.0, main.1, main.2, sizes), contract(rotated.0, rotated.1, rotated.2, sizes));
    let scores = add::zip(&s1, &s2, |p, q| (p + q) * scale);
    let masked = causal_mask::eval(&[&scores, mask[0], mask[1], mask[2]], a, sizes).remove(0);
    softmax::eval(&[&masked], a, sizes).remove(0)
}
