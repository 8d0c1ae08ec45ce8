//! What AMX tiles reach, by counting cycles of a step of K (32 columns) of a block; nothing of it is measured.
//!
//! Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter "Intel AMX": a dot product of full tiles takes 16 cycles,
//! a load or store 8 and 16.

use crate::x86::kernels::amx::{CHUNK_ROWS, TILE_BYTES};
use deepfuse_ir::kernel::packed_operands;
use deepfuse_ir::{DType, KernelSpec, Op, Operand, Quant, Target, Variant};

/// FLOP of a dot product of two full tiles of bf16.
const DOT_FLOP: f64 = 2.0 * 16.0 * 16.0 * 32.0;
const DOT_CYCLES: f64 = 16.0;
const LOAD_CYCLES: f64 = 8.0;
const STORE_CYCLES: f64 = 16.0;
/// Of a core that computes with tiles all the time.
const CYCLES_PER_NANO: f64 = 2.5;
/// From L2 to L1, sustained.
const L2_BYTES_PER_CYCLE: f64 = 48.0;
/// Rows of activations that stay in L1, with room for the panels that pass through.
const L1_BYTES: f64 = (32 << 10) as f64;
/// To widen 128 columns of an fp8 panel, and to scale and add a tile of their sums: vector instructions.
const WIDEN_CYCLES: f64 = 600.0;
const SCALE_CYCLES: f64 = 40.0;

/// Operations a nanosecond; `None` if the variant has no tiles, or too few rows for them.
pub fn peak(spec: &KernelSpec, variant: &Variant, target: &Target) -> Option<f64> {
    let named = |name: &str| variant.get(name).filter(|n| *n > 0).map(f64::from);
    let (rows, panels) = (named("tile_rows")?, named("tile_panels")?);
    let matrix = spec.inputs.get(*packed_operands(spec.op).first()?).and_then(Operand::tensor)?;
    let k = matrix.shape.last().and_then(deepfuse_ir::Dim::as_fixed).map_or(1.0, |k| k as f64);
    let together = rows_together(spec)?;
    if together < named("few")? {
        return None;
    }
    // int8 has twice the columns in a tile.
    let int8 = matrix.dtype == DType::Quant(Quant::INT8_R);
    let depth = named("depth")?.min(if int8 { k / 2.0 } else { k });
    let tiles = rows * panels;
    // The group's first panels bring the rows from L2; the others find them in L1 if they fit.
    let sets = (named("group")? / panels).max(1.0);
    let from_l2 = if rows * 16.0 * depth * 2.0 <= L1_BYTES { rows / sets } else { rows };
    let step = (DOT_CYCLES * tiles)
        .max(LOAD_CYCLES * (rows + panels))
        .max((panels + from_l2) * TILE_BYTES as f64 / L2_BYTES_PER_CYCLE)
        + tiles * (LOAD_CYCLES + STORE_CYCLES) * 32.0 / depth;
    let fp8 = if matrix.dtype == DType::Bf16 || int8 {
        0.0
    } else {
        let shared = (together.min(CHUNK_ROWS as f64) / 16.0).max(1.0);
        // Of four steps.
        tiles * (WIDEN_CYCLES / shared + SCALE_CYCLES) / 4.0
    };
    // A tile with fewer rows takes as long as a full one.
    let used = together / ((together / 16.0).ceil() * 16.0);
    let operations = if int8 { 2.0 * DOT_FLOP } else { DOT_FLOP };
    Some(used * operations * tiles / (step + fp8) * CYCLES_PER_NANO * f64::from(target.units))
}

/// Rows that meet one matrix, at the bucket's typical sizes.
fn rows_together(spec: &KernelSpec) -> Option<f64> {
    let dims = |i: usize| -> Option<Vec<f64>> {
        let t = spec.inputs.get(i).and_then(Operand::tensor)?;
        Some(t.shape.iter().map(|d| d.eval(&spec.bucket.typical) as f64).collect())
    };
    let tokens = *dims(0)?.first()?;
    let expert = |matrix: usize| Some(tokens * dims(1)?.get(1)? / dims(matrix)?.first()?.max(1.0));
    match spec.op {
        Op::ExpertSwiglu => expert(2),
        Op::ExpertDown => expert(3),
        _ => Some(tokens),
    }
}
