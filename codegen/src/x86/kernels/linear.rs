//! `linear`, `linear_f32`, `head_linear`: rows of activations times packed matrices.
//!
//!     y[t, h, n] = sum_k x[t, h, k] * w[h or 0, n, k]
//!
//! Work items are panels of 16 columns of all heads; a worker takes a contiguous range of them and runs all rows over a group of
//! panels before it goes on, so every weight comes from memory once.

use super::chain::Epilogue;
use super::gemm::{Gemm, place, store_panel};
use super::packed::Packed;
use super::tile::Rows;
use crate::EmitError;
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

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
    k.phase(0, || {
        gemm.with_tiles(|| {
            let panels = w.panels();
            let (lo, hi) = k.share(k.f.i(heads * panels));
            gemm.groups(lo, hi, panels, |head, panel, width| {
                let matrix = if shared { w } else { w.matrix(head) };
                let rows = Rows { mem: x.mem.at(head * x_head), stride };
                let out = y.mem.at(head * w.n);
                gemm.cover(rows, x.dims[0], &[matrix], panel, width, |sums| {
                    store_panel(k.f, w.n, sums.panel, |lanes| {
                        for (r, v) in sums.values[0].iter().enumerate() {
                            let row = sums.row + r as u64;
                            let v = epilogue.apply(*v, &[row, head], sums.panel * 16i64, lanes);
                            place(out, row, y.strides[0], sums.panel).set_lanes(v, lanes);
                        }
                    });
                });
            });
        });
    });
    Ok(1)
}
