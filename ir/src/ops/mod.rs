//! The table of operations. A row is the index; the file of the same name holds doc, attributes, type rule, evaluation and cases.

use crate::graph::{Attr, Attrs};
use crate::kernel::AttrsExt;
use crate::tensor::Tensor;
use crate::types::{DType, Dim, Sizes, StateType, TensorType, Type};

/// Why operands do not fit an operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TypeError {
    /// `ir::contract`, `ir::rank`, `ir::dtype`, `ir::attribute`, `ir::arity`.
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
    /// The operand that is to blame, if it is one alone.
    pub operand: Option<usize>,
}

impl TypeError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None, operand: None }
    }

    /// Operand `i` is not what it must be.
    pub(crate) fn wants(code: &'static str, i: usize, wanted: &str, found: impl std::fmt::Display) -> Self {
        Self { operand: Some(i), ..Self::new(code, format!("operand {i} must {wanted}, found {found}")) }
    }

    pub(crate) fn contract(message: impl Into<String>) -> Self {
        Self::new("ir::contract", message)
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Kind of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrKind {
    Int,
    Float,
    Str,
    Ints,
    Shape,
    DType,
}

impl AttrKind {
    pub fn admits(self, attr: &Attr) -> bool {
        matches!(
            (self, attr),
            (Self::Int, Attr::Int(_))
                | (Self::Float, Attr::Float(_))
                | (Self::Str, Attr::Str(_))
                | (Self::Ints, Attr::Ints(_))
                | (Self::Shape, Attr::Shape(_))
                | (Self::DType, Attr::DType(_))
        )
    }
}

/// An attribute that an op has: name and kind. All are required.
pub type AttrSpec = (&'static str, AttrKind);

macro_rules! ops {
    ($($variant:ident = $name:literal / $least:literal $(..= $most:literal)? => $file:ident;)*) => {
        $(pub mod $file;)*

        /// An operation of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op { $($variant,)* }

        impl Op {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Surface name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Legal operand counts.
            pub fn arity(self) -> std::ops::RangeInclusive<usize> {
                match self { $(Self::$variant => { let least = $least; $(let _ = least; let most = $most; return least..=most;)? #[allow(unreachable_code)] { least..=least } })* }
            }

            /// Attributes, all required, in alphabetical order.
            pub fn attrs(self) -> &'static [AttrSpec] {
                match self { $(Self::$variant => $file::ATTRS,)* }
            }

            fn infer_rule(self, t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
                match self { $(Self::$variant => $file::infer(t, a),)* }
            }

            /// Reference evaluation over verified operands.
            pub fn eval(self, x: &[&Tensor], a: &Attrs, sizes: &Sizes) -> Vec<Tensor> {
                match self { $(Self::$variant => $file::eval(x, a, sizes),)* }
            }
        }
    };
}

ops! {  // surface name / operand count          one place: ir/src/ops/<name>.rs
    // plain
    Embed        = "embed"         / 2 => embed;
    Linear       = "linear"        / 2 => linear;
    HeadLinear   = "head_linear"   / 2 => head_linear;
    Einsum       = "einsum"        / 2 => einsum;
    Add          = "add"           / 2 => add;
    Mul          = "mul"           / 2 => mul;
    Scale        = "scale"         / 1 => scale;
    Silu         = "silu"          / 1 => silu;
    Sigmoid      = "sigmoid"       / 1 => sigmoid;
    Softmax      = "softmax"       / 1 => softmax;
    RmsNorm      = "rms_norm"      / 1 ..= 2 => rms_norm;
    Rope         = "rope"          / 2 => rope;
    Reshape      = "reshape"       / 1 => reshape;
    Slice        = "slice"         / 1 => slice;
    Concat       = "concat"        / 2 => concat;
    Permute      = "permute"       / 1 => permute;
    Convert      = "convert"       / 1 => convert;
    Quantize     = "quantize"      / 1 ..= 2 => quantize;
    Transfer     = "transfer"      / 1 => transfer;
    Write        = "write"         / 6 => write;
    Read         = "read"          / 2 => read;
    CausalMask   = "causal_mask"   / 4 => causal_mask;
    GroupLimit   = "group_limit"   / 1 => group_limit;
    TopK         = "top_k"         / 1 => top_k;             // two results
    Gather       = "gather"        / 2 => gather;
    Normalize    = "normalize"     / 1 => normalize;
    ExpertLinear = "expert_linear" / 3 => expert_linear;
    Extend       = "extend"        / 1 => extend;
    Combine      = "combine"       / 1 ..= 2 => combine;
    GatherRows   = "gather_rows"   / 2 => gather_rows;
    // weights only
    HeadRows     = "head_rows"     / 1 => head_rows;
    // fused
    LinearF32    = "linear_f32"    / 2 => linear_f32;
    ScaleRows    = "scale_rows"    / 2 => scale_rows;
    Swiglu       = "swiglu"        / 3 => swiglu;
    NormLinear   = "norm_linear"   / 2 => norm_linear;
    ExpertSwiglu = "expert_swiglu" / 4 => expert_swiglu;
    ExpertDown   = "expert_down"   / 4 => expert_down;
    ExpertSwigluByToken = "expert_swiglu_by_token" / 4 => expert_swiglu_by_token;
    ExpertDownByToken   = "expert_down_by_token"   / 4 => expert_down_by_token;
    AddNorm      = "add_norm"      / 3 => add_norm;          // two results
    NormQuantize = "norm_quantize" / 2 => norm_quantize;
    AddNormQuantize = "add_norm_quantize" / 3 => add_norm_quantize; // three results
    Route        = "route"         / 2 ..= 3 => route;       // two results
    RopeCache    = "rope_cache"    / 7 => rope_cache;
    MlaAbsorbed  = "mla_absorbed"  / 7 => mla_absorbed;
    MlaAbsorbedSplit = "mla_absorbed_split" / 7 => mla_absorbed_split;
    MlaExpanded  = "mla_expanded"  / 8 => mla_expanded;
}

impl Op {
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|op| op.name() == name)
    }

    /// Types of the results, or why the operands or attributes do not fit.
    pub fn infer(self, types: &[&Type], attrs: &Attrs) -> Result<Vec<Type>, TypeError> {
        let arity = self.arity();
        if !arity.contains(&types.len()) {
            let (least, most) = (arity.start(), arity.end());
            let wanted = if least == most { format!("{least}") } else { format!("{least} to {most}") };
            return Err(TypeError::new(
                "ir::arity",
                format!("`{}` takes {wanted} operands, found {}", self.name(), types.len()),
            ));
        }
        self.check_attrs(attrs)?;
        self.infer_rule(types, attrs)
    }

    fn check_attrs(self, attrs: &Attrs) -> Result<(), TypeError> {
        let fail = |message: String| Err(TypeError::new("ir::attribute", message));
        for (name, kind) in self.attrs() {
            match attrs.get(name) {
                None => return fail(format!("`{}` needs the attribute `{name}` ({kind:?})", self.name())),
                Some(a) if !kind.admits(a) => {
                    return fail(format!("attribute `{name}` of `{}` is a {kind:?}, found {a:?}", self.name()));
                }
                Some(_) => {}
            }
        }
        match attrs.keys().find(|k| !self.attrs().iter().any(|(name, _)| name == *k)) {
            Some(extra) => fail(format!("`{}` has no attribute `{extra}`", self.name())),
            None => Ok(()),
        }
    }
}

/// Attributes from a list; for builders and tests.
pub fn attrs(list: &[(&'static str, Attr)]) -> Attrs {
    list.iter().cloned().collect()
}

// ---- shared by the type rules -------------------------------------------------------------------------------------------------

pub(crate) fn tensor<'a>(t: &[&'a Type], i: usize) -> Result<&'a TensorType, TypeError> {
    t[i].tensor().ok_or_else(|| TypeError::wants("ir::dtype", i, "be a tensor", t[i]))
}

pub(crate) fn state<'a>(t: &[&'a Type], i: usize) -> Result<&'a StateType, TypeError> {
    t[i].state().ok_or_else(|| TypeError::wants("ir::dtype", i, "be a state", t[i]))
}

