//! The reference evaluator: what every kernel and every rewrite is compared with.

use crate::graph::{Graph, ParamKind, ValueId};
use crate::tensor::Tensor;
use crate::types::Sizes;
use indexmap::IndexMap;

/// Why a graph could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("parameter %{0} was not given")]
    Missing(String),
}

/// Gives a parameter's value: inputs, weights and states by name and kind.
pub trait Values {
    fn value(&mut self, name: &str, kind: &ParamKind) -> Option<Tensor>;
}

impl<F: FnMut(&str, &ParamKind) -> Option<Tensor>> Values for F {
    fn value(&mut self, name: &str, kind: &ParamKind) -> Option<Tensor> {
        self(name, kind)
    }
}

/// Results of one step.
#[derive(Clone, Debug)]
pub struct Evaluated {
    pub outputs: Vec<Tensor>,
    /// States after the step, by parameter name.
    pub states: IndexMap<String, Tensor>,
}

/// Evaluates one step. `keep` sees every value as it is computed (for comparing layers); values are freed after their last use.
pub fn evaluate(
    graph: &Graph,
    sizes: &Sizes,
    values: &mut dyn Values,
    keep: &mut dyn FnMut(ValueId, &Tensor),
) -> Result<Evaluated, EvalError> {
    let mut known: Vec<Option<Tensor>> = vec![None; graph.value_count()];
    let last = last_uses(graph);
    // The state each state value belongs to.
    let mut owner: Vec<Option<usize>> = vec![None; graph.value_count()];
    let mut states = IndexMap::new();
    for (i, p) in graph.params.iter().enumerate() {
        if p.kind == ParamKind::State {
            owner[i] = Some(i);
        }
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        for v in &node.operands {
            if known[v.index()].is_none() {
                let p = &graph.params[v.index()];
                known[v.index()] =
                    Some(values.value(&p.name, &p.kind).ok_or_else(|| EvalError::Missing(p.name.clone()))?);
            }
        }
        let operands: Vec<&Tensor> =
            node.operands.iter().map(|v| known[v.index()].as_ref().expect("an earlier value")).collect();
        let results = node.op.eval(&operands, &node.attrs, sizes);
        for ((id, ty), tensor) in node.results.iter().zip(&node.types).zip(results) {
            keep(*id, &tensor);
            if ty.state().is_some() {
                let state =
                    node.operands.iter().find_map(|v| owner[v.index()]).expect("a state result has a state operand");
                owner[id.index()] = Some(state);
                states.insert(graph.params[state].name.clone(), tensor.clone());
            }
            known[id.index()] = Some(tensor);
        }
        for v in &node.operands {
            if last[v.index()] == Some(at) {
                known[v.index()] = None;
            }
        }
    }
    for v in &graph.outputs {
        if let (None, Some(p)) = (&known[v.index()], graph.params.get(v.index())) {
            known[v.index()] = Some(values.value(&p.name, &p.kind).ok_or_else(|| EvalError::Missing(p.name.clone()))?);
        }
    }
    let output = |v: &ValueId| known[v.index()].clone().expect("outputs are kept to the end");
    Ok(Evaluated { outputs: graph.outputs.iter().map(output).collect(), states })
}

/// Last node that uses each value; `None` for outputs and unused values.
fn last_uses(graph: &Graph) -> Vec<Option<usize>> {
    let mut last = vec![None; graph.value_count()];
    for (at, node) in graph.nodes.iter().enumerate() {
        for v in &node.operands {
            last[v.index()] = Some(at);
        }
    }
    for v in &graph.outputs {
        last[v.index()] = None;
    }
    last
}

#[cfg(test)]
mod tests;
