use super::*;
use crate::types::{Code, Quant};
use half::f16;

pub const ATTRS: &[AttrSpec] = &[("dtype", AttrKind::DType)];

/// Values as codes of a few bits with a scale per block of each row.
///
///     int8r      scale = max |x| / 127                          code = round(x * (127 / max |x|))
///     int4g32    scale = f16(x[extreme] / -8)                   code = clamp(round(x / scale), -8, 7)
///
/// * `x` float or quantized `[.., K]`; a block is the whole row (int8) or 32 elements of it (int4), the last one may be shorter
/// * `extreme` is the first element of largest magnitude: it becomes -8, the code without a positive twin
/// * with `importance`, f32 `[K]` or `[E, K]` for `x` `[E, N, K]`, only for int4: `scale` and codes of a block are those of 20 candidates
///   (see [`blocks_by`]) that lose least, `sum_i importance_i (x_i - scale code_i)^2`; it is the mean square of what the element is
///   multiplied by (a calibration)
/// * rounding is to nearest even; a block of zeros has scale 0; a block with a NaN or an infinity has no finite scale
/// * `dtype` says what the values stand for: f32 for weights, the type of `x` for activations. This is the one operation that
///   introduces a quantized type; no rewrite introduces this operation.
///
/// Errors: `ir::dtype`, `ir::contract`.
/// Source: per-token activations and per-channel weights of `LLM.int8()`; blocks of 32 as in GGML's `q4_0`, its importance matrix.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let x = matrix(t, 0)?;
    last(x, 0)?;
    let dtype = a.dtype("dtype").unwrap_or(DType::U32);
    let known = [Quant::INT8_R, Quant::INT8_R_BF16, Quant::INT4_G32].map(DType::Quant);
    if !known.contains(&dtype) {
        let message = format!("quantize: the result must be int8r, int8r_bf16 or int4g32, found {dtype}");
        return Err(TypeError::new("ir::dtype", message));
    }
    if t.len() == 2 {
        let importance = float(t, 1)?;
        let mut shape = x.shape.clone();
        shape.remove(x.shape.len().checked_sub(2).ok_or_else(|| TypeError::contract("quantize: importance of a row"))?);
        if importance.dtype != DType::F32 || importance.shape[..] != shape[..] || dtype != DType::Quant(Quant::INT4_G32) {
            let wanted = "importance is f32, of the shape of x without its rows, and only for int4g32";
            return Err(TypeError::contract(format!("quantize: {wanted}; found {importance} for {x} as {dtype}")));
        }
    }
    Ok(vec![with_shape(x, dtype, x.shape.iter().copied())])
}

pub fn eval(x: &[&Tensor], a: &Attrs, _: &Sizes) -> Vec<Tensor> {
    let Some(DType::Quant(q)) = a.dtype("dtype") else { unreachable!("the type rule checked this attribute") };
    let rows = x[0].shape.len().checked_sub(2).map_or(1, |axis| x[0].shape[axis]);
    let row = |r: usize| -> Vec<f32> {
        let importance = x.get(1).map(|i| i.row(r / rows));
        blocks_by(x[0].row(r), importance, q).flat_map(|b| b.values()).collect()
    };
    let values = (0..x[0].rows()).flat_map(row).collect();
    vec![Tensor::float(DType::Quant(q), &x[0].shape, values)]
}

/// One quantized block of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// A value of the scale's stored type.
    pub scale: f32,
    pub codes: Vec<i8>,
}

impl Block {
    /// What the codes stand for.
    pub fn values(&self) -> Vec<f32> {
        self.codes.iter().map(|c| self.scale * f32::from(*c)).collect()
    }
}

/// The blocks of a row of values, in order.
pub fn blocks(row: &[f32], q: Quant) -> impl Iterator<Item = Block> + '_ {
    blocks_by(row, None, q)
}

