//! Expert choice, typed: scoring, group rule, bias, normalization, scale.

use crate::config::{Defaults, Family};
use crate::error::Result;
use crate::fields::Fields;

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

/// How the score of a group comes from those of its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupScore {
    Max,
    /// Sum of the two largest.
    Top2,
}

/// What scores outside the kept groups become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    Zero,
    NegInf,
}

/// Experts may be chosen from the best `keep` of `count` groups only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Groups {
    pub count: u64,
    pub keep: u64,
    pub by: GroupScore,
    pub fill: Fill,
}

/// The choice of experts for a token and their weights:
///
///     s = scoring(x W^T)                          in f32
///     c = limit(s + bias)                         bias and group rule steer the choice only
///     idx = top_k(c);  w = s[idx]                 without bias: w = c[idx], the same numbers
///     w = w / (sum(w) + 1e-20)                    if `normalize`
///     w = w * scale
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    pub scoring: Scoring,
    /// `None` if there is one group: every expert may be chosen.
    pub groups: Option<Groups>,
    /// Whether there is an `e_score_correction_bias`.
    pub bias: bool,
    pub normalize: bool,
    /// `routed_scaling_factor`.
    pub scale: f64,
}

impl Router {
    pub(crate) fn parse(f: &Fields, d: &Defaults, experts: u64, top_k: u64) -> Result<Self> {
        let method = f.str("topk_method")?.unwrap_or(d.topk_method);
        let scoring = f.str("scoring_func")?.unwrap_or(d.scoring_func);
        let v2 = d.family == Family::DeepseekV2;
        // Each family knows its own routers; any other pairing was never released and is computed by nobody.
        let allowed: &[&str] = if v2 { &["greedy", "group_limited_greedy"] } else { &["noaux_tc"] };
        f.only("topk_method", allowed)?;
        f.only("scoring_func", &[d.scoring_func])?;
        let scoring = if scoring == "softmax" { Scoring::Softmax } else { Scoring::Sigmoid };
        let groups = if method == "greedy" { None } else { groups(f, d, experts, top_k)? };
        let scale = f.positive("routed_scaling_factor", 1e6)?.unwrap_or(d.routed_scaling_factor);
        // transformers ignores `norm_topk_prob` in V2; it is false in all of its releases.
        let normalize = f.bool("norm_topk_prob")?.unwrap_or(d.norm_topk_prob) && !v2;
        Ok(Self { scoring, groups, bias: method == "noaux_tc", normalize, scale })
    }
}

fn groups(f: &Fields, d: &Defaults, experts: u64, top_k: u64) -> Result<Option<Groups>> {
    let count = f.int("n_group", 1..=experts)?.unwrap_or(d.n_group);
    let keep = f.int("topk_group", 1..=u64::MAX)?.unwrap_or(d.topk_group);
    if !experts.is_multiple_of(count) {
        return Err(f.error("n_group", "groups must be equal", format!("a divisor of n_routed_experts, {experts}")));
    }
    if keep > count {
        return Err(f.error("topk_group", "more groups kept than there are", format!("at most n_group, {count}")));
    }
    if count == 1 {
        return Ok(None);
    }
    let size = experts / count;
    let v2 = d.family == Family::DeepseekV2;
    if !v2 && size < 2 {
        let expected = format!("at most n_routed_experts / 2, {}", experts / 2);
        return Err(f.error("n_group", "a group's score is the sum of its two best experts", expected));
    }
    if top_k > keep * size {
        let expected = format!("at most topk_group * n_routed_experts / n_group, {}", keep * size);
        return Err(f.error("num_experts_per_tok", "more experts a token than the kept groups have", expected));
    }
    let (by, fill) = if v2 { (GroupScore::Max, Fill::Zero) } else { (GroupScore::Top2, Fill::NegInf) };
    Ok(Some(Groups { count, keep, by, fill }))
}
