use super::*;
use std::collections::BTreeMap;

pub const ATTRS: &[AttrSpec] = &[("eq", AttrKind::Str)];

/// Sum of products over named axes of two activations.
///
///     y[out] = sum_(letters not in out) a[letters of a] * b[letters of b]
///
/// * `a`, `b` float, of one type      * `eq`: `tnd,xnd->tnx`, one letter an axis      * result: type of `a`
///
/// Errors: `ir::attribute` for a malformed equation, `ir::contract` if a letter has two sizes.
/// Source: attention scores and weighted values, `torch.einsum`.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let (x, y) = (float(t, 0)?, float(t, 1)?);
    if x.dtype != y.dtype {
        return Err(TypeError::new("ir::dtype", format!("einsum: operands must have one type, found {x} and {y}")));
    }
    let text = str_of(a, "eq");
    let eq = parse(text).ok_or_else(|| {
        TypeError::new("ir::attribute", format!("einsum: malformed equation `{text}`")).help("write it like `tnd,xnd->tnx`")
    })?;
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    for (i, (letters, operand)) in [(&eq.a, x), (&eq.b, y)].into_iter().enumerate() {
        ranked(operand, i, letters.len())?;
        for (letter, d) in letters.iter().zip(&operand.shape) {
            same(&format!("einsum: axis `{letter}`"), *sizes.entry(*letter).or_insert(*d), *d)?;
        }
    }
    let lonely = eq.contracted().into_iter().find(|l| !(eq.a.contains(l) && eq.b.contains(l)));
    if let Some(letter) = lonely {
        let message = format!("einsum: `{letter}` of `{text}` is summed over but only one operand has it");
        return Err(TypeError::new("ir::attribute", message).help("a letter that is in the result or in both operands is legal"));
    }
    let shape = eq.out.iter().map(|l| sizes.get(l).copied()).collect::<Option<Vec<_>>>();
    let shape = shape.ok_or_else(|| TypeError::new("ir::attribute", format!("einsum: `{text}` has an output axis that no operand has")))?;
    Ok(vec![with_shape(x, x.dtype, shape)])
}

/// Letters of both operands and of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    pub a: Vec<char>,
    pub b: Vec<char>,
    pub out: Vec<char>,
}

impl Equation {
    /// Letters that are summed over, in order of appearance.
    pub fn contracted(&self) -> Vec<char> {
        let mut letters: Vec<char> = self.a.iter().chain(&self.b).copied().filter(|l| !self.out.contains(l)).collect();
        let mut seen = Vec::new();
        letters.retain(|l| !seen.contains(l) && { seen.push(*l); true });
        letters
    }
}

/// Parses `ab,bc->ac`; every operand and the result has each letter once at most.
pub fn parse(text: &str) -> Option<Equation> {
    let (inputs, out) = text.split_once("->")?;
    let (a, b) = inputs.split_once(',')?;
    let letters = |s: &str| -> Option<Vec<char>> {
        let v: Vec<char> = s.chars().collect();
        let distinct = v.iter().enumerate().all(|(i, c)| c.is_ascii_lowercase() && !v[..i].contains(c));
        (distinct && !v.is_empty()).then_some(v)
    };
    Some(Equation { a: letters(a)?, b: letters(b)?, out: letters(out)? })
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let eq = parse(str_of(a, "eq")).expect("the type rule parsed it");
    let sum = eq.contracted();
    let size = |l: &char| {
        let at = |letters: &[char], t: &Tensor| letters.iter().position(|c| c == l).map(|i| t.shape[i]);
        at(&eq.a, x[0]).or_else(|| at(&eq.b, x[1])).expect("every letter has a size")
    };
    // Both operands as [.., contracted] rows, so that the inner loop is one dot product.
    let free = |letters: &[char]| -> Vec<char> { letters.iter().copied().filter(|l| eq.out.contains(l)).collect() };
    let rows = |letters: &[char], t: &Tensor| {
        let order: Vec<char> = free(letters).into_iter().chain(sum.iter().copied().filter(|l| letters.contains(l))).collect();
        let axes: Vec<usize> = order.iter().map(|l| letters.iter().position(|c| c == l).expect("own letter")).collect();
        t.permuted(&axes)
    };
    let (ra, rb) = (rows(&eq.a, x[0]), rows(&eq.b, x[1]));
    let width: usize = sum.iter().map(size).product();
    let (fa, fb) = (free(&eq.a), free(&eq.b));
    let shape: Vec<usize> = eq.out.iter().map(size).collect();
    let place = |letters: &[char], index: &[usize]| {
        letters.iter().fold(0, |n, l| n * size(l) + index[eq.out.iter().position(|c| c == l).expect("free letters are in the result")])
    };
    let n: usize = shape.iter().product();
    let mut index = vec![0; shape.len()];
    let mut values = Vec::with_capacity(n);
    for _ in 0..n {
        let (i, j) = (place(&fa, &index) * width, place(&fb, &index) * width);
        values.push(dot(&ra.floats()[i..i + width], &rb.floats()[j..j + width]));
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    vec![Tensor::float(x[0].dtype, &shape, values)]
}

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("einsum", &["f32[1, 2, 2] = 1 2 3 4", "f32[2, 2] = 1 1 1 -1"], r#"eq = "tnd,xd->tnx""#, &["f32[1, 2, 2] = 3 -1 7 -1"]);
        gives("einsum", &["f32[1, 2, 2] = 1 2 3 4", "f32[2, 2, 1] = 1 10 100 1000"], r#"eq = "tnx,xnv->tnv""#, &["f32[1, 2, 1] = 201 4030"]);
        // A letter of one operand alone may stay, as in an outer product.
        gives("einsum", &["f32[2] = 1 2", "f32[2] = 3 4"], r#"eq = "a,b->ba""#, &["f32[2, 2] = 3 6 4 8"]);
    }

    #[test]
    fn refused_types() {
        rejects("einsum", &["f32[T, 2]", "f32[3, 4]"], r#"eq = "tk,nk->tn""#, "ir::contract", "axis `k`: 2 and 4");
        rejects("einsum", &["f32[T, 2]", "f32[3, 2]"], r#"eq = "tk,nj->tn""#, "ir::attribute", "only one operand has it");
        rejects("einsum", &["f32[T, 2]", "f32[3, 2]"], r#"eq = "tk,nk->tnz""#, "ir::attribute", "output axis");
        rejects("einsum", &["f32[T, 2]", "f32[3, 2]"], r#"eq = "tk-nk->tn""#, "ir::attribute", "malformed");
        rejects("einsum", &["f32[T, 2]", "f32[3, 2]"], r#"eq = "tt,nk->tn""#, "ir::attribute", "malformed");
        rejects("einsum", &["f32[T, 2]", "f32[3, 2]"], r#"eq = "t,nk->tn""#, "ir::rank", "operand 0 must have 1 axes");
        rejects("einsum", &["f32[T, 2]", "bf16[3, 2]"], r#"eq = "tk,nk->tn""#, "ir::dtype", "one type");
    }
}
