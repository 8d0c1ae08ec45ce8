//! Runs one kernel beside the reference evaluator.
#![allow(dead_code, clippy::unwrap_used)]

pub mod batch;
pub mod codes;
pub mod exec;

use deepfuse_codegen::{Backend, emit_all, pack, x86::X86};
use deepfuse_emulate::amx;
use deepfuse_ir::tensor::Data;
use deepfuse_ir::*;
pub use exec::{Buffer, Library};
use half::{bf16, f16};

/// A reproducible stream of numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// One operand of a call under test.
#[derive(Clone)]
pub struct Arg {
    pub operand: Operand,
    /// What the evaluator gets.
    pub value: Tensor,
    /// What lies in memory.
    pub bytes: Vec<u8>,
}

pub fn dim(n: u64) -> Dim {
    Dim::fixed(n)
}

pub const T: fn() -> Dim = || Dim::symbol(Symbol::T);

/// Bytes of float or integer values as stored.
pub fn encode(dtype: DType, data: &Data) -> Vec<u8> {
    match data {
        Data::Int(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::Float(v) => v.iter().flat_map(|x| encode_one(dtype, *x)).collect(),
    }
}

fn encode_one(dtype: DType, x: f32) -> Vec<u8> {
    match dtype {
        DType::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    }
}

pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    }
}

impl Arg {
    pub fn new(ty: TensorType, layout: Layout, constant: bool, value: Tensor, bytes: Vec<u8>) -> Self {
        Self { operand: Operand { layout, constant, ..Operand::dense(ty.into()) }, value, bytes }
    }

    /// Dense values of a shape; the concrete shape is given beside the symbolic one.
    pub fn dense(dtype: DType, dims: &[Dim], shape: &[usize], values: Vec<f32>) -> Self {
        let value = Tensor::float(dtype, shape, values);
        let bytes = encode(dtype, &value.data);
        Self::new(TensorType::new(dtype, dims.iter().copied()), Layout::Dense, false, value, bytes)
    }

    pub fn random(r: &mut Random, dtype: DType, dims: &[Dim], shape: &[usize]) -> Self {
        let n = shape.iter().product();
        Self::dense(dtype, dims, shape, (0..n).map(|_| r.unit()).collect())
    }

    pub fn ints(dims: &[Dim], shape: &[usize], values: Vec<i32>) -> Self {
        let value = Tensor::int(shape, values);
        let bytes = encode(DType::I32, &value.data);
        Self::new(TensorType::new(DType::I32, dims.iter().copied()), Layout::Dense, false, value, bytes)
    }

    pub fn constant(mut self) -> Self {
        self.operand.constant = true;
        self
    }

    /// The same values in memory with `gap` elements of garbage behind each row of the last axis.
    pub fn with_gap(mut self, gap: usize) -> Self {
        let (DType::Bf16 | DType::F32) = self.value.dtype else { panic!("only floats") };
        let size = self.value.dtype.bytes().unwrap() as usize;
        let (rows, w) = (self.value.rows(), self.value.width());
        let mut bytes = vec![];
        for r in 0..rows {
            bytes.extend_from_slice(&self.bytes[r * w * size..(r + 1) * w * size]);
            if r + 1 < rows {
                bytes.extend(std::iter::repeat_n(0xff, gap * size)); // NaN
            }
        }
        self.bytes = bytes;
        let mut stride = (w + gap) as u64;
        let mut strides = vec![1];
        for n in self.value.shape[1..self.value.shape.len() - 1].iter().rev() {
            strides.insert(0, stride);
            stride *= *n as u64;
        }
        strides.insert(0, stride);
        self.operand.layout = Layout::Strided(strides);
        self
    }

    /// Random matrix weights `[.., N, K]`, packed.
    pub fn matrix(r: &mut Random, dtype: DType, shape: &[usize]) -> Self {
        let (n, k) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        let count: usize = shape[..shape.len() - 2].iter().product();
        let mut values = vec![];
        let mut bytes = vec![];
        for _ in 0..count {
            if let DType::Quant(_) = dtype {
                let codes: Vec<u8> =
                    (0..n * k).map(|_| r.below(256) as u8).map(|c| if c & 0x7f == 0x7f { 0 } else { c }).collect();
                let across = k.div_ceil(128);
                let scales: Vec<f32> = (0..n.div_ceil(128) * across).map(|_| (r.unit() + 1.5) / 300.0).collect();
                for (i, c) in codes.iter().enumerate() {
                    let scale = scales[i / k / 128 * across + i % k / 128];
                    values.push(tensor::e4m3_value(*c) * scale);
                }
                bytes.extend(pack::matrix(&codes, n, k, 1, &scales));
            } else {
                let w = Tensor::float(dtype, &[n, k], (0..n * k).map(|_| r.unit()).collect());
                values.extend_from_slice(w.floats());
                let size = dtype.bytes().unwrap() as usize;
                bytes.extend(pack::matrix(&encode(dtype, &w.data), n, k, size, &[]));
            }
        }
        let ty = TensorType::new(dtype, shape.iter().map(|d| dim(*d as u64)));
        Self::new(ty, Layout::Vnni, true, Tensor::float(dtype, shape, values), bytes)
    }

