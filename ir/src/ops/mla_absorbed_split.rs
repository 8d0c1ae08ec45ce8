use super::*;
use crate::types::PAGE_TOKENS;

pub const ATTRS: &[AttrSpec] = &[("scale", AttrKind::Float), ("splits", AttrKind::Int)];

/// [`mla_absorbed`] with the context of every token in `splits` parts that are computed apart and merged ("flash decoding"): work for many
/// workers where tokens and heads are few.
///
///     part i of token t: rows X_i = [i w, min((i + 1) w, pos[t] + 1)) of its sequence, w = 64 ceil(ceil((pos[t] + 1) / 64) / splits)
///     m_i = max_{x in X_i} s[t, h, x]        d_i = sum_{x in X_i} exp(s[t, h, x] - m_i)        o_i = sum_{x in X_i} exp(s[t, h, x] - m_i) c[x]
///     y[t, h] = sum_i exp(m_i - m) o_i / sum_i exp(m_i - m) d_i        m = max_i m_i
///
/// * operands and result as those of `mla_absorbed`      * `splits` >= 1; parts are whole pages, later ones may be empty
///
/// Errors: `ir::contract`, `ir::dtype`, `ir::attribute`.
/// Source: flash decoding; FlashMLA's `combine`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let splits = natural(a, "splits")?;
    if splits == 0 || splits > 1 << 16 {
        return Err(TypeError::new("ir::attribute", format!("`splits` must be 1 to 65536, found {splits}")));
    }
    mla_absorbed::infer(t, a)
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let (c, k) = mla_absorbed::context(x, a, sizes);
    let scores = mla_absorbed::scores((x[0], &c, "tnl,xl->tnx"), (x[1], &k, "tnr,xr->tnx"), a, sizes);
    let (heads, latent) = (x[0].shape[1], x[0].shape[2]);
    let [pos, seq, starts] = [x[3].ints(), x[4].ints(), x[6].ints()];
    let mut y = Vec::with_capacity(x[0].shape[0] * heads * latent);
    for (t, head) in (0..x[0].shape[0]).flat_map(|t| (0..heads).map(move |h| (t, h))) {
        let first = starts[seq[t] as usize] as usize * PAGE_TOKENS as usize;
        let seen = &scores.row(t * heads + head)[first..=first + pos[t] as usize];
        let pages = seen.len().div_ceil(PAGE_TOKENS as usize);
        let width = pages.div_ceil(int_of(a, "splits")) * PAGE_TOKENS as usize;
        let parts = seen.chunks(width).enumerate().map(|(i, s)| Part::new(s, |row| c.row(first + i * width + row), latent));
        y.extend(merged(&parts.collect::<Vec<_>>()));
    }
    vec![Tensor::float(x[0].dtype, &x[0].shape, y)]
}

/// What one part of the context contributes to one head.
struct Part {
    largest: f64,
    total: f64,
    sums: Vec<f64>,
}

impl Part {
    fn new<'a>(scores: &[f32], value: impl Fn(usize) -> &'a [f32], latent: usize) -> Self {
        let largest = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(f64::from(*s)));
        let (mut total, mut sums) = (0.0, vec![0.0; latent]);
        for (row, s) in scores.iter().enumerate() {
            let weight = (f64::from(*s) - largest).exp();
            total += weight;
            sums.iter_mut().zip(value(row)).for_each(|(sum, v)| *sum += weight * f64::from(*v));
        }
        Self { largest, total, sums }
    }
}

fn merged(parts: &[Part]) -> Vec<f32> {
    let largest = parts.iter().fold(f64::NEG_INFINITY, |m, p| m.max(p.largest));
    let factors: Vec<f64> = parts.iter().map(|p| (p.largest - largest).exp()).collect();
    let total: f64 = parts.iter().zip(&factors).map(|(p, f)| f * p.total).sum();
    let sum = |l: usize| parts.iter().zip(&factors).map(|(p, f)| f * p.sums[l]).sum::<f64>();
    (0..parts[0].sums.len()).map(|l| (sum(l) / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    const TYPES: [&str; 7] =
        ["f32[T, 2, 4]", "f32[T, 2, 2]", "paged f32[6]", "i32[T]", "i32[T]", "i32[P]", "i32[S+1]"];

    #[test]
    fn values() {
        // As `mla_absorbed`: one page a token, so the other parts are empty.
        gives("mla_absorbed_split", &["f32[T, 1, 1] = 0.5 1", "f32[T, 1, 1] = 1 1", "paged f32[2] = 5 1 9*126 1 2 3 -1 9*124", "i32[T] = 1 0", "i32[T] = 0 1", "i32[P] = 1 0", "i32[S+1] = 0 1 2"], "scale = 0.5, splits = 3", &["f32[T, 1, 1] = 1.53788284 5"]);
        // Two pages of one sequence: 64 rows of latent 1 in the first part, one row of latent 66 in the second, all scores equal.
        gives("mla_absorbed_split", &["f32[T, 1, 1] = 0 0", "f32[T, 1, 1] = 0 0", "paged f32[2] = 1*128 66 0 7*126", "i32[T] = 64 63", "i32[T] = 0 0", "i32[P] = 0 1", "i32[S+1] = 0 2 2"], "scale = 1, splits = 2", &["f32[T, 1, 1] = 2 1"]);
    }

    #[test]
    fn refused_types() {
        rejects("mla_absorbed_split", &TYPES, "scale = 1, splits = 0", "ir::attribute", "1 to 65536");
        rejects("mla_absorbed_split", &TYPES, "scale = 1, splits = -1", "ir::attribute", "must not be negative");
        let mut narrow = TYPES;
        narrow[2] = "paged f32[7]";
        rejects("mla_absorbed_split", &narrow, "scale = 1, splits = 2", "ir::contract", "cache row width: 6 and 7");
    }
}
