//! Elements of weight expressions: which bytes of which tensors they are, and what is computed of them.

use super::{Tensors, WeightError, element_bytes, matrices};
use deepfuse_ir::tensor::e4m3_value;
use deepfuse_ir::weights::{WeightExpr, source_name, stacked_count};
use deepfuse_ir::{AttrsExt, Code, DType, Op, Quant, TensorType};
use half::{bf16, f16};

/// Appends elements (or codes) `start .. start + len` of an expression, in row-major order.
pub fn elements(
    e: &WeightExpr,
    start: u64,
    len: u64,
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<(), WeightError> {
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
        Op::Mul => multiplied(x, &operands[1], (start, len), ty.dtype, tensors, out),
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
    let count = stacked_count(name).unwrap_or(1).max(1);
    let total: u64 = ty.fixed_shape().expect("a weight has no symbolic dims").iter().product();
    let element = element_bytes(ty.dtype)?;
    runs(start, len, total / count, |tensor, at, count| {
        let name = &source_name(name, tensor);
        let bytes = tensors.bytes(name).ok_or_else(|| WeightError::Missing(name.clone()))?;
        let range = (at * element) as usize..((at + count) * element) as usize;
        out.extend_from_slice(bytes.get(range).ok_or_else(|| WeightError::Missing(name.clone()))?);
        Ok(())
    })
}

/// Elements times a factor, in another float type; quantized ones as `scale * code` in f32 first.
pub fn converted(
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
    if let DType::Quant(q) = from {
        return decoded(x, q, (start, &raw), (to, factor), tensors, out);
    }
    if (from, to) == (DType::Bf16, DType::F32) && factor == 1.0 {
        let at = out.len();
        out.resize(at + 2 * raw.len(), 0);
        for (wide, half) in out[at..].chunks_exact_mut(4).zip(raw.chunks_exact(2)) {
            wide[2..].copy_from_slice(half); // the upper half of the same f32
        }
        return Ok(());
    }
    for c in raw.chunks_exact(element_bytes(from)? as usize) {
        let value = match from {
            DType::F32 => f32::from_le_bytes([c[0], c[1], c[2], c[3]]),
            DType::Bf16 => bf16::from_le_bytes([c[0], c[1]]).to_f32(),
            DType::F16 => f16::from_le_bytes([c[0], c[1]]).to_f32(),
            DType::I32 | DType::U32 | DType::Quant(_) => return Err(WeightError::Unsupported("convert")),
        };
        store(value * factor, to, out);
    }
    Ok(())
}

/// [`converted`] for the codes from element `start` on: runs of one row in one block, each with its scale.
fn decoded(
    x: &WeightExpr,
    q: Quant,
    (start, codes): (u64, &[u8]),
    (to, factor): (DType, f32),
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<(), WeightError> {
    let cols = matrices(x.ty()).2;
    let width = if q.block[1] == 0 { cols } else { u64::from(q.block[1]) };
    let values: [f32; 256] = std::array::from_fn(|code| code_value(q, code as u8));
    let mut rest = codes;
    while !rest.is_empty() {
        let at = start + (codes.len() - rest.len()) as u64;
        let column = at % cols;
        let (run, after) = rest.split_at(rest.len().min((width - column % width).min(cols - column) as usize));
        let scale = scale_at(x, at, tensors)?;
        for code in run {
            store(values[usize::from(*code)] * scale * factor, to, out);
        }
        rest = after;
    }
    Ok(())
}

/// Products of elements with those of a vector along the last axis, or of a tensor of the same shape; rounded once.
fn multiplied(
    x: &WeightExpr,
    y: &WeightExpr,
    (start, len): (u64, u64),
    to: DType,
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<(), WeightError> {
    let (mut a, mut b) = (vec![], vec![]);
    converted(x, (start, len), DType::F32, 1.0, tensors, &mut a)?;
    let period: u64 = y.ty().fixed_shape().expect("a weight has no symbolic dims").iter().product();
    runs(start, len, period, |_, at, count| converted(y, (at, count), DType::F32, 1.0, tensors, &mut b))?;
    let value = |c: &[u8]| f32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    for product in a.chunks_exact(4).zip(b.chunks_exact(4)).map(|(a, b)| value(a) * value(b)) {
        store(product, to, out);
    }
    Ok(())
}

fn store(value: f32, to: DType, out: &mut Vec<u8>) {
    match to {
        DType::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
        DType::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
        _ => out.extend(value.to_le_bytes()),
    }
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
    let (Some(row), Some(stride)) = (map.shape.last(), map.strides.last()) else { unreachable!("an axis is permuted") };
    runs(start, len, *row, |row_index, at, count| {
        let from = (map.origin(row_index * row + at) - first * outer) as usize * element;
        let line = raw[from..].chunks(*stride as usize * element).take(count as usize);
        line.for_each(|e| out.extend_from_slice(&e[..element]));
        Ok(())
    })
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
pub fn scale_at(e: &WeightExpr, at: u64, tensors: &dyn Tensors) -> Result<f32, WeightError> {
    match origin(e, at)? {
        (WeightExpr::Source { name, ty }, at, _) => source_scale(name, ty, at, tensors),
        (WeightExpr::Apply { op, .. }, ..) => Err(WeightError::Unsupported(op.name())),
    }
}

/// Where element `at` of an expression that moves elements comes from: a source or a quantization, the element's number there, and how
/// many elements, this one included, follow each other there as they do here.
pub fn origin(e: &WeightExpr, at: u64) -> Result<(&WeightExpr, u64, u64), WeightError> {
    let WeightExpr::Apply { op, attrs, operands, ty } = e else { return Ok((e, at, count(e.ty()) - at)) };
    let x = &operands[0];
    let within = |run: u64, e, from| origin(e, from).map(|(e, from, long)| (e, from, long.min(run - at % run)));
    match op {
        Op::Quantize => Ok((e, at, count(ty) - at)),
        Op::Reshape => origin(x, at),
        Op::Slice => {
            let axis = attrs.int("axis").unwrap_or(0) as usize;
            let (n, inner) = axis_of(x.ty(), axis);
            let (first, kept) = (attrs.int("start").unwrap_or(0) as u64, attrs.int("len").unwrap_or(0) as u64);
            let run = kept * inner;
            within(run, x, at / run * n * inner + first * inner + at % run)
        }
        Op::HeadRows => {
            let (heads, first, kept) = head_rows(attrs);
            let (_, rows, cols) = matrices(x.ty());
            let run = kept * cols;
            within(run, x, (at / run * (rows / heads) + first) * cols + at % run)
        }
        Op::Concat => {
            let axis = attrs.int("axis").unwrap_or(0) as usize;
            let ((n, inner), (m, _)) = (axis_of(x.ty(), axis), axis_of(operands[1].ty(), axis));
            let (a, b) = (n * inner, m * inner);
            let (run, inside) = (at / (a + b), at % (a + b));
            let (y, from, left) = if inside < a {
                (x, run * a + inside, a - inside)
            } else {
                (&operands[1], run * b + inside - a, a + b - inside)
            };
            origin(y, from).map(|(e, from, long)| (e, from, long.min(left)))
        }
        Op::Permute => {
            let dims = x.ty().fixed_shape().expect("a weight has no symbolic dims");
            let from = Permutation::new(&dims, attrs.ints("axes").unwrap_or(&[])).origin(at);
            origin(x, from).map(|(e, from, _)| (e, from, 1))
        }
        other => Err(WeightError::Unsupported(other.name())),
    }
}

/// Number of elements.
fn count(ty: &TensorType) -> u64 {
    ty.fixed_shape().expect("a weight has no symbolic dims").iter().product()
}

/// The tensor of a source that has element `at`: its number, its bytes, and the element's number in it.
pub fn tensor_at<'a>(
    name: &str,
    ty: &TensorType,
    at: u64,
    tensors: &'a dyn Tensors,
) -> Result<(u64, &'a [u8], u64), WeightError> {
    let each = count(ty) / stacked_count(name).unwrap_or(1).max(1);
    let name = source_name(name, at / each);
    let bytes = tensors.bytes(&name).ok_or(WeightError::Missing(name))?;
    Ok((at / each, bytes, at % each))
}

/// The bytes of elements `start .. start + len`, if the checkpoint has them side by side and in the same type.
pub fn stored<'a>(e: &WeightExpr, start: u64, len: u64, tensors: &'a dyn Tensors) -> Option<&'a [u8]> {
    let Ok((WeightExpr::Source { name, ty }, at, run)) = origin(e, start) else { return None };
    let element = element_bytes(ty.dtype).ok()? as usize;
    let (_, bytes, inside) =
        tensor_at(name, ty, at, tensors).ok().filter(|_| run >= len && ty.dtype == e.ty().dtype)?;
    bytes.get(inside as usize * element..)?.get(..len as usize * element)
}

fn source_scale(name: &str, ty: &TensorType, at: u64, tensors: &dyn Tensors) -> Result<f32, WeightError> {
    let DType::Quant(q) = ty.dtype else { unreachable!("scales belong to quantized tensors") };
    let (_, rows, cols) = matrices(ty);
    let (tensor, inside) = (at / (rows * cols), at % (rows * cols));
    let name = format!("{}_scale_inv", source_name(name, tensor));
    let bytes = tensors.bytes(&name).ok_or_else(|| WeightError::Missing(name.clone()))?;
    let across = q.blocks(rows, cols)[1];
    let block = |n: u64, b: u32| if b == 0 { 0 } else { n / u64::from(b) };
    let index = (block(inside / cols, q.block[0]) * across + block(inside % cols, q.block[1])) as usize;
    let four = bytes.get(index * 4..index * 4 + 4).ok_or_else(|| WeightError::Missing(name.clone()))?;
    let value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    if value.is_finite() { Ok(value) } else { Err(WeightError::Scale { name, index, value }) }
}