    /// A paged state with random rows.
    pub fn state(r: &mut Random, dtype: DType, rows: usize, width: usize) -> Self {
        let value = Tensor::float(dtype, &[rows, width], (0..rows * width).map(|_| r.unit()).collect());
        let bytes = encode(dtype, &value.data);
        let ty = StateType { kind: StateKind::Paged, dtype, width: width as u64, device: Device::DEFAULT };
        Self { operand: Operand::dense(Type::State(ty)), value, bytes }
    }
}

/// A call: what the evaluator and the kernel both compute.
pub struct Case {
    pub op: Op,
    pub attrs: Attrs,
    pub args: Vec<Arg>,
    pub sizes: Sizes,
}

/// Largest difference allowed: `absolute + relative * |reference|`.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub absolute: f32,
    pub relative: f32,
}

impl Case {
    pub fn spec(&self) -> KernelSpec {
        let types: Vec<&Type> = self.args.iter().map(|a| &a.operand.ty).collect();
        let results = self.op.infer(&types, &self.attrs).unwrap();
        let operands: Vec<Operand> = self.args.iter().map(|a| a.operand.clone()).collect();
        let call = Call { op: self.op, attrs: &self.attrs, operands: &operands, results: &results };
        if let Answer::Kernel { spec, .. } = kernel::spec_of(&call, &Bucket::decode()) {
            return *spec;
        }
        let family = kernel::family(self.op).unwrap();
        let (op, attrs) = (self.op, self.attrs.clone());
        KernelSpec {
            family,
            op,
            attrs,
            inputs: operands,
            outputs: results,
            prologue: vec![],
            epilogue: vec![],
            bucket: Bucket::decode(),
        }
    }

    /// The same call for the `R` rows of a step that has more tokens.
    #[must_use]
    pub fn for_rows(mut self) -> Self {
        for arg in &mut self.args {
            if let Type::Tensor(t) = &mut arg.operand.ty {
                for d in t.shape.iter_mut().filter(|d| **d == T()) {
                    *d = Dim::symbol(Symbol::R);
                }
            }
        }
        let Sizes([t, s, p, _, c]) = self.sizes;
        Self { sizes: Sizes([2 * t + 3, s, p, t, c]), ..self }
    }

    /// Emits the kernel's default variant for `target`, runs it with 1, 2 and 3 workers and compares.
    pub fn check(&self, target: &Target, tolerance: Tolerance) {
        let variants = X86.variants(&self.spec(), target);
        self.check_variant(target, &variants[0], tolerance);
    }

    /// [`Case::check`] for every variant.
    pub fn check_all(&self, target: &Target, tolerance: Tolerance) {
        for variant in X86.variants(&self.spec(), target) {
            self.check_variant(target, &variant, tolerance);
        }
    }

    pub fn check_variant(&self, target: &Target, variant: &Variant, tolerance: Tolerance) {
        let spec = self.spec();
        let code = emit_all(&[("k".into(), spec.clone(), variant.clone())], target, 1).unwrap();
        let library = Library::load(&code.shared_object);
        let kernel = library.kernel("k");
        let inputs: Vec<&Tensor> = self.args.iter().map(|a| &a.value).collect();
        let expected = self.op.eval(&inputs, &self.attrs, &self.sizes);
        let mut first: Option<Vec<Vec<u8>>> = None;
        let waits = deepfuse_ir::cost::phases(self.op);
        assert_eq!(code.kernels[0].phases, waits, "{}: the estimate counts other phases", self.op.name());
        for workers in [1, 2, 3] {
            let results = self.run(&spec, kernel, code.kernels[0].phases, workers);
            let what = format!(
                "{} on {} [{variant}] with {workers} workers, sizes {:?}",
                self.op.name(),
                target.name,
                self.sizes.0
            );
            if let Some(bits) = &first {
                assert!(bits == &results, "{what}: other bits than with one worker");
                continue;
            }
            for (bytes, want) in results.iter().zip(&expected) {
                let coded = want.dtype.quantized_row(0).is_some();
                let got = if coded { codes::values_of(bytes, want.width()) } else { decode(want.dtype, bytes) };
                compare(&what, &got, want, tolerance);
            }
            first = Some(results);
        }
    }

