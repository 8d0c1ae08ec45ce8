//! int8 rows and int8 or int4 matrices as they lie in memory.

use super::{Arg, Random, dim};
use deepfuse_codegen::pack;
use deepfuse_ir::ops::quantize::{Block, blocks};
use deepfuse_ir::*;
use half::f16;

/// The bytes of a row of codes; see `RowLayout`.
fn row_bytes(block: &Block) -> Vec<u8> {
    let row = RowLayout::of(block.codes.len() as u64);
    let mut out = vec![0; row.bytes as usize];
    let mut put = |at: u64, bytes: [u8; 4]| out[at as usize..at as usize + 4].copy_from_slice(&bytes);
    let sum = |codes: &[i8]| codes.iter().map(|c| i32::from(*c)).sum::<i32>();
    for (g, group) in block.codes.chunks(32).enumerate() {
        put(row.offsets + 4 * g as u64, (-8 * sum(group)).to_le_bytes());
    }
    put(row.scale, block.scale.to_le_bytes());
    put(row.scale + 4, (-128 * sum(&block.codes)).to_le_bytes());
    for (byte, code) in out.iter_mut().zip(&block.codes) {
        *byte = code.cast_unsigned();
    }
    out
}

/// int8 rows of float values as the evaluator quantizes them.
pub fn rows_of(value: &Tensor) -> Vec<u8> {
    (0..value.rows()).flat_map(|r| blocks(value.row(r), Quant::INT8_R).flat_map(|b| row_bytes(&b))).collect()
}

/// The bytes of rows without the padding, which nobody reads.
pub fn used(bytes: &[u8], width: usize) -> Vec<u8> {
    let row = RowLayout::of(width as u64);
    let (offsets, scale) = (row.offsets as usize, row.scale as usize);
    let parts = |b: &[u8]| [&b[..offsets + row.depth as usize / 8], &b[scale..scale + 8]].concat();
    bytes.chunks_exact(row.bytes as usize).flat_map(parts).collect()
}

/// What rows of `width` codes stand for.
pub fn values_of(bytes: &[u8], width: usize) -> Vec<f32> {
    let layout = RowLayout::of(width as u64);
    let row = |row: &[u8]| -> Vec<f32> {
        let scale = f32::from_le_bytes(row[layout.scale as usize..][..4].try_into().unwrap());
        row[..width].iter().map(|c| scale * f32::from(c.cast_signed())).collect()
    };
    bytes.chunks_exact(layout.bytes as usize).flat_map(row).collect()
}

/// Random activations of float type `of`, quantized.
pub fn activations(r: &mut Random, of: DType, dims: &[Dim], shape: &[usize]) -> Arg {
    let x = Arg::random(r, of, dims, shape);
    let dtype = DType::Quant(Quant::activation(of).unwrap());
    let quantize = [("dtype", Attr::DType(dtype))].into_iter().collect();
    let value = Op::Quantize.eval(&[&x.value], &quantize, &Sizes([0; 5])).remove(0);
    Arg::new(TensorType::new(dtype, dims.iter().copied()), Layout::Dense, false, value, rows_of(&x.value))
}

/// Random weights `[.., N, K]` of an int8 or int4 type, packed.
pub fn matrix(r: &mut Random, q: Quant, shape: &[usize]) -> Arg {
    let (n, k) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let (mut values, mut bytes) = (vec![], vec![]);
    let matrices: usize = shape[..shape.len() - 2].iter().product();
    for _ in 0..matrices {
        let rows: Vec<Vec<Block>> =
            (0..n).map(|_| blocks(&(0..k).map(|_| r.unit()).collect::<Vec<_>>(), q).collect()).collect();
        values.extend(rows.iter().flatten().flat_map(Block::values));
        for panel in rows.chunks(16) {
            let codes: Vec<i8> = panel.iter().flatten().flat_map(|b| b.codes.clone()).collect();
            let scales: Vec<f32> = panel.iter().flatten().map(|b| b.scale).collect();
            assert!(q.scale == ScaleType::F32 || scales.iter().all(|s| f16::from_f32(*s).to_f32() == *s));
            let at = bytes.len();
            if q.elem == Code::I4 {
                bytes.resize(at + pack::int4_panel_bytes(k), 0);
                pack::int4_panel(&codes, &scales, k, &mut bytes[at..]);
            } else {
                bytes.resize(at + pack::int8_panel_bytes(k), 0);
                pack::int8_panel(&codes, &scales, k, &mut bytes[at..]);
            }
        }
    }
    let ty = TensorType::new(DType::Quant(q), shape.iter().map(|d| dim(*d as u64)));
    Arg::new(ty, Layout::Vnni, true, Tensor::float(DType::Quant(q), shape, values), bytes)
}

/// A matrix of the largest magnitude: ones, all of them the extreme of their block.
pub fn ones(q: Quant, n: usize, k: usize) -> Arg {
    let row: Vec<Block> = blocks(&vec![1.0; k], q).collect();
    let rows: Vec<&Block> = (0..n).flat_map(|_| &row).collect();
    let codes: Vec<i8> = rows.iter().flat_map(|b| b.codes.clone()).collect();
    let scales: Vec<f32> = rows.iter().map(|b| b.scale).collect();
    let int4 = q.elem == Code::I4;
    let mut bytes = vec![0; if int4 { pack::int4_panel_bytes(k) } else { pack::int8_panel_bytes(k) }];
    let pack = if int4 { pack::int4_panel } else { pack::int8_panel };
    pack(&codes, &scales, k, &mut bytes);
    let ty = TensorType::new(DType::Quant(q), [dim(n as u64), dim(k as u64)]);
    Arg::new(ty, Layout::Vnni, true, Tensor::float(DType::Quant(q), &[n, k], vec![1.0; n * k]), bytes)
}
