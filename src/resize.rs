//! The same graph with smaller sizes: what a failure, or a check by the evaluator, takes of a model is rarely its width.
//!
//! A size is a constant that stands as a dim of a parameter, the width of a state or an attribute that counts. It is replaced wherever it
//! stands; the types of all nodes are inferred again, and what no type rule accepts is no resized graph. One constant is often tied to
//! others (a projection's width to heads and their dims), so sets of up to three are changed together.

use deepfuse_ir::verify::verify;
use deepfuse_ir::weights::{stacked_count, with_count};
use deepfuse_ir::{Attr, Dim, Graph, Node, ParamKind, Type, TypeError, ValueId};
use indexmap::IndexSet;

/// Sizes and what becomes of them.
pub type Changes = [(u64, u64)];

/// Attributes that hold sizes or positions in dims; all others are axes or numbers.
const SIZES: [&str; 7] = ["count", "groups", "heads", "k", "keep", "len", "start"];

/// The graph with changed sizes; `None` if some type rule or the verifier refuses it.
pub fn resized(graph: &Graph, changes: &Changes) -> Option<Graph> {
    let mut out = Graph::new(graph.name.clone());
    for p in &graph.params {
        let ty = resized_type(&p.ty, changes);
        let kind = match (&p.kind, ty.tensor().and_then(|t| t.shape.first()?.as_fixed())) {
            (ParamKind::Weight { source }, Some(n)) if stacked_count(source).is_some() => {
                ParamKind::Weight { source: with_count(source, n) }
            }
            (kind, _) => kind.clone(),
        };
        out.param(p.name.clone(), kind, ty);
    }
    out.cuts.clone_from(&graph.cuts);
    out.outputs.clone_from(&graph.outputs);
    for n in &graph.nodes {
        push(&mut out, n, changes).ok()?;
    }
    verify(&out).is_ok().then_some(out)
}

/// The node with its attributes changed and its types inferred; value ids stay what they are.
fn push(out: &mut Graph, n: &Node, changes: &Changes) -> Result<Vec<ValueId>, TypeError> {
    let mut attrs = n.attrs.clone();
    for (name, attr) in &mut attrs {
        match attr {
            Attr::Int(i) if SIZES.contains(name) => *i = changed(*i as u64, changes) as i64,
            Attr::Shape(dims) => dims.iter_mut().for_each(|d| *d = changed_dim(*d, changes)),
            Attr::Int(_) | Attr::Float(_) | Attr::Str(_) | Attr::Ints(_) | Attr::DType(_) => {}
        }
    }
    out.push(n.op, &n.operands, attrs)
}

fn resized_type(ty: &Type, changes: &Changes) -> Type {
    let mut ty = ty.clone();
    match &mut ty {
        Type::Tensor(t) => t.shape.iter_mut().for_each(|d| *d = changed_dim(*d, changes)),
        Type::State(s) => s.width = changed(s.width, changes),
    }
    ty
}

fn changed_dim(d: Dim, changes: &Changes) -> Dim {
    Dim { constant: if d.as_fixed().is_some() { changed(d.constant, changes) } else { d.constant }, ..d }
}

/// What a size becomes.
pub fn changed(size: u64, changes: &Changes) -> u64 {
    changes.iter().find(|(from, _)| *from == size).map_or(size, |(_, to)| *to)
}

/// Sizes above `least`, largest first.
pub fn sizes(graph: &Graph, least: u64) -> IndexSet<u64> {
    let of_type = |ty: &Type| match ty {
        Type::Tensor(t) => t.shape.iter().filter_map(Dim::as_fixed).collect(),
        Type::State(s) => vec![s.width],
    };
    let of_attr = |(name, attr): (&&str, &Attr)| match attr {
        Attr::Int(i) if SIZES.contains(name) => vec![*i as u64],
        Attr::Shape(dims) => dims.iter().filter_map(Dim::as_fixed).collect(),
        Attr::Int(_) | Attr::Float(_) | Attr::Str(_) | Attr::Ints(_) | Attr::DType(_) => vec![],
    };
    let params = graph.params.iter().flat_map(|p| of_type(&p.ty));
    let attrs = graph.nodes.iter().flat_map(|n| n.attrs.iter().flat_map(of_attr));
    let mut all: IndexSet<u64> = params.chain(attrs).filter(|n| *n > least).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all
}

/// All ways to halve up to three sizes above `least` at once, fewer sizes first.
pub fn halvings(graph: &Graph, least: u64) -> Vec<Vec<(u64, u64)>> {
    let all: Vec<u64> = sizes(graph, least).into_iter().collect();
    let mut sets: Vec<Vec<u64>> = all.iter().map(|n| vec![*n]).collect();
    for (i, a) in all.iter().enumerate() {
        sets.extend(all[i + 1..].iter().map(|b| vec![*a, *b]));
    }
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate().skip(i + 1) {
            sets.extend(all[j + 1..].iter().map(|c| vec![*a, *b, *c]));
        }
    }
    sets.sort_by_key(Vec::len);
    sets.into_iter().map(|set| set.into_iter().map(|n| (n, n / 2)).collect()).collect()
}
