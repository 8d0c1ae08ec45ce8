//! Weights into their stored form, streamed: expressions over checkpoint tensors become packed bytes, a few megabytes at a time.

mod codes;
mod expr;
mod quantized;
mod rows;
mod search;

use deepfuse_codegen::pack;
use deepfuse_ir::weights::StoredWeight;
use deepfuse_ir::{Code, DType, Layout, Quant, TensorType};
use expr::{elements, scale_at, stored};
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

/// About this many bytes are made at a time: they are hashed and written from the L2 cache.
const PIECE_BYTES: u64 = 1 << 19;

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
/// At most `jobs` pieces of about 512 KiB are in memory. The first error, in order, is returned and stops all work.
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
        return quantized::panels(&w.expr, q, [matrix, from, to], tensors, &mut b.out);
    }
    let count = |not_finite| Ok(Made { not_finite, loss: None });
    let element = element_bytes(ty.dtype)?;
    let pad_to = |out: &mut Vec<u8>, base: u64| {
        let end = base + out.len() as u64;
        out.resize(out.len() + (end.next_multiple_of(64) - end) as usize, 0);
    };
    match piece {
        Piece::Elements { start, len } => {
            b.out.clear();
            elements(&w.expr, start, len, tensors, &mut b.out)?;
            return count(not_finite(&b.out, ty.dtype));
        }
        Piece::Panels { matrix, from, to } => {
            let (first, last) = (from * 16, rows.min(to * 16));
            let (start, len) = ((matrix * rows + first) * cols, (last - first) * cols);
            let lines = if let Some(bytes) = stored(&w.expr, start, len, tensors) {
                bytes
            } else {
                b.rows.clear();
                elements(&w.expr, start, len, tensors, &mut b.rows)?;
                &b.rows
            };
            let (k, element) = (cols as usize, element as usize);
            let size = pack::panel_bytes(k, element);
            b.out.resize(size * (to - from) as usize, 0);
            let mut bad = 0;
            for (lines, panel) in lines.chunks(16 * k * element).zip(b.out.chunks_exact_mut(size)) {
                pack::panel(lines, k * element, lines.len() / (k * element), k, element, panel);
                bad += not_finite(lines, ty.dtype);
            }
            return count(bad);
        }
        Piece::Scales { matrix, codes } => {
            b.out.clear();
            pad_to(&mut b.out, codes);
            let DType::Quant(q) = ty.dtype else { unreachable!("only quantized weights have scales") };
            let [down, across] = q.blocks(rows, cols);
            for (i, j) in (0..down).flat_map(|i| (0..across).map(move |j| (i, j))) {
                let at = (matrix * rows + i * u64::from(q.block[0])) * cols + j * u64::from(q.block[1]);
                b.out.extend(scale_at(&w.expr, at, tensors)?.to_le_bytes());
            }
            pad_to(&mut b.out, codes);
        }
        Piece::Pad { codes } => {
            b.out.clear();
            pad_to(&mut b.out, codes);
        }
    }
    Ok(Made::default())
}

/// Number of NaN and Inf elements.
fn not_finite(bytes: &[u8], dtype: DType) -> u64 {
    match dtype {
        DType::Bf16 => halves(bytes, 0x7f80),
        DType::F16 => halves(bytes, 0x7c00),
        DType::F32 => {
            let bad = |c: &&[u8; 4]| u32::from_le_bytes(**c) & 0x7f80_0000 == 0x7f80_0000;
            bytes.as_chunks::<4>().0.iter().filter(bad).count() as u64
        }
        DType::Quant(Quant { elem: Code::E4m3, .. }) => {
            // Counts of a few are bytes, so that a vector has many of them.
            let few = |c: &[u8]| u64::from(c.iter().fold(0u8, |n, b| n + u8::from(b & 0x7f == 0x7f)));
            bytes.chunks(128).map(few).sum()
        }
        DType::Quant(_) | DType::I32 | DType::U32 => 0,
    }
}

/// Number of 16-bit elements in which all bits of `mask` are set.
fn halves(bytes: &[u8], mask: u16) -> u64 {
    let bad = |h: &[u8; 2]| u16::from(u16::from_le_bytes(*h) & mask == mask);
    bytes.as_chunks::<2>().0.chunks(1024).map(|c| u64::from(c.iter().fold(0, |n, h| n + bad(h)))).sum()
}

#[cfg(test)]
mod tests;
