//! `embed`, `gather_rows`: rows by index, of any rank.
//!
//!     y[t, ..] = x[ids[t], ..]

use super::walk::{copy16, product, spread, unflatten};
use crate::EmitError;
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (ids, x) = if k.spec.op == Op::Embed { (0, 1) } else { (1, 0) };
    let (ids, x, y) = (k.input(ids)?, k.input(x)?, k.output(0)?);
    // The last axis is a run of elements; a vector is a run of one.
    let last = y.rank() - 1;
    let (outer, columns) = if last == 0 { (&y.dims[..], k.f.i(1)) } else { (&y.dims[..last], y.dims[last]) };
    let step = if last == 0 { k.f.i(1) } else { x.strides[last] };
    k.phase(0, || {
        let rows = |row| {
            let to = unflatten(row, outer);
            let mut from = to.clone();
            from[0] = ids.at(&to[..1]).index();
            (y.at(&to), x.at(&from))
        };
        spread(k, product(k.f, outer), columns, step.known() == Some(1), rows, |(to, from), i, lanes| {
            copy16(to.at(i), from.at(i * step), lanes);
        });
    });
    Ok(1)
}
