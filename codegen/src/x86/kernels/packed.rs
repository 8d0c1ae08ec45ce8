//! Packed matrices as the GEMM kernels see them.

use crate::EmitError;
use crate::dsl::*;
use crate::pack;
use crate::x86::abi::Kernel;
use deepfuse_ir::{DType, Dim, Layout, Quant};

/// Stored element of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    F32,
    Bf16,
    F16,
    /// e4m3 codes with f32 scales of 128x128 blocks.
    Fp8,
    /// Codes with an f32 scale a row, for int8 activations.
    Int8,
    /// Codes with an f16 scale per 32 of a row, for int8 activations.
    Int4,
}

impl Weight {
    /// Bytes of one line: 16 columns times [`Weight::line_depth`].
    pub fn line_bytes(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::Bf16 | Self::F16 | Self::Int8 => 64,
            Self::Fp8 => 32,
            Self::Int4 => pack::INT4_BLOCK as u64 / 2,
        }
    }

    /// Elements of the contracted axis in a line.
    pub fn line_depth(self) -> u64 {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 | Self::Fp8 => 2,
            Self::Int8 => 4,
            Self::Int4 => 32,
        }
    }

    /// Whether activations are int8 rows.
    pub fn takes_codes(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// Bytes of one element of a line of pairs.
    pub fn bytes(self) -> u64 {
        self.line_bytes() / (16 * self.line_depth())
    }

    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::Bf16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            DType::Quant(Quant::FP8_B128) => Some(Self::Fp8),
            DType::Quant(Quant::INT8_R) => Some(Self::Int8),
            DType::Quant(Quant::INT4_G32) => Some(Self::Int4),
            DType::I32 | DType::U32 | DType::Quant(_) => None,
        }
    }
}

/// A matrix `[N, K]` in `Layout::Vnni`, or one of several.
#[derive(Clone, Copy)]
pub struct Packed<'a> {
    base: Val<'a>,
    pub weight: Weight,
    pub n: u64,
    pub k: u64,
}

/// 16 columns of a packed matrix.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    pub lines: Val<'a>,
    /// f32 scales of the 128-blocks along K, for fp8.
    pub scales: Val<'a>,
    pub weight: Weight,
}

impl<'a> Packed<'a> {
    /// Operand `i`: `[N, K]`, or `[count, N, K]` of which [`Packed::matrix`] picks one.
    pub fn operand(k: &Kernel<'a>, i: usize) -> Result<Self, EmitError> {
        let (operand, t) = (k.operand(i)?, k.tensor_type(i)?);
        if operand.layout != Layout::Vnni {
            return Err(k.unsupported(format!("operand {i}, {t}, must be packed")));
        }
        let weight = Weight::of(t.dtype).ok_or_else(|| k.unsupported(format!("no kernel for {} matrices", t.dtype)))?;
        let x = k.tensor_type(0)?;
        if weight.takes_codes() != x.dtype.quantized_row(0).is_some() {
            return Err(k.unsupported(format!("no kernel for {} activations and {} matrices", x.dtype, t.dtype)));
        }
        let shape: Option<Vec<u64>> = t.shape.iter().map(Dim::as_fixed).collect();
        match shape.as_deref() {
            Some([.., n, depth]) => Ok(Self { base: k.input_ptr(i), weight, n: *n, k: *depth }),
            _ => Err(k.unsupported(format!("operand {i}, {t}, must be a matrix of known size"))),
        }
    }

    /// Number of panels.
    pub fn panels(&self) -> u64 {
        self.n.div_ceil(16)
    }

    pub fn panel_bytes(&self) -> u64 {
        let k = self.k as usize;
        (match self.weight {
            Weight::Int8 => pack::int8_panel_bytes(k),
            Weight::Int4 => pack::int4_panel_bytes(k),
            other => pack::panel_bytes(k, other.bytes() as usize),
        }) as u64
    }

    fn scales_at(&self) -> u64 {
        (self.panels() * self.panel_bytes()).next_multiple_of(64)
    }

    /// Bytes from one matrix of a stack to the next.
    pub fn matrix_bytes(&self) -> u64 {
        if self.weight.takes_codes() {
            return self.panels() * self.panel_bytes();
        }
        let scales = if self.weight == Weight::Fp8 { self.n.div_ceil(128) * self.k.div_ceil(128) } else { 0 };
        pack::matrix_bytes(self.n as usize, self.k as usize, self.weight.bytes() as usize, scales as usize) as u64
    }

    /// Matrix number `index` of a stack.
    pub fn matrix(self, index: Val<'a>) -> Self {
        Self { base: self.base.at(index * self.matrix_bytes()), ..self }
    }

    /// Panel `index` from column `from` of K on, a multiple of 128.
    pub fn panel_from(&self, index: Val<'a>, from: Val<'a>) -> Panel<'a> {
        let p = self.panel(index);
        let lines = p.lines.at(from / 2i64 * self.weight.line_bytes());
        Panel { lines, scales: p.scales.at(from / 128i64 * 4i64), ..p }
    }

    /// Columns `from .. from + k` of a panel of fp8 as bf16, to `to`; `from` is a multiple of 128, `k` at most that.
    pub fn decode(&self, index: Val<'a>, from: Val<'a>, k: u64, to: Val<'a>) -> Panel<'a> {
        let p = self.panel_from(index, from);
        let f = to.fx();
        // K is padded to 16 lines, so four at a time never leave the panel.
        f.range(f.i(0), f.i(k.div_ceil(2)), 4, |line| {
            let (from, to) = (p.lines.at(line * 32i64), to.at(line * 64i64));
            for i in [0, 2] {
                let codes = from.plus(32 * i).load(Ty::vec(Elem::I8, 64), 64);
                for (line, v) in (i..).zip(crate::math::e4m3_to_bf16(codes)) {
                    to.plus(64 * line).store(v, 64);
                }
            }
        });
        Panel { lines: to, scales: p.scales, weight: Weight::Bf16 }
    }

    pub fn panel(&self, index: Val<'a>) -> Panel<'a> {
        let lines = self.base.at(index * self.panel_bytes());
        let scales = match self.weight {
            Weight::Fp8 => self.base.plus(self.scales_at()).at((index / 8i64) * (4 * self.k.div_ceil(128))),
            _ => lines,
        };
        Panel { lines, scales, weight: self.weight }
    }
}
