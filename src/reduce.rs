//! Shrinks a graph that fails, by delta debugging: outputs and ranges of nodes are left out as long as the failure remains.
//!
//! A node that is left out becomes an input of its type, so that what used it stays well-typed; a write becomes the state as it was. If it was
//! an output, its operands are outputs instead. Whatever nothing uses then is left out too. Then sizes are halved. The order of attempts is
//! fixed: the same graph and failure give the same result.

use crate::resize::{halvings, resized, sizes};
use deepfuse_ir::verify::verify;
use deepfuse_ir::{Graph, ParamKind, Type, ValueId};
use indexmap::{IndexMap, IndexSet};

/// The smallest graph found that `fails` still. Of a graph that the verifier accepts come only graphs that it accepts.
pub fn reduce(graph: &Graph, fails: &mut dyn FnMut(&Graph) -> bool) -> Graph {
    let well_formed = verify(graph).is_ok();
    let fails = &mut |g: &Graph| (!well_formed || verify(g).is_ok()) && fails(g);
    let mut best = without(graph, &IndexSet::new(), &graph.outputs);
    if !fails(&best) {
        best = graph.clone(); // the failure lies in what nothing uses
    }
    loop {
        let before = size(&best);
        best = fewer_outputs(best, fails);
        best = fewer_nodes(best, fails);
        best = smaller(best, fails);
        if size(&best) >= before {
            return best;
        }
    }
}

/// What is made smaller, the first thing first.
fn size(graph: &Graph) -> (usize, usize, usize, u64) {
    let widths = sizes(graph, 1).iter().sum();
    (graph.nodes.len(), graph.outputs.len(), graph.params.len() + graph.cuts.len(), widths)
}

fn fewer_outputs(mut best: Graph, fails: &mut dyn FnMut(&Graph) -> bool) -> Graph {
    let mut at = 0;
    while best.outputs.len() > 1 && at < best.outputs.len() {
        let mut outputs = best.outputs.clone();
        outputs.remove(at);
        let smaller = without(&best, &IndexSet::new(), &outputs);
        if fails(&smaller) {
            best = smaller;
        } else {
            at += 1;
        }
    }
    best
}

/// Ranges of half the nodes, then of a quarter, .., then single nodes; then no cuts.
fn fewer_nodes(mut best: Graph, fails: &mut dyn FnMut(&Graph) -> bool) -> Graph {
    let mut len = best.nodes.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        while start < best.nodes.len() {
            let range: IndexSet<usize> = (start..(start + len).min(best.nodes.len())).collect();
            let smaller = without(&best, &range, &best.outputs);
            if size(&smaller) < size(&best) && fails(&smaller) {
                best = smaller;
            } else {
                start += len;
            }
        }
        if len == 1 {
            break;
        }
        len = len.div_ceil(2);
    }
    let mut uncut = best.clone();
    uncut.cuts.clear();
    if !best.cuts.is_empty() && fails(&uncut) { uncut } else { best }
}

/// Halves sizes as long as the failure remains.
fn smaller(mut best: Graph, fails: &mut dyn FnMut(&Graph) -> bool) -> Graph {
    while let Some(half) = halvings(&best, 1).iter().filter_map(|c| resized(&best, c)).find(|g| fails(g)) {
        best = half;
    }
    best
}

/// The graph of these outputs, or of what they were made of, without some nodes.
fn without(graph: &Graph, left_out: &IndexSet<usize>, outputs: &[ValueId]) -> Graph {
    let outputs = moved(graph, left_out, outputs);
    let used = used(graph, left_out, &outputs);
    let mut out = Graph::new(graph.name.clone());
    let mut new: IndexMap<ValueId, ValueId> = IndexMap::new();
    for (i, p) in graph.params.iter().enumerate().filter(|(i, _)| used.contains(&ValueId(*i as u32))) {
        new.insert(ValueId(i as u32), out.param(p.name.clone(), p.kind.clone(), p.ty.clone()));
    }
    let taken: IndexSet<String> = graph.params.iter().map(|p| p.name.clone()).collect();
    for at in left_out {
        let n = &graph.nodes[*at];
        for (v, ty) in
            n.results.iter().zip(&n.types).filter(|(v, ty)| used.contains(*v) && matches!(ty, Type::Tensor(_)))
        {
            let mut name = format!("v{}", v.0);
            while taken.contains(&name) || out.params.iter().any(|p| p.name == name) {
                name.push('_');
            }
            new.insert(*v, out.param(name, ParamKind::Input, ty.clone()));
        }
    }
    for (at, n) in graph.nodes.iter().enumerate() {
        if graph.cuts.contains(&at) && !out.nodes.is_empty() && out.cuts.last() != Some(&out.nodes.len()) {
            out.cut();
        }
        if left_out.contains(&at) {
            // A state that is not written stays as it was.
            let was = n.operands.iter().find(|v| graph.ty(**v).state().is_some()).and_then(|v| new.get(v).copied());
            for v in n.results.iter().filter(|v| !new.contains_key(*v)).copied().collect::<Vec<_>>() {
                new.extend(was.map(|state| (v, state)));
            }
        } else if n.results.iter().any(|v| used.contains(v)) {
            let operands = n.operands.iter().map(|v| new[v]).collect();
            let results = out.push_typed(n.op, operands, n.attrs.clone(), n.types.clone());
            new.extend(n.results.iter().copied().zip(results));
        }
    }
    out.cuts.retain(|c| *c < out.nodes.len());
    out.outputs = outputs.iter().map(|v| new[v]).collect();
    out
}

