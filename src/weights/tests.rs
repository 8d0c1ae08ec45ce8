//! Stored bytes against the reference evaluator: unpacked, they are the values of the expression, bit for bit.
#![allow(clippy::unwrap_used)]

use super::*;
use deepfuse_ir::ops::attrs;
use deepfuse_ir::tensor::{Tensor, e4m3_value};
use deepfuse_ir::weights::{WeightExpr, source_names};
use deepfuse_ir::{Attr, Attrs, Dim, Float, Graph, Op, ParamKind, Sizes, ValueId};
use deepfuse_passes::stored::stored_bytes;
use half::{bf16, f16};
use std::collections::HashMap;

#[derive(Default)]
struct Files(HashMap<String, Vec<u8>>);

impl Tensors for Files {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// A graph over weights alone, their bytes, and what the evaluator makes of the same numbers.
struct World {
    graph: Graph,
    files: Files,
    values: HashMap<ValueId, Tensor>,
    seed: u64,
}

impl World {
    fn new() -> Self {
        Self { graph: Graph::new("weights"), files: Files::default(), values: HashMap::new(), seed: 1 }
    }

    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    /// A tensor of the checkpoint; `stack` of them where it is more than one.
    fn source(&mut self, name: &str, dtype: DType, shape: &[u64], stack: Option<u64>) -> ValueId {
        let pattern = stack.map_or_else(|| name.to_owned(), |n| format!("{name}.{{0..{n}}}"));
        let (rows, cols) = (shape.iter().rev().nth(1).copied().unwrap_or(1), shape[shape.len() - 1]);
        let mut values = vec![];
        for file in source_names(&pattern) {
            let codes: Vec<u64> = (0..rows * cols).map(|_| self.next()).collect();
            let (bytes, mut numbers) = store(dtype, &codes);
            if let DType::Quant(q) = dtype {
                let [down, across] = q.blocks(rows, cols);
                let scales: Vec<f32> = (0..down * across).map(|_| (self.next() % 1000 + 1) as f32 / 777.0).collect();
                for (i, v) in numbers.iter_mut().enumerate() {
                    let (r, c) = (i as u64 / cols, i as u64 % cols);
                    *v *= scales[(r / 128 * across + c / 128) as usize];
                }
                self.files.0.insert(format!("{file}_scale_inv"), scales.iter().flat_map(|s| s.to_le_bytes()).collect());
            }
            self.files.0.insert(file, bytes);
            values.extend(numbers);
        }
        let full: Vec<u64> = stack.into_iter().chain(shape.iter().copied()).collect();
        let ty = TensorType::new(dtype, full.iter().map(|d| Dim::fixed(*d)));
        let id = self.graph.param(name, ParamKind::Weight { source: pattern }, ty);
        let dims: Vec<usize> = full.iter().map(|d| *d as usize).collect();
        self.values.insert(id, Tensor::float(dtype, &dims, values));
        id
    }