/// The blocks of a row of values, in order, that lose least of its important elements, if it is said which they are.
///
/// Candidates are the block without importance, and for `s` in -9 .. 9: codes `round(x (-8 - s/10) / x[extreme])`, and the scale that is best for
/// them, `sum h x code / sum h code^2`, as f16. The first of the best is taken. A block whose importance is 0 throughout has it equal.
pub fn blocks_by<'a>(row: &'a [f32], importance: Option<&'a [f32]>, q: Quant) -> impl Iterator<Item = Block> + 'a {
    let width = if q.block[1] == 0 { row.len() } else { q.block[1] as usize }.max(1);
    row.chunks(width).enumerate().map(move |(i, block)| match importance {
        Some(h) if q.elem == Code::I4 => int4_by(block, &h[i * width..i * width + block.len()]),
        _ if q.elem == Code::I4 => int4(block),
        _ => int8(block),
    })
}

/// The bits of a magnitude: ordered as magnitudes are, a NaN above all.
fn magnitude(x: f32) -> i32 {
    (x.to_bits() & 0x7fff_ffff).cast_signed()
}

/// The largest magnitude.
fn largest(block: &[f32]) -> i32 {
    block.iter().fold(0, |m, x| m.max(magnitude(*x)))
}

/// The first element of largest magnitude.
fn extreme(block: &[f32]) -> f32 {
    let largest = largest(block);
    block.iter().copied().find(|x| magnitude(*x) == largest).unwrap_or(0.0)
}

/// The nearest integer, ties to even, of `|x| < 2^22`: adding 1.5 * 2^23 leaves it in the low bits. Anything else gives some integer.
fn nearest(x: f32) -> i32 {
    (x + 12_582_912.0).to_bits().cast_signed().wrapping_sub(0x4b40_0000)
}

fn int8(block: &[f32]) -> Block {
    let largest = f32::from_bits(largest(block).cast_unsigned());
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    Block { scale: largest / 127.0, codes: block.iter().map(|x| nearest(x * inverse) as i8).collect() }
}

fn int4(block: &[f32]) -> Block {
    let scale = f16::from_f32(extreme(block) / -8.0).to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let code = |x: &f32| nearest(x * inverse).clamp(-8, 7) as i8;
    Block { scale, codes: block.iter().map(code).collect() }
}

/// Elements of an int4 block, zeros beyond its end.
type Elements = [f32; 32];

/// Sums of every eighth element first, so that a processor adds several at a time.
fn sum(f: impl Fn(usize) -> f32) -> f32 {
    let mut parts = [0.0; 8];
    for i in 0..32 {
        parts[i % 8] += f(i);
    }
    parts.iter().sum()
}

