//! Weights into their stored form, streamed: expressions over checkpoint tensors become packed bytes, a few megabytes at a time.

mod quantized;

use deepfuse_codegen::pack;
use deepfuse_ir::ops::quantize::Block;
use deepfuse_ir::tensor::e4m3_value;
use deepfuse_ir::weights::{StoredWeight, WeightExpr, source_names};
use deepfuse_ir::{AttrsExt, Code, DType, Layout, Op, Quant, TensorType};
use half::{bf16, f16};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

/// Bytes of the tensors of a checkpoint, as stored.
pub trait Tensors: Sync {
    /// Bytes of a tensor; `None` if there is no such tensor.
    fn bytes(&self, name: &str) -> Option<&[u8]>;
}

/// Why a weight could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    #[error("the checkpoint has no tensor `{0}`")]
    Missing(String),
    #[error("a weight cannot be computed by `{0}` at compile time")]
    Unsupported(&'static str),
    #[error("tensor `{name}`: scale {index} is {value}, not a finite number")]
    Scale { name: String, index: usize, value: f32 },
    #[error(transparent)]
    Sink(#[from] std::io::Error),
    #[error(transparent)]
    Artifact(#[from] deepfuse_artifact::Error),
}

/// About this many bytes are made at a time.
const PIECE_BYTES: u64 = 4 << 20;

/// A part of a stored weight, made independently of the others.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// Panels `from..to` of packed matrix `matrix`.
    Panels { matrix: u64, from: u64, to: u64 },
    /// Elements in row-major order.
    Elements { start: u64, len: u64 },
    /// Scales of matrix `matrix`, f32, padded to 64 bytes; the codes before them end at `codes` bytes and are padded first.
    Scales { matrix: u64, codes: u64 },
    /// Padding of a packed matrix to a 64-byte border.
    Pad { codes: u64 },
}

/// Rows, columns and number of the matrices of a tensor.
fn matrices(ty: &TensorType) -> (u64, u64, u64) {
    let dims = ty.fixed_shape().expect("a weight has no symbolic dims");
    let (outer, matrix) = dims.split_at(dims.len().saturating_sub(2));
    let (rows, cols) = match *matrix {
        [r, c] => (r, c),
        [c] => (1, c),
        _ => (1, 1),
    };
    (outer.iter().product(), rows, cols)
}

/// Bytes of an element as stored; codes of four bits are not packed yet.
fn element_bytes(dtype: DType) -> Result<u64, WeightError> {
    match dtype {
        DType::Quant(Quant { elem: Code::E4m3 | Code::I8, .. }) => Ok(1),
        DType::Quant(_) => Err(WeightError::Unsupported("a 4-bit type")),
        dense => Ok(dense.bytes().unwrap_or(4)),
    }
}

fn pieces(w: &StoredWeight) -> Result<Vec<Piece>, WeightError> {
    let ty = w.expr.ty();
    let (count, rows, cols) = matrices(ty);
    if w.layout == Layout::Vnni && quantized::in_panels(ty.dtype).is_some() {
        let (panels, step) = (rows.div_ceil(16), (PIECE_BYTES / (16 * cols).max(1)).max(1));
        let piece = |matrix, from: u64| Piece::Panels { matrix, from, to: panels.min(from + step) };
        let steps = || (0..panels).step_by(step as usize);
        return Ok((0..count).flat_map(|m| steps().map(move |from| piece(m, from))).collect());
    }
    let element = element_bytes(ty.dtype)?;
    let mut list = vec![];
    if w.layout == Layout::Vnni {
        let panels = rows.div_ceil(16);
        let step = (PIECE_BYTES / (16 * cols * element).max(1)).max(1);
        let codes = pack::codes_bytes(rows as usize, cols as usize, element as usize) as u64;
        for matrix in 0..count {
            list.extend((0..panels).step_by(step as usize).map(|from| Piece::Panels {
                matrix,
                from,
                to: panels.min(from + step),
            }));
            list.push(if ty.dtype.is_quant() { Piece::Scales { matrix, codes } } else { Piece::Pad { codes } });
        }
        return Ok(list);
    }
    let per_matrix = rows * cols;
    let (spans, span) = if ty.dtype.is_quant() { (count, per_matrix) } else { (1, count * per_matrix) };
    let step = PIECE_BYTES / element;
    for matrix in 0..spans {
        let elements = (0..span)
            .step_by(step as usize)
            .map(|at| Piece::Elements { start: matrix * span + at, len: step.min(span - at) });
        list.extend(elements);
        if ty.dtype.is_quant() {
            list.push(Piece::Scales { matrix, codes: span * element });
        }
    }
    Ok(list)
}

/// Progress and findings of a stream.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Stored weight index and number of NaN or Inf elements, where there are any.
    pub not_finite: Vec<(usize, u64)>,
    /// Stored weight index and what quantizing it lost, for each that was quantized.
    pub losses: Vec<(usize, Loss)>,
}

