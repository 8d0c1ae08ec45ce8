//! A small typed language that prints LLVM IR.
//!
//! A [`Fx`] is one function under construction; a [`Val`] is one of its values and carries its type, so operators check what
//! they join and fold constants. Loops and branches take closures. Mutable variables are stack slots that LLVM's `sroa` turns
//! into registers. Printing text instead of calling LLVM keeps kernels free of LLVM types, deterministic, readable in `.ll`
//! form, and lets LLVM's parser check every instruction before it is compiled.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::ops;

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
    fn name(self) -> &'static str {
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

    fn bits(self) -> u32 {
        match self {
            Self::I1 => 1,
            Self::I8 => 8,
            Self::I16 | Self::F16 | Self::Bf16 => 16,
            Self::I32 | Self::F32 => 32,
            Self::I64 | Self::F64 | Self::Ptr => 64,
        }
    }

    fn is_float(self) -> bool {
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

    fn bits(self) -> u32 {
        self.elem.bits() * self.lanes
    }

    /// Name inside an intrinsic: `v16f32`.
    fn mangled(self) -> String {
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

/// What stands for a value in the text. Constants of vector type are splats.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Repr {
    Reg(u32),
    Int(i64),
    Float(f64),
    Poison,
}

/// A value of the function `f`.
#[derive(Clone, Copy)]
pub struct Val<'a> {
    f: &'a Fx,
    pub ty: Ty,
    repr: Repr,
}

/// A mutable variable.
#[derive(Clone, Copy)]
pub struct Var<'a> {
    slot: Val<'a>,
    ty: Ty,
}

/// What the instruction set offers beyond plain x86-64.
#[allow(clippy::struct_excessive_bools)] // each is one fact about a CPU
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// AVX2, FMA and F16C: the x86-64-v3 level.
    pub avx2: bool,
    /// AVX-512 F, BW, DQ, VL: the x86-64-v4 level.
    pub avx512: bool,
    /// `vdpbf16ps`.
    pub dot_bf16: bool,
    /// `vpermb` and relatives.
    pub vbmi: bool,
}

/// A function under construction.
#[derive(Default)]
pub struct Fx {
    pub caps: Caps,
    body: RefCell<String>,
    /// Stack slots, printed into the entry block.
    slots: RefCell<String>,
    globals: RefCell<String>,
    declarations: RefCell<BTreeSet<String>>,
    registers: Cell<u32>,
    labels: Cell<u32>,
    global_count: Cell<u32>,
    block: Cell<u32>,
}

impl Fx {
    /// A function with the register numbers of `params` reserved; see [`Fx::param`].
    pub fn new(params: u32, caps: Caps) -> Self {
        let f = Self { caps, ..Self::default() };
        f.registers.set(params);
        f.labels.set(1);
        f
    }