/// A float tensor.
pub(crate) fn float<'a>(t: &[&'a Type], i: usize) -> Result<&'a TensorType, TypeError> {
    let x = tensor(t, i)?;
    if x.dtype.is_float() { Ok(x) } else { Err(TypeError::wants("ir::dtype", i, "be f32, bf16 or f16", x)) }
}

/// Activations: float, or int8 codes with a scale a row.
pub(crate) fn activation<'a>(t: &[&'a Type], i: usize) -> Result<&'a TensorType, TypeError> {
    let x = tensor(t, i)?;
    if x.dtype.is_float() || x.dtype.quantized_row(0).is_some() {
        Ok(x)
    } else {
        Err(TypeError::wants("ir::dtype", i, "be f32, bf16, f16 or int8 rows", x))
    }
}

/// A matrix operand: float or quantized.
pub(crate) fn matrix<'a>(t: &[&'a Type], i: usize) -> Result<&'a TensorType, TypeError> {
    let x = tensor(t, i)?;
    if x.dtype.is_float() || x.dtype.is_quant() {
        Ok(x)
    } else {
        Err(TypeError::wants("ir::dtype", i, "be a float or quantized matrix", x))
    }
}

pub(crate) fn index<'a>(t: &[&'a Type], i: usize, rank: usize) -> Result<&'a TensorType, TypeError> {
    let x = ranked(tensor(t, i)?, i, rank)?;
    if x.dtype == DType::I32 { Ok(x) } else { Err(TypeError::wants("ir::dtype", i, "be i32", x)) }
}