/// What quantization lost of a weight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of the squares of `value - scale * code`.
    pub error: f64,
    /// Sum of the squares of the values.
    pub norm: f64,
}

impl Loss {
    /// Root of the mean squared error relative to that of the values; 0 for zeros.
    pub fn relative(&self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }
}

/// What was seen while a piece was made.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    not_finite: u64,
    loss: Option<Loss>,
}

impl Made {
    /// A quantized block, and the values from its first on.
    fn see(&mut self, values: &[f32], block: &Block) {
        let loss = self.loss.get_or_insert_default();
        // A few thousand squares at a time may be summed up in f32.
        let (mut error, mut norm) = ([0f32; 8], [0f32; 8]);
        for (xs, codes) in values.chunks(8).zip(block.codes.chunks(8)) {
            for (i, (x, code)) in xs.iter().zip(codes).enumerate() {
                let off = x - block.scale * f32::from(*code);
                error[i] += off * off;
                norm[i] += x * x;
            }
        }
        let sum = |parts: [f32; 8]| parts.iter().map(|p| f64::from(*p)).sum::<f64>();
        loss.error += sum(error);
        loss.norm += sum(norm);
        if !block.scale.is_finite() {
            self.not_finite += values.iter().take(block.codes.len()).filter(|x| !x.is_finite()).count() as u64;
        }
    }
}

impl Findings {
    fn add(&mut self, weight: usize, made: Made) {
        if made.not_finite > 0 {
            match self.not_finite.last_mut() {
                Some((w, n)) if *w == weight => *n += made.not_finite,
                _ => self.not_finite.push((weight, made.not_finite)),
            }
        }
        let Some(loss) = made.loss else { return };
        match self.losses.last_mut() {
            Some((w, sum)) if *w == weight => {
                sum.error += loss.error;
                sum.norm += loss.norm;
            }
            _ => self.losses.push((weight, loss)),
        }
    }
}

/// Takes bytes of a weight, by its index.
pub type Sink<'a> = dyn FnMut(usize, &[u8]) -> Result<(), WeightError> + Send + 'a;

