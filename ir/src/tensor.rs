//! Values of the reference evaluator.

use crate::types::DType;
use half::{bf16, f16};

/// A concrete tensor, or a state as `[rows, width]`.
///
/// Floats of any type are held as `f32`, already rounded to `dtype`. A quantized tensor is held as the values it stands for
/// (`scale * code` in f32), so ops over its shape need no knowledge of blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Data,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Float(Vec<f32>),
    Int(Vec<i32>),
}

/// Rounds to the nearest value of a float type (ties to even); quantized types keep the f32 value.
pub fn round_to(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::F32 | DType::I32 | DType::U32 | DType::Quant(_) => x,
    }
}

/// The value of an e4m3 code: `s.eeee.mmm`, bias 7, subnormals, NaN for `s.1111.111`.
pub fn e4m3_value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

impl Tensor {
    /// A float tensor; values are rounded to `dtype`.
    pub fn float(dtype: DType, shape: &[usize], mut values: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} holds the values");
        if matches!(dtype, DType::Bf16 | DType::F16) {
            for v in &mut values {
                *v = round_to(dtype, *v);
            }
        }
        Self { dtype, shape: shape.to_vec(), data: Data::Float(values) }
    }

    pub fn int(shape: &[usize], values: Vec<i32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "shape {shape:?} holds the values");
        Self { dtype: DType::I32, shape: shape.to_vec(), data: Data::Int(values) }
    }

    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let n = shape.iter().product();
        let data = match dtype {
            DType::I32 | DType::U32 => Data::Int(vec![0; n]),
            DType::F32 | DType::Bf16 | DType::F16 | DType::Quant(_) => Data::Float(vec![0.0; n]),
        };
        Self { dtype, shape: shape.to_vec(), data }
    }

    /// The floats. Panics on an integer tensor: the verifier excludes that.
    pub fn floats(&self) -> &[f32] {
        match &self.data {
            Data::Float(v) => v,
            Data::Int(_) => panic!("a float tensor was verified here"),
        }
    }

    /// The integers. Panics on a float tensor: the verifier excludes that.
    pub fn ints(&self) -> &[i32] {
        match &self.data {
            Data::Int(v) => v,
            Data::Float(_) => panic!("an integer tensor was verified here"),
        }
    }

    /// The same values, unrounded from here on.
    #[must_use]
    pub fn widen(&self) -> Self {
        Self { dtype: DType::F32, shape: self.shape.clone(), data: self.data.clone() }
    }

    /// The same values rounded to `dtype`.
    #[must_use]
    pub fn narrow(&self, dtype: DType) -> Self {
        Self::float(dtype, &self.shape, self.floats().to_vec())
    }

    /// Length of the last axis.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows when the last axis is taken as a row.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    pub fn row(&self, i: usize) -> &[f32] {
        let w = self.width();
        &self.floats()[i * w..(i + 1) * w]
    }

    /// Element by element.
    #[must_use]
    pub fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self::float(self.dtype, &self.shape, self.floats().iter().map(|x| f(*x)).collect())
    }

    /// Elements in row-major order of `axes` of this tensor: result axis `i` is operand axis `axes[i]`.
    #[must_use]
    pub fn permuted(&self, axes: &[usize]) -> Self {
        let shape: Vec<usize> = axes.iter().map(|a| self.shape[*a]).collect();
        let mut strides = vec![1; self.shape.len()];
        for i in (1..self.shape.len()).rev() {
            strides[i - 1] = strides[i] * self.shape[i];
        }
        let steps: Vec<usize> = axes.iter().map(|a| strides[*a]).collect();
        self.gathered(&shape, |index| index.iter().zip(&steps).map(|(i, s)| i * s).sum())
    }

    /// A tensor of the given shape whose element at `index` is this one's element number `from(index)`.
    #[must_use]
    pub fn gathered(&self, shape: &[usize], from: impl Fn(&[usize]) -> usize) -> Self {
        let n: usize = shape.iter().product();
        let mut index = vec![0; shape.len()];
        let mut places = Vec::with_capacity(n);
        for _ in 0..n {
            places.push(from(&index));
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        let data = match &self.data {
            Data::Float(v) => Data::Float(places.iter().map(|p| v[*p]).collect()),
            Data::Int(v) => Data::Int(places.iter().map(|p| v[*p]).collect()),
        };
        Self { dtype: self.dtype, shape: shape.to_vec(), data }
    }
}
