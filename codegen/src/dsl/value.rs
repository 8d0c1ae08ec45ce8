//! Operations on values: arithmetic, comparisons, conversions, lanes and memory.

use super::*;
use std::{fmt, ops};

impl fmt::Display for Val<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let splat = self.ty.lanes > 1;
        match self.repr {
            Repr::Reg(n) => return write!(f, "%r{n}"),
            Repr::Poison => return f.write_str("poison"),
            _ if splat => write!(f, "splat ({} ", self.ty.elem.name())?,
            _ => {}
        }
        match self.repr {
            Repr::Int(0) if self.ty.elem == Elem::Ptr => f.write_str("null")?,
            Repr::Int(n) if self.ty.elem == Elem::I1 => write!(f, "{}", n != 0)?,
            Repr::Int(n) => write!(f, "{n}")?,
            Repr::Float(x) => write!(f, "0x{:016X}", x.to_bits())?,
            Repr::Reg(_) | Repr::Poison => {}
        }
        if splat { f.write_str(")") } else { Ok(()) }
    }
}

impl<'a> Val<'a> {
    pub fn fx(self) -> &'a Fx {
        self.f
    }

    /// The number, if it is a known integer.
    pub fn known(self) -> Option<i64> {
        if let Repr::Int(n) = self.repr { Some(n) } else { None }
    }

    fn binary(self, op: (&str, &str), other: Self) -> Self {
        assert_eq!(self.ty, other.ty, "operands of {} have one type", op.0);
        let name = if self.ty.elem.is_float() { op.1 } else { op.0 };
        assert!(!name.is_empty(), "no operation {} on {}", op.0, self.ty);
        self.f.define(self.ty, format_args!("{name} {} {self}, {other}", self.ty))
    }

    /// Folds an index operation on two known numbers.
    fn fold(self, other: Self, op: impl Fn(i64, i64) -> i64) -> Option<Self> {
        let (a, b) = (self.known()?, other.known()?);
        (self.ty == I64 && other.ty == I64).then(|| self.f.int(I64, op(a, b)))
    }

    fn like(self, n: i64) -> Self {
        self.f.int(self.ty, n)
    }

    fn compare(self, int: &str, float: &str, other: Self) -> Self {
        assert_eq!(self.ty, other.ty, "comparison of one type");
        let (kind, pred) = if self.ty.elem.is_float() { ("fcmp", float) } else { ("icmp", int) };
        let ty = self.ty.with(Elem::I1);
        self.f.define(ty, format_args!("{kind} {pred} {} {self}, {other}", self.ty))
    }

    pub fn lt(self, other: Self) -> Self {
        self.compare("slt", "olt", other)
    }
    pub fn le(self, other: Self) -> Self {
        self.compare("sle", "ole", other)
    }
    pub fn gt(self, other: Self) -> Self {
        self.compare("sgt", "ogt", other)
    }
    pub fn ge(self, other: Self) -> Self {
        self.compare("sge", "oge", other)
    }
    pub fn eq(self, other: Self) -> Self {
        self.compare("eq", "oeq", other)
    }
    pub fn ne(self, other: Self) -> Self {
        self.compare("ne", "une", other)
    }

    /// `if self { a } else { b }`, lane by lane.
    pub fn select(self, a: Self, b: Self) -> Self {
        assert_eq!(a.ty, b.ty, "both sides of a select have one type");
        self.f.define(a.ty, format_args!("select {} {self}, {} {a}, {} {b}", self.ty, a.ty, b.ty))
    }

    /// Smaller index or float; a NaN on the left gives the right.
    pub fn min(self, other: Self) -> Self {
        if let Some(v) = self.fold(other, i64::min) {
            return v;
        }
        self.lt(other).select(self, other)
    }

    pub fn max(self, other: Self) -> Self {
        if let Some(v) = self.fold(other, i64::max) {
            return v;
        }
        self.gt(other).select(self, other)
    }

    fn cast(self, op: &str, ty: Ty) -> Self {
        self.f.define(ty, format_args!("{op} {} {self} to {ty}", self.ty))
    }

    pub fn bitcast(self, ty: Ty) -> Self {
        assert_eq!(self.ty.bits(), ty.bits(), "bitcast {} to {ty}", self.ty);
        if self.ty == ty { self } else { self.cast("bitcast", ty) }
    }

    /// Zero-extended.
    pub fn zext(self, elem: Elem) -> Self {
        if let (Some(n), true) = (self.known(), self.ty.elem != Elem::I1) {
            return self.f.int(self.ty.with(elem), n);
        }
        self.cast("zext", self.ty.with(elem))
    }

    pub fn sext(self, elem: Elem) -> Self {
        self.cast("sext", self.ty.with(elem))
    }

    pub fn trunc(self, elem: Elem) -> Self {
        if let Some(n) = self.known() {
            return self.f.int(self.ty.with(elem), n);
        }
        self.cast("trunc", self.ty.with(elem))
    }

    pub fn fpext(self, elem: Elem) -> Self {
        self.cast("fpext", self.ty.with(elem))
    }

    pub fn fptrunc(self, elem: Elem) -> Self {
        self.cast("fptrunc", self.ty.with(elem))
    }

    /// Signed integer to float.
    pub fn to_float(self, elem: Elem) -> Self {
        self.cast("sitofp", self.ty.with(elem))
    }

    /// Float to signed integer, towards zero; the caller knows it is in range.
    pub fn to_int(self, elem: Elem) -> Self {
        self.cast("fptosi", self.ty.with(elem))
    }

    /// Every lane this scalar.
    pub fn splat(self, lanes: u32) -> Self {
        assert_eq!(self.ty.lanes, 1, "a splat is of a scalar");
        let ty = Ty::vec(self.ty.elem, lanes);
        if !matches!(self.repr, Repr::Reg(_)) {
            return Val { f: self.f, ty, repr: self.repr };
        }
        let one = self.f.define(ty, format_args!("insertelement {ty} poison, {} {self}, i64 0", self.ty));
        self.f.define(ty, format_args!("shufflevector {ty} {one}, {ty} poison, <{lanes} x i32> zeroinitializer"))
    }

    pub fn lane(self, n: u32) -> Self {
        self.f.define(Ty::scalar(self.ty.elem), format_args!("extractelement {} {self}, i64 {n}", self.ty))
    }

    pub fn with_lane(self, n: u32, x: Self) -> Self {
        self.f.define(self.ty, format_args!("insertelement {} {self}, {} {x}, i64 {n}", self.ty, x.ty))
    }

    /// Lanes of `self` and `other` (numbered on from `self`'s) in a new order.
    pub fn shuffle(self, other: Self, order: &[u32]) -> Self {
        let mask: Vec<String> = order.iter().map(|i| format!("i32 {i}")).collect();
        let ty = Ty::vec(self.ty.elem, order.len() as u32);
        let (t, mask) = (self.ty, mask.join(", "));
        self.f.define(ty, format_args!("shufflevector {t} {self}, {t} {other}, <{} x i32> <{mask}>", order.len()))
    }

    /// `self * b + c`; one rounding where the target has FMA.
    pub fn fma(self, b: Self, c: Self) -> Self {
        self.f.call(&format!("llvm.fmuladd.{}", self.ty.mangled()), self.ty, &[self, b, c])
    }

    pub fn sqrt(self) -> Self {
        self.f.call(&format!("llvm.sqrt.{}", self.ty.mangled()), self.ty, &[self])
    }

    /// Sum of the lanes, as a tree.
    pub fn sum(self) -> Self {
        self.tree(|a, b| a + b)
    }

    /// Largest lane.
    pub fn largest(self) -> Self {
        self.tree(Self::max)
    }

    fn tree(self, op: impl Fn(Self, Self) -> Self) -> Self {
        let mut v = self;
        while v.ty.lanes > 2 {
            let half = v.ty.lanes / 2;
            let low: Vec<u32> = (0..half).collect();
            let high: Vec<u32> = (half..2 * half).collect();
            v = op(v.shuffle(v, &low), v.shuffle(v, &high));
        }
        if v.ty.lanes == 1 { v } else { op(v.lane(0), v.lane(1)) }
    }

    // ---- memory: `self` is an address ----

    /// The address `bytes` further.
    pub fn at(self, bytes: Self) -> Self {
        if bytes.known() == Some(0) {
            return self;
        }
        self.f.define(PTR, format_args!("getelementptr i8, ptr {self}, i64 {bytes}"))
    }

    pub fn plus(self, bytes: u64) -> Self {
        self.at(self.f.i(bytes))
    }

    pub fn load(self, ty: Ty, align: u32) -> Self {
        self.f.define(ty, format_args!("load {ty}, ptr {self}, align {align}"))
    }

    pub fn store(self, v: Self, align: u32) {
        self.f.line(format_args!("store {} {v}, ptr {self}, align {align}", v.ty));
    }

    /// The first `n` lanes; the others are zero and their memory is not touched.
    pub fn load_first(self, ty: Ty, n: u32, align: u32) -> Self {
        let (mask, name) = (Fx::lane_mask(ty.lanes, n), ty.mangled());
        let lanes = ty.lanes;
        self.f.declare(format!("{ty} @llvm.masked.load.{name}.p0(ptr, <{lanes} x i1>, {ty})"));
        self.f.define(
            ty,
            format_args!("call {ty} @llvm.masked.load.{name}.p0(ptr align {align} {self}, <{lanes} x i1> {mask}, {ty} zeroinitializer)"),
        )
    }

    /// Stores the first `n` lanes.
    pub fn store_first(self, v: Self, n: u32, align: u32) {
        let (ty, lanes) = (v.ty, v.ty.lanes);
        let (mask, name) = (Fx::lane_mask(lanes, n), ty.mangled());
        self.f.declare(format!("void @llvm.masked.store.{name}.p0({ty}, ptr, <{lanes} x i1>)"));
        self.f.line(format_args!(
            "call void @llvm.masked.store.{name}.p0({ty} {v}, ptr align {align} {self}, <{lanes} x i1> {mask})"
        ));
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $int:literal, $float:literal, $fold:expr, $zero:expr) => {
        impl<'a> ops::$trait for Val<'a> {
            type Output = Val<'a>;
            fn $method(self, other: Val<'a>) -> Val<'a> {
                if let Some(v) = self.fold(other, $fold) {
                    return v;
                }
                let neutral: Option<i64> = $zero;
                if neutral.is_some() && self.ty == I64 && other.known() == neutral {
                    return self;
                }
                self.binary(($int, $float), other)
            }
        }
        impl<'a> ops::$trait<i64> for Val<'a> {
            type Output = Val<'a>;
            fn $method(self, other: i64) -> Val<'a> {
                ops::$trait::$method(self, self.like(other))
            }
        }
        impl<'a> ops::$trait<u64> for Val<'a> {
            type Output = Val<'a>;
            fn $method(self, other: u64) -> Val<'a> {
                ops::$trait::$method(self, self.like(other as i64))
            }
        }
        impl<'a> ops::$trait<f64> for Val<'a> {
            type Output = Val<'a>;
            fn $method(self, other: f64) -> Val<'a> {
                ops::$trait::$method(self, self.f.float(self.ty, other))
            }
        }
    };
}

operator!(Add, add, "add", "fadd", i64::wrapping_add, Some(0));
operator!(Sub, sub, "sub", "fsub", i64::wrapping_sub, Some(0));
operator!(Mul, mul, "mul", "fmul", i64::wrapping_mul, Some(1));
operator!(Div, div, "udiv", "fdiv", |a, b| a / b, Some(1));
operator!(Rem, rem, "urem", "", |a, b| a % b, None);
operator!(Shl, shl, "shl", "", |a, b| a << b, Some(0));
operator!(Shr, shr, "lshr", "", |a, b| a >> b, Some(0));
operator!(BitAnd, bitand, "and", "", |a, b| a & b, None);
operator!(BitOr, bitor, "or", "", |a, b| a | b, Some(0));
operator!(BitXor, bitxor, "xor", "", |a, b| a ^ b, Some(0));

impl ops::Neg for Val<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.f.define(self.ty, format_args!("fneg {} {self}", self.ty))
    }
}
