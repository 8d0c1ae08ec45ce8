//! What a rewrite rule may ask of the values and attributes that its pattern bound, and what it may compute from them.
//!
//! Premises and computed attributes are data, evaluated here and nowhere else, so that a certificate can name them and a checker
//! can evaluate them again.

use crate::graph::{Attr, Float};
use crate::ops::einsum;
use crate::types::{DType, Dim, TensorType, Type};
use std::fmt;

/// A pattern variable, with its question mark: `?x`.
pub type Var = &'static str;

/// What a variable stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound<'a> {
    Attr(&'a Attr),
    Value {
        ty: &'a Type,
        /// Depends on weights alone.
        constant: bool,
        /// A weight as the checkpoint holds it, or as it was quantized before fusion; not another expression over weights.
        parameter: bool,
    },
}

/// The variables of one match.
pub trait Bindings {
    /// `None` for an unknown variable, or one that stands for several results.
    fn bound(&self, var: &str) -> Option<Bound<'_>>;

    /// Whether two variables stand for the same value or equal attributes.
    fn same(&self, a: &str, b: &str) -> bool;
}

/// A condition on the variables of a match. All conditions are decided from types and attributes; none depends on a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Premise {
    /// The values, or attributes, are not the same one.
    Differ(Var, Var),
    /// The value depends on weights alone.
    Constant(Var),
    /// The value is a weight as the checkpoint holds it, or as it was quantized before fusion. Keeps rules that build weight expressions from feeding on their own results.
    Parameter(Var),
    /// The attribute is an einsum equation equal to this one but for the names of the letters.
    Equation(Var, &'static str),
    /// `shape` splits the last axis of a `[rows, n]` result into `[rows, heads, n / heads]`, where `rows` are those of the value `[rows, _]`.
    SplitsRows { rows: Var, shape: Var },
    /// The element type of the value.
    HasDType(Var, DType),
    /// The attribute is the number of the last axis of the value.
    IsLastAxis { axis: Var, of: Var },
    /// The attribute is the length of this axis of the value.
    IsLength { len: Var, of: Var, axis: Var },
    /// The attribute is the element type of the value.
    IsDType { dtype: Var, of: Var },
    /// Both values have the same element type.
    SameDType(Var, Var),
    /// Both values have the same number of axes.
    SameRank(Var, Var),
    /// The first value has more axes than the second.
    MoreAxes(Var, Var),
    /// The value has two axes or more: the last one is not that of the rows.
    HasRows(Var),
    /// The attribute is the number of an axis within a row: not the first.
    Inner(Var),
    /// The attribute is an order of axes that leaves the first where it is.
    KeepsFirst(Var),
    /// The attribute is an equation whose first axis is that of the first operand and not in the second: a row of the result is made of
    /// one row of the first operand.
    ByRows(Var),
    /// The attribute is the length of the value's first axis.
    IsRows(Var, Var),
}

/// An attribute that a rule computes for its right-hand side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Build {
    /// Number of the last axis of a value.
    LastAxis(Var),
    /// Length of the first axis of a value; a number.
    Rows(Var),
    /// Length of axis `axis` of a value; a number.
    Axis(Var, usize),
    /// How many matrices `[n, _]` of a stack `[e, n, _]` a matrix `[parts n, _]` makes: `parts`, a whole number.
    Parts { whole: Var, stack: Var },
    /// Dim `axis` of a shape attribute; a number.
    ShapeDim(Var, usize),
    /// The sum of two numbers.
    Sum(Var, Var),
    /// The product of two real numbers.
    Product(Var, Var),
    /// The shape attribute with the first axis of a value in place of its own.
    WithRows { rows: Var, shape: Var },
    /// `[rows, heads, n / heads]` for a value `[rows, _]`, a weight `[n, _]` and a number of heads.
    SplitShape { rows: Var, weight: Var, heads: Var },
}

impl Premise {
    /// Whether the premise holds; a variable of the wrong kind makes it false.
    pub fn holds(&self, b: &dyn Bindings) -> bool {
        self.check(b).unwrap_or(false)
    }

