//! The `quantize` stop: the plain graph with matrices of fewer bits and activations as int8 rows. It runs before fusion; no rewrite
//! introduces a quantization.

use crate::canonicalize::Copy;
use crate::fuse::{FuseError, checked};
use deepfuse_ir::ops::attrs;
use deepfuse_ir::{Attr, DType, Graph, Node, Op, ParamKind, Quant, Sizes, Symbol, TensorType, Type, ValueId};
use indexmap::IndexMap;
use std::fmt;

/// What became of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Name of the parameter.
    pub weight: String,
    /// As the checkpoint holds it.
    pub from: TensorType,
    pub became: Became,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    Quantized(Quant),
    /// Kept, and why.
    Kept(&'static str),
}

/// What the pass did, weight by weight in order of the parameters: what is lost, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantReport {
    pub decisions: Vec<Decision>,
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest.
    Nearest,
    /// By the importance of the columns: a parameter beside each weight, its source has [`IMPORTANCE`] after the weight's.
    Calibrated,
}

/// What follows the name of a weight in that of its importance: the mean squares of what its columns are multiplied by.
pub const IMPORTANCE: &str = ".importance";

/// Rewrites projections over token rows: `linear(x, w)` becomes `linear(quantize(x), quantize(w))`, experts alike.
///
/// * the weight becomes `weights`, the activation int8 rows; a value that several projections read is quantized once
/// * a gather of rows, an embedding, a norm and all other arithmetic stay as they are
/// * kept: the router, whose small errors would choose other experts; projections of cached rows (`kv_b_proj`), which attention either
///   absorbs into the query (then its rows are contracted: a scale a row cannot follow) or expands (then it meets every cached row);
///   it has about 2 % of the bytes of a step
///
/// Errors: [`FuseError::Verify`].
#[allow(clippy::needless_pass_by_value)] // a pass consumes what it replaces
pub fn quantize(graph: Graph, weights: Quant, rounding: Rounding) -> Result<(Graph, QuantReport), FuseError> {
    let choices = choices(&graph);
    let mut copy = Copy::new(&graph);
    let importance =
        if rounding == Rounding::Calibrated { importance(&graph, &choices, &mut copy) } else { IndexMap::new() };
    let mut made: IndexMap<(ValueId, Quant), ValueId> = IndexMap::new();
    for region in graph.regions() {
        copy.cut();
        made.clear();
        for node in &graph.nodes[region] {
            let mut operands = copy.operands(node);
            if let Some((x, w)) = matrix_of(node).filter(|(_, w)| choices[w.index()].is_none()) {
                let codes = activation_of(&graph, x).expect("only such weights are chosen");
                for (old, q) in [(x, codes), (w, weights)] {
                    let new = copy.map[old.index()];
                    let quantized = *made.entry((new, q)).or_insert_with(|| {
                        let attrs = attrs(&[("dtype", Attr::DType(DType::Quant(q)))]);
                        let operands = [Some(new), importance.get(&old).copied()];
                        let operands: Vec<ValueId> = operands.into_iter().flatten().collect();
                        copy.out.push(Op::Quantize, &operands, attrs).expect("floats and matrices can be quantized")[0]
                    });
                    operands.iter_mut().filter(|o| **o == new).for_each(|o| *o = quantized);
                }
            }
            let results = copy.push(node, operands, node.attrs.clone());
            copy.bind(node, &results);
        }
    }
    let result = copy.finish(&graph);
    checked("quantize", &result)?;
    Ok((result, report(&graph, &choices, weights)))
}

/// Adds a parameter for each weight that is quantized; by weight.
fn importance(graph: &Graph, choices: &[Option<&str>], copy: &mut Copy) -> IndexMap<ValueId, ValueId> {
    let chosen = graph.params.iter().enumerate().filter(|(i, _)| choices[*i].is_none());
    let added = chosen.filter_map(|(i, p)| {
        let (ParamKind::Weight { source }, Type::Tensor(w)) = (&p.kind, &p.ty) else { return None };
        let mut shape = w.shape.clone();
        shape.remove(shape.len() - 2);
        let kind = ParamKind::Weight { source: format!("{source}{IMPORTANCE}") };
        let ty = TensorType { dtype: DType::F32, shape, device: w.device };
        Some((ValueId(i as u32), copy.out.param(format!("{}{IMPORTANCE}", p.name), kind, ty)))
    });
    added.collect()
}