/// Streams weights in order, `jobs` threads at work, into `sink(weight, bytes)`. The bytes do not depend on `jobs`.
///
/// At most `jobs` pieces of about 4 MB are in memory. The first error, in order, is returned and stops all work.
pub fn stream(
    weights: &[StoredWeight],
    tensors: &dyn Tensors,
    jobs: usize,
    sink: &mut Sink<'_>,
) -> Result<Findings, WeightError> {
    let mut work = vec![];
    for (i, w) in weights.iter().enumerate() {
        work.extend(pieces(w)?.into_iter().map(|p| (i, p)));
    }
    struct Turn<'a, 'b> {
        next: usize,
        failed: Option<WeightError>,
        findings: Findings,
        sink: &'a mut Sink<'b>,
    }
    let claimed = AtomicUsize::new(0);
    let turn = Mutex::new(Turn { next: 0, failed: None, findings: Findings::default(), sink });
    let changed = Condvar::new();
    let worker = || {
        let mut buffer = Buffers::default();
        loop {
            let at = claimed.fetch_add(1, Ordering::Relaxed);
            let Some((weight, piece)) = work.get(at) else { return };
            let made = make(&weights[*weight], *piece, tensors, &mut buffer);
            let mut state = turn.lock().expect("no worker panics while holding the turn");
            while state.next != at && state.failed.is_none() {
                state = changed.wait(state).expect("no worker panics while holding the turn");
            }
            if state.failed.is_some() {
                return;
            }
            let written = made.and_then(|made| {
                state.findings.add(*weight, made);
                (state.sink)(*weight, &buffer.out)
            });
            state.failed = written.err();
            state.next += 1;
            drop(state);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.max(1) {
            scope.spawn(worker);
        }
        worker();
    });
    let state = turn.into_inner().expect("no worker panics while holding the turn");
    state.failed.map_or(Ok(state.findings), Err)
}

#[derive(Default)]
struct Buffers {
    rows: Vec<u8>,
    out: Vec<u8>,
}

/// Makes one piece in `b.out`.
fn make(w: &StoredWeight, piece: Piece, tensors: &dyn Tensors, b: &mut Buffers) -> Result<Made, WeightError> {
    let ty = w.expr.ty();
    let (_, rows, cols) = matrices(ty);
    if let (Some(q), Piece::Panels { matrix, from, to }) = (quantized::in_panels(ty.dtype), piece) {
        b.out.clear();
        return quantized::panels(&w.expr, q, [matrix, from, to], tensors, &mut b.out);
    }
    let count = |not_finite| Ok(Made { not_finite, loss: None });
    let element = element_bytes(ty.dtype)?;
    b.out.clear();
    b.rows.clear();
    let pad_to = |out: &mut Vec<u8>, base: u64| {
        let end = base + out.len() as u64;
        out.resize(out.len() + (end.next_multiple_of(64) - end) as usize, 0);
    };
    match piece {
        Piece::Elements { start, len } => {
            elements(&w.expr, start, len, tensors, &mut b.out)?;
            return count(not_finite(&b.out, ty.dtype));
        }
        Piece::Panels { matrix, from, to } => {
            let (first, last) = (from * 16, rows.min(to * 16));
            elements(&w.expr, (matrix * rows + first) * cols, (last - first) * cols, tensors, &mut b.rows)?;
            let (k, element) = (cols as usize, element as usize);
            let size = pack::panel_bytes(k, element);
            b.out.resize(size * (to - from) as usize, 0);
            for (i, panel) in b.out.chunks_exact_mut(size).enumerate() {
                let row = i * 16;
                let count = ((last - first) as usize - row).min(16);
                pack::panel(&b.rows[row * k * element..], k * element, count, k, element, panel);
            }
            return count(not_finite(&b.rows, ty.dtype));
        }
        Piece::Scales { matrix, codes } => {
            pad_to(&mut b.out, codes);
            let DType::Quant(q) = ty.dtype else { unreachable!("only quantized weights have scales") };
            let [down, across] = q.blocks(rows, cols);
            for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (i, j))) {
                let at = (matrix * rows + i * u64::from(q.block[0])) * cols + j * u64::from(q.block[1]);
                b.out.extend(scale_at(&w.expr, at, tensors)?.to_le_bytes());
            }
            pad_to(&mut b.out, codes);
        }
        Piece::Pad { codes } => pad_to(&mut b.out, codes),
    }
    Ok(Made::default())
}

