//! Copies: `slice`, `concat`, `permute`, `reshape` where no view does, and `read`.

use super::walk::{Sheet, copy16, spread, state};
use crate::EmitError;
use crate::x86::abi::{Kernel, View};
use deepfuse_ir::{AttrsExt, PAGE_TOKENS};

/// `to[..] = from[..]`, of one shape.
fn copy<'a>(k: &Kernel<'a>, to: View<'a>, from: View<'a>) {
    let sheet = Sheet::new(k.f, vec![to, from]);
    k.phase(0, || sheet.each(k, |m, lanes| copy16(m[0], m[1], lanes)));
}

pub fn slice(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (axis, start) = (k.int("axis")? as usize, k.int("start")?);
    let (mut from, to) = (k.input(0)?, k.output(0)?);
    from.mem = from.mem.at(from.strides[axis] * start);
    copy(k, to, from);
    Ok(1)
}

pub fn concat(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let axis = k.int("axis")? as usize;
    let border = k.fixed(0, axis)?;
    let y = k.output(0)?;
    for (i, start) in [(0, 0), (1, border)] {
        let (from, mut to) = (k.input(i)?, y.clone());
        to.mem = to.mem.at(to.strides[axis] * start);
        to.dims[axis] = from.dims[axis];
        copy(k, to, from);
    }
    Ok(1)
}

/// The result's axis `i` is the operand's axis `axes[i]`.
pub fn permute(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let axes = k.spec.attrs.ints("axes").ok_or_else(|| k.unsupported("needs the attribute `axes`"))?;
    let (mut from, to) = (k.input(0)?, k.output(0)?);
    from.strides = axes.iter().map(|a| from.strides[*a as usize]).collect();
    copy(k, to, from);
    Ok(1)
}

/// Row-major order stays: a dense copy in the operand's shape.
pub fn reshape(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let (from, y) = (k.input(0)?, k.output(0)?);
    let to = k.dense(k.tensor_type(0)?, y.mem.base)?;
    copy(k, to, from);
    Ok(1)
}

/// `y[64 p + o] = state[64 pages[p] + o]`
pub fn read(k: &Kernel<'_>) -> Result<u32, EmitError> {
    let ((cache, width), pages, y) = (state(k, 0)?, k.input(1)?, k.output(0)?);
    k.phase(0, || {
        let rows = |row| {
            let slot = pages.at(&[row / PAGE_TOKENS]).index() * PAGE_TOKENS + row % PAGE_TOKENS;
            (y.at(&[row]), cache.at(slot * width))
        };
        spread(k, y.dims[0], k.f.i(width), true, rows, |(to, from), i, lanes| copy16(to.at(i), from.at(i), lanes));
    });
    Ok(1)
}
