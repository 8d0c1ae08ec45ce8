//! A small typed language that prints LLVM IR.
//!
//! A [`Fx`] is one function under construction; a [`Val`] is one of its values and carries its type, so operators check what
//! they join and fold constants. Loops and branches take closures. Mutable variables are stack slots that LLVM's `sroa` turns
//! into registers. Printing text instead of calling LLVM keeps kernels free of LLVM types, deterministic, readable in `.ll`
//! form, and lets LLVM's parser check every instruction before it is compiled.

mod tiles;
mod ty;
mod value;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::{self, Write};

pub use tiles::TileDot;
pub use ty::*;

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
    /// Tiles and `tdpbf16ps`.
    pub amx_bf16: bool,
    /// Tiles and `tdpbsud`.
    pub amx_int8: bool,
    /// `vpdpbusd` on 512 bits.
    pub dot_int8: bool,
    /// `vpermi2b`: a table of 128 bytes.
    pub byte_tables: bool,
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