/// Outputs that stay, and the operands of those that do not.
fn moved(graph: &Graph, left_out: &IndexSet<usize>, outputs: &[ValueId]) -> Vec<ValueId> {
    let (mut open, mut found) = (outputs.iter().rev().copied().collect::<Vec<_>>(), IndexSet::new());
    while let Some(v) = open.pop() {
        match graph.definition(v).filter(|(at, _)| left_out.contains(at)) {
            None => drop(found.insert(v)),
            Some((at, _)) => {
                let operands = graph.nodes[at].operands.iter().rev().copied();
                open.extend(operands.filter(|v| graph.definition(*v).is_some() && graph.ty(*v).tensor().is_some()));
            }
        }
    }
    found.into_iter().collect()
}

/// Values that outputs depend on, through nodes that stay, and through the states of those that do not.
fn used(graph: &Graph, left_out: &IndexSet<usize>, outputs: &[ValueId]) -> IndexSet<ValueId> {
    let (mut open, mut used) = (outputs.to_vec(), IndexSet::new());
    while let Some(v) = open.pop() {
        if !used.insert(v) {
            continue;
        }
        let Some((at, result)) = graph.definition(v) else { continue };
        let n = &graph.nodes[at];
        let state = |v: &&ValueId| graph.ty(**v).state().is_some();
        match (left_out.contains(&at), &n.types[result]) {
            (true, Type::Tensor(_)) => {}
            (true, Type::State(_)) => open.extend(n.operands.iter().filter(state)),
            (false, _) => open.extend(&n.operands),
        }
    }
    used
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pipeline::{build, open};
    use deepfuse_ir::{Attr, Op};

    fn plain(name: &str) -> Graph {
        let req = crate::explain::tests::request(name, deepfuse_passes::fuse::Numerics::Requantizes, &[]);
        build(&open(&req).unwrap(), &req).unwrap()
    }

    /// A wrong rule that breaks a SiLU whose product is projected down: three operations of a model of a hundred.
    fn broken(g: &Graph) -> bool {
        let of = |v: ValueId, op: Op| g.definition(v).map(|(at, _)| &g.nodes[at]).filter(|n| n.op == op);
        g.nodes.iter().filter(|n| n.op == Op::Linear).any(|n| {
            of(n.operands[0], Op::Mul).is_some_and(|mul| mul.operands.iter().any(|v| of(*v, Op::Silu).is_some()))
        })
    }

    #[test]
    fn a_failure_is_reduced_to_what_it_takes() {
        let graph = plain("tiny-v3");
        let mut asked = 0;
        let small = reduce(&graph, &mut |g| {
            asked += 1;
            broken(g)
        });
        assert!(broken(&small) && verify(&small).is_ok(), "{small}");
        assert_eq!(small.nodes.len(), 3, "{small}");
        assert!(small.outputs.len() == 1 && small.cuts.is_empty() && small.params.len() <= 3, "{small}");
        assert!(asked < 600, "asked {asked} times");
        assert_eq!(deepfuse_ir::text::parse(&small.to_string()).unwrap(), small);
        assert_eq!(reduce(&graph, &mut |g| broken(g)), small);
        assert_eq!(reduce(&small, &mut |g| broken(g)), small);
        assert!(sizes(&small, 1).is_empty(), "every size is 1: {small}");
    }

    /// What fails deep inside a graph is found although its outputs lie elsewhere, and what sizes a failure takes stays.
    #[test]
    fn outputs_move_and_needed_sizes_stay() {
        let graph = plain("tiny-v3");
        let small = reduce(&graph, &mut |g| g.nodes.iter().any(|n| n.op == Op::TopK && n.attrs["k"] > Attr::Int(1)));
        assert_eq!(small.nodes.len(), 1, "{small}");
        let experts = small.params[0].ty.tensor().unwrap().shape[1].as_fixed().unwrap();
        assert!((2..4).contains(&experts), "{small}");
    }

    /// A graph that the verifier refuses can be reduced too: here by its error.
    #[test]
    fn a_graph_that_is_not_well_formed_is_reduced() {
        let mut graph = plain("tiny-v2");
        let write = graph.nodes.iter().find(|n| n.op == Op::Write).unwrap().clone();
        graph.push_typed(Op::Write, write.operands, write.attrs, write.types);
        let twice = |g: &Graph| verify(g).is_err_and(|e| e.0.iter().any(|e| e.code == "ir::state"));
        assert!(twice(&graph));
        let last = graph.value_count() as u32 - 1;
        graph.outputs.push(ValueId(last));
        let small = reduce(&graph, &mut |g| twice(g));
        assert!(twice(&small) && small.nodes.len() <= 3, "{small}");
    }

    /// What stays of a failure in the cache is a state that is well-formed.
    #[test]
    fn states_stay_well_formed() {
        let has = |g: &Graph, op: Op| g.nodes.iter().any(|n| n.op == op);
        let small = reduce(&plain("tiny-v2"), &mut |g| has(g, Op::Read));
        assert_eq!(small.nodes.len(), 1, "{small}");
        let small = reduce(&plain("tiny-v2"), &mut |g| has(g, Op::Read) && has(g, Op::Write));
        assert_eq!(small.nodes.len(), 2, "{small}");
    }
}
