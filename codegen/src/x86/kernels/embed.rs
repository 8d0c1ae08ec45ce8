//! `embed`, `gather_rows`: rows of a matrix by index.
//!
//!     y[t, d] = table[ids[t], d]

use super::walk::{copy16, spread};
use crate::EmitError;
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

pub fn lower(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (ids, table) = if k.spec.op == Op::Embed { (0, 1) } else { (1, 0) };
    let (ids, table, y) = (k.input(ids)?, k.input(table)?, k.output(0)?);
    let vectors = table.fixed_stride(1) == Some(1);
    k.phase(0, || {
        let rows = |t| (y.at(&[t]), table.at(&[ids.at(&[t]).index()]));
        spread(k, y.dims[0], y.dims[1], vectors, rows, |(to, from), i, lanes| {
            copy16(to.at(i), from.at(i * table.strides[1]), lanes);
        });
    });
    Ok(1)
}
