//! Types of values.

use std::fmt;

/// Element of a scalar or vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    I1,
    I8,
    I16,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
    Ptr,
}

impl Elem {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::I1 => "i1",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F16 => "half",
            Self::Bf16 => "bfloat",
            Self::F32 => "float",
            Self::F64 => "double",
            Self::Ptr => "ptr",
        }
    }

    pub(super) fn bits(self) -> u32 {
        match self {
            Self::I1 => 1,
            Self::I8 => 8,
            Self::I16 | Self::F16 | Self::Bf16 => 16,
            Self::I32 | Self::F32 => 32,
            Self::I64 | Self::F64 | Self::Ptr => 64,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }
}

/// Type of a value: `lanes == 1` is a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ty {
    pub elem: Elem,
    pub lanes: u32,
}

pub const I1: Ty = Ty::scalar(Elem::I1);
pub const I16: Ty = Ty::scalar(Elem::I16);
pub const I32: Ty = Ty::scalar(Elem::I32);
pub const I64: Ty = Ty::scalar(Elem::I64);
pub const F32: Ty = Ty::scalar(Elem::F32);
pub const F64: Ty = Ty::scalar(Elem::F64);
pub const PTR: Ty = Ty::scalar(Elem::Ptr);
/// The vector of every kernel: 16 f32 lanes; LLVM splits it where registers are narrower.
pub const V16: Ty = Ty::vec(Elem::F32, 16);

impl Ty {
    pub const fn scalar(elem: Elem) -> Self {
        Self { elem, lanes: 1 }
    }

    pub const fn vec(elem: Elem, lanes: u32) -> Self {
        Self { elem, lanes }
    }

    pub fn with(self, elem: Elem) -> Self {
        Self { elem, ..self }
    }

    pub(super) fn bits(self) -> u32 {
        self.elem.bits() * self.lanes
    }

    /// Name inside an intrinsic: `v16f32`.
    pub(super) fn mangled(self) -> String {
        let elem = match self.elem {
            Elem::F16 => "f16",
            Elem::Bf16 => "bf16",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
            Elem::Ptr => "p0",
            other => other.name(),
        };
        if self.lanes == 1 { elem.into() } else { format!("v{}{elem}", self.lanes) }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lanes == 1 {
            f.write_str(self.elem.name())
        } else {
            write!(f, "<{} x {}>", self.lanes, self.elem.name())
        }
    }
}
