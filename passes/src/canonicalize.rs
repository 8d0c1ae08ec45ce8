//! Canonical form: what rules match on. Identities and duplicates are gone, operands of commutative operations are ordered, nothing is dead.

use crate::fuse::{FuseError, checked};
use deepfuse_ir::premise::canonical_equation;
use deepfuse_ir::{Attr, Attrs, AttrsExt, DType, Graph, Node, Op, ValueId};
use indexmap::IndexMap;

/// Brings a graph into canonical form. Bits of the result do not change.
///
/// * no conversion, slice, reshape, permutation, transfer or scale that gives back its operand; a widening undone is the operand
/// * no reshape of a reshape, no slice of a slice of the same axis
/// * one value a region for equal operations on equal operands; cuts stay, so that regions of one class stay equal
/// * operands of `add` and `mul` of one type: a gate before what it gates, a contraction over more axes before one over fewer, else in order of definition
/// * no node that nothing uses; a write of a state is always used
///
/// Errors: [`FuseError::Verify`].
#[allow(clippy::needless_pass_by_value)] // a pass consumes what it replaces
pub fn canonicalize(graph: Graph) -> Result<Graph, FuseError> {
    let result = without_dead(&simplified(&graph));
    checked("canonicalize", &result)?;
    Ok(result)
}

/// A graph that grows by copying nodes of another.
pub(crate) struct Copy {
    pub out: Graph,
    /// New id of every value of the old graph.
    pub map: Vec<ValueId>,
}

impl Copy {
    pub fn new(graph: &Graph) -> Self {
        let mut out = Graph::new(graph.name.clone());
        for p in &graph.params {
            out.param(p.name.clone(), p.kind.clone(), p.ty.clone());
        }
        Self { out, map: (0..graph.value_count() as u32).map(ValueId).collect() }
    }

    pub fn operands(&self, node: &Node) -> Vec<ValueId> {
        node.operands.iter().map(|v| self.map[v.index()]).collect()
    }

    pub fn push(&mut self, node: &Node, operands: Vec<ValueId>, attrs: Attrs) -> Vec<ValueId> {
        let results = self.out.push_typed(node.op, operands, attrs, node.types.clone());
        if let Some(n) = self.out.nodes.last_mut() {
            n.comment.clone_from(&node.comment);
        }
        results
    }

    pub fn bind(&mut self, node: &Node, results: &[ValueId]) {
        for (old, new) in node.results.iter().zip(results) {
            self.map[old.index()] = *new;
        }
    }

    /// A cut, unless the region before it is empty.
    pub fn cut(&mut self) {
        if self.out.cuts.last().copied().unwrap_or(0) < self.out.nodes.len() {
            self.out.cut();
        }
    }

    pub fn finish(mut self, graph: &Graph) -> Graph {
        self.out.outputs = graph.outputs.iter().map(|v| self.map[v.index()]).collect();
        self.out
    }
}

fn simplified(graph: &Graph) -> Graph {
    let mut copy = Copy::new(graph);
    let mut known: IndexMap<(Op, Vec<ValueId>, Attrs), Vec<ValueId>> = IndexMap::new();
    for region in graph.regions() {
        copy.cut();
        known.clear();
        for node in &graph.nodes[region] {
            let (mut operands, mut attrs) = (copy.operands(node), node.attrs.clone());
            compose(&copy.out, node.op, &mut operands, &mut attrs);
            order(&copy.out, node.op, &mut operands);
            let results = if let Some(same) = identity(&copy.out, node, &operands, &attrs) {
                vec![same]
            } else {
                let key = (node.op, operands.clone(), attrs.clone());
                let pure = node.types.iter().all(|t| t.state().is_none());
                match known.get(&key).filter(|_| pure) {
                    Some(same) => same.clone(),
                    None => known.entry(key).insert_entry(copy.push(node, operands, attrs)).get().clone(),
                }
            };
            copy.bind(node, &results);
        }
    }
    copy.finish(graph)
}

fn definition(graph: &Graph, v: ValueId) -> Option<&Node> {
    graph.definition(v).map(|(at, _)| &graph.nodes[at])
}

/// A reshape reads what another reshape reads; a slice of a slice is one slice.
fn compose(graph: &Graph, op: Op, operands: &mut [ValueId], attrs: &mut Attrs) {
    while let Some(inner) = operands.first().and_then(|v| definition(graph, *v)).filter(|n| n.op == op) {
        match op {
            Op::Reshape => {}
            Op::Slice if inner.attrs.int("axis") == attrs.int("axis") => {
                let (Some(a), Some(b)) = (inner.attrs.int("start"), attrs.int("start")) else { return };
                attrs.insert("start", Attr::Int(a + b));
            }
            _ => return,
        }
        operands[0] = inner.operands[0];
    }
}

/// Orders the operands of a commutative operation; operands of two types have their places by the type rule.
fn order(graph: &Graph, op: Op, operands: &mut [ValueId]) {
    if !matches!(op, Op::Add | Op::Mul) || graph.ty(operands[0]) != graph.ty(operands[1]) {
        return;
    }
    let key = |v: &ValueId| {
        let node = definition(graph, *v);
        let gate = node.is_some_and(|n| matches!(n.op, Op::Silu | Op::Sigmoid));
        let equation = node.and_then(|n| n.attrs.str("eq")).and_then(canonical_equation);
        (!gate, equation, *v)
    };
    operands.sort_by_key(key);
}

/// The value that the node gives back unchanged.
fn identity(graph: &Graph, node: &Node, operands: &[ValueId], attrs: &Attrs) -> Option<ValueId> {
    let x = *operands.first()?;
    let unchanged = graph.ty(x) == &node.types[0];
    match node.op {
        Op::Reshape | Op::Slice | Op::Transfer => unchanged.then_some(x),
        Op::Convert if unchanged => Some(x),
        Op::Convert => {
            // f32 holds every bf16 and f16: there and back is where it began.
            let wide = definition(graph, x).filter(|n| n.op == Op::Convert)?;
            let begin = wide.operands[0];
            let widened = wide.types[0].tensor().is_some_and(|t| t.dtype == DType::F32);
            (widened && graph.ty(begin) == &node.types[0]).then_some(begin)
        }
        Op::Scale => (attrs.float("value") == Some(1.0)).then_some(x),
        Op::Permute => attrs.ints("axes").is_some_and(|a| a.iter().copied().eq(0..a.len() as i64)).then_some(x),
        _ => None,
    }
}

fn without_dead(graph: &Graph) -> Graph {
    let mut live = vec![false; graph.value_count()];
    for v in &graph.outputs {
        live[v.index()] = true;
    }
    let mut keep = vec![false; graph.nodes.len()];
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        keep[at] = node.results.iter().any(|r| live[r.index()]) || node.types.iter().any(|t| t.state().is_some());
        if keep[at] {
            for v in &node.operands {
                live[v.index()] = true;
            }
        }
    }
    let mut copy = Copy::new(graph);
    for region in graph.regions() {
        copy.cut();
        for at in region.filter(|at| keep[*at]) {
            let node = &graph.nodes[at];
            let results = copy.push(node, copy.operands(node), node.attrs.clone());
            copy.bind(node, &results);
        }
    }
    copy.finish(graph)
}
