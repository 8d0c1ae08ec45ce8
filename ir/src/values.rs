//! Values for a graph: a consistent batch, random weights.

use crate::graph::{Graph, Node, Param, ParamKind, ValueId};
use crate::ops::Op;
use crate::tensor::{Tensor, round_to};
use crate::types::{DType, PAGE_TOKENS, Sizes, Type};
use std::collections::HashMap;

/// One sequence of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Tokens in the cache before the step.
    pub cached: u32,
    /// Tokens of the step, 1 or more.
    pub new: u32,
}

/// A ragged batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub sequences: Vec<Sequence>,
}

impl Batch {
    /// Pages of each sequence, new tokens included.
    fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.sequences.iter().map(|s| u64::from(s.cached + s.new).div_ceil(PAGE_TOKENS))
    }

    pub fn sizes(&self) -> Sizes {
        let sum = |f: fn(&Sequence) -> u32| self.sequences.iter().map(|s| u64::from(f(s))).sum();
        let sequences = self.sequences.len() as u64;
        Sizes([sum(|s| s.new), sequences, self.pages().sum(), sequences, sum(|s| s.cached)])
    }

    /// Physical pages of a state: all that are listed, and one that is not.
    fn physical_pages(&self) -> u64 {
        self.pages().sum::<u64>() + 1
    }

    /// The batch inputs of the step graph by name, `ids` excepted; page ids descend, so that no order is assumed.
    pub fn input(&self, name: &str) -> Option<Vec<i32>> {
        let starts = || self.pages().scan(0, |at, n| Some(std::mem::replace(at, *at + n)));
        let each = |f: &dyn Fn(usize, u32) -> u32| -> Vec<i32> {
            let tokens = self.sequences.iter().enumerate().flat_map(|(i, s)| (0..s.new).map(move |t| (i, t)));
            tokens.map(|(i, t)| f(i, t) as i32).collect()
        };
        Some(match name {
            "pos" => each(&|i, t| self.sequences[i].cached + t),
            "seq" => each(&|i, _| i as u32),
            "pages" => (0..self.pages().sum()).map(|p| (self.physical_pages() - 1 - p) as i32).collect(),
            "page_start" => starts().chain([self.pages().sum()]).map(|p| p as i32).collect(),
            "rows" => {
                let ends = self.sequences.iter().scan(0, |at, s| {
                    *at += s.new as i32;
                    Some(*at - 1)
                });
                ends.collect()
            }
            _ => return None,
        })
    }
}

/// splitmix64.
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Indices that an input may hold: below 64, and within what it selects rows of.
fn index_limit(graph: &Graph, param: ValueId) -> u64 {
    let selected = |n: &Node| -> Option<u64> {
        let at = n.operands.iter().position(|v| *v == param)?;
        let (of, axis) = if n.op == Op::Embed && at == 0 {
            (1, 0)
        } else if n.op == Op::Gather && at == 1 {
            (0, 1)
        } else {
            (EXPERTS.contains(&n.op) && at == 1).then_some((n.operands.len() - 1, 0))?
        };
        graph.ty(n.operands[of]).tensor()?.shape.get(axis)?.as_fixed()
    };
    graph.nodes.iter().filter_map(selected).fold(64, u64::min)
}

/// Operations whose second operand selects experts of the last.
const EXPERTS: [Op; 5] =
    [Op::ExpertLinear, Op::ExpertSwiglu, Op::ExpertDown, Op::ExpertSwigluByToken, Op::ExpertDownByToken];

/// Values of all parameters, a function of graph, batch and seed. Floats are uniform, of variance 1 in inputs and `1 / K` in weights `[.., K]`;
/// indices are below 64 and within what they select.
pub fn values(graph: &Graph, batch: &Batch, seed: u64) -> impl FnMut(&str, &ParamKind) -> Option<Tensor> + use<> {
    let types: HashMap<String, Type> = graph.params.iter().map(|p| (p.name.clone(), p.ty.clone())).collect();
    let limit = |(i, p): (usize, &Param)| (p.name.clone(), index_limit(graph, ValueId(i as u32)));
    let limits: HashMap<String, u64> = graph.params.iter().enumerate().map(limit).collect();
    let (sizes, batch) = (batch.sizes(), batch.clone());
    move |name, kind| {
        // The stream depends on the name alone, so that a rewritten graph with fewer parameters sees the same values.
        let mut state = name.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let uniform = |state: &mut u64| (mix(state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        match types.get(name)? {
            Type::State(s) => {
                let shape = [(batch.physical_pages() * PAGE_TOKENS) as usize, s.width as usize];
                let values = (0..shape[0] * shape[1]).map(|_| uniform(&mut state)).collect();
                Some(Tensor::float(s.dtype, &shape, values))
            }
            Type::Tensor(t) => {
                let shape: Vec<usize> = t.shape.iter().map(|d| d.eval(&sizes) as usize).collect();
                let n: usize = shape.iter().product();
                if t.dtype == DType::I32 {
                    let known = batch.input(name);
                    return Some(Tensor::int(
                        &shape,
                        known.unwrap_or_else(|| (0..n).map(|_| (mix(&mut state) % limits[name]) as i32).collect()),
                    ));
                }
                let weight = matches!(kind, ParamKind::Weight { .. });
                let scale =
                    if weight && shape.len() > 1 { (3.0 / shape[shape.len() - 1] as f32).sqrt() } else { 3f32.sqrt() };
                // Codes are coarse: a quantized weight holds values that eight bits can carry.
                let coarse = |x: f32| if t.dtype.is_quant() { (x * 8.0).round() / 8.0 } else { x };
                let values = (0..n).map(|_| round_to(t.dtype, coarse(uniform(&mut state)) * scale)).collect();
                Some(Tensor::float(t.dtype, &shape, values))
            }
        }
    }
}