/// Number of NaN and Inf elements.
fn not_finite(bytes: &[u8], dtype: DType) -> u64 {
    let halves =
        |mask: u16| bytes.chunks_exact(2).filter(|c| u16::from_le_bytes([c[0], c[1]]) & mask == mask).count() as u64;
    match dtype {
        DType::Bf16 => halves(0x7f80),
        DType::F16 => halves(0x7c00),
        DType::F32 => bytes
            .chunks_exact(4)
            .filter(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) & 0x7f80_0000 == 0x7f80_0000)
            .count() as u64,
        DType::Quant(Quant { elem: Code::E4m3, .. }) => bytes.iter().filter(|b| **b & 0x7f == 0x7f).count() as u64,
        DType::Quant(_) | DType::I32 | DType::U32 => 0,
    }
}

/// Appends elements (or codes) `start .. start + len` of an expression, in row-major order.
fn elements(e: &WeightExpr, start: u64, len: u64, tensors: &dyn Tensors, out: &mut Vec<u8>) -> Result<(), WeightError> {
    let WeightExpr::Apply { op, attrs, operands, ty } = e else { return source_elements(e, start, len, tensors, out) };
    let x = &operands[0];
    match op {
        Op::Reshape => elements(x, start, len, tensors, out),
        Op::Slice => {
            let axis = attrs.int("axis").unwrap_or(0) as usize;
            let (n, inner) = axis_of(x.ty(), axis);
            let (first, kept) = (attrs.int("start").unwrap_or(0) as u64, attrs.int("len").unwrap_or(0) as u64);
            runs(start, len, kept * inner, |run, at, count| {
                elements(x, run * n * inner + first * inner + at, count, tensors, out)
            })
        }
        Op::HeadRows => {
            let (heads, first, kept) = head_rows(attrs);
            let (_, rows, cols) = matrices(x.ty());
            let n = rows / heads;
            let widen = ty.dtype != x.ty().dtype;
            runs(start, len, kept * cols, |head, at, count| {
                let from = (head * n + first) * cols + at;
                if widen {
                    converted(x, (from, count), ty.dtype, 1.0, tensors, out)
                } else {
                    elements(x, from, count, tensors, out)
                }
            })
        }
        Op::Concat => {
            let axis = attrs.int("axis").unwrap_or(0) as usize;
            let y = &operands[1];
            let ((n, inner), (m, _)) = (axis_of(x.ty(), axis), axis_of(y.ty(), axis));
            let (a, b) = (n * inner, m * inner);
            runs(start, len, a + b, |run, at, count| {
                let head = count.min(a.saturating_sub(at));
                if head > 0 {
                    elements(x, run * a + at, head, tensors, out)?;
                }
                let rest = count - head;
                if rest > 0 { elements(y, run * b + (at + head - a), rest, tensors, out) } else { Ok(()) }
            })
        }
        Op::Convert => converted(x, (start, len), ty.dtype, 1.0, tensors, out),
        Op::Scale => converted(x, (start, len), ty.dtype, attrs.float("value").unwrap_or(1.0) as f32, tensors, out),
        Op::Permute => permuted(x, attrs.ints("axes").unwrap_or(&[]), start, len, tensors, out),
        other => Err(WeightError::Unsupported(other.name())),
    }
}

fn head_rows(attrs: &deepfuse_ir::Attrs) -> (u64, u64, u64) {
    let int = |name| attrs.int(name).unwrap_or(1) as u64;
    (int("heads"), attrs.int("start").unwrap_or(0) as u64, int("len"))
}

/// Length of an axis and number of elements inside it.
fn axis_of(ty: &TensorType, axis: usize) -> (u64, u64) {
    let dims = ty.fixed_shape().expect("a weight has no symbolic dims");
    (dims[axis], dims[axis + 1..].iter().product())
}

/// Splits `start .. start + len` at multiples of `run`: calls `f(index of the run, offset in it, length)`.
fn runs(
    start: u64,
    len: u64,
    run: u64,
    mut f: impl FnMut(u64, u64, u64) -> Result<(), WeightError>,
) -> Result<(), WeightError> {
    let (mut at, end) = (start, start + len);
    while at < end {
        let count = (run - at % run).min(end - at);
        f(at / run, at % run, count)?;
        at += count;
    }
    Ok(())
}