    /// Bytes of every result of the default variant.
    pub fn results(&self, target: &Target, workers: u32) -> Vec<Vec<u8>> {
        let (spec, variants) = (self.spec(), X86.variants(&self.spec(), target));
        let code = emit_all(&[("k".into(), spec.clone(), variants[0].clone())], target, 1).unwrap();
        let library = Library::load(&code.shared_object);
        self.run(&spec, library.kernel("k"), code.kernels[0].phases, workers)
    }

    /// Bytes of every result (a state result is the state after the call).
    fn run(&self, spec: &KernelSpec, kernel: exec::Entry, phases: u32, workers: u32) -> Vec<Vec<u8>> {
        let inputs: Vec<Buffer> = self.args.iter().map(|a| Buffer::holding(&a.bytes)).collect();
        let tensors: Vec<&TensorType> = spec.outputs.iter().filter_map(Type::tensor).collect();
        let outputs: Vec<Buffer> =
            tensors.iter().map(|t| Buffer::filled(t.value_bytes(&self.sizes) as usize, 0xff)).collect();
        let scratch = Buffer::filled(spec.scratch_bytes(&self.sizes) as usize, 0xff);
        let mut args: Vec<u64> = self.sizes.0.to_vec();
        args.extend(inputs.iter().chain(&outputs).map(Buffer::address));
        args.push(scratch.address());
        for phase in 0..phases {
            // Last worker first: nothing within a phase may depend on another worker.
            for worker in (0..workers).rev() {
                // SAFETY: the arguments are those of the spec and the buffers outlive the call; kernels own nothing.
                let run = unsafe { amx::catch(|| kernel(args.as_ptr(), phase, worker, workers)) };
                run.unwrap_or_else(|fault| panic!("{fault}"));
            }
        }
        let mut tensor = outputs.iter();
        let state = self.args.iter().position(|a| a.operand.state().is_some());
        let result = |t: &Type| match t {
            Type::Tensor(_) => tensor.next().unwrap().bytes().to_vec(),
            Type::State(_) => inputs[state.unwrap()].bytes().to_vec(),
        };
        spec.outputs.iter().map(result).collect()
    }
}

fn compare(what: &str, got: &[f32], want: &Tensor, tolerance: Tolerance) {
    let values: Vec<f32> = match &want.data {
        Data::Float(v) => v.clone(),
        Data::Int(v) => v.iter().map(|x| *x as f32).collect(),
    };
    assert_eq!(got.len(), values.len(), "{what}: number of elements");
    let mut worst = (0.0, 0);
    for (i, (g, w)) in got.iter().zip(&values).enumerate() {
        if g == w || (g.is_nan() && w.is_nan()) {
            continue;
        }
        // bf16 results may differ by one rounding.
        let step = if want.dtype == DType::Bf16 { w.abs() / 128.0 } else { 0.0 };
        let excess = (g - w).abs() / (tolerance.absolute + tolerance.relative * w.abs() + step);
        if excess > worst.0 || excess.is_nan() {
            worst = (excess, i);
        }
        assert!(!excess.is_nan(), "{what}: element {i} of {:?} is {g}, expected {w}", want.shape);
    }
    let (excess, i) = worst;
    assert!(excess <= 1.0, "{what}: element {i} of {:?} is {}, expected {}", want.shape, got[i], values[i]);
}

/// The targets that this machine can run, from the least to the most demanding.
pub fn targets() -> Vec<Target> {
    use deepfuse_codegen::x86::targets as t;
    let wanted = ["x86-64", "x86-avx2", "x86-avx512", "x86-avx512-bf16"];
    wanted
        .iter()
        .filter_map(|n| t::named(n))
        .filter(|t| t.features.iter().all(|f| deepfuse_codegen::x86::targets::has(f)))
        .collect()
}

/// AMX by emulation; `None` if this CPU lacks what it needs besides.
pub fn amx_target() -> Option<Target> {
    use deepfuse_codegen::x86::targets::{has, named};
    amx::install().unwrap();
    named("x86-amx").filter(|t| t.features.iter().all(|f| f.starts_with("amx-") || has(f)))
}

/// The targets that differ in how they multiply matrices.
pub fn matrix_targets() -> Vec<Target> {
    targets().into_iter().chain(amx_target()).collect()
}

pub const FLOATS: [DType; 2] = [DType::F32, DType::Bf16];

/// Exact accumulation up to the order of the sum.
pub fn close(absolute: f32) -> Tolerance {
    Tolerance { absolute, relative: 1e-5 }
}

pub fn sizes(t: u64) -> Sizes {
    Sizes([t, 1, t.div_ceil(64), t, 0])
}

pub fn attrs(list: &[(&'static str, Attr)]) -> Attrs {
    list.iter().cloned().collect()
}

pub fn real(x: f64) -> Attr {
    Attr::Float(Float(x))
}
