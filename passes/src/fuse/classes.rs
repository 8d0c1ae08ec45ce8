//! Layer classes: regions between cuts that are equal up to the values that enter them. One e-graph serves all regions of a class, so that
//! the cost of fusion grows with the classes and not with the layers.

use deepfuse_ir::{Graph, ParamKind, Type, ValueId};
use indexmap::IndexMap;
use std::ops::Range;

/// A region of the step graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// In order of the cuts.
    pub index: usize,
    pub nodes: Range<usize>,
    /// Values that enter, in order of first use: the parameters of the class's graph.
    pub inputs: Vec<ValueId>,
    /// Values that leave, and states as this region leaves them: the outputs of the class's graph.
    pub outputs: Vec<ValueId>,
}

/// Regions with one structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerClass {
    /// The region as a graph of its own. Parameters are named by position: `w3` a weight as the checkpoint holds it, `c3` a value computed
    /// from weights, `s3` a state, `x3` anything else. Values are numbered locally; there are no comments.
    pub graph: Graph,
    pub regions: Vec<Region>,
}

impl LayerClass {
    /// What the parameters of the class are in its first region: a weight by its tensors, an input or state by its name, else `value`.
    pub fn input_names(&self, graph: &Graph) -> Vec<String> {
        let name = |v: &ValueId| match graph.params.get(v.index()).map(|p| (&p.kind, &p.name)) {
            Some((ParamKind::Weight { source }, _)) => source.clone(),
            Some((ParamKind::Input | ParamKind::State, name)) => name.clone(),
            None => "value".to_owned(),
        };
        self.regions.first().map_or_else(Vec::new, |r| r.inputs.iter().map(name).collect())
    }
}

/// The layer classes of a graph, in order of their first region.
pub fn classes(graph: &Graph) -> Vec<LayerClass> {
    let (constant, last) = (graph.constant_values(), last_users(graph));
    let mut by_text: IndexMap<String, LayerClass> = IndexMap::new();
    for (index, nodes) in graph.regions().into_iter().enumerate() {
        let outputs = leaving(graph, &nodes, &last);
        let inputs = entering(graph, &nodes);
        let region = Region { index, nodes, inputs, outputs };
        let alone = isolated(graph, &region, &constant);
        let class = by_text.entry(alone.to_string()).or_insert_with(|| LayerClass { graph: alone, regions: vec![] });
        class.regions.push(region);
    }
    by_text.into_values().collect()
}

/// The last node that uses each value; `usize::MAX` for outputs.
fn last_users(graph: &Graph) -> Vec<Option<usize>> {
    let mut last = vec![None; graph.value_count()];
    for (at, n) in graph.nodes.iter().enumerate() {
        for v in &n.operands {
            last[v.index()] = Some(at);
        }
    }
    for v in &graph.outputs {
        last[v.index()] = Some(usize::MAX);
    }
    last
}

fn entering(graph: &Graph, nodes: &Range<usize>) -> Vec<ValueId> {
    let inside = |v: &ValueId| graph.definition(*v).is_some_and(|(at, _)| nodes.contains(&at));
    let mut found: indexmap::IndexSet<ValueId> = indexmap::IndexSet::new();
    for n in &graph.nodes[nodes.clone()] {
        found.extend(n.operands.iter().copied().filter(|v| !inside(v)));
    }
    found.into_iter().collect()
}

/// Results used later. A state counts as used: it lives on.
fn leaving(graph: &Graph, nodes: &Range<usize>, last: &[Option<usize>]) -> Vec<ValueId> {
    let region = &graph.nodes[nodes.clone()];
    let results = region.iter().flat_map(|n| n.results.iter().zip(&n.types));
    let leaves =
        |v: &ValueId, ty: &Type| last[v.index()].is_some_and(|at| at >= nodes.end) || matches!(ty, Type::State(_));
    results.filter(|(v, ty)| leaves(v, ty)).map(|(v, _)| *v).collect()
}

fn isolated(graph: &Graph, region: &Region, constant: &[bool]) -> Graph {
    let mut alone = Graph::new("region");
    let mut local: IndexMap<ValueId, ValueId> = IndexMap::new();
    for (i, v) in region.inputs.iter().enumerate() {
        let weight = graph.params.get(v.index()).is_some_and(|p| matches!(p.kind, ParamKind::Weight { .. }));
        let ty = graph.ty(*v).clone();
        let letter = match (&ty, weight, constant[v.index()]) {
            (Type::State(_), ..) => 's',
            (_, true, _) => 'w',
            (_, _, true) => 'c',
            _ => 'x',
        };
        let name = format!("{letter}{i}");
        let kind = match letter {
            's' => ParamKind::State,
            'w' | 'c' => ParamKind::Weight { source: name.clone() },
            _ => ParamKind::Input,
        };
        local.insert(*v, alone.param(name, kind, ty));
    }
    for n in &graph.nodes[region.nodes.clone()] {
        let operands = n.operands.iter().map(|v| local[v]).collect();
        let results = alone.push_typed(n.op, operands, n.attrs.clone(), n.types.clone());
        local.extend(n.results.iter().copied().zip(results));
    }
    alone.outputs = region.outputs.iter().map(|v| local[v]).collect();
    alone
}
