//! `swiglu`: gate and up projection of one input, joined in registers.
//!
//!     y[t, n] = silu(sum_k x[t, k] gate[n, k]) * sum_k x[t, k] up[n, k]

use super::gemm::{Gemm, place, store_panel};
use super::packed::Packed;
use super::tile::Rows;
use crate::EmitError;
use crate::math;
use crate::x86::abi::Kernel;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (x, y) = (k.input(0)?, k.output(0)?);
    let weights = [Packed::operand(k, 1)?, Packed::operand(k, 2)?];
    x.dense_rows(k, "x")?;
    if x.rank() != 2 {
        return Err(k.unsupported("x must be [T, K]"));
    }
    let stride =
        x.fixed_stride(0).ok_or_else(|| k.unsupported("rows of x must be a known number of elements apart"))?;
    let gemm = Gemm::new(k, x.mem.store, weights[0].weight, 2);
    let (n, panels) = (weights[0].n, weights[0].panels());
    k.phase(0, || {
        gemm.with_tiles(|| {
            let (lo, hi) = k.share(k.f.i(panels));
            gemm.groups(lo, hi, panels, |_, panel, width| {
                gemm.cover(Rows { mem: x.mem, stride }, x.dims[0], &weights, panel, width, |sums| {
                    store_panel(k.f, n, sums.panel, |lanes| {
                        for (r, (gate, up)) in sums.values[0].iter().zip(&sums.values[1]).enumerate() {
                            let to = place(y.mem, sums.row + r as u64, y.strides[0], sums.panel);
                            to.set_lanes(math::silu(*gate) * *up, lanes);
                        }
                    });
                });
            });
        });
    });
    Ok(1)
}
