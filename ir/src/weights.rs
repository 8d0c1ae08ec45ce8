//! Weight expressions: what a packed weight is made of, as a tree that the driver streams at compile time.

use crate::graph::{Attrs, Graph, ParamKind, ValueId};
use crate::kernel::Layout;
use crate::ops::Op;
use crate::types::TensorType;

/// How a stored weight is made from tensors of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WeightExpr {
    /// A tensor of the checkpoint, or several stacked along a new first axis (`experts.{0..256}.up_proj.weight`).
    Source { name: String, ty: TensorType },
    /// An operation over weights alone: `slice`, `concat`, `reshape`, `permute`, `convert`, `head_rows`, `scale`, `mul`, `quantize`.
    Apply { op: Op, attrs: Attrs, operands: Vec<WeightExpr>, ty: TensorType },
}

/// A weight as it stands in the artifact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoredWeight {
    pub expr: WeightExpr,
    pub layout: Layout,
}

impl WeightExpr {
    pub fn ty(&self) -> &TensorType {
        match self {
            Self::Source { ty, .. } | Self::Apply { ty, .. } => ty,
        }
    }

    /// The expression of a constant value of a graph; `None` if it depends on more than weights.
    pub fn of(graph: &Graph, value: ValueId) -> Option<Self> {
        if let Some(p) = graph.params.get(value.index()) {
            let ParamKind::Weight { source } = &p.kind else { return None };
            return Some(Self::Source { name: source.clone(), ty: p.ty.tensor()?.clone() });
        }
        let (node, result) = graph.definition(value)?;
        let n = &graph.nodes[node];
        let operands = n.operands.iter().map(|v| Self::of(graph, *v)).collect::<Option<Vec<_>>>()?;
        Some(Self::Apply { op: n.op, attrs: n.attrs.clone(), operands, ty: n.types[result].tensor()?.clone() })
    }
}

/// Calls `f` with every checkpoint tensor that an expression reads.
pub fn sources(e: &WeightExpr, f: &mut dyn FnMut(&str)) {
    match e {
        WeightExpr::Source { name, .. } => source_names(name).iter().for_each(|n| f(n)),
        WeightExpr::Apply { operands, .. } => operands.iter().for_each(|o| sources(o, f)),
    }
}

/// The names that a source pattern stands for: `a.{2..4}.b` is `a.2.b`, `a.3.b`; a name without braces is itself.
pub fn source_names(pattern: &str) -> Vec<String> {
    match split_range(pattern) {
        Some((head, range, tail)) => range.map(|i| format!("{head}{i}{tail}")).collect(),
        None => vec![pattern.to_owned()],
    }
}

/// Name number `index` of [`source_names`].
pub fn source_name(pattern: &str, index: u64) -> String {
    match split_range(pattern) {
        Some((head, range, tail)) => format!("{head}{}{tail}", u64::from(range.start) + index),
        None => pattern.to_owned(),
    }
}

/// Number of tensors that a source pattern stacks along a new first axis; `None` for a plain name.
pub fn stacked_count(pattern: &str) -> Option<u64> {
    split_range(pattern).map(|(_, range, _)| u64::from(range.end.saturating_sub(range.start)))
}

/// The same pattern over `count` tensors; a plain name stays as it is.
pub fn with_count(pattern: &str, count: u64) -> String {
    match split_range(pattern) {
        Some((head, range, tail)) => format!("{head}{{{}..{}}}{tail}", range.start, u64::from(range.start) + count),
        None => pattern.to_owned(),
    }
}

fn split_range(pattern: &str) -> Option<(&str, std::ops::Range<u32>, &str)> {
    let (head, rest) = pattern.split_once('{')?;
    let (range, tail) = rest.split_once('}')?;
    let (from, to) = range.split_once("..")?;
    Some((head, from.parse().ok()?..to.parse().ok()?, tail))
}

#[cfg(test)]
mod tests;