fn int4_by(block: &[f32], importance: &[f32]) -> Block {
    let nearest = int4(block);
    if nearest.scale == 0.0 || !nearest.scale.is_finite() {
        return nearest;
    }
    let (mut x, mut h): (Elements, Elements) = ([0.0; 32], [0.0; 32]);
    x[..block.len()].copy_from_slice(block);
    h[..block.len()].copy_from_slice(importance);
    if importance.iter().all(|h| *h == 0.0) {
        h = [1.0; 32];
    }
    let loss = |scale: f32, codes: &Elements| sum(|i| h[i] * (x[i] - scale * codes[i]) * (x[i] - scale * codes[i]));
    let mut best: (f32, Elements) = (nearest.scale, [0.0; 32]);
    nearest.codes.iter().zip(&mut best.1).for_each(|(code, c)| *c = f32::from(*code));
    let (mut least, extreme) = (loss(best.0, &best.1), extreme(block));
    for tenths in -9i16..=9 {
        let inverse = (-8.0 - f32::from(tenths) / 10.0) / extreme;
        // Adding 1.5 * 2^23 and taking it away rounds to an integer, ties to even.
        let codes = x.map(|x| (x * inverse + 12_582_912.0 - 12_582_912.0).clamp(-8.0, 7.0));
        let (fits, size) = (sum(|i| h[i] * codes[i] * x[i]), sum(|i| h[i] * codes[i] * codes[i]));
        let scale = f16::from_f32(fits / size).to_f32();
        let lost = loss(scale, &codes);
        if lost < least {
            (best, least) = ((scale, codes), lost);
        }
    }
    Block { scale: best.0, codes: best.1[..block.len()].iter().map(|c| *c as i8).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("quantize", &["f32[T, 3] = 127 -0.4 63.5 0 0 0"], "dtype = int8r", &["int8r[T, 3] = 127 0 64 0 0 0"]);
        // Ties to even; the largest magnitude may be negative.
        gives("quantize", &["bf16[1, 4] = -254 1 3 100"], "dtype = int8r_bf16", &["int8r_bf16[1, 4] = -254 0 4 100"]);
        // The extreme is exact, its mirror image is not: 7 is the largest code.
        gives("quantize", &["f32[1, 4] = -4 4 1.2 0.2"], "dtype = int4g32", &["int4g32[1, 4] = -4 3.5 1 0"]);
        gives("quantize", &["f32[1, 34] = 8 1*31 0.5 -1"], "dtype = int4g32", &["int4g32[1, 34] = 8 1*31 0.5 -1"]);
        gives("quantize", &["fp8b128[1, 2] = 448 1"], "dtype = int8r", &["int8r[1, 2] = 448 0"]);
    }

    #[test]
    fn what_is_important_is_kept() {
        let one = |values: &str, importance: &str, result: &str| {
            let x = [format!("f32[1, 4] = {values}"), format!("f32[4] = {importance}")];
            gives("quantize", &[&x[0], &x[1]], "dtype = int4g32", &[&format!("int4g32[1, 4] = {result}")]);
        };
        one("-8 7 3 0", "1 1 1 1", "-8 7 3 0");
        one("-8 4.5 1 0", "1 0 1 0", "-8 4 1 0");
        one("-8 4.5 1 0", "0 1 0 0", "-7.875 4.5 1.125 0"); // 4.5 is four times 9/8
        one("-8 7 3 0", "0 0 0 0", "-8 7 3 0");
        // Experts have their own.
        let experts = ["f32[2, 1, 2] = -8 4.5 -8 4.5", "f32[2, 2] = 0 1 1 0"];
        gives("quantize", &experts, "dtype = int4g32", &["int4g32[2, 1, 2] = -7.875 4.5 -8 4"]);
    }

    #[test]
    fn importance_never_loses_more_of_what_is_important() {
        let number = |i: usize, salt: usize| ((i * 7919 + salt * 104_729) % 1009) as f32 / 504.5 - 1.0;
        for salt in 0..200 {
            let x: Vec<f32> = (0..70).map(|i| number(i, salt)).collect();
            let h: Vec<f32> = (0..70).map(|i| number(i, salt + 1000).abs().powi(3)).collect();
            let loss = |blocks: Vec<Block>| -> f32 {
                let values = blocks.iter().flat_map(Block::values);
                values.zip(x.iter().zip(&h)).map(|(v, (x, h))| h * (x - v) * (x - v)).sum()
            };
            let [nearest, weighted] = [None, Some(&h[..])].map(|h| loss(blocks_by(&x, h, Quant::INT4_G32).collect()));
            assert!(weighted < 0.98 * nearest, "{salt}: {weighted} {nearest}");
        }
    }

    #[test]
    fn nothing_finite_comes_of_nan_and_infinity() {
        for (bad, q) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|x| [(x, Quant::INT8_R), (x, Quant::INT4_G32)]) {
            assert!(blocks(&[1.0, bad], q).all(|b| !b.scale.is_finite()), "{bad}");
        }
    }

    #[test]
    fn refused_types() {
        rejects("quantize", &["f32[3]"], "dtype = bf16", "ir::dtype", "found bf16");
        rejects("quantize", &["f32[3]"], "dtype = fp8b128", "ir::dtype", "found fp8b128");
        rejects("quantize", &["i32[3]"], "dtype = int8r", "ir::dtype", "operand 0");
        rejects("quantize", &["f32[2, 4]", "f32[4]"], "dtype = int8r", "ir::contract", "only for int4g32");
        rejects("quantize", &["f32[2, 4]", "f32[2]"], "dtype = int4g32", "ir::contract", "without its rows");
        rejects("quantize", &["f32[4]", "f32[]"], "dtype = int4g32", "ir::contract", "importance of a row");
        rejects("quantize", &["f32[]"], "dtype = int8r", "ir::rank", "operand 0");
    }
}
