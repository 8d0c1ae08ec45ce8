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
    write::fits("rope_cache", t, 2, 0)?;
    let (width, latent) = (last(kv, 0)?.as_fixed().unwrap_or(0), gain.shape[0].as_fixed().unwrap_or(0));
    if latent == 0 || latent >= width || !(width - latent).is_multiple_of(2) {
        return Err(TypeError::contract(format!("rope_cache: a gain {gain} does not split {kv} into latent and an even key")));
    }
    finite(a, "eps")?;
    rope::check(a)?;
    Ok(vec![t[2].clone()])
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let (latent, width) = (x[1].width(), x[0].width());
    let part = |start: usize, len: usize| x[0].gathered(&[x[0].rows(), len], |i| i[0] * width + start + i[1]);
    let c = rms_norm::normalized(&part(0, latent), Some(x[1]), float_of(a, "eps"), x[0].dtype);
    let k = rope::eval(&[&part(latent, width - latent), x[3]], a, sizes).remove(0);
    let row = concat::eval(&[&c, &k], &attrs(&[("axis", Attr::Int(1))]), sizes).remove(0);
    vec![write::written(x[2], &row, &write::slots(x[3], x[4], x[5], x[6]))]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        // Token 0 is row 1 of page 1, token 1 row 0 of page 0.
        gives("rope_cache", &["f32[T, 4] = 3 4 1 2 1 1 0 1", "f32[2] = 1 2", "paged f32[4] = 0..512", "i32[T] = 1 0", "i32[T] = 0 1", "i32[P] = 1 0", "i32[S+1] = 0 1 2"], "eps = 0.01, attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", &["paged f32[4] = 0.99503719 1.99007438 0 1 4..260 0.84818893 2.26183715 -1.14263966 1.9220756 264..512"]);
    }

    #[test]
    fn refused_types() {
        rejects("rope_cache", &["f32[T, 4]", "f32[4]", "paged f32[4]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "eps = 1e-6, attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", "ir::contract", "does not split");
        rejects("rope_cache", &["f32[T, 4]", "f32[3]", "paged f32[4]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "eps = 1e-6, attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", "ir::contract", "even key");
        rejects("rope_cache", &["f32[T, 4]", "f32[2]", "paged f32[5]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"], "eps = 1e-6, attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", "ir::contract", "row width: 4 and 5");
    }
}