    fn check(&self, b: &dyn Bindings) -> Option<bool> {
        Some(match *self {
            Self::Differ(x, y) => !b.same(x, y),
            Self::Constant(x) => matches!(b.bound(x)?, Bound::Value { constant: true, .. }),
            Self::Parameter(x) => matches!(b.bound(x)?, Bound::Value { parameter: true, .. }),
            Self::Equation(eq, wanted) => matches!(attr(b, eq)?, Attr::Str(found) if same_equation(found, wanted)),
            Self::SplitsRows { rows, shape } => {
                let (x, shape) = (tensor(b, rows)?, shape_of(b, shape)?);
                x.rank() == 2 && shape.len() == 3 && shape[0] == x.shape[0] && shape[1..].iter().all(is_number)
            }
            Self::HasDType(x, dtype) => tensor(b, x)?.dtype == dtype,
            Self::IsLastAxis { axis, of } => int(b, axis)? + 1 == tensor(b, of)?.rank() as i64,
            Self::IsLength { len, of, axis } => {
                let d = tensor(b, of)?.shape.get(usize::try_from(int(b, axis)?).ok()?)?;
                d.as_fixed() == u64::try_from(int(b, len)?).ok()
            }
            Self::IsDType { dtype, of } => *attr(b, dtype)? == Attr::DType(tensor(b, of)?.dtype),
            Self::SameDType(x, y) => tensor(b, x)?.dtype == tensor(b, y)?.dtype,
            Self::SameRank(x, y) => tensor(b, x)?.rank() == tensor(b, y)?.rank(),
            Self::MoreAxes(x, y) => tensor(b, x)?.rank() > tensor(b, y)?.rank(),
            Self::HasRows(x) => tensor(b, x)?.rank() >= 2,
            Self::Inner(axis) => matches!(attr(b, axis)?, Attr::Int(n) if *n > 0),
            Self::KeepsFirst(axes) => matches!(attr(b, axes)?, Attr::Ints(axes) if axes.first() == Some(&0)),
            Self::ByRows(eq) => {
                let Attr::Str(text) = attr(b, eq)? else { return Some(false) };
                let eq = einsum::parse(text)?;
                eq.a[0] == eq.out[0] && !eq.b.contains(&eq.a[0])
            }
            Self::IsRows(a, x) => *attr(b, a)? == Attr::Int(number(b, x, 0)? as i64),
        })
    }
}

impl Build {
    /// The attribute, or `None` if the variables do not have it: the rule does not apply.
    pub fn value(&self, b: &dyn Bindings) -> Option<Attr> {
        Some(match *self {
            Self::LastAxis(x) => Attr::Int(tensor(b, x)?.rank().checked_sub(1)? as i64),
            Self::Rows(x) => Attr::Int(number(b, x, 0)? as i64),
            Self::Axis(x, axis) => Attr::Int(number(b, x, axis)? as i64),
            Self::Parts { whole, stack } => {
                let (rows, each) = (number(b, whole, 0)?, number(b, stack, 1)?);
                Attr::Int(rows.checked_div(each).filter(|parts| *parts > 0 && parts * each == rows)? as i64)
            }
            Self::ShapeDim(shape, axis) => Attr::Int(shape_of(b, shape)?.get(axis)?.as_fixed()? as i64),
            Self::Sum(x, y) => Attr::Int(int(b, x)?.checked_add(int(b, y)?)?),
            Self::Product(x, y) => Attr::Float(Float(float(b, x)? * float(b, y)?)),
            Self::WithRows { rows, shape } => {
                let (first, shape) = (*tensor(b, rows)?.shape.first()?, shape_of(b, shape)?);
                Attr::Shape([&[first], shape.get(1..)?].concat())
            }
            Self::SplitShape { rows, weight, heads } => {
                let (x, w) = (tensor(b, rows)?, tensor(b, weight)?);
                let Attr::Int(heads) = *attr(b, heads)? else { return None };
                let (n, heads) = (w.shape.first()?.as_fixed()?, u64::try_from(heads).ok()?);
                let each = n.checked_div(heads).filter(|each| each * heads == n)?;
                Attr::Shape(vec![*x.shape.first()?, Dim::fixed(heads), Dim::fixed(each)])
            }
        })
    }
}

fn value(b: &dyn Bindings, var: Var) -> Option<&Type> {
    if let Bound::Value { ty, .. } = b.bound(var)? { Some(ty) } else { None }
}

