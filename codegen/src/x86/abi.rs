//! The launch ABI of CPU kernels and the operands seen through it.
//!
//!     extern "C" fn(args: *const u64, phase: u32, worker: u32, workers: u32)
//!
//! `args[0..5]` are T, S, P, R, C; `args[5..]` are pointers: inputs in operand order, outputs that are tensors, then scratch.

use crate::EmitError;
use crate::dsl::*;
use crate::mem::{Mem, Store};
use deepfuse_ir::{DType, Dim, KernelSpec, Layout, Operand, Symbol, TensorType, Type, Variant};

pub const PARAMS: [Ty; 4] = [PTR, I32, I32, I32];

/// A kernel under construction.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    pub f: &'a Fx,
    pub spec: &'a KernelSpec,
    pub variant: &'a Variant,
    args: Val<'a>,
    phase: Val<'a>,
    worker: Val<'a>,
    workers: Val<'a>,
}

/// A tensor operand: where it lies, its dims, its strides in elements.
#[derive(Clone)]
pub struct View<'a> {
    pub mem: Mem<'a>,
    pub dims: Vec<Val<'a>>,
    pub strides: Vec<Val<'a>>,
}

impl<'a> View<'a> {
    /// Memory at the given leading indices.
    pub fn at(&self, index: &[Val<'a>]) -> Mem<'a> {
        index.iter().zip(&self.strides).fold(self.mem, |m, (i, s)| m.at(*i * *s))
    }

    /// An error unless the last axis is dense; `what` names the tensor.
    pub fn dense_rows(&self, k: &Kernel<'_>, what: &str) -> Result<(), EmitError> {
        if self.fixed_stride(self.rank() - 1) == Some(1) {
            return Ok(());
        }
        Err(k.unsupported(format!("the last axis of {what} must be dense")))
    }

    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Length of an axis that is a number.
    pub fn fixed(&self, axis: usize) -> Option<u64> {
        self.dims[axis].known().map(|n| n as u64)
    }

    /// Stride of an axis that is a number.
    pub fn fixed_stride(&self, axis: usize) -> Option<u64> {
        self.strides[axis].known().map(|n| n as u64)
    }
}

pub fn store_of(dtype: DType) -> Option<Store> {
    match dtype {
        DType::F32 => Some(Store::F32),
        DType::Bf16 => Some(Store::Bf16),
        DType::F16 => Some(Store::F16),
        DType::I32 | DType::U32 => Some(Store::I32),
        DType::Quant(_) => None,
    }
}

impl<'a> Kernel<'a> {
    pub fn new(f: &'a Fx, spec: &'a KernelSpec, variant: &'a Variant) -> Self {
        let [phase, worker, workers] = [1, 2, 3].map(|i| f.param(i, I32).zext(Elem::I64));
        Self { f, spec, variant, args: f.param(0, PTR), phase, worker, workers }
    }

    pub fn unsupported(&self, reason: impl Into<String>) -> EmitError {
        EmitError::Unsupported { op: self.spec.op.name(), reason: reason.into() }
    }

    /// Runs `body` in phase `n`.
    pub fn phase(&self, n: u64, body: impl FnOnce()) {
        self.f.when(self.phase.eq(self.f.i(n)), body);
    }

    /// Runs `body` on one worker only.
    pub fn alone(&self, body: impl FnOnce()) {
        self.f.when(self.worker.eq(self.f.i(0)), body);
    }

    /// This worker's part of `0..n`, as equal as can be: contiguous, ascending with the worker.
    pub fn share(&self, n: Val<'a>) -> (Val<'a>, Val<'a>) {
        let cut = |w: Val<'a>| (n * w) / self.workers;
        (cut(self.worker), cut(self.worker + 1i64))
    }

    /// Runs `body(i)` for this worker's part of `0..n`.
    pub fn each(&self, n: Val<'a>, body: impl FnOnce(Val<'a>)) {
        let (lo, hi) = self.share(n);
        self.f.range(lo, hi, 1, body);
    }

    /// Runs `body(i)` for this worker's part of `0..n`, dealt out round robin: for items of unequal size.
    pub fn deal(&self, n: Val<'a>, body: impl FnOnce(Val<'a>)) {
        let next = self.f.var(self.worker);
        self.f.repeat(
            || next.get().lt(n),
            || {
                body(next.get());
                next.add(self.workers);
            },
        );
    }

