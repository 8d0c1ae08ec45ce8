//! The step graph of one bucket: every region replaced by the fused form of its class.

use super::classes::LayerClass;
use super::region::{FusedRegion, Origin};
use deepfuse_ir::{Graph, Node, ParamKind, ValueId};
use indexmap::IndexMap;

/// Puts the fused regions in place. `fused[i]` and `rules[i]` belong to class `i`; `rules[i]` names the rule of each step.
pub fn splice(graph: &Graph, classes: &[LayerClass], fused: &[FusedRegion], rules: &[Vec<String>]) -> Graph {
    let mut out = Graph::new(graph.name.clone());
    for p in &graph.params {
        out.param(p.name.clone(), p.kind.clone(), p.ty.clone());
    }
    let mut new: IndexMap<ValueId, ValueId> =
        (0..graph.params.len() as u32).map(|i| (ValueId(i), ValueId(i))).collect();
    let mut regions: Vec<_> =
        classes.iter().enumerate().flat_map(|(c, class)| class.regions.iter().map(move |r| (c, r))).collect();
    regions.sort_by_key(|(_, r)| r.index);
    for (class, region) in regions {
        if out.cuts.last().copied().unwrap_or(0) < out.nodes.len() {
            out.cut();
        }
        let form = &fused[class];
        let mut local: Vec<ValueId> = region.inputs.iter().map(|v| new[v]).collect();
        for (n, origin) in form.graph.nodes.iter().zip(&form.origins) {
            let operands: Vec<ValueId> = n.operands.iter().map(|v| local[v.index()]).collect();
            let comment = match origin {
                Origin::Plain(at) => graph.nodes[region.nodes.start + at].comment.clone(),
                Origin::Step(step) => Some(fused_comment(&out, &operands, &rules[class][*step])),
            };
            local.extend(out.push_typed(n.op, operands, n.attrs.clone(), n.types.clone()));
            if let Some(node) = out.nodes.last_mut() {
                node.comment = comment;
            }
        }
        for (old, v) in region.outputs.iter().zip(&form.graph.outputs) {
            new.insert(*old, local[v.index()]);
        }
    }
    if graph.cuts.last() == Some(&graph.nodes.len()) && out.cuts.last().copied().unwrap_or(0) < out.nodes.len() {
        out.cut();
    }
    out.outputs = graph.outputs.iter().map(|v| new[v]).collect();
    out
}

/// `model.layers.3.mlp.gate_proj + up_proj [swiglu]`: the weights that the node reads, and the rule that made it.
fn fused_comment(graph: &Graph, operands: &[ValueId], rule: &str) -> String {
    let mut sources: Vec<String> = vec![];
    for v in operands {
        collect_sources(graph, *v, &mut sources);
    }
    let mut text = String::new();
    for (i, source) in sources.iter().enumerate() {
        if i == 0 {
            text.push_str(source);
        } else {
            text.push_str(" + ");
            text.push_str(&source[shared_prefix(&sources[0], source)..]);
        }
    }
    if text.is_empty() { format!("[{rule}]") } else { format!("{text} [{rule}]") }
}

/// Tensors that a value depends on, if it depends on weights alone.
fn collect_sources(graph: &Graph, v: ValueId, found: &mut Vec<String>) {
    if let Some(p) = graph.params.get(v.index()) {
        if let ParamKind::Weight { source } = &p.kind {
            let name = source.strip_suffix(".weight").unwrap_or(source).to_owned();
            if !found.contains(&name) {
                found.push(name);
            }
        }
        return;
    }
    let Some(node) = graph.definition(v).map(|(at, _)| &graph.nodes[at]) else { return };
    if weights_only(graph, node) {
        for operand in &node.operands {
            collect_sources(graph, *operand, found);
        }
    }
}

fn weights_only(graph: &Graph, node: &Node) -> bool {
    !node.operands.is_empty()
        && node.operands.iter().all(|v| match (graph.params.get(v.index()), graph.definition(*v)) {
            (Some(p), _) => matches!(p.kind, ParamKind::Weight { .. }),
            (None, Some((at, _))) => weights_only(graph, &graph.nodes[at]),
            (None, None) => false,
        })
}

/// Bytes up to and with the last dot that both names share.
fn shared_prefix(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    a.as_bytes()[..same].iter().rposition(|c| *c == b'.').map_or(0, |dot| dot + 1)
}
