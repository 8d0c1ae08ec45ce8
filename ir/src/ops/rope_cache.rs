use super::*;

pub const ATTRS: &[AttrSpec] = &[
    ("attn_factor", AttrKind::Float),
    ("beta_fast", AttrKind::Float),
    ("beta_slow", AttrKind::Float),
    ("eps", AttrKind::Float),
    ("factor", AttrKind::Float),
    ("original", AttrKind::Float),
    ("theta", AttrKind::Float),
];

/// Cache row of every token, computed and stored in one pass.
///
///     state[slot(t)] = [ rms_norm(kv[t, ..L], gain) | rope(kv[t, L..], pos[t]) ]        L = length of gain
///
/// * `kv` of the state's type `[T, L + R]`      * `gain` float `[L]`      * `state` paged, width L + R
/// * `pos`, `seq` i32 `[T]`, `pages` i32 `[P]`, `page_start` i32 `[S + 1]`, as in [`super::write`]; the attributes are those of `rms_norm` and `rope`
///
/// Errors: `ir::contract`, `ir::dtype`.
/// Source: `kv_a_layernorm`, `apply_rotary_emb` and the cache update of DeepSeek-V3 `inference/model.py`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (kv, gain) = (ranked(float(t, 0)?, 0, 2)?, ranked(float(t, 1)?, 1, 1)?);
    write::infer(&[t[2], t[0], t[3], t[4], t[5], t[6]], &Attrs::new())?;
    let (width, latent) = (last(kv, 0)?.as_fixed().unwrap_or(0), gain.shape[0].as_fixed().unwrap_or(0));
    if latent == 0 || latent >= width || !(width - latent).is_multiple_of(2) {
        return Err(TypeError::contract(format!("rope_cache: a gain {gain} does not split {kv} into latent and an even key")));
    }
    for (name, _) in ATTRS {
        finite(a, name)?;
    }
    Ok(vec![t[2].clone()])
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let (latent, width) = (x[1].width(), x[0].width());
    let part = |start: usize, len: usize| x[0].gathered(&[x[0].rows(), len], |i| i[0] * width + start + i[1]);
    let c = rms_norm::normalized(&part(0, latent), x[1], float_of(a, "eps"), x[0].dtype);
    let k = rope::eval(&[&part(latent, width - latent), x[3]], a, sizes).remove(0);
    let row = concat::eval(&[&c, &k], &attrs(&[("axis", Attr::Int(1))]), sizes).remove(0);
    vec![write::written(x[2], &row, &write::slots(x[3], x[4], x[5], x[6]))]
}
