//! `linear`, `linear_f32`, `head_linear`, `norm_linear`: rows of activations times packed matrices.
//!
//!     y[t, h, n] = sum_k x[t, h, k] * w[h or 0, n, k]        norm_linear: times 1 / sqrt(mean_k(x[t, k]^2) + eps)
//!
//! Work items are panels of 16 columns of all heads; a worker takes a contiguous range of them and runs all rows over a group of
//! panels before it goes on, so every weight comes from memory once. `norm_linear` takes [`NORMED_ROWS`] at a time: every worker sums up
//! the squares of all rows itself, which costs a row less than waiting for others to have done it.

use super::chain::Epilogue;
use super::gemm::{Gemm, place, store_panel};
use super::norm::inverse_rms;
use super::packed::Packed;
use super::tile::Rows;
use crate::EmitError;
use crate::dsl::*;
use crate::mem::{Mem, Store};
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

/// Rows whose factors lie on the stack at a time: many enough to pay for reading the weights once more.
const NORMED_ROWS: u64 = 512;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, w, y) = (k.input(0)?, Packed::operand(k, 1)?, k.output(0)?);
    let epilogue = Epilogue::new(k, 2)?;
    let axes = x.rank() - 1;
    let unknown = || k.unsupported("inner axes of x must have known sizes and strides");
    // Axes between the rows and K: each of their indices is a batch of its own ("head").
    let (heads, x_head) = match axes {
        1 => (1, 0),
        2 => (x.fixed(1).ok_or_else(unknown)?, x.fixed_stride(1).ok_or_else(unknown)?),
        _ => return Err(k.unsupported("x has more than three axes")),
    };
    let stride = x.fixed_stride(0).ok_or_else(unknown)?;
    if x.fixed_stride(axes) != Some(1) {
        return Err(k.unsupported("the contracted axis of x must be dense"));
    }
    let shared = k.spec.op != Op::HeadLinear;
    let gemm = Gemm::new(k, x.mem.store, w.weight, 1);
    // Rows `first..first + count`, each times its factor if there are any.
    let multiply = |first: Val<'_>, count: Val<'_>, factors: Option<Mem<'_>>| {
        let panels = w.panels();
        let (lo, hi) = k.share(k.f.i(heads * panels));
        gemm.groups(lo, hi, panels, |head, panel, width| {
            let matrix = if shared { w } else { w.matrix(head) };
            let rows = Rows { mem: x.mem.at(head * x_head), stride }.starting_at(first);
            let out = y.mem.at(head * w.n);
            gemm.cover(rows, count, &[matrix], panel, width, |sums| {
                store_panel(k.f, w.n, sums.panel, |lanes| {
                    for (r, v) in sums.values[0].iter().enumerate() {
                        let (here, row) = (sums.row + r as u64, first + sums.row + r as u64);
                        let v = factors.map_or(*v, |f| *v * f.at(here).get().splat(16));
                        let v = epilogue.apply(v, &[row, head], sums.panel * 16i64, lanes);
                        place(out, row, y.strides[0], sums.panel).set_lanes(v, lanes);
                    }
                });
            });
        });
    };
    let (f, count) = (k.f, x.dims[0]);
    if k.spec.op != Op::NormLinear {
        k.phase(0, || gemm.with_tiles(|| multiply(f.i(0), count, None)));
        return Ok(1);
    }
    let (eps, factors) = (k.float("eps")?, Mem::new(f.stack(F32, NORMED_ROWS), Store::F32));
    k.phase(0, || {
        f.range(f.i(0), count, NORMED_ROWS as i64, |first| {
            let here = (count - first).min(f.i(NORMED_ROWS));
            f.range(f.i(0), here, 1, |row| {
                let from = x.mem.at((first + row) * stride);
                let inverse = inverse_rms(f, w.k, eps, |i, lanes| from.at(i).get16(lanes));
                factors.at(row).set(inverse.lane(0));
            });
            gemm.with_tiles(|| multiply(first, here, Some(factors)));
        });
    });
    Ok(1)
}
