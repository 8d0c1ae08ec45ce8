//! The graph of one step: parameters, nodes in order, cuts and outputs.

use crate::ops::Op;
use crate::types::{DType, Type};
use std::collections::BTreeMap;
use std::fmt;

/// Index of a value of a graph. Parameters come first, then node results in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One attribute of a node. Floats compare and hash by their bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attr {
    Int(i64),
    Float(Float),
    /// A word without spaces, commas, braces or quotes: `tnd,xnd->tnx` is written in quotes.
    Str(String),
    Ints(Vec<i64>),
    /// A shape; dims may be symbolic.
    Shape(Vec<crate::types::Dim>),
    DType(DType),
}

/// One word without spaces, as patterns, certificates and kernel specs write it; a graph's text form is in [`crate::text`].
impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |parts: Vec<String>| parts.join(",");
        match self {
            Self::Int(n) => write!(f, "{n}"),
            Self::Float(x) => write!(f, "{:?}", x.0),
            Self::Str(s) => f.write_str(s),
            Self::Ints(list) => write!(f, "<{}>", joined(list.iter().map(ToString::to_string).collect())),
            Self::Shape(dims) => write!(f, "[{}]", joined(dims.iter().map(ToString::to_string).collect())),
            Self::DType(d) => f.write_str(&d.to_string().replace(' ', "")),
        }
    }
}

/// A finite `f64` that compares by its bits.
#[derive(Clone, Copy, Debug)]
pub struct Float(pub f64);

impl PartialEq for Float {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}
impl Eq for Float {}
impl std::hash::Hash for Float {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}
impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Float {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Attributes by name, in alphabetical order.
pub type Attrs = BTreeMap<&'static str, Attr>;

/// What a parameter of the graph is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Given with each step: token ids, positions, page table.
    Input,
    /// A tensor of the checkpoint, or several of one shape stacked along a new first axis: `layers.3.experts.{0..256}.up_proj.weight`.
    Weight { source: String },
    /// Memory that lives from step to step.
    State,
}

/// A parameter; its value id is its index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: String,
    pub kind: ParamKind,
    pub ty: Type,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub op: Op,
    pub operands: Vec<ValueId>,
    pub attrs: Attrs,
    /// Consecutive ids, one per result.
    pub results: Vec<ValueId>,
    /// Types of the results, as inferred.
    pub types: Vec<Type>,
    /// Where it came from: a checkpoint tensor, a rule.
    pub comment: Option<String>,
}

/// A step graph in static single assignment: a node uses parameters and results of earlier nodes only.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Graph {
    pub name: String,
    pub params: Vec<Param>,
    pub nodes: Vec<Node>,
    /// Indices into `nodes`, ascending: a cut stands before that node. Regions between cuts that are equal up to parameters are one layer class.
    pub cuts: Vec<usize>,
    pub outputs: Vec<ValueId>,
    value_count: u32,
}

impl Graph {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a parameter; all parameters come before the first node.
    pub fn param(&mut self, name: impl Into<String>, kind: ParamKind, ty: impl Into<Type>) -> ValueId {
        assert!(self.nodes.is_empty(), "parameters come before nodes");
        self.params.push(Param { name: name.into(), kind, ty: ty.into() });
        self.fresh()
    }

    /// Adds a node whose result types are inferred by the op's type rule.
    pub fn push(&mut self, op: Op, operands: &[ValueId], attrs: Attrs) -> Result<Vec<ValueId>, crate::TypeError> {
        let types: Vec<&Type> = operands.iter().map(|v| self.ty(*v)).collect();
        let results = op.infer(&types, &attrs)?;
        Ok(self.push_typed(op, operands.to_vec(), attrs, results))
    }

    /// Adds a node with given result types; the verifier compares them with the type rule.
    pub fn push_typed(&mut self, op: Op, operands: Vec<ValueId>, attrs: Attrs, types: Vec<Type>) -> Vec<ValueId> {
        let results: Vec<ValueId> = types.iter().map(|_| self.fresh()).collect();
        self.nodes.push(Node { op, operands, attrs, results: results.clone(), types, comment: None });
        results
    }

    /// Ends a region before the next node.
    pub fn cut(&mut self) {
        self.cuts.push(self.nodes.len());
    }

    fn fresh(&mut self) -> ValueId {
        let id = ValueId(self.value_count);
        self.value_count += 1;
        id
    }

    pub fn value_count(&self) -> usize {
        self.value_count as usize
    }

    /// Type of a value. Panics on an id of another graph.
    pub fn ty(&self, v: ValueId) -> &Type {
        if let Some(p) = self.params.get(v.index()) {
            return &p.ty;
        }
        let (node, result) = self.definition(v).expect("value belongs to this graph");
        &self.nodes[node].types[result]
    }

    /// Node and result index that define a value; `None` for parameters. Result ids ascend with the nodes, so a binary search finds it.
    pub fn definition(&self, v: ValueId) -> Option<(usize, usize)> {
        let at = self.nodes.partition_point(|n| n.results.first().is_some_and(|r| *r <= v)).checked_sub(1)?;
        let first = self.nodes[at].results.first()?;
        let result = (v.0 - first.0) as usize;
        (result < self.nodes[at].results.len()).then_some((at, result))
    }

    /// Whether a value depends on weights alone, so that it can be computed at compile time.
    pub fn constant_values(&self) -> Vec<bool> {
        let mut constant = vec![false; self.value_count()];
        for (i, p) in self.params.iter().enumerate() {
            constant[i] = matches!(p.kind, ParamKind::Weight { .. });
        }
        for n in &self.nodes {
            let all = !n.operands.is_empty() && n.operands.iter().all(|v| constant[v.index()]);
            for r in &n.results {
                constant[r.index()] = all;
            }
        }
        constant
    }

    /// Node index ranges of the regions between cuts.
    pub fn regions(&self) -> Vec<std::ops::Range<usize>> {
        let mut bounds = vec![0];
        bounds.extend(self.cuts.iter().copied());
        bounds.push(self.nodes.len());
        bounds.windows(2).map(|w| w[0]..w[1]).filter(|r| !r.is_empty()).collect()
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::text::print(self, f)
    }
}

#[cfg(test)]
mod tests;
