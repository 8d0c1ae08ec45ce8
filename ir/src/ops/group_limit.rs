use super::*;

pub const ATTRS: &[AttrSpec] =
    &[("by", AttrKind::Str), ("fill", AttrKind::Str), ("groups", AttrKind::Int), ("keep", AttrKind::Int)];

/// Keeps the scores of the best groups of experts.
///
///     y[t, e] = scores[t, e] if the group of e is one of the `keep` best of token t, else 0 or -inf
///
/// * `scores` float `[T, E]`, E a multiple of `groups`; group g holds experts `g E/groups ..`
/// * `by`: a group's score is its largest (`max`) or the sum of its two largest (`top2`); `fill`: `zero` or `neg_inf`; ties: the lower group
///
/// Errors: `ir::contract`, `ir::attribute`.
/// Source: V2 `group_limited_greedy` (max, zero); V3 `noaux_tc` (top2, neg_inf).
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = ranked(float(t, 0)?, 0, 2)?;
    check(a, x.shape[1])?;
    Ok(vec![Type::Tensor(x.clone())])
}

pub(crate) fn check(a: &Attrs, experts: Dim) -> Result<(), TypeError> {
    let (groups, keep) = (natural(a, "groups")?, natural(a, "keep")?);
    let experts = experts.as_fixed().unwrap_or(0);
    let size = if groups > 0 && experts.is_multiple_of(groups) { experts / groups } else { 0 };
    if size == 0 || keep == 0 || keep > groups {
        return Err(TypeError::contract(format!("{experts} experts cannot be kept as {keep} of {groups} equal groups")));
    }
    let (by, fill) = (str_of(a, "by"), str_of(a, "fill"));
    if !matches!(by, "max" | "top2") || !matches!(fill, "zero" | "neg_inf") {
        let message = format!("`by` is max or top2, `fill` is zero or neg_inf; found {by} and {fill}");
        return Err(TypeError::new("ir::attribute", message));
    }
    if by == "top2" && size < 2 {
        return Err(TypeError::contract(format!("groups of {size} experts have no two largest scores")));
    }
    Ok(())
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![limited(x[0], a)]
}

pub(crate) fn limited(scores: &Tensor, a: &Attrs) -> Tensor {
    let (groups, keep) = (int_of(a, "groups"), int_of(a, "keep"));
    let fill = if str_of(a, "fill") == "zero" { 0.0 } else { f32::NEG_INFINITY };
    let size = scores.width() / groups;
    let mut values = scores.floats().to_vec();
    for row in values.chunks_exact_mut(scores.width()) {
        let best: Vec<f32> = row.chunks_exact(size).map(|g| group_score(g, str_of(a, "by"))).collect();
        let kept = top_k::best(&best, keep);
        for (g, group) in row.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&g) {
                group.fill(fill);
            }
        }
    }
    Tensor::float(scores.dtype, &scores.shape, values)
}

fn group_score(group: &[f32], by: &str) -> f32 {
    let top = top_k::best(group, if by == "max" { 1 } else { 2 });
    top.iter().map(|i| group[*i]).sum()
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("group_limit", &["f32[1, 6] = 5 0 3 3 4 -1"], "by = max, fill = zero, groups = 3, keep = 1", &["f32[1, 6] = 5 0 0 0 0 0"]);
        gives("group_limit", &["f32[1, 6] = 5 0 3 3 4 -1"], "by = top2, fill = neg_inf, groups = 3, keep = 1", &["f32[1, 6] = -inf -inf 3 3 -inf -inf"]);
        gives("group_limit", &["f32[1, 6] = 5 0 3 3 4 -1"], "by = top2, fill = neg_inf, groups = 3, keep = 2", &["f32[1, 6] = 5 0 3 3 -inf -inf"]);
        // Ties: the lower group.
        gives("group_limit", &["f32[1, 4] = 1 2 2 0"], "by = max, fill = zero, groups = 2, keep = 1", &["f32[1, 4] = 1 2 0 0"]);
    }

    #[test]
    fn refused_types() {
        rejects("group_limit", &["f32[T, 6]"], "by = max, fill = zero, groups = 4, keep = 1", "ir::contract", "6 experts cannot be kept as 1 of 4");
        rejects("group_limit", &["f32[T, 6]"], "by = max, fill = zero, groups = 3, keep = 4", "ir::contract", "4 of 3");
        rejects("group_limit", &["f32[T, 6]"], "by = max, fill = zero, groups = 0, keep = 0", "ir::contract", "equal groups");
        rejects("group_limit", &["f32[T, 6]"], "by = top2, fill = zero, groups = 6, keep = 1", "ir::contract", "no two largest");
        rejects("group_limit", &["f32[T, 6]"], "by = mean, fill = zero, groups = 3, keep = 1", "ir::attribute", "found mean and zero");
    }
}
