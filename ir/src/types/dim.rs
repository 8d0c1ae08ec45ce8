//! Sizes of a step, and dims that depend on them.

use std::fmt;

/// The symbols of a step. Their values are known when the step starts; no dim depends on data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Symbol {
    /// Tokens of this step.
    T,
    /// Sequences of this step.
    S,
    /// Pages in the page lists of all sequences of this step.
    P,
    /// Rows that want logits.
    R,
    /// Context tokens cached before this step; appears in costs only.
    C,
}

impl Symbol {
    pub const ALL: [Self; 5] = [Self::T, Self::S, Self::P, Self::R, Self::C];
    pub const COUNT: usize = 5;

    pub fn name(self) -> &'static str {
        match self {
            Self::T => "T",
            Self::S => "S",
            Self::P => "P",
            Self::R => "R",
            Self::C => "C",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// Values of the symbols in one step, indexed by `Symbol as usize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes(pub [u64; Symbol::COUNT]);

impl Sizes {
    pub fn get(&self, s: Symbol) -> u64 {
        self.0[s as usize]
    }
}

/// A dim: an affine expression `constant + sum_i terms[i] * symbol_i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim {
    pub constant: u64,
    pub terms: [u32; Symbol::COUNT],
}

impl Dim {
    pub const fn fixed(n: u64) -> Self {
        Self { constant: n, terms: [0; Symbol::COUNT] }
    }

    pub fn symbol(s: Symbol) -> Self {
        Self::scaled(s, 1)
    }

    /// `factor * s`.
    pub fn scaled(s: Symbol, factor: u32) -> Self {
        let mut terms = [0; Symbol::COUNT];
        terms[s as usize] = factor;
        Self { constant: 0, terms }
    }

    /// The number, if no symbol occurs.
    pub fn as_fixed(&self) -> Option<u64> {
        (self.terms == [0; Symbol::COUNT]).then_some(self.constant)
    }

    /// The symbol and its factor, if the dim is a multiple of one symbol.
    pub fn as_scaled(&self) -> Option<(Symbol, u32)> {
        let mut used = Symbol::ALL.into_iter().filter(|s| self.terms[*s as usize] > 0);
        match (used.next(), used.next(), self.constant) {
            (Some(s), None, 0) => Some((s, self.terms[s as usize])),
            _ => None,
        }
    }

    /// Value for given sizes; saturates.
    pub fn eval(&self, sizes: &Sizes) -> u64 {
        let sum =
            |acc: u64, s: Symbol| acc.saturating_add(u64::from(self.terms[s as usize]).saturating_mul(sizes.get(s)));
        Symbol::ALL.into_iter().fold(self.constant, sum)
    }
}

impl From<u64> for Dim {
    fn from(n: u64) -> Self {
        Self::fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for s in Symbol::ALL {
            let factor = self.terms[s as usize];
            if factor == 0 {
                continue;
            }
            if !first {
                f.write_str("+")?;
            }
            first = false;
            if factor != 1 {
                write!(f, "{factor}*")?;
            }
            f.write_str(s.name())?;
        }
        match (first, self.constant) {
            (true, n) => write!(f, "{n}"),
            (false, 0) => Ok(()),
            (false, n) => write!(f, "+{n}"),
        }
    }
}
