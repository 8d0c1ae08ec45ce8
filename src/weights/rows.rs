//! Rows of an expression as f32, read where the checkpoint has them if nothing is computed of them.

use super::codes;
use super::expr::{converted, origin, scale_at, tensor_at};
use super::{Tensors, WeightError, matrices};
use deepfuse_ir::weights::{WeightExpr, source_name};
use deepfuse_ir::{DType, Quant};

/// Some rows, one after the other.
pub struct Rows<'a> {
    x: &'a WeightExpr,
    /// The next row's first element.
    at: u64,
    cols: u64,
    /// Rows to come.
    pub left: u64,
    stored: Stored<'a>,
}

/// How rows are stored, from the next one on.
enum Stored<'a> {
    Bf16(&'a [u8]),
    /// Codes and scales of blocks of 128 x 128; `row` is the next row in its matrix.
    Fp8 {
        codes: &'a [u8],
        scales: &'a [u8],
        row: u64,
    },
    /// Any other: computed row by row.
    Computed(Vec<u8>),
}

impl<'a> Rows<'a> {
    /// Rows of `cols` elements from element `at` on, at most `most`.
    pub fn new(
        x: &'a WeightExpr,
        at: u64,
        cols: u64,
        most: u64,
        tensors: &'a dyn Tensors,
    ) -> Result<Self, WeightError> {
        let computed = Self { x, at, cols, left: most, stored: Stored::Computed(vec![]) };
        let Ok((WeightExpr::Source { name, ty }, from, run)) = origin(x, at) else { return Ok(computed) };
        if ty.dtype != x.ty().dtype {
            return Ok(computed); // heads are cut out of blocks, and widened
        }
        let (number, bytes, inside) = tensor_at(name, ty, from, tensors)?;
        let (_, matrix_rows, matrix_cols) = matrices(ty);
        let (row, whole) = (inside / matrix_cols, inside.is_multiple_of(cols) && matrix_cols == cols);
        let missing = || WeightError::Missing(source_name(name, number));
        let stored = match ty.dtype {
            DType::Bf16 if run >= cols => Stored::Bf16(bytes.get(2 * inside as usize..).ok_or_else(missing)?),
            DType::Quant(Quant::FP8_B128) if run >= cols && whole => {
                let name = format!("{}_scale_inv", source_name(name, number));
                let scales = tensors.bytes(&name).ok_or(WeightError::Missing(name))?;
                Stored::Fp8 { codes: bytes.get(inside as usize..).ok_or_else(missing)?, scales, row }
            }
            _ => return Ok(computed),
        };
        let left = (run / cols).min(if whole { matrix_rows - row } else { 1 }).min(most);
        Ok(Self { left, stored, ..computed })
    }

    /// The next row; `values` may be longer.
    pub fn read(&mut self, values: &mut [f32], tensors: &dyn Tensors) -> Result<(), WeightError> {
        let (at, cols) = (self.at, self.cols as usize);
        let values = &mut values[..cols];
        let missing = || WeightError::Missing(deepfuse_passes::stored::describe(self.x));
        match &mut self.stored {
            Stored::Bf16(rest) => {
                let (row, after) = rest.split_at_checked(2 * cols).ok_or_else(missing)?;
                codes::bf16(row, values);
                *rest = after;
            }
            Stored::Fp8 { codes: rest, scales, row } => {
                let (line, after) = rest.split_at_checked(cols).ok_or_else(missing)?;
                let (across, first) = (cols.div_ceil(128), *row as usize / 128 * cols.div_ceil(128));
                let scales = scales.get(4 * first..4 * (first + across)).unwrap_or_default().as_chunks::<4>().0;
                for (i, (codes, values)) in line.chunks(128).zip(values.chunks_mut(128)).enumerate() {
                    let scale = scales.get(i).map(|s| f32::from_le_bytes(*s)).filter(|s| s.is_finite());
                    // What is wrong with a scale is said where it is looked up by element.
                    let scale = scale.map_or_else(|| scale_at(self.x, at + 128 * i as u64, tensors), Ok)?;
                    codes::e4m3(codes, scale, values);
                }
                (*rest, *row) = (after, *row + 1);
            }
            Stored::Computed(raw) => {
                raw.clear();
                converted(self.x, (at, self.cols), DType::F32, 1.0, tensors, raw)?;
                for (value, bytes) in values.iter_mut().zip(raw.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
        self.at += self.cols;
        self.left -= 1;
        Ok(())
    }
}
