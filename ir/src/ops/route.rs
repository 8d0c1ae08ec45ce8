use super::*;

pub const ATTRS: &[AttrSpec] = &[
    ("append", AttrKind::Int),
    ("by", AttrKind::Str),
    ("eps", AttrKind::Float),
    ("fill", AttrKind::Str),
    ("groups", AttrKind::Int),
    ("k", AttrKind::Int),
    ("keep", AttrKind::Int),
    ("normalize", AttrKind::Int),
    ("scale", AttrKind::Float),
    ("scoring", AttrKind::Str),
];

/// The whole router: logits, scores, choice of groups and experts, weights.
///
///     scores = softmax or sigmoid of (x gate^T), in f32
///     choice = top_k(group_limit(scores + bias))        weights = scores[choice] [/ (sum + eps)] * scale
///
/// * `x` float `[T, H]`      * `gate` float `[E, H]`      * `bias` float `[E]`, optional      * results: i32 `[T, k + append]`, f32 `[T, k + append]`
/// * `groups = 1` limits nothing; `normalize` is 0 or 1; `append` slots follow the chosen ones: experts `E, E + 1, ..` of weight 1
///
/// Errors: `ir::contract`, `ir::attribute`.
/// Source: DeepSeek-V3 `inference/model.py`, `Gate`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, gate) = (ranked(float(t, 0)?, 0, 2)?, ranked(float(t, 1)?, 1, 2)?);
    same("route: contracted sizes", x.shape[1], gate.shape[1])?;
    if t.len() == 3 {
        same("route: bias", ranked(float(t, 2)?, 2, 1)?.shape[0], gate.shape[0])?;
    }
    group_limit::check(a, gate.shape[0])?;
    if !matches!(str_of(a, "scoring"), "softmax" | "sigmoid") {
        return Err(TypeError::new("ir::attribute", format!("`scoring` is softmax or sigmoid, found {}", str_of(a, "scoring"))));
    }
    let (k, normalize) = (natural(a, "k")?, natural(a, "normalize")?);
    finite(a, "eps")?;
    finite(a, "scale")?;
    if k == 0 || normalize > 1 || gate.shape[0].as_fixed().is_none_or(|e| k > e) {
        return Err(TypeError::contract(format!("route: cannot choose {k} of the experts of {gate}")));
    }
    let append = natural(a, "append")?;
    if append > 1 << 16 {
        return Err(TypeError::new("ir::attribute", format!("`append` must be at most 65536, found {append}")));
    }
    let shape = [x.shape[0], Dim::fixed(k + append)];
    Ok(vec![with_shape(x, DType::I32, shape), with_shape(x, DType::F32, shape)])
}

pub fn eval(x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
    let logits = linear::product(&x[0].widen(), x[1], DType::F32);
    let scoring = if str_of(a, "scoring") == "softmax" { Op::Softmax } else { Op::Sigmoid };
    let scores = scoring.eval(&[&logits], &Attrs::new(), sizes).remove(0);
    let biased = x.get(2).map_or_else(|| scores.clone(), |bias| add::zip(&scores, bias, |s, b| s + b));
    let limited = if int_of(a, "groups") > 1 { group_limit::limited(&biased, a) } else { biased };
    let choice = top_k::eval(&[&limited], a, sizes).remove(1);
    let mut weights = gather::eval(&[&scores, &choice], a, sizes).remove(0);
    if int_of(a, "normalize") == 1 {
        weights = normalize::normalized(&weights, float_of(a, "eps"));
    }
    let scale = float_of(a, "scale") as f32;
    let (choice, weights) = (choice, weights.map(|w| w * scale));
    let count = int_of(a, "append");
    if count == 0 {
        return vec![choice, weights];
    }
    let more = |x: &Tensor, start: usize, step: i64| {
        let values = [("count", Attr::Int(count as i64)), ("start", Attr::Int(start as i64)), ("step", Attr::Int(step))];
        extend::eval(&[x], &attrs(&values), sizes).remove(0)
    };
    vec![more(&choice, x[1].shape[0], 1), more(&weights, 1, 0)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("route", &["f32[1, 1] = 1", "f32[4, 1] = 1 -1 2 0", "f32[4] = 0 5 0 0"], "append = 0, by = max, eps = 1e-20, fill = neg_inf, groups = 1, k = 2, keep = 1, normalize = 1, scale = 2.5, scoring = sigmoid", &["i32[1, 2] = 1 2", "f32[1, 2] = 0.58478824 1.91521176"]);
        // One more slot: expert 4 of weight 1.
        gives("route", &["f32[1, 1] = 1", "f32[4, 1] = 1 -1 2 0", "f32[4] = 0 5 0 0"], "append = 1, by = max, eps = 1e-20, fill = neg_inf, groups = 1, k = 2, keep = 1, normalize = 1, scale = 2.5, scoring = sigmoid", &["i32[1, 3] = 1 2 4", "f32[1, 3] = 0.58478824 1.91521176 1"]);
        // Without a bias and normalisation, groups limited: the second group alone.
        gives("route", &["f32[1, 1] = 1", "f32[4, 1] = 1 -1 2 0"], "append = 0, by = max, eps = 0, fill = zero, groups = 2, k = 2, keep = 1, normalize = 0, scale = 1, scoring = softmax", &["i32[1, 2] = 2 3", "f32[1, 2] = 0.64391426 0.0871443187"]);
    }

    #[test]
    fn refused_types() {
        rejects("route", &["f32[T, 1]", "f32[4, 2]"], "append = 0, by = max, eps = 0, fill = zero, groups = 2, k = 2, keep = 1, normalize = 0, scale = 1, scoring = softmax", "ir::contract", "contracted sizes: 1 and 2");
        rejects("route", &["f32[T, 1]", "f32[4, 1]", "f32[3]"], "append = 0, by = max, eps = 0, fill = zero, groups = 2, k = 2, keep = 1, normalize = 0, scale = 1, scoring = softmax", "ir::contract", "bias: 3 and 4");
        rejects("route", &["f32[T, 1]", "f32[4, 1]"], "append = 0, by = max, eps = 0, fill = zero, groups = 2, k = 2, keep = 1, normalize = 0, scale = 1, scoring = relu", "ir::attribute", "found relu");
        rejects("route", &["f32[T, 1]", "f32[4, 1]"], "append = 0, by = max, eps = 0, fill = zero, groups = 2, k = 2, keep = 1, normalize = 2, scale = 1, scoring = softmax", "ir::contract", "cannot choose 2");
        rejects("route", &["f32[T, 1]", "f32[1, 1]"], "append = 0, by = max, eps = 0, fill = zero, groups = 1, k = 2, keep = 1, normalize = 0, scale = 1, scoring = softmax", "ir::contract", "cannot choose 2");
    }
}