    pub fn param(&self, index: u32, ty: Ty) -> Val<'_> {
        Val { f: self, ty, repr: Repr::Reg(index) }
    }

    /// The whole module: attributes, declarations, constants and the function `name(param types)`.
    pub fn module(&self, name: &str, params: &[Ty], features: &str) -> String {
        let params: Vec<String> = params.iter().enumerate().map(|(i, t)| format!("{t} %r{i}")).collect();
        let mut s = String::from("source_filename = \"deepfuse\"\ntarget triple = \"x86_64-unknown-linux-gnu\"\n\n");
        s += &self.globals.borrow();
        for d in self.declarations.borrow().iter() {
            let _ = writeln!(s, "declare {d}");
        }
        let _ = writeln!(s, "\ndefine protected void @{name}({}) #0 {{\nentry:", params.join(", "));
        s += &self.slots.borrow();
        s += "  br label %b0\nb0:\n";
        s += &self.body.borrow();
        s += "  ret void\n}\n\n";
        let _ = writeln!(
            s,
            "attributes #0 = {{ nounwind \"no-builtins\" \"target-cpu\"=\"x86-64\" \"target-features\"=\"{features}\" \"min-legal-vector-width\"=\"512\" \"prefer-vector-width\"=\"512\" }}"
        );
        s
    }

    fn line(&self, text: fmt::Arguments<'_>) {
        let mut body = self.body.borrow_mut();
        body.push_str("  ");
        let _ = body.write_fmt(text);
        body.push('\n');
    }

    fn reg(&self, ty: Ty) -> Val<'_> {
        let n = self.registers.get();
        self.registers.set(n + 1);
        Val { f: self, ty, repr: Repr::Reg(n) }
    }

    fn define(&self, ty: Ty, text: fmt::Arguments<'_>) -> Val<'_> {
        let r = self.reg(ty);
        self.line(format_args!("{r} = {text}"));
        r
    }

    fn label(&self) -> u32 {
        let n = self.labels.get();
        self.labels.set(n + 1);
        n
    }

    fn start(&self, label: u32) {
        let _ = writeln!(self.body.borrow_mut(), "b{label}:");
        self.block.set(label);
    }

    fn jump(&self, label: u32) {
        self.line(format_args!("br label %b{label}"));
    }

    fn declare(&self, text: String) {
        self.declarations.borrow_mut().insert(text);
    }

    // ---- constants ----

    pub fn int(&self, ty: Ty, n: i64) -> Val<'_> {
        let repr = if ty.elem.is_float() { Repr::Float(n as f64) } else { Repr::Int(n) };
        Val { f: self, ty, repr }
    }

    /// An index.
    pub fn i(&self, n: u64) -> Val<'_> {
        self.int(I64, n as i64)
    }

    pub fn float(&self, ty: Ty, x: f64) -> Val<'_> {
        let x = if ty.elem == Elem::F32 { f64::from(x as f32) } else { x };
        Val { f: self, ty, repr: Repr::Float(x) }
    }

    pub fn zero(&self, ty: Ty) -> Val<'_> {
        self.int(ty, 0)
    }

    pub fn poison(&self, ty: Ty) -> Val<'_> {
        Val { f: self, ty, repr: Repr::Poison }
    }

    /// `<16 x i1>` with the first `n` lanes set, as text.
    fn lane_mask(lanes: u32, n: u32) -> String {
        let bits: Vec<String> = (0..lanes).map(|i| format!("i1 {}", i < n)).collect();
        format!("<{}>", bits.join(", "))
    }

    /// Address of a constant table, 64-byte aligned.
    pub fn table<T: Table>(&self, values: &[T]) -> Val<'_> {
        let n = self.global_count.get();
        self.global_count.set(n + 1);
        let items: Vec<String> = values.iter().map(|v| format!("{} {}", T::ELEM.name(), v.literal())).collect();
        let mut globals = self.globals.borrow_mut();
        let _ = writeln!(
            globals,
            "@c{n} = internal unnamed_addr constant [{} x {}] [{}], align 64",
            values.len(),
            T::ELEM.name(),
            items.join(", ")
        );
        drop(globals);
        self.define(PTR, format_args!("getelementptr i8, ptr @c{n}, i64 0"))
    }

    // ---- control flow ----

    /// `for i in (lo..hi).step_by(step)` over an index; runs while `i < hi`.
    pub fn range<'a>(&'a self, lo: Val<'a>, hi: Val<'a>, step: i64, body: impl FnOnce(Val<'a>)) {
        assert_eq!((lo.ty, hi.ty), (I64, I64), "loop bounds are indices");
        let (from, head, inner, exit) = (self.block.get(), self.label(), self.label(), self.label());
        let (i, next) = (self.reg(I64), self.reg(I64));
        let latch = self.label();
        self.jump(head);
        self.start(head);
        self.line(format_args!("{i} = phi i64 [ {lo}, %b{from} ], [ {next}, %b{latch} ]"));
        let more = i.lt(hi);
        self.line(format_args!("br i1 {more}, label %b{inner}, label %b{exit}"));
        self.start(inner);
        body(i);
        self.jump(latch);
        self.start(latch);
        self.line(format_args!("{next} = add nsw i64 {i}, {step}"));
        self.jump(head);
        self.start(exit);
    }

    /// `for i in 0..n`.
    pub fn count<'a>(&'a self, n: u64, body: impl FnOnce(Val<'a>)) {
        self.range(self.i(0), self.i(n), 1, body);
    }

    /// Runs `body` while `condition` holds.
    pub fn repeat<'a>(&'a self, condition: impl FnOnce() -> Val<'a>, body: impl FnOnce()) {
        let (head, inner, exit) = (self.label(), self.label(), self.label());
        self.jump(head);
        self.start(head);
        let more = condition();
        self.line(format_args!("br i1 {more}, label %b{inner}, label %b{exit}"));
        self.start(inner);
        body();
        self.jump(head);
        self.start(exit);
    }

    pub fn when<'a>(&'a self, condition: Val<'a>, then: impl FnOnce()) {
        self.branch(condition, then, || {});
    }

    pub fn branch<'a>(&'a self, condition: Val<'a>, then: impl FnOnce(), otherwise: impl FnOnce()) {
        assert_eq!(condition.ty, I1, "a condition is one bit");
        let (yes, no, exit) = (self.label(), self.label(), self.label());
        self.line(format_args!("br i1 {condition}, label %b{yes}, label %b{no}"));
        self.start(yes);
        then();
        self.jump(exit);
        self.start(no);
        otherwise();
        self.jump(exit);
        self.start(exit);
    }

    // ---- memory ----

    /// A variable with a first value.
    pub fn var<'a>(&'a self, init: Val<'a>) -> Var<'a> {
        let v = Var { slot: self.stack(init.ty, 1), ty: init.ty };
        v.set(init);
        v
    }

    /// Room for `n` values on the stack, 64-byte aligned, not initialised.
    pub fn stack(&self, ty: Ty, n: u64) -> Val<'_> {
        let slot = self.reg(PTR);
        let _ = writeln!(self.slots.borrow_mut(), "  {slot} = alloca [{n} x {ty}], align 64");
        slot
    }

    pub fn prefetch(&self, p: Val<'_>, locality: u32) {
        self.declare("void @llvm.prefetch.p0(ptr, i32, i32, i32)".into());
        self.line(format_args!("call void @llvm.prefetch.p0(ptr {p}, i32 0, i32 {locality}, i32 1)"));
    }

    /// Calls an intrinsic.
    pub fn call<'a>(&'a self, name: &str, result: Ty, args: &[Val<'a>]) -> Val<'a> {
        let types: Vec<String> = args.iter().map(|a| a.ty.to_string()).collect();
        self.declare(format!("{result} @{name}({})", types.join(", ")));
        let args: Vec<String> = args.iter().map(|a| format!("{} {a}", a.ty)).collect();
        self.define(result, format_args!("call {result} @{name}({})", args.join(", ")))
    }
}

/// Element of a constant table.
pub trait Table {
    const ELEM: Elem;
    fn literal(&self) -> String;
}

impl Table for f64 {
    const ELEM: Elem = Elem::F64;
    fn literal(&self) -> String {
        format!("0x{:016X}", self.to_bits())
    }
}

impl Table for f32 {
    const ELEM: Elem = Elem::F32;
    fn literal(&self) -> String {
        format!("0x{:016X}", f64::from(*self).to_bits())
    }
}

impl Table for u16 {
    const ELEM: Elem = Elem::I16;
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl Table for i64 {
    const ELEM: Elem = Elem::I64;
    fn literal(&self) -> String {
        self.to_string()
    }
}

impl<'a> Var<'a> {
    pub fn get(self) -> Val<'a> {
        self.slot.load(self.ty, 64)
    }

    pub fn set(self, v: Val<'a>) {
        assert_eq!(v.ty, self.ty, "a variable keeps its type");
        self.slot.store(v, 64);
    }

    pub fn add(self, v: Val<'a>) {
        self.set(self.get() + v);
    }
}

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
