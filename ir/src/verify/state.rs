//! The life of states: one write each, and reads ordered around it.

use super::{Check, Mark, Place};
use crate::graph::{Node, ParamKind, ValueId};

/// What has happened to a state so far.
struct Life {
    /// The state as it is now.
    now: ValueId,
    /// The node that wrote it.
    written: Option<usize>,
}

pub(super) fn check(c: &mut Check<'_>) {
    let graph = c.graph;
    // The state parameter that a value is a version of.
    let mut root: Vec<Option<usize>> = vec![None; graph.value_count()];
    let mut lives: Vec<Option<Life>> = vec![];
    for (i, p) in graph.params.iter().enumerate() {
        let is_state = p.kind == ParamKind::State;
        root[i] = is_state.then_some(i);
        lives.push(is_state.then_some(Life { now: ValueId(i as u32), written: None }));
    }
    for (i, n) in graph.nodes.iter().enumerate() {
        let writes = n.types.iter().any(|t| t.state().is_some());
        for (k, v) in n.operands.iter().enumerate() {
            let Some(state) = root.get(v.index()).copied().flatten() else { continue };
            let Some(Life { now, written }) = &lives[state] else { continue };
            let (now, written) = (*now, *written);
            let name = c.names.get(ValueId(state as u32));
            if let (true, Some(first)) = (writes, written) {
                let message =
                    format!("{name} is written a second time; {} wrote it", c.names.get(graph.nodes[first].results[0]));
                c.node_error(
                    i,
                    Mark::Operand(k),
                    "ir::state",
                    message,
                    Some("a state is written once in a step".into()),
                );
            } else if now != *v {
                let message = format!("`{}` reads {name} as it was before the write, which has happened", n.op.name());
                let help = format!("read {} instead, or stand before it", c.names.get(now));
                c.node_error(i, Mark::Operand(k), "ir::state", message, Some(help));
            }
        }
        if writes {
            written(c, i, n, &mut root, &mut lives);
        }
    }
    for (i, v) in graph.outputs.iter().enumerate() {
        let life = root.get(v.index()).copied().flatten().and_then(|state| lives[state].as_ref());
        if let Some(life) = life
            && life.now != *v
        {
            let message =
                format!("output {i} is {} as it was before the write {}", c.names.get(*v), c.names.get(life.now));
            c.end_error(Place::Output(i), "ir::state", message, None);
        }
    }
}

/// Every state result is the next version of the state operand with the same rank among the states.
fn written(c: &mut Check<'_>, i: usize, n: &Node, root: &mut [Option<usize>], lives: &mut [Option<Life>]) {
    let states: Vec<usize> = n.operands.iter().filter_map(|v| root.get(v.index()).copied().flatten()).collect();
    let results = n.results.iter().zip(&n.types).filter(|(_, t)| t.state().is_some());
    for (rank, (v, ty)) in results.enumerate() {
        let Some(state) = states.get(rank) else {
            let message =
                format!("the result {} of `{}` is no version of a state operand", c.names.get(*v), n.op.name());
            c.node_error(i, Mark::Results, "ir::state", message, None);
            continue;
        };
        let declared = &c.graph.params[*state].ty;
        if declared != ty {
            let message = format!(
                "{} is declared {declared}, `{}` makes it {ty}",
                c.names.get(ValueId(*state as u32)),
                n.op.name()
            );
            c.node_error(i, Mark::Types, "ir::state", message, None);
        }
        root[v.index()] = Some(*state);
        if let Some(life) = &mut lives[*state] {
            life.now = *v;
            life.written.get_or_insert(i);
        }
    }
}
