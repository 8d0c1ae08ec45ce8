//! Types of values: tensors, states and devices; element types and dims are in files of their own.

mod dim;
mod element;

pub use dim::{Dim, Sizes, Symbol};
pub use element::{Code, DType, Expressed, Quant, RowLayout, ScaleType};

use std::fmt;

/// Where a value lives. A change of device is an op (`transfer`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// A CPU socket (NUMA node).
    Cpu(u16),
    Gpu(u16),
}

impl Device {
    /// Where the front end puts everything; not printed.
    pub const DEFAULT: Self = Self::Cpu(0);

    /// The device of a printed name: `cpu0`, `gpu3`.
    pub fn from_name(name: &str) -> Option<Self> {
        let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        match name.split_at_checked(3)? {
            ("cpu", n) => number(n).map(Self::Cpu),
            ("gpu", n) => number(n).map(Self::Gpu),
            _ => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(n) => write!(f, "cpu{n}"),
            Self::Gpu(n) => write!(f, "gpu{n}"),
        }
    }
}

/// Type of a tensor value. A symbolic dim may only be the outermost, or any of an unfused score matrix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<Dim>,
    pub device: Device,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Self {
        Self { dtype, shape: shape.into_iter().collect(), device: Device::DEFAULT }
    }

    /// All dims as numbers, if no symbol occurs.
    pub fn fixed_shape(&self) -> Option<Vec<u64>> {
        self.shape.iter().map(Dim::as_fixed).collect()
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements for given sizes; saturates.
    pub fn elements(&self, sizes: &Sizes) -> u64 {
        self.shape.iter().fold(1, |n, d| n.saturating_mul(d.eval(sizes)))
    }

    /// Bytes of a value of a step in memory: as [`TensorType::bytes`], but int8 rows lie as [`RowLayout`] says.
    pub fn value_bytes(&self, sizes: &Sizes) -> u64 {
        let row = self.shape.last().and_then(|d| self.dtype.quantized_row(d.eval(sizes)));
        let rows = || self.shape.iter().rev().skip(1).fold(1, |n: u64, d| n.saturating_mul(d.eval(sizes)));
        row.map_or_else(|| self.bytes(sizes), |row| rows().saturating_mul(row.bytes))
    }

    /// Bytes as stored (codes and scales of a quantized type included); saturates.
    pub fn bytes(&self, sizes: &Sizes) -> u64 {
        let elements = self.elements(sizes);
        match self.dtype {
            DType::F32 | DType::I32 | DType::U32 => elements.saturating_mul(4),
            DType::Bf16 | DType::F16 => elements.saturating_mul(2),
            DType::Quant(q) => {
                let dims: Vec<u64> = self.shape.iter().map(|d| d.eval(sizes)).collect();
                let (outer, matrix) = dims.split_at(dims.len().saturating_sub(2));
                let [rows, cols] = match *matrix {
                    [r, c] => [r, c],
                    [c] => [1, c],
                    _ => [1, 1],
                };
                let blocks = q.blocks(rows, cols).into_iter().fold(1, u64::saturating_mul);
                let one = (rows.saturating_mul(cols).saturating_mul(q.code_bits()))
                    .div_ceil(8)
                    .saturating_add(blocks.saturating_mul(q.scale_bytes()));
                outer.iter().fold(one, |n, d| n.saturating_mul(*d))
            }
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")?;
        if self.device != Device::DEFAULT {
            write!(f, " on {}", self.device)?;
        }
        Ok(())
    }
}

/// How a state grows and is cut back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateKind {
    /// One row a token, in pages of [`PAGE_TOKENS`] tokens. Append: a new row; truncate: rows forgotten; fork: full pages shared, the last one copied.
    Paged,
    /// One row per `every` tokens, paged like `Paged`.
    PagedEvery { every: u32 },
    /// The last `window` rows of a sequence, in a ring.
    Window { window: u32 },
    /// A fixed number of rows a sequence.
    Fixed { rows: u32 },
}

/// Tokens a page of a paged state holds.
pub const PAGE_TOKENS: u64 = 64;

/// Type of a state: rows of `width` elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateType {
    pub kind: StateKind,
    pub dtype: DType,
    pub width: u64,
    pub device: Device,
}

impl fmt::Display for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            StateKind::Paged => f.write_str("paged")?,
            StateKind::PagedEvery { every } => write!(f, "paged/{every}")?,
            StateKind::Window { window } => write!(f, "window {window}")?,
            StateKind::Fixed { rows } => write!(f, "fixed {rows}")?,
        }
        write!(f, " {}[{}]", self.dtype, self.width)?;
        if self.device != Device::DEFAULT {
            write!(f, " on {}", self.device)?;
        }
        Ok(())
    }
}

/// Type of any value of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    Tensor(TensorType),
    State(StateType),
}

impl Type {
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            Self::Tensor(t) => Some(t),
            Self::State(_) => None,
        }
    }

    pub fn state(&self) -> Option<&StateType> {
        match self {
            Self::Tensor(_) => None,
            Self::State(s) => Some(s),
        }
    }

    pub fn device(&self) -> Device {
        match self {
            Self::Tensor(t) => t.device,
            Self::State(s) => s.device,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(t) => t.fmt(f),
            Self::State(s) => s.fmt(f),
        }
    }
}

impl From<TensorType> for Type {
    fn from(t: TensorType) -> Self {
        Self::Tensor(t)
    }
}

#[cfg(test)]
mod tests;