fn source_elements(
    e: &WeightExpr,
    start: u64,
    len: u64,
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<(), WeightError> {
    let WeightExpr::Source { name, ty } = e else { unreachable!("the caller handles applications") };
    let names = source_names(name);
    let total: u64 = ty.fixed_shape().expect("a weight has no symbolic dims").iter().product();
    let element = element_bytes(ty.dtype)?;
    runs(start, len, total / names.len() as u64, |tensor, at, count| {
        let name = &names[tensor as usize];
        let bytes = tensors.bytes(name).ok_or_else(|| WeightError::Missing(name.clone()))?;
        let range = (at * element) as usize..((at + count) * element) as usize;
        out.extend_from_slice(bytes.get(range).ok_or_else(|| WeightError::Missing(name.clone()))?);
        Ok(())
    })
}

/// Elements times a factor, in another float type; quantized ones as `scale * code` in f32 first.
fn converted(
    x: &WeightExpr,
    (start, len): (u64, u64),
    to: DType,
    factor: f32,
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<(), WeightError> {
    let mut raw = vec![];
    elements(x, start, len, tensors, &mut raw)?;
    let from = x.ty().dtype;
    let cols = matrices(x.ty()).2;
    if (from, to) == (DType::Bf16, DType::F32) {
        let at = out.len();
        out.resize(at + 2 * raw.len(), 0);
        for (wide, half) in out[at..].chunks_exact_mut(4).zip(raw.chunks_exact(2)) {
            wide[2..].copy_from_slice(half); // the upper half of the same f32
        }
        return Ok(());
    }
    let mut scale = (u64::MAX, 1.0);
    for (i, c) in raw.chunks_exact(element_bytes(from)? as usize).enumerate() {
        let value = match from {
            DType::F32 => f32::from_le_bytes([c[0], c[1], c[2], c[3]]),
            DType::Bf16 => bf16::from_le_bytes([c[0], c[1]]).to_f32(),
            DType::F16 => f16::from_le_bytes([c[0], c[1]]).to_f32(),
            DType::Quant(q) => {
                let at = start + i as u64;
                let width = if q.block[1] == 0 { cols } else { u64::from(q.block[1]) };
                let block = at / cols * cols.div_ceil(width) + at % cols / width; // a run of one row in one block
                if scale.0 != block {
                    scale = (block, scale_at(x, at, tensors)?);
                }
                code_value(q, c[0]) * scale.1
            }
            DType::I32 | DType::U32 => return Err(WeightError::Unsupported("convert")),
        };
        let value = value * factor;
        match to {
            DType::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
            DType::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
            _ => out.extend(value.to_le_bytes()),
        }
    }
    Ok(())
}

fn code_value(q: Quant, code: u8) -> f32 {
    match q.elem {
        Code::E4m3 => e4m3_value(code),
        Code::I8 => f32::from(code as i8),
        Code::E2m1 | Code::I4 => unreachable!("element_bytes refuses 4-bit types"),
    }
}

/// A permutation; the operand is read for the touched range of the first axis only, if that axis stays first.
fn permuted(
    x: &WeightExpr,
    axes: &[i64],
    start: u64,
    len: u64,
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<(), WeightError> {
    let dims = x.ty().fixed_shape().expect("a weight has no symbolic dims");
    let element = element_bytes(x.ty().dtype)? as usize;
    let total: u64 = dims.iter().product();
    let outer = if axes.first() == Some(&0) { total / dims[0] } else { total };
    let (first, last) = (start / outer, (start + len).div_ceil(outer));
    let mut raw = vec![];
    elements(x, first * outer, (last - first) * outer, tensors, &mut raw)?;
    let map = Permutation::new(&dims, axes);
    for i in start..start + len {
        let at = (map.origin(i) - first * outer) as usize * element;
        out.extend_from_slice(&raw[at..at + element]);
    }
    Ok(())
}

/// Maps an element number of a permuted tensor to the operand's.
struct Permutation {
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl Permutation {
    fn new(dims: &[u64], axes: &[i64]) -> Self {
        let stride = |axis: usize| dims[axis + 1..].iter().product::<u64>();
        let axes = axes.iter().map(|a| *a as usize);
        Self { shape: axes.clone().map(|a| dims[a]).collect(), strides: axes.map(stride).collect() }
    }

    fn origin(&self, mut i: u64) -> u64 {
        let mut at = 0;
        for (n, stride) in self.shape.iter().zip(&self.strides).rev() {
            at += i % n * stride;
            i /= n;
        }
        at
    }
}

/// The scale of the block that element `at` of a quantized expression lies in.
fn scale_at(e: &WeightExpr, at: u64, tensors: &dyn Tensors) -> Result<f32, WeightError> {
    match origin(e, at)? {
        (WeightExpr::Source { name, ty }, at) => source_scale(name, ty, at, tensors),
        (WeightExpr::Apply { op, .. }, _) => Err(WeightError::Unsupported(op.name())),
    }
}

/// Where element `at` of an expression that moves elements comes from: a source or a quantization, and the element's number there.
fn origin(e: &WeightExpr, at: u64) -> Result<(&WeightExpr, u64), WeightError> {
    let WeightExpr::Apply { op, attrs, operands, .. } = e else { return Ok((e, at)) };
    let x = &operands[0];
    match op {
        Op::Quantize => Ok((e, at)),
        Op::Reshape => origin(x, at),
        Op::Slice => {
            let axis = attrs.int("axis").unwrap_or(0) as usize;
            let (n, inner) = axis_of(x.ty(), axis);
            let (first, kept) = (attrs.int("start").unwrap_or(0) as u64, attrs.int("len").unwrap_or(0) as u64);
            let run = kept * inner;
            origin(x, at / run * n * inner + first * inner + at % run)
        }
        Op::HeadRows => {
            let (heads, first, kept) = head_rows(attrs);
            let (_, rows, cols) = matrices(x.ty());
            let run = kept * cols;
            origin(x, (at / run * (rows / heads) + first) * cols + at % run)
        }
        Op::Concat => {
            let axis = attrs.int("axis").unwrap_or(0) as usize;
            let ((n, inner), (m, _)) = (axis_of(x.ty(), axis), axis_of(operands[1].ty(), axis));
            let (a, b) = (n * inner, m * inner);
            let (run, inside) = (at / (a + b), at % (a + b));
            if inside < a { origin(x, run * a + inside) } else { origin(&operands[1], run * b + inside - a) }
        }
        Op::Permute => {
            let dims = x.ty().fixed_shape().expect("a weight has no symbolic dims");
            origin(x, Permutation::new(&dims, attrs.ints("axes").unwrap_or(&[])).origin(at))
        }
        other => Err(WeightError::Unsupported(other.name())),
    }
}

fn source_scale(name: &str, ty: &TensorType, at: u64, tensors: &dyn Tensors) -> Result<f32, WeightError> {
    let DType::Quant(q) = ty.dtype else { unreachable!("scales belong to quantized tensors") };
    let names = source_names(name);
    let (_, rows, cols) = matrices(ty);
    let (tensor, inside) = (at / (rows * cols), at % (rows * cols));
    let name = format!("{}_scale_inv", names[tensor as usize]);
    let bytes = tensors.bytes(&name).ok_or_else(|| WeightError::Missing(name.clone()))?;
    let across = q.blocks(rows, cols)[1];
    let block = |n: u64, b: u32| if b == 0 { 0 } else { n / u64::from(b) };
    let index = (block(inside / cols, q.block[0]) * across + block(inside % cols, q.block[1])) as usize;
    let four = bytes.get(index * 4..index * 4 + 4).ok_or_else(|| WeightError::Missing(name.clone()))?;
    let value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    if value.is_finite() { Ok(value) } else { Err(WeightError::Scale { name, index, value }) }
}

#[cfg(test)]
mod tests;
