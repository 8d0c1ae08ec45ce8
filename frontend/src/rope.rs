//! Rotary embedding: what the configuration says about it, and the softmax scale that depends on it.

use crate::error::Result;
use crate::fields::{Fields, MAX_DIM};

/// Rotary position embedding of the last `rope_dim` of each query head and of the shared key, in interleaved pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies, `f_i = theta^(-2i/rope_dim)`.
    pub theta: f64,
    /// Context extension; `None` rotates by the plain frequencies.
    pub yarn: Option<Yarn>,
}

/// YaRN: frequencies that turn fewer than `beta_slow` times over the `original` context are divided by `factor`, those that turn
/// more than `beta_fast` times stay, and the ones between are interpolated. Source: transformers 5 `_compute_yarn_parameters`.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    /// Context of the pretraining, in tokens.
    pub original: u64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// cos and sin are multiplied by this; 1 in all releases.
    pub attn_factor: f64,
    /// What [`softmax_scale`] is multiplied with, `mscale(factor, mscale_all_dim)^2`; 1 without `mscale_all_dim`.
    pub softmax_factor: f64,
}

/// YaRN's magnitude correction:
///
///     mscale(s, m) = 0.1 m ln(s) + 1     for s > 1, else 1
pub fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

/// The factor of attention scores before the softmax:
///
///     (nope + rope)^(-1/2) * mscale(factor, mscale_all_dim)^2
///
/// Source: DeepSeek-V3 `inference/model.py`, transformers 5 `yarn_apply_mscale`.
pub fn softmax_scale(head_dim: u64, rope: &Rope) -> f64 {
    (head_dim as f64).powf(-0.5) * rope.yarn.as_ref().map_or(1.0, |y| y.softmax_factor)
}

impl Rope {
    /// Reads `rope_scaling` (published, transformers 4) or `rope_parameters` (transformers 5), `type` or `rope_type`,
    /// and `rope_theta` from either level.
    pub(crate) fn parse(config: &Fields, context: u64) -> Result<Self> {
        let inner = match config.object("rope_scaling")? {
            Some(fields) => Some(fields),
            None => config.object("rope_parameters")?,
        };
        let theta = |f: &Fields| match f.positive("rope_theta", 1e12)? {
            // ln(theta) divides in YaRN's range, and frequencies must fall.
            Some(theta) if theta <= 1.0 => Err(f.error("rope_theta", "out of range", "a number above 1")),
            other => Ok(other),
        };
        let outer_theta = theta(config)?.unwrap_or(10_000.0);
        let Some(f) = inner else { return Ok(Self { theta: outer_theta, yarn: None }) };
        let theta = theta(&f)?.unwrap_or(outer_theta);
        let kind = if f.has("rope_type") { "rope_type" } else { "type" };
        f.str(kind)?;
        f.only(kind, &["default", "yarn"])?;
        f.only("partial_rotary_factor", &["1", "1.0"])?;
        f.only("truncate", &["true"])?;
        let yarn = if f.str(kind)? == Some("yarn") { Some(Yarn::parse(&f, context)?) } else { None };
        Ok(Self { theta, yarn })
    }
}

impl Yarn {
    /// * `factor` absent or null: `max_position_embeddings / original`
    /// * cos/sin factor: `attention_factor` if given, else `mscale(factor, mscale) / mscale(factor, mscale_all_dim)` if both are
    ///   given and not 0, else `mscale(factor, 1)`
    fn parse(f: &Fields, context: u64) -> Result<Self> {
        let original = f.int("original_max_position_embeddings", 1..=MAX_DIM)?.unwrap_or(context);
        let factor = f.positive("factor", 1e6)?.unwrap_or(context as f64 / original as f64);
        let beta_fast = f.positive("beta_fast", 1e6)?.unwrap_or(32.0);
        let beta_slow = f.positive("beta_slow", 1e6)?.unwrap_or(1.0);
        if beta_fast < beta_slow {
            return Err(f.error("beta_fast", "out of range", format!("at least beta_slow, {beta_slow:?}")));
        }
        let given = |name| Ok::<_, crate::Error>(f.float(name)?.filter(|m| *m != 0.0));
        let (m, m_all) = (given("mscale")?, given("mscale_all_dim")?);
        for (name, m) in [("mscale", m), ("mscale_all_dim", m_all)] {
            if m.is_some_and(|m| !(mscale(factor, m) > 0.0 && mscale(factor, m) < 1e6)) {
                return Err(f.error(name, "out of range", "0.1 * mscale * ln(factor) + 1 above 0"));
            }
        }
        let attn_factor = match (f.positive("attention_factor", 1e6)?, m, m_all) {
            (Some(factor), _, _) => factor,
            (None, Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
            (None, _, _) => mscale(factor, 1.0),
        };
        let softmax_factor = m_all.map_or(1.0, |m| mscale(factor, m).powi(2));
        Ok(Self { factor, original, beta_fast, beta_slow, attn_factor, softmax_factor })
    }
}