    fn apply(&mut self, op: Op, operands: &[ValueId], list: &[(&'static str, Attr)]) -> ValueId {
        let a: Attrs = attrs(list);
        let id = self.graph.push(op, operands, a.clone()).unwrap()[0];
        let x: Vec<&Tensor> = operands.iter().map(|v| &self.values[v]).collect();
        let y = op.eval(&x, &a, &Sizes([1; 5])).remove(0);
        self.values.insert(id, y);
        id
    }

    /// Streams `v` in a layout with 1 and 3 jobs and compares it with the evaluator.
    fn check(&self, v: ValueId, layout: Layout) {
        let w = StoredWeight { expr: WeightExpr::of(&self.graph, v).unwrap(), layout };
        let bytes = |jobs| {
            let mut bytes = vec![];
            stream(std::slice::from_ref(&w), &self.files, jobs, &mut |_, b| {
                bytes.extend_from_slice(b);
                Ok(())
            })
            .unwrap();
            bytes
        };
        let stored = bytes(1);
        assert_eq!(stored, bytes(3), "the bytes depend on the number of jobs");
        assert_eq!(stored.len() as u64, stored_bytes(w.expr.ty(), &w.layout));
        assert_eq!(unpack(&stored, w.expr.ty(), &w.layout), self.values[&v].floats(), "{:?}", w.expr);
    }
}

/// Random finite codes of a type, as bytes and as values.
fn store(dtype: DType, codes: &[u64]) -> (Vec<u8>, Vec<f32>) {
    let small = |c: &u64| (*c % 2001) as f32 / 1000.0 - 1.0;
    match dtype {
        DType::Bf16 => {
            let v: Vec<bf16> = codes.iter().map(|c| bf16::from_f32(small(c))).collect();
            (v.iter().flat_map(|x| x.to_le_bytes()).collect(), v.iter().map(|x| x.to_f32()).collect())
        }
        DType::F32 => {
            let v: Vec<f32> = codes.iter().map(small).collect();
            (v.iter().flat_map(|x| x.to_le_bytes()).collect(), v)
        }
        _ => {
            let finite = |c: &u64| if *c as u8 & 0x7f == 0x7f { 0x35 } else { *c as u8 };
            let v: Vec<u8> = codes.iter().map(finite).collect();
            let values = v.iter().map(|c| e4m3_value(*c)).collect();
            (v, values)
        }
    }
}

/// Values of panels of codes, by the definition of the layout.
fn unpack_codes(bytes: &[u8], ty: &TensorType, q: Quant) -> Vec<f32> {
    let (count, rows, cols) = matrices(ty);
    let depth = cols.next_multiple_of(64);
    let panel = if q.elem == Code::I8 { 16 * depth + 64 } else { depth / 64 * 576 };
    let per_matrix = bytes.len() as u64 / count;
    let value = |(m, r, c): (u64, u64, u64)| {
        let b = &bytes[(m * per_matrix + r / 16 * panel) as usize..];
        let r = r % 16;
        if q.elem == Code::I8 {
            let s = &b[(16 * depth + r * 4) as usize..];
            let code = i32::from(b[(c / 4 * 64 + r * 4 + c % 4) as usize]) - 128;
            return code as f32 * f32::from_le_bytes([s[0], s[1], s[2], s[3]]);
        }
        let (b, g, c) = (&b[(c / 64 * 576) as usize..], c % 64 / 32, c % 32);
        let s = &b[(g * 32 + r * 2) as usize..];
        let byte = b[(64 + g * 256 + c % 16 / 4 * 64 + r * 4 + c % 4) as usize];
        let code = i32::from(byte >> (c / 16 * 4) & 15) - 8;
        code as f32 * f16::from_le_bytes([s[0], s[1]]).to_f32()
    };
    (0..count).flat_map(|m| (0..rows).flat_map(move |r| (0..cols).map(move |c| (m, r, c)))).map(value).collect()
}

/// Values of stored bytes, by the definition of the layout.
fn unpack(bytes: &[u8], ty: &TensorType, layout: &Layout) -> Vec<f32> {
    let (count, rows, cols) = matrices(ty);
    if let (DType::Quant(q @ (Quant::INT8_R | Quant::INT4_G32)), Layout::Vnni) = (ty.dtype, layout) {
        return unpack_codes(bytes, ty, q);
    }
    let element = element_bytes(ty.dtype).unwrap();
    let per_matrix = bytes.len() as u64 / count;
    let packed = *layout == Layout::Vnni;
    let depth = if packed { cols.next_multiple_of(32) } else { cols };
    let codes = if packed { rows.next_multiple_of(16) * depth } else { rows * cols } * element;
    let mut out = vec![];
    for (m, r, c) in (0..count).flat_map(|m| (0..rows).flat_map(move |r| (0..cols).map(move |c| (m, r, c)))) {
        let index = if packed { r / 16 * 16 * depth + c / 2 * 32 + r % 16 * 2 + c % 2 } else { r * cols + c };
        let at = (m * per_matrix + index * element) as usize;
        let b = &bytes[at..];
        out.push(match ty.dtype {
            DType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            DType::Quant(q) => {
                let [_, across] = q.blocks(rows, cols);
                let block = r / u64::from(q.block[0]) * across + c / u64::from(q.block[1]);
                let s = &bytes[(m * per_matrix + codes.next_multiple_of(64) + block * 4) as usize..];
                e4m3_value(b[0]) * f32::from_le_bytes([s[0], s[1], s[2], s[3]])
            }
            _ => unreachable!(),
        });
    }
    out
}

/// Rows of every kind: as weights are, with ties, of one magnitude, tiny, huge, with zeros, with what is not finite.
fn rows(k: usize) -> Vec<Vec<f32>> {
    let mut w = World::new();
    let mut random = move || (w.next() % 20_001) as f32 / 10_000.0 - 1.0;
    let mut row = |f: &dyn Fn(usize, f32) -> f32| (0..k).map(|i| f(i, random())).collect::<Vec<f32>>();
    let with = |value: f32| move |i: usize, x: f32| if i % 41 == 3 { value } else { x };
    let mut list: Vec<Vec<f32>> = (0..40).map(|_| row(&|_, x| x * x * x)).collect();
    list.extend([1e-3, 1e-6, 1e-20, 1e-39, 1e3, 1e6, 1e30].map(|size| row(&|_, x| x * size)));
    list.extend([
        row(&|_, x| (x * 8.0).round() / 2.0),
        row(&|_, x| 1f32.copysign(x)),
        row(&|i, x| if i / 32 % 2 == 0 { 0.0 } else { x }),
    ]);
    list.extend([f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1.0, -1.0].map(|v| row(&with(v))));
    list
}

#[test]
fn codes_are_those_of_the_evaluator() {
    let important = |kind: usize, i: usize| match kind {
        0 => 0.0,
        1 => 1.0,
        _ if i / 32 == 1 => 0.0,
        _ => (i * 7919 % 1000) as f32 * if i.is_multiple_of(5) { 100.0 } else { 0.001 },
    };
    for (k, q) in [1usize, 31, 32, 70, 257].into_iter().flat_map(|k| [(k, Quant::INT8_R), (k, Quant::INT4_G32)]) {
        let width = k.next_multiple_of(codes::GROUP);
        let (mut values, mut found) = (vec![0.0; width], vec![0; width]);
        for (row, kind) in rows(k).iter().flat_map(|row| (0..4).map(move |kind| (row, kind))) {
            let h: Vec<f32> = (0..k).map(|i| important(kind, i)).collect();
            let h = (kind < 3 && q.elem == Code::I4).then_some(&h[..]);
            let (mut scales, mut lost) = (vec![], codes::Lost::default());
            values[..k].copy_from_slice(row);
            let padded = h.map(|h| h.iter().copied().chain(vec![0.0; width - k]).collect::<Vec<f32>>());
            match q.elem {
                Code::I4 => codes::int4(&values, padded.as_deref(), &mut found, &mut scales, &mut lost),
                _ => scales.push(codes::int8(&values, &mut found, &mut lost)),
            }
            let blocks: Vec<_> = deepfuse_ir::ops::quantize::blocks_by(row, h, q).collect();
            let bits = |s: f32| if s.is_nan() { f32::NAN.to_bits() } else { s.to_bits() };
            let want: Vec<u32> = blocks.iter().map(|b| bits(b.scale)).collect();
            assert_eq!(scales.iter().map(|s| bits(*s)).collect::<Vec<_>>(), want, "{q:?} {h:?} {row:?}");
            let want: Vec<i8> = blocks.into_iter().flat_map(|b| b.codes).collect();
            assert_eq!(found[..k], want, "{q:?} {h:?} {row:?}");
        }
    }
}

#[test]
fn every_e4m3_code_is_widened() {
    let codes: Vec<u8> = (0..=255).collect();
    let mut values = vec![0.0; 256];
    codes::e4m3(&codes, 0.37, &mut values);
    for (code, value) in codes.iter().zip(&values) {
        let want = e4m3_value(*code) * 0.37;
        assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{code}: {value} for {want}");
    }
}

const FP8: DType = DType::Quant(Quant::FP8_B128);

#[test]
fn sources_of_every_type_and_odd_size() {
    for dtype in [DType::Bf16, DType::F32, FP8] {
        for (rows, cols) in [(1, 1), (15, 33), (16, 32), (17, 31), (130, 257)] {
            let mut w = World::new();
            let a = w.source("a", dtype, &[rows, cols], None);
            let e = w.source("e", dtype, &[rows, cols], Some(3));
            for v in [a, e] {
                w.check(v, Layout::Vnni);
                w.check(v, Layout::Dense);
            }
        }
    }
}

#[test]
fn joined_projections() {
    for (dtype, rows) in [(DType::Bf16, 33), (FP8, 128)] {
        let mut w = World::new();
        let (a, b) = (w.source("a", dtype, &[rows, 70], None), w.source("b", dtype, &[77, 70], None));
        let ab = w.apply(Op::Concat, &[a, b], &[("axis", Attr::Int(0))]);
        w.check(ab, Layout::Vnni);
        w.check(ab, Layout::Dense);
    }
}

/// Of bf16 and of fp8, alone, stacked, joined, cut; the loss is told.
#[test]
fn quantized_weights() {
    for (q, cols) in [(Quant::INT8_R, 70), (Quant::INT4_G32, 64), (Quant::INT4_G32, 129)] {
        let to = [("dtype", Attr::DType(DType::Quant(q)))];
        let mut w = World::new();
        let (a, b) = (w.source("a", DType::Bf16, &[33, cols], None), w.source("b", FP8, &[130, cols], None));
        let e = w.source("e", DType::Bf16, &[17, cols], Some(3));
        let [a, b, e] = [a, b, e].map(|v| w.apply(Op::Quantize, &[v], &to));
        let ab = w.apply(Op::Concat, &[a, b], &[("axis", Attr::Int(0))]);
        let cut = [("axis", Attr::Int(0)), ("start", Attr::Int(20)), ("len", Attr::Int(50))];
        let cut = w.apply(Op::Slice, &[ab], &cut);
        for v in [a, b, e, ab, cut] {
            w.check(v, Layout::Vnni);
        }
        let stored = StoredWeight { expr: WeightExpr::of(&w.graph, ab).unwrap(), layout: Layout::Vnni };
        let findings = stream(&[stored], &w.files, 2, &mut |_, _| Ok(())).unwrap();
        let [(0, loss)] = findings.losses[..] else { panic!("{findings:?}") };
        let within = if q.elem == Code::I8 { 0.002..0.01 } else { 0.04..0.12 };
        assert!(within.contains(&loss.relative()), "{q:?}: {}", loss.relative());
    }
}

/// A calibrated weight takes its own matrix's importance, joined with others too.
#[test]
fn calibrated_weights() {
    let to = [("dtype", Attr::DType(DType::Quant(Quant::INT4_G32)))];
    let mut w = World::new();
    let (a, a_importance) = (w.source("a", DType::Bf16, &[33, 70], None), w.source("ai", DType::F32, &[70], None));
    let (e, e_importance) = (w.source("e", FP8, &[17, 70], Some(3)), w.source("ei", DType::F32, &[70], Some(3)));
    let plain = w.apply(Op::Quantize, &[a], &to);
    let [a, e] = [(a, a_importance), (e, e_importance)].map(|(w_, i)| w.apply(Op::Quantize, &[w_, i], &to));
    let both = w.apply(Op::Concat, &[plain, a], &[("axis", Attr::Int(0))]);
    for v in [a, e, both] {
        w.check(v, Layout::Vnni);
    }
}

#[test]
fn absorbed_weights_on_and_off_the_block_border() {
    for (dtype, n, first, len) in
        [(DType::Bf16, 56, 32, 24), (FP8, 256, 128, 128), (FP8, 256, 0, 128), (FP8, 56, 32, 24)]
    {
        let mut w = World::new();
        let kv = w.source("kv_b", dtype, &[3 * n, 150], None);
        let part = [("heads", Attr::Int(3)), ("start", Attr::Int(first)), ("len", Attr::Int(len))];
        let rows = w.apply(Op::HeadRows, &[kv], &part);
        let turned = w.apply(Op::Permute, &[rows], &[("axes", Attr::Ints(vec![0, 2, 1]))]);
        for v in [rows, turned] {
            w.check(v, Layout::Vnni);
            w.check(v, Layout::Dense);
        }
    }
}

#[test]
fn conversions_slices_and_reshapes() {
    let mut w = World::new();
    let q = w.source("q", FP8, &[256, 130], None);
    let gain = w.source("gain", DType::Bf16, &[130], None);
    let wide = w.apply(Op::Convert, &[q], &[("dtype", Attr::DType(DType::F32))]);
    let half = w.apply(Op::Convert, &[q], &[("dtype", Attr::DType(DType::Bf16))]);
    let tail = w.apply(Op::Slice, &[q], &[("axis", Attr::Int(0)), ("start", Attr::Int(128)), ("len", Attr::Int(128))]);
    let columns =
        w.apply(Op::Slice, &[wide], &[("axis", Attr::Int(1)), ("start", Attr::Int(3)), ("len", Attr::Int(64))]);
    let shape = Attr::Shape([4, 64, 64].map(Dim::fixed).to_vec());
    let split = w.apply(Op::Reshape, &[columns], &[("shape", shape)]);
    let scaled = w.apply(Op::Scale, &[half], &[("value", Attr::Float(Float(0.37)))]);
    let by_columns = w.apply(Op::Mul, &[half, gain], &[]);
    for v in [wide, half, tail, columns, split, scaled, by_columns] {
        w.check(v, Layout::Vnni);
        w.check(v, Layout::Dense);
    }
}

#[test]
fn a_nan_scale_names_the_tensor() {
    let mut w = World::new();
    let a = w.source("a", FP8, &[256, 256], None);
    let scales = w.files.0.get_mut("a_scale_inv").unwrap();
    scales[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    let stored = StoredWeight { expr: WeightExpr::of(&w.graph, a).unwrap(), layout: Layout::Vnni };
    let result = stream(&[stored], &w.files, 2, &mut |_, _| Ok(()));
    assert!(
        matches!(result, Err(WeightError::Scale { ref name, index: 3, .. }) if name == "a_scale_inv"),
        "{result:?}"
    );
}

#[test]
fn nan_weights_are_counted() {
    let mut w = World::new();
    let a = w.source("a", DType::Bf16, &[40, 40], None);
    w.files.0.get_mut("a").unwrap()[10..12].copy_from_slice(&[0xc0, 0x7f]);
    let stored = StoredWeight { expr: WeightExpr::of(&w.graph, a).unwrap(), layout: Layout::Vnni };
    let found = stream(&[stored], &w.files, 2, &mut |_, _| Ok(())).unwrap();
    assert_eq!(found.not_finite, [(0, 1)]);
}
