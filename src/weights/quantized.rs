//! Weights that the `quantize` stop gives fewer bits: whole rows are read, quantized as the evaluator does it, and packed.

use super::expr::{converted, origin};
use super::{Made, Tensors, WeightError, matrices};
use deepfuse_codegen::pack;
use deepfuse_ir::ops::quantize::blocks_by;
use deepfuse_ir::weights::WeightExpr;
use deepfuse_ir::{Code, DType, Op, Quant};

/// The type, if packed panels of it hold codes and scales.
pub fn in_panels(dtype: DType) -> Option<Quant> {
    match dtype {
        DType::Quant(q @ (Quant::INT8_R | Quant::INT4_G32)) => Some(q),
        _ => None,
    }
}

/// Appends panels `from .. to` of matrix `matrix`.
pub fn panels(
    e: &WeightExpr,
    q: Quant,
    [matrix, from, to]: [u64; 3],
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<Made, WeightError> {
    let (_, rows, cols) = matrices(e.ty());
    let k = cols as usize;
    let size = if q.elem == Code::I4 { pack::int4_panel_bytes(k) } else { pack::int8_panel_bytes(k) };
    let (mut codes, mut scales, mut raw, mut values, mut importance) = (vec![], vec![], vec![], vec![], vec![]);
    let mut made = Made::default();
    for panel in from..to {
        codes.clear();
        scales.clear();
        for row in panel * 16..rows.min((panel + 1) * 16) {
            let (x, at) = origin(e, (matrix * rows + row) * cols)?;
            let WeightExpr::Apply { op: Op::Quantize, operands, .. } = x else {
                return Err(WeightError::Unsupported("a checkpoint of this type"));
            };
            let mut read = |e: &WeightExpr, at: u64, values: &mut Vec<f32>| {
                raw.clear();
                values.clear();
                converted(e, (at, cols), DType::F32, 1.0, tensors, &mut raw)?;
                values.extend(raw.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])));
                Ok::<(), WeightError>(())
            };
            read(&operands[0], at, &mut values)?;
            if let Some(e) = operands.get(1) {
                let (_, rows, _) = matrices(operands[0].ty());
                read(e, at / (rows * cols) * cols, &mut importance)?;
            }
            let from = codes.len();
            for block in blocks_by(&values, operands.get(1).map(|_| &importance[..]), q) {
                made.see(&values[codes.len() - from..], &block);
                scales.push(block.scale);
                codes.extend(block.codes);
            }
        }
        let at = out.len();
        out.resize(at + size, 0);
        let pack = if q.elem == Code::I4 { pack::int4_panel } else { pack::int8_panel };
        pack(&codes, &scales, k, &mut out[at..]);
    }
    Ok(made)
}
