//! What the bytes of a packed weight are, so that `verify` finds NaN and Inf without knowing any layout.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A number as it lies in memory, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    F16,
    Bf16,
    F8E4m3,
    I8,
    /// No numbers to check: packed 4-bit codes and the like.
    U8,
    I32,
}

impl Element {
    pub const ALL: [Self; 7] = [Self::F32, Self::F16, Self::Bf16, Self::F8E4m3, Self::I8, Self::U8, Self::I32];

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F8E4m3 => "f8e4m3",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I32 => "i32",
        }
    }

    /// Name and size in a safetensors header.
    pub fn safetensors(self) -> (&'static str, u64) {
        match self {
            Self::F32 => ("F32", 4),
            Self::F16 => ("F16", 2),
            Self::Bf16 => ("BF16", 2),
            Self::F8E4m3 => ("F8_E4M3", 1),
            Self::I8 => ("I8", 1),
            Self::U8 => ("U8", 1),
            Self::I32 => ("I32", 4),
        }
    }

    /// Numbers that are NaN or infinite.
    pub fn count_not_finite(self, bytes: &[u8]) -> u64 {
        let halves =
            |mask: u16| bytes.as_chunks().0.iter().filter(|c| u16::from_le_bytes(**c) & mask == mask).count() as u64;
        match self {
            Self::F32 => bytes.as_chunks().0.iter().filter(|c| !f32::from_le_bytes(**c).is_finite()).count() as u64,
            Self::F16 => halves(0x7c00),
            Self::Bf16 => halves(0x7f80),
            Self::F8E4m3 => bytes.iter().filter(|b| **b & 0x7f == 0x7f).count() as u64,
            Self::I8 | Self::U8 | Self::I32 => 0,
        }
    }
}

/// Runs of elements that repeat until the tensor ends: `bf16`, or `f8e4m3:16384 f32:64` (bytes) for codes with their scales.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Elements(Vec<(Element, u64)>);

impl Elements {
    /// A tensor of one type.
    pub fn all(element: Element) -> Self {
        Self(vec![(element, 0)])
    }

    /// Runs of `bytes` each, one after the other, again and again. `None` where a run is empty.
    pub fn runs(runs: &[(Element, u64)]) -> Option<Self> {
        (!runs.is_empty() && runs.iter().all(|r| r.1 > 0)).then(|| Self(runs.to_vec()))
    }

    /// The type, if the whole tensor is of one.
    pub fn only(&self) -> Option<Element> {
        if let [(element, 0)] = self.0[..] { Some(element) } else { None }
    }

    /// NaN and Inf in a tensor.
    pub fn count_not_finite(&self, mut bytes: &[u8]) -> u64 {
        if let Some(element) = self.only() {
            return element.count_not_finite(bytes);
        }
        let mut count = 0;
        while !bytes.is_empty() {
            for (element, len) in &self.0 {
                let (run, rest) = bytes.split_at(bytes.len().min(usize::try_from(*len).unwrap_or(usize::MAX)));
                count += element.count_not_finite(run);
                bytes = rest;
            }
        }
        count
    }
}

impl fmt::Display for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (element, bytes)) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { " " })?;
            f.write_str(element.name())?;
            if *bytes > 0 {
                write!(f, ":{bytes}")?;
            }
        }
        Ok(())
    }
}

impl From<Elements> for String {
    fn from(e: Elements) -> Self {
        e.to_string()
    }
}

impl TryFrom<String> for Elements {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl FromStr for Elements {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let element = |name: &str| Element::ALL.into_iter().find(|e| e.name() == name);
        if let Some(e) = element(s) {
            return Ok(Self::all(e));
        }
        let run = |word: &str| {
            let (name, bytes) = word.split_once(':')?;
            Some((element(name)?, bytes.parse().ok()?))
        };
        let runs: Option<Vec<_>> = s.split(' ').map(run).collect();
        runs.and_then(|r| Self::runs(&r)).ok_or_else(|| format!("{s:?} does not name types of elements"))
    }
}
