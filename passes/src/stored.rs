//! Stored weights: their bytes in the artifact and their row in the plan's table.

use deepfuse_artifact::plan as out;
use deepfuse_ir::weights::{StoredWeight, WeightExpr};
use deepfuse_ir::{DType, Layout, Op, Quant, TensorType};

/// Bytes of a tensor of numbers in a layout; a packed matrix is padded, a quantized one carries its scales.
///
/// Packed: `ceil(N/16) 16 Kp` elements a matrix, `Kp = ceil(K/32) 32`; then, for a quantized type, the f32 scales, each part padded to 64 bytes.
/// Packed int8 and int4: panels of 16 rows with their scales, `K` rounded up to 64 (see [`Layout::Vnni`]).
/// Dense quantized: codes row-major, then the f32 scales, each part padded to 64 bytes.
pub fn stored_bytes(ty: &TensorType, layout: &Layout) -> u64 {
    let dims = ty.fixed_shape().expect("a weight has no symbolic dims");
    let (outer, matrix) = dims.split_at(dims.len().saturating_sub(2));
    let (rows, cols) = match *matrix {
        [r, c] => (r, c),
        [c] => (1, c),
        _ => (1, 1),
    };
    let outer: u64 = outer.iter().product();
    if let (DType::Quant(q @ (Quant::INT8_R | Quant::INT4_G32)), Layout::Vnni) = (ty.dtype, layout) {
        let depth = cols.next_multiple_of(64);
        let row = depth * q.code_bits() / 8 + q.blocks(1, depth)[1] * q.scale_bytes();
        return outer * rows.next_multiple_of(16) * row;
    }
    let (rows_stored, cols_stored) = match layout {
        Layout::Vnni => (rows.next_multiple_of(16), cols.next_multiple_of(32)),
        Layout::Dense | Layout::Strided(_) => (rows, cols),
    };
    let codes = match ty.dtype {
        DType::Quant(q) => (rows_stored * cols_stored * q.code_bits()).div_ceil(8),
        dense => rows_stored * cols_stored * dense.bytes().unwrap_or(4),
    };
    let one = match ty.dtype {
        DType::Quant(q) => codes.next_multiple_of(64) + scale_bytes(q, rows, cols).next_multiple_of(64),
        _ if *layout == Layout::Vnni => codes.next_multiple_of(64),
        _ => codes,
    };
    outer * one
}

/// Scales are stored as f32, whatever the checkpoint held.
fn scale_bytes(q: Quant, rows: u64, cols: u64) -> u64 {
    q.blocks(rows, cols).iter().product::<u64>() * 4
}

/// The plan's row of stored weight number `index`.
pub fn table_row(index: usize, w: &StoredWeight) -> out::Weight {
    let layout = match &w.layout {
        Layout::Vnni => "vnni",
        Layout::Dense | Layout::Strided(_) => "dense",
    };
    let note = format!("{} {layout} {}", w.expr.ty(), describe(&w.expr));
    let matrices = match w.expr.ty().fixed_shape().as_deref() {
        Some([matrices, _, _]) => *matrices as u32,
        _ => 1,
    };
    out::Weight { name: format!("w{index:05}"), bytes: stored_bytes(w.expr.ty(), &w.layout), matrices, note }
}

/// A short text of a weight expression: `concat(a, b)`.
pub fn describe(e: &WeightExpr) -> String {
    match e {
        WeightExpr::Source { name, .. } => name.clone(),
        WeightExpr::Apply { op, operands, .. } => {
            let shown = if *op == Op::Quantize { &operands[..1] } else { &operands[..] }; // not the importance
            let inner: Vec<String> = shown.iter().map(describe).collect();
            format!("{}({})", op.name(), inner.join(", "))
        }
    }
}
