//! Rewrite rules: named lines with a reason above, premises, and a numeric class. One file a theme.

pub mod elementwise;
pub mod linear;
pub mod mla;
pub mod moe;
pub mod norm;
pub mod rows;

use super::Numerics;
use super::certificate::Direction;
use deepfuse_ir::Op;
use deepfuse_ir::premise::{Build, Premise, Var};

/// Numeric class of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// This class for all types.
    Always(Numerics),
    /// This class if every value between the operations of either side is f32. Otherwise such values are rounded on one side only, so
    /// that an application is at least [`Numerics::Requantizes`].
    InF32(Numerics),
}

/// A rewrite rule. Where all patterns of `lhs` are found and all premises hold, both sides of every equation are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: &'static str,
    /// Two rules of one name are the two directions of one identity.
    pub direction: Direction,
    pub lhs: Vec<&'static str>,
    /// Left sides repeat terms of `lhs`; right sides may use `lets` too.
    pub equations: Vec<(&'static str, &'static str)>,
    pub premises: Vec<Premise>,
    /// Attributes computed for the right sides.
    pub lets: Vec<(Var, Build)>,
    pub class: Class,
}

impl Rule {
    /// `lhs` equals `rhs`.
    pub fn new(name: &'static str, class: Class, lhs: &'static str, rhs: &'static str) -> Self {
        let direction = Direction::Forward;
        Self { name, direction, lhs: vec![lhs], equations: vec![(lhs, rhs)], premises: vec![], lets: vec![], class }
    }

    /// The other direction of the identity of the same name.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.direction = Direction::Backward;
        self
    }

    #[must_use]
    pub fn when(mut self, premises: &[Premise]) -> Self {
        self.premises.extend(premises);
        self
    }

    #[must_use]
    pub fn with(mut self, var: Var, build: Build) -> Self {
        self.lets.push((var, build));
        self
    }

    /// Another equation; its left side is part of what was found.
    #[must_use]
    pub fn also(mut self, lhs: &'static str, rhs: &'static str) -> Self {
        self.equations.push((lhs, rhs));
        self
    }

    /// Another equation, whose left side must be found too.
    #[must_use]
    pub fn and(mut self, lhs: &'static str, rhs: &'static str) -> Self {
        self.lhs.push(lhs);
        self.also(lhs, rhs)
    }
}

/// All rules, in the order in which they are searched.
pub fn all() -> Vec<Rule> {
    let themes = [linear::rules, norm::rules, mla::rules, moe::rules, rows::rules, elementwise::rules];
    themes.iter().flat_map(|rules| rules()).collect()
}

/// Whether the operation copies values: it computes, and therefore rounds, nothing.
pub fn copies(op: Op) -> bool {
    match op {
        Op::Embed
        | Op::Reshape
        | Op::Slice
        | Op::Concat
        | Op::Permute
        | Op::Transfer
        | Op::Write
        | Op::Read
        | Op::CausalMask
        | Op::GroupLimit
        | Op::TopK
        | Op::Gather
        | Op::GatherRows
        | Op::Extend
        | Op::HeadRows => true,
        Op::Linear
        | Op::LinearF32
        | Op::HeadLinear
        | Op::Einsum
        | Op::Add
        | Op::Mul
        | Op::Scale
        | Op::ScaleRows
        | Op::Silu
        | Op::Sigmoid
        | Op::Softmax
        | Op::RmsNorm
        | Op::Rope
        | Op::Convert
        | Op::Quantize
        | Op::Normalize
        | Op::ExpertLinear
        | Op::Combine
        | Op::Swiglu
        | Op::NormLinear
        | Op::ExpertSwiglu
        | Op::ExpertDown
        | Op::ExpertSwigluByToken
        | Op::ExpertDownByToken
        | Op::AddNorm
        | Op::NormQuantize
        | Op::AddNormQuantize
        | Op::Route
        | Op::RopeCache
        | Op::MlaAbsorbed
        | Op::MlaAbsorbedSplit
        | Op::MlaExpanded => false,
    }
}