pub(crate) fn ranked(x: &TensorType, i: usize, rank: usize) -> Result<&TensorType, TypeError> {
    if x.rank() == rank { Ok(x) } else { Err(TypeError::wants("ir::rank", i, &format!("have {rank} axes"), x)) }
}

/// `a == b`, else an error that names both.
pub(crate) fn same(what: &str, a: Dim, b: Dim) -> Result<(), TypeError> {
    if a == b { Ok(()) } else { Err(TypeError::contract(format!("{what}: {a} and {b} differ"))) }
}

pub(crate) fn last(x: &TensorType, i: usize) -> Result<Dim, TypeError> {
    x.shape.last().copied().ok_or_else(|| TypeError::wants("ir::rank", i, "have an axis", x))
}

/// `x` with another last axis, of the float type that its values stand for.
pub(crate) fn with_last(x: &TensorType, d: Dim) -> Type {
    let mut r = TensorType { dtype: x.dtype.expressed(), ..x.clone() };
    if let Some(l) = r.shape.last_mut() {
        *l = d;
    }
    Type::Tensor(r)
}

pub(crate) fn with_shape(x: &TensorType, dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Type {
    Type::Tensor(TensorType { dtype, shape: shape.into_iter().collect(), device: x.device })
}

/// A non-negative integer attribute.
pub(crate) fn natural(a: &Attrs, name: &'static str) -> Result<u64, TypeError> {
    let n = a.int(name).unwrap_or(-1);
    u64::try_from(n).map_err(|_| TypeError::new("ir::attribute", format!("`{name}` must not be negative, found {n}")))
}

/// A finite float attribute.
pub(crate) fn finite(a: &Attrs, name: &'static str) -> Result<f64, TypeError> {
    let x = a.float(name).unwrap_or(f64::NAN);
    if x.is_finite() {
        Ok(x)
    } else {
        Err(TypeError::new("ir::attribute", format!("`{name}` must be finite, found {x}")))
    }
}

/// Attribute values that the type rule has checked.
pub(crate) fn int_of(a: &Attrs, name: &str) -> usize {
    a.int(name).expect("the type rule checked this attribute") as usize
}

pub(crate) fn float_of(a: &Attrs, name: &str) -> f64 {
    a.float(name).expect("the type rule checked this attribute")
}

pub(crate) fn str_of<'a>(a: &'a Attrs, name: &str) -> &'a str {
    a.str(name).expect("the type rule checked this attribute")
}

/// Sum of products in f64: the reference is closer to the real number than any kernel.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f64; 4];
    let (ca, cb) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = ca.remainder().iter().zip(cb.remainder()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    for (x, y) in ca.zip(cb) {
        for i in 0..4 {
            sums[i] += f64::from(x[i]) * f64::from(y[i]);
        }
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3]) + tail) as f32
}

#[cfg(test)]
pub(crate) mod cases;
#[cfg(test)]
mod properties;
