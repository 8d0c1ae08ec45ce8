use super::*;
use std::f64::consts::PI;

pub const ATTRS: &[AttrSpec] = &[
    ("attn_factor", AttrKind::Float),
    ("beta_fast", AttrKind::Float),
    ("beta_slow", AttrKind::Float),
    ("factor", AttrKind::Float),
    ("original", AttrKind::Float),
    ("theta", AttrKind::Float),
];

/// Rotary position embedding of interleaved pairs, in place.
///
///     y[t, .., 2i]     = m (x[t, .., 2i] cos(p f_i) - x[t, .., 2i+1] sin(p f_i))
///     y[t, .., 2i + 1] = m (x[t, .., 2i] sin(p f_i) + x[t, .., 2i+1] cos(p f_i))        p = pos[t], m = attn_factor
///
/// * `x` float `[T, .., D]`, D even      * `pos` i32 `[T]`      * result: type of `x`
/// * `f_i` in radians a token: [`frequencies`]
///
/// Errors: `ir::contract` for an odd D or another T, `ir::attribute` for a base or factor that gives no frequencies.
/// Source: DeepSeek-V3 `inference/model.py`, `apply_rotary_emb`, `precompute_freqs_cis`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, pos) = (float(t, 0)?, index(t, 1, 1)?);
    if x.rank() < 2 {
        return Err(TypeError::wants("ir::rank", 0, "have 2 or more axes", x));
    }
    same("rope: tokens", x.shape[0], pos.shape[0])?;
    match last(x, 0)?.as_fixed() {
        Some(d) if d % 2 == 0 => {}
        _ => return Err(TypeError::contract(format!("rope: the last axis of {x} must be an even number"))),
    }
    check(a)?;
    Ok(vec![Type::Tensor(x.clone())])
}

/// All attributes are finite, all but `attn_factor` positive, and `theta` is above 1.
pub(crate) fn check(a: &Attrs) -> Result<(), TypeError> {
    for (name, _) in ATTRS {
        let (x, least) = (finite(a, name)?, if *name == "theta" { 1.0 } else { 0.0 });
        if *name != "attn_factor" && x <= least {
            return Err(TypeError::new("ir::attribute", format!("rope: `{name}` must be above {least}, found {x}")));
        }
    }
    Ok(())
}

/// Angles per token of the `width / 2` pairs, in radians, by YaRN.
///
///     f_i = theta^(-2i / D);   r(b) = D ln(original / (2 pi b)) / (2 ln theta)
///     low = max(floor(r(beta_fast)), 0), high = min(ceil(r(beta_slow)), D - 1)
///     ramp_i = clamp((i - low) / (high - low), 0, 1);   f_i' = f_i / factor * ramp_i + f_i (1 - ramp_i)
///
/// `factor = 1` gives the plain frequencies.
pub fn frequencies(a: &Attrs, width: usize) -> Vec<f64> {
    let [fast, slow, factor, original, theta] =
        ["beta_fast", "beta_slow", "factor", "original", "theta"].map(|name| float_of(a, name));
    let d = width as f64;
    let turns = |beta: f64| d * (original / (2.0 * PI * beta)).ln() / (2.0 * theta.ln());
    let low = turns(fast).floor().max(0.0);
    let high = turns(slow).ceil().min(d - 1.0);
    let span = if high == low { 0.001 } else { high - low };
    let one = |i: usize| {
        let f = theta.powf(-2.0 * i as f64 / d);
        if factor == 1.0 {
            return f;
        }
        let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
        f / factor * ramp + f * (1.0 - ramp)
    };
    (0..width / 2).map(one).collect()
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let (width, m) = (x[0].width(), float_of(a, "attn_factor"));
    let freqs = frequencies(a, width);
    let per_token = x[0].rows() / x[0].shape[0].max(1);
    let mut values = Vec::with_capacity(x[0].floats().len());
    for r in 0..x[0].rows() {
        let p = f64::from(x[1].ints()[r / per_token]);
        for (pair, f) in x[0].row(r).chunks_exact(2).zip(&freqs) {
            let (sin, cos) = (p * f).sin_cos();
            let (re, im) = (f64::from(pair[0]), f64::from(pair[1]));
            values.push((m * (re * cos - im * sin)) as f32);
            values.push((m * (re * sin + im * cos)) as f32);
        }
    }
    vec![Tensor::float(x[0].dtype, &x[0].shape, values)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("rope", &["f32[T, 4] = 1 0 0 1 1 2 3 4", "i32[T] = 0 7"], "attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", &["f32[T, 4] = 1 0 0 1 -0.560070943 2.16479111 2.71288161 4.20003254"]);
        // YaRN, heads between tokens and pairs.
        gives("rope", &["f32[1, 2, 6] = 1 2 3 4 5 6 1 1 1 1 1 1", "i32[1] = 100"], "attn_factor = 1.5, beta_fast = 32, beta_slow = 1, factor = 40, original = 64, theta = 10000", &["f32[1, 2, 6] = 2.81257523 1.82740816 3.77506037 6.48065731 7.45141667 9.04026491 2.05302677 0.533929847 1.3162432 1.66358163 1.49189915 1.50805733"]);
    }

    #[test]
    fn refused_types() {
        rejects("rope", &["f32[T, 3]", "i32[T]"], "attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", "ir::contract", "even");
        rejects("rope", &["f32[T, 4]", "i32[S]"], "attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", "ir::contract", "tokens: T and S");
        rejects("rope", &["f32[T, 4]", "i32[T]"], "attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 0, original = 64, theta = 10000", "ir::attribute", "`factor` must be above 0");
        rejects("rope", &["f32[T]", "i32[T]"], "attn_factor = 1, beta_fast = 32, beta_slow = 1, factor = 1, original = 64, theta = 10000", "ir::rank", "2 or more axes");
    }
}
