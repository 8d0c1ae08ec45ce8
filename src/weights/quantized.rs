//! Weights that the `quantize` stop gives fewer bits: whole rows are read, quantized as the evaluator does it, and packed.

use super::codes::{self, GROUP, Lost};
use super::expr::origin;
use super::rows::Rows;
use super::{Made, Tensors, WeightError, matrices};
use deepfuse_codegen::pack;
use deepfuse_ir::weights::WeightExpr;
use deepfuse_ir::{Code, DType, Op, Quant};

/// The type, if packed panels of it hold codes and scales.
pub fn in_panels(dtype: DType) -> Option<Quant> {
    match dtype {
        DType::Quant(q @ (Quant::INT8_R | Quant::INT4_G32)) => Some(q),
        _ => None,
    }
}

/// Bytes of a panel.
pub fn panel_bytes(q: Quant, cols: u64) -> u64 {
    let k = cols as usize;
    (if q.elem == Code::I4 { pack::int4_panel_bytes(k) } else { pack::int8_panel_bytes(k) }) as u64
}

/// Rows that one `quantize` is given, with what is important of them.
struct Run<'a> {
    rows: Rows<'a>,
    /// As long as a row with its padding.
    importance: Option<Vec<f32>>,
}

/// The rows of `e` from row `row` on, counted through all matrices, as far as they follow each other.
fn follow<'a>(e: &'a WeightExpr, row: u64, tensors: &'a dyn Tensors) -> Result<Run<'a>, WeightError> {
    let (_, _, cols) = matrices(e.ty());
    let (x, at, elements) = origin(e, row * cols)?;
    let WeightExpr::Apply { op: Op::Quantize, operands, .. } = x else {
        return Err(WeightError::Unsupported("a checkpoint of this type"));
    };
    let (_, height, _) = matrices(operands[0].ty());
    // Importance is that of a matrix.
    let most = (elements / cols).min(height - at / cols % height).max(1);
    let rows = Rows::new(&operands[0], at, cols, most, tensors)?;
    let importance = operands.get(1).map(|e| {
        let mut h = vec![0.0; (cols as usize).next_multiple_of(GROUP)];
        Rows::new(e, at / (height * cols) * cols, cols, 1, tensors)?.read(&mut h, tensors)?;
        Ok::<_, WeightError>(h)
    });
    Ok(Run { rows, importance: importance.transpose()? })
}

/// Makes panels `from .. to` of matrix `matrix`.
pub fn panels(
    e: &WeightExpr,
    q: Quant,
    [matrix, from, to]: [u64; 3],
    tensors: &dyn Tensors,
    out: &mut Vec<u8>,
) -> Result<Made, WeightError> {
    let (_, rows, cols) = matrices(e.ty());
    let (k, size) = (cols as usize, panel_bytes(q, cols) as usize);
    let width = k.next_multiple_of(GROUP);
    let (mut values, mut row_codes) = (vec![0.0; width], vec![0; width]);
    let (mut codes, mut scales) = (Vec::with_capacity(16 * k), vec![]);
    let (mut made, mut source) = (Made::default(), None::<Run<'_>>);
    let loss = made.loss.get_or_insert_default();
    out.resize(size * (to - from) as usize, 0);
    for (panel, out) in (from..to).zip(out.chunks_exact_mut(size)) {
        codes.clear();
        scales.clear();
        for row in panel * 16..rows.min((panel + 1) * 16) {
            let source = match &mut source {
                Some(run) if run.rows.left > 0 => run,
                ended => ended.insert(follow(e, matrix * rows + row, tensors)?),
            };
            source.rows.read(&mut values, tensors)?;
            let (first, mut lost) = (scales.len(), Lost::default());
            match q.elem {
                Code::I4 => {
                    codes::int4(&values, source.importance.as_deref(), &mut row_codes, &mut scales, &mut lost);
                }
                _ => scales.push(codes::int8(&values, &mut row_codes, &mut lost)),
            }
            lost.add_to(loss);
            let block = if q.elem == Code::I4 { GROUP } else { width };
            let not_finite = |(xs, _): (&[f32], &f32)| xs.iter().filter(|x| !x.is_finite()).count() as u64;
            let bad = values.chunks(block).zip(&scales[first..]).filter(|(_, scale)| !scale.is_finite());
            made.not_finite += bad.map(not_finite).sum::<u64>();
            codes.extend_from_slice(&row_codes[..k]);
        }
        let pack = if q.elem == Code::I4 { pack::int4_panel } else { pack::int8_panel };
        pack(&codes, &scales, k, out);
    }
    Ok(made)
}