fn tensor(b: &dyn Bindings, var: Var) -> Option<&TensorType> {
    value(b, var)?.tensor()
}

/// Length of an axis that is a number.
fn number(b: &dyn Bindings, var: Var, axis: usize) -> Option<u64> {
    tensor(b, var)?.shape.get(axis)?.as_fixed()
}

fn attr(b: &dyn Bindings, var: Var) -> Option<&Attr> {
    if let Bound::Attr(a) = b.bound(var)? { Some(a) } else { None }
}

fn int(b: &dyn Bindings, var: Var) -> Option<i64> {
    if let Attr::Int(n) = attr(b, var)? { Some(*n) } else { None }
}

fn float(b: &dyn Bindings, var: Var) -> Option<f64> {
    if let Attr::Float(x) = attr(b, var)? { Some(x.0) } else { None }
}

fn shape_of(b: &dyn Bindings, var: Var) -> Option<&[Dim]> {
    if let Attr::Shape(s) = attr(b, var)? { Some(s) } else { None }
}

fn is_number(d: &Dim) -> bool {
    d.as_fixed().is_some()
}

/// The equation with its letters renamed `a`, `b`, .. in order of appearance; `None` if it is malformed.
pub fn canonical_equation(text: &str) -> Option<String> {
    einsum::parse(text)?;
    let mut seen: Vec<char> = vec![];
    let rename = |c: char| {
        if !c.is_ascii_lowercase() {
            return c;
        }
        let at = seen.iter().position(|s| *s == c).unwrap_or_else(|| {
            seen.push(c);
            seen.len() - 1
        });
        char::from(b'a' + at as u8)
    };
    Some(text.chars().map(rename).collect())
}

fn same_equation(a: &str, b: &str) -> bool {
    let a = canonical_equation(a);
    a.is_some() && a == canonical_equation(b)
}

impl fmt::Display for Premise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differ(x, y) => write!(f, "differ({x}, {y})"),
            Self::Constant(x) => write!(f, "constant({x})"),
            Self::Parameter(x) => write!(f, "parameter({x})"),
            Self::Equation(eq, text) => write!(f, "equation({eq}, {text})"),
            Self::SplitsRows { rows, shape } => write!(f, "splits_rows({rows}, {shape})"),
            Self::HasDType(x, dtype) => write!(f, "has_dtype({x}, {dtype})"),
            Self::IsLastAxis { axis, of } => write!(f, "is_last_axis({axis}, {of})"),
            Self::IsLength { len, of, axis } => write!(f, "is_length({len}, {of}, {axis})"),
            Self::IsDType { dtype, of } => write!(f, "is_dtype({dtype}, {of})"),
            Self::SameDType(x, y) => write!(f, "same_dtype({x}, {y})"),
            Self::SameRank(x, y) => write!(f, "same_rank({x}, {y})"),
            Self::MoreAxes(x, y) => write!(f, "more_axes({x}, {y})"),
            Self::HasRows(x) => write!(f, "has_rows({x})"),
            Self::Inner(axis) => write!(f, "inner({axis})"),
            Self::KeepsFirst(axes) => write!(f, "keeps_first({axes})"),
            Self::ByRows(eq) => write!(f, "by_rows({eq})"),
            Self::IsRows(a, x) => write!(f, "is_rows({a}, {x})"),
        }
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LastAxis(x) => write!(f, "last_axis({x})"),
            Self::Rows(x) => write!(f, "rows({x})"),
            Self::Axis(x, axis) => write!(f, "axis({x}, {axis})"),
            Self::Parts { whole, stack } => write!(f, "parts({whole}, {stack})"),
            Self::ShapeDim(s, axis) => write!(f, "shape_dim({s}, {axis})"),
            Self::Sum(x, y) => write!(f, "sum({x}, {y})"),
            Self::Product(x, y) => write!(f, "product({x}, {y})"),
            Self::WithRows { rows, shape } => write!(f, "with_rows({rows}, {shape})"),
            Self::SplitShape { rows, weight, heads } => write!(f, "split_shape({rows}, {weight}, {heads})"),
        }
    }
}

#[cfg(test)]
mod tests;