/// Activations and matrix of a projection.
fn matrix_of(node: &Node) -> Option<(ValueId, ValueId)> {
    match node.op {
        Op::Linear => Some((node.operands[0], node.operands[1])),
        Op::ExpertLinear => Some((node.operands[0], node.operands[2])),
        _ => None,
    }
}

fn activation_of(graph: &Graph, x: ValueId) -> Option<Quant> {
    graph.ty(x).tensor().and_then(|t| Quant::activation(t.dtype))
}

/// For each value: `None` if it is a matrix to quantize, else why it is kept. All uses of a weight must allow it.
fn choices(graph: &Graph) -> Vec<Option<&'static str>> {
    let mut kept = vec![Some("no matrix of a projection"); graph.value_count()];
    let mut seen = vec![false; graph.value_count()];
    for node in &graph.nodes {
        let matrix = matrix_of(node).filter(|(_, w)| graph.params.get(w.index()).is_some());
        for v in &node.operands {
            let reason = match matrix {
                Some((x, w)) if w == *v => reason_to_keep(graph, node, x),
                _ => Some("no matrix of a projection"),
            };
            let before = kept[v.index()].filter(|_| seen[v.index()]);
            kept[v.index()] = before.or(reason);
            seen[v.index()] = true;
        }
    }
    kept
}

fn reason_to_keep(graph: &Graph, node: &Node, x: ValueId) -> Option<&'static str> {
    let result = node.results[0];
    let chooses = |n: &Node| matches!(n.op, Op::Softmax | Op::Sigmoid) && n.operands.contains(&result);
    let rows = graph.ty(x).tensor().and_then(|t| t.shape.first().copied());
    let tokens = [Symbol::T, Symbol::R].map(deepfuse_ir::Dim::symbol);
    if rows.is_none_or(|d| !tokens.contains(&d)) {
        Some("meets cached rows, or is absorbed into the query by heads")
    } else if graph.nodes.iter().any(chooses) {
        Some("the router")
    } else if activation_of(graph, x).is_none() {
        Some("activations of a type that is not quantized")
    } else {
        None
    }
}

fn report(graph: &Graph, choices: &[Option<&'static str>], weights: Quant) -> QuantReport {
    let decision = |(i, p): (usize, &deepfuse_ir::Param)| {
        let (ParamKind::Weight { .. }, Type::Tensor(from)) = (&p.kind, &p.ty) else { return None };
        let became = choices[i].map_or(Became::Quantized(weights), Became::Kept);
        Some(Decision { weight: p.name.clone(), from: from.clone(), became })
    };
    QuantReport { decisions: graph.params.iter().enumerate().filter_map(decision).collect() }
}

impl Decision {
    /// Bytes of codes and scales before and after.
    pub fn bytes(&self) -> [u64; 2] {
        let of = |t: &TensorType| t.bytes(&Sizes([0; Symbol::COUNT]));
        let to = match self.became {
            Became::Quantized(q) => of(&TensorType { dtype: DType::Quant(q), ..self.from.clone() }),
            Became::Kept(_) => of(&self.from),
        };
        [of(&self.from), to]
    }
}

/// Largest error of a value as a part of its block's largest magnitude.
fn worst(q: Quant) -> &'static str {
    match q.elem {
        deepfuse_ir::Code::I8 => "1/254 of the largest of its row",
        deepfuse_ir::Code::I4 => "1/16 of the largest of its 32 (1/8 for its mirror image)",
        deepfuse_ir::Code::E4m3 => "1/16 of itself",
        deepfuse_ir::Code::E2m1 => "1/4 of itself",
    }
}

/// One line for what is quantized and one for each reason to keep a matrix, `//` before each: a comment of the text form.
impl fmt::Display for QuantReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: IndexMap<String, (usize, [u64; 2], &str)> = IndexMap::new();
        for d in self.decisions.iter().filter(|d| d.from.rank() > 1) {
            let title = match d.became {
                Became::Quantized(q) => {
                    format!("{} -> {}, a weight is off by at most {}", d.from.dtype, DType::Quant(q), worst(q))
                }
                Became::Kept(why) => format!("{} kept: {why}", d.from.dtype),
            };
            let group = groups.entry(title).or_insert((0, [0; 2], &d.weight));
            group.0 += 1;
            (0..2).for_each(|i| group.1[i] += d.bytes()[i]);
        }
        for (title, (count, [before, after], example)) in &groups {
            writeln!(f, "// {count} tensors, {before} -> {after} bytes: {title} (as {example})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
