//! `embed`, `gather_rows`: rows by index, of any rank.
//!
//!     y[t, ..] = x[ids[t], ..]

use super::walk::{copy16, product, spread, unflatten};
use crate::EmitError;
use crate::mem::{Mem, Store};
use crate::x86::abi::Kernel;
use deepfuse_ir::Op;

pub fn lower<'a>(k: &Kernel<'a>) -> Result<u32, EmitError> {
    let (ids, x) = if k.spec.op == Op::Embed { (0, 1) } else { (1, 0) };
    let (ids, x, y) = (k.input(ids)?, k.input(x)?, k.output(0)?);
    // The last axis is a run of elements; a vector is a run of one.
    let last = y.rank() - 1;
    let (outer, columns) = if last == 0 { (&y.dims[..], k.f.i(1)) } else { (&y.dims[..last], y.dims[last]) };
    let step = if last == 0 { k.f.i(1) } else { x.strides[last] };
    // Rows of codes move whole, tails included, a word at a time.
    let codes =
        k.tensor_type(usize::from(k.spec.op == Op::Embed))?.dtype.quantized_row(columns.known().unwrap_or(0) as u64);
    let columns = codes.map_or(columns, |row| k.f.i(row.bytes / 4));
    let words = |m: Mem<'a>| if codes.is_some() { Mem::new(m.base, Store::I32) } else { m };
    k.phase(0, || {
        let rows = |row| {
            let to = unflatten(row, outer);
            let mut from = to.clone();
            from[0] = ids.at(&to[..1]).index();
            (words(y.at(&to)), words(x.at(&from)))
        };
        spread(k, product(k.f, outer), columns, step.known() == Some(1), rows, |(to, from), i, lanes| {
            copy16(to.at(i), from.at(i * step), lanes);
        });
    });
    Ok(1)
}