    pub fn symbol(&self, s: Symbol) -> Val<'a> {
        self.args.plus(8 * s as u64).load(I64, 8)
    }

    /// The value of a dim; a number stays one.
    pub fn dim(&self, d: &Dim) -> Val<'a> {
        let mut v = self.f.i(d.constant);
        for s in Symbol::ALL {
            let factor = d.terms[s as usize];
            if factor != 0 {
                let term = self.symbol(s) * u64::from(factor);
                v = if v.known() == Some(0) { term } else { v + term };
            }
        }
        v
    }

    /// Address of the n-th pointer argument.
    fn pointer(&self, n: usize) -> Val<'a> {
        self.args.plus(8 * (Symbol::COUNT + n) as u64).load(PTR, 8)
    }

    /// Address of an input, whatever it is.
    pub fn input_ptr(&self, i: usize) -> Val<'a> {
        self.pointer(i)
    }

    pub fn scratch(&self) -> Val<'a> {
        let tensors = self.spec.outputs.iter().filter(|t| t.tensor().is_some()).count();
        self.pointer(self.spec.inputs.len() + tensors)
    }

    pub fn operand(&self, i: usize) -> Result<&'a Operand, EmitError> {
        self.spec.inputs.get(i).ok_or_else(|| self.unsupported(format!("operand {i} is missing")))
    }

    pub fn tensor_type(&self, i: usize) -> Result<&'a TensorType, EmitError> {
        self.operand(i)?.tensor().ok_or_else(|| self.unsupported(format!("operand {i} is a state")))
    }

    /// A dense or strided tensor input.
    pub fn input(&self, i: usize) -> Result<View<'a>, EmitError> {
        let operand = self.operand(i)?;
        if operand.layout == Layout::Vnni {
            return Err(self.unsupported(format!("operand {i} is packed")));
        }
        let t = self.tensor_type(i)?;
        let strides = match &operand.layout {
            Layout::Strided(s) => s.iter().map(|n| self.f.i(*n)).collect(),
            _ => self.dense_strides(t),
        };
        self.view(t, self.input_ptr(i), strides)
    }

    /// The n-th output that is a tensor, dense.
    pub fn output(&self, n: usize) -> Result<View<'a>, EmitError> {
        let tensors: Vec<&TensorType> = self.spec.outputs.iter().filter_map(Type::tensor).collect();
        let t = tensors.get(n).ok_or_else(|| self.unsupported(format!("result {n} is missing")))?;
        self.view(t, self.pointer(self.spec.inputs.len() + n), self.dense_strides(t))
    }

    /// Memory at `base` as a dense tensor of type `t`.
    pub fn dense(&self, t: &TensorType, base: Val<'a>) -> Result<View<'a>, EmitError> {
        self.view(t, base, self.dense_strides(t))
    }

    fn view(&self, t: &TensorType, base: Val<'a>, strides: Vec<Val<'a>>) -> Result<View<'a>, EmitError> {
        let store = if t.dtype.quantized_row(0).is_some() { Some(Store::I8) } else { store_of(t.dtype) };
        let store = store.ok_or_else(|| self.unsupported(format!("{} outside a packed matrix", t.dtype)))?;
        let dims = t.shape.iter().map(|d| self.dim(d)).collect();
        Ok(View { mem: Mem::new(base, store), dims, strides })
    }

    /// In elements; int8 rows are as many bytes apart as their layout says.
    fn dense_strides(&self, t: &TensorType) -> Vec<Val<'a>> {
        let row = t.shape.last().and_then(Dim::as_fixed).and_then(|k| t.dtype.quantized_row(k));
        let mut stride = self.f.i(1);
        let mut strides = vec![];
        for (axis, d) in t.shape.iter().enumerate().rev() {
            strides.push(stride);
            stride = match (axis, row) {
                (0, _) => break,
                (_, Some(row)) if axis + 1 == t.rank() => self.f.i(row.bytes),
                _ => stride * self.dim(d),
            };
        }
        strides.reverse();
        strides
    }

    /// Length of an axis that must be a number.
    pub fn fixed(&self, i: usize, axis: usize) -> Result<u64, EmitError> {
        let t = self.tensor_type(i)?;
        let d = t.shape.get(axis).and_then(Dim::as_fixed);
        d.ok_or_else(|| self.unsupported(format!("axis {axis} of operand {i}, {t}, must be a number")))
    }

    pub fn int(&self, name: &str) -> Result<u64, EmitError> {
        use deepfuse_ir::AttrsExt;
        let n = self.spec.attrs.int(name).and_then(|n| u64::try_from(n).ok());
        n.ok_or_else(|| self.unsupported(format!("needs the attribute `{name}`")))
    }

    pub fn float(&self, name: &str) -> Result<f64, EmitError> {
        use deepfuse_ir::AttrsExt;
        self.spec.attrs.float(name).ok_or_else(|| self.unsupported(format!("needs the attribute `{name}`")))
    }

    pub fn word(&self, name: &str) -> Result<&'a str, EmitError> {
        use deepfuse_ir::AttrsExt;
        self.spec.attrs.str(name).ok_or_else(|| self.unsupported(format!("needs the attribute `{name}`")))
    }

    /// A named integer of the variant.
    pub fn choice(&self, name: &str, default: u32) -> u32 {
        self.variant.get(name).unwrap_or(default)
    }
}
