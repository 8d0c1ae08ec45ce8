//! Graphs one step away from regions of models: another value, two that are exchanged, another attribute, an operation in between, another
//! operation. Nobody wrote down which rules may still fire in them; those that do must be right, by the evaluator. The search may end at its limit
//! there: rows of rows of a value that conversions made equal to itself go on for ever.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the steps are counted on stdout

use super::{Random, confirmed, graph_of};
use crate::canonicalize;
use crate::fuse::{Numerics, rules};
use deepfuse_ir::verify::verify;
use deepfuse_ir::{Attr, Attrs, DType, Dim, Float, Graph, Op, ParamKind, Quant, Symbol, Type, ValueId};

/// One step.
#[derive(Clone, Debug)]
enum Step {
    /// Operand `at` of a node is a new parameter of the same type: another token's scale, another cache, other positions.
    Other { node: usize, at: usize },
    /// Two operands of one type, of one node or two, are exchanged: gate and up, keys and values.
    Exchanged([(usize, usize); 2]),
    /// An attribute is another one: eps, axis, the start of a range, an equation.
    Attribute { node: usize, name: &'static str, value: Attr },
    /// An operation stands in front of operand `at`: a quantization, a rounding, an activation, a factor, other rows.
    Between { node: usize, at: usize, by: usize },
    /// Another operation of the same operands.
    Operation { node: usize, op: Op },
}

const KINDS: [&str; 5] = ["other value", "exchanged", "attribute", "in between", "operation"];

impl Step {
    /// A step of this kind from a graph; it need not be well-typed.
    fn of(kind: usize, graph: &Graph, r: &mut Random) -> Option<Self> {
        let any = |r: &mut Random| {
            let node = r.below(graph.nodes.len() as u64) as usize;
            (node, r.below(graph.nodes[node].operands.len() as u64) as usize)
        };
        let (node, at) = any(r);
        let n = &graph.nodes[node];
        Some(match kind {
            0 => Self::Other { node, at },
            1 => Self::Exchanged([(node, at), any(r)]),
            2 => {
                let (name, value) = n.attrs.iter().nth(r.below(n.attrs.len().max(1) as u64) as usize)?;
                Self::Attribute { node, name, value: other(value, r)? }
            }
            3 => Self::Between { node, at, by: r.below(5) as usize },
            _ => {
                let op = match n.op {
                    Op::Silu => r.of(&[Op::Sigmoid, Op::Softmax]),
                    Op::Sigmoid => r.of(&[Op::Silu, Op::Softmax]),
                    Op::Softmax => r.of(&[Op::Sigmoid, Op::Silu]),
                    Op::Add => Op::Mul,
                    Op::Mul => Op::Add,
                    _ => return None,
                };
                Self::Operation { node, op }
            }
        })
    }
}

/// A value of the same kind that is near.
fn other(value: &Attr, r: &mut Random) -> Option<Attr> {
    Some(match value {
        Attr::Int(n) => Attr::Int(n + r.of(&[-1, 1])),
        Attr::Float(x) => Attr::Float(Float(if x.0 == 0.0 { 0.5 } else { x.0 * 1.5 })),
        Attr::Ints(all) if all.len() > 1 => {
            let (mut all, at) = (all.clone(), r.below(all.len() as u64 - 1) as usize);
            all.swap(at, at + 1);
            Attr::Ints(all)
        }
        Attr::Str(word) => Attr::Str(match word.as_str() {
            "max" => "top2".into(),
            "top2" => "max".into(),
            "zero" => "neg_inf".into(),
            "neg_inf" => "zero".into(),
            equation => {
                let (mut letters, at) = (equation.as_bytes().to_vec(), r.below(equation.len() as u64 - 1) as usize);
                if !letters[at].is_ascii_lowercase() || !letters[at + 1].is_ascii_lowercase() {
                    return None;
                }
                letters.swap(at, at + 1);
                String::from_utf8(letters).ok()?
            }
        }),
        Attr::Ints(_) | Attr::Shape(_) | Attr::DType(_) => return None,
    })
}

/// The graph with one step taken; `None` if no type rule allows it.
fn taken(graph: &Graph, step: &Step) -> Option<Graph> {
    let mut out = Graph::new(graph.name.clone());
    for p in &graph.params {
        out.param(p.name.clone(), p.kind.clone(), p.ty.clone());
    }
    let mut more = None;
    match step {
        Step::Other { node, at } => more = Some(twin(graph, *node, *at, &mut out)?),
        Step::Between { by: 0, .. } => {
            let seq = graph.params.iter().position(|p| p.name == "seq").map(|i| ValueId(i as u32));
            let ty = deepfuse_ir::TensorType::new(DType::I32, [Dim::symbol(Symbol::T)]);
            more = Some(seq.unwrap_or_else(|| out.param("seq", ParamKind::Input, ty)));
        }
        Step::Exchanged([(n1, a1), (n2, a2)]) => {
            let values = [graph.nodes[*n1].operands[*a1], graph.nodes[*n2].operands[*a2]];
            let early = |v: ValueId, node: usize| graph.definition(v).is_none_or(|(at, _)| at < node);
            let index = graph.ty(values[0]).tensor().is_some_and(|t| t.dtype == DType::I32);
            let equal = values[0] == values[1] || graph.ty(values[0]) != graph.ty(values[1]);
            if index || equal || !early(values[0], *n2) || !early(values[1], *n1) {
                return None;
            }
        }
        _ => {}
    }
    let mut moved: Vec<ValueId> = (0..graph.params.len()).map(|i| ValueId(i as u32)).collect();
    for (i, n) in graph.nodes.iter().enumerate() {
        let mut operands: Vec<ValueId> = n.operands.iter().map(|v| moved[v.index()]).collect();
        let (mut op, mut attrs) = (n.op, n.attrs.clone());
        match step {
            Step::Other { node, at } if *node == i => operands[*at] = more?,
            Step::Exchanged(both) => {
                for (here, there) in [(both[0], both[1]), (both[1], both[0])] {
                    if here.0 == i {
                        operands[here.1] = moved[graph.nodes[there.0].operands[there.1].index()];
                    }
                }
            }
            Step::Attribute { node, name, value } if *node == i => drop(attrs.insert(name, value.clone())),
            Step::Between { node, at, by } if *node == i => operands[*at] = passed(&mut out, operands[*at], *by, more)?,
            Step::Operation { node, op: another } if *node == i => op = *another,
            _ => {}
        }
        moved.extend(out.push(op, &operands, attrs).ok()?);
    }
    out.outputs = graph.outputs.iter().map(|v| moved[v.index()]).collect();
    verify(&out).ok()?;
    Some(out)
}

/// A parameter of the type of an operand. Indices only where any will do.
fn twin(graph: &Graph, node: usize, at: usize, out: &mut Graph) -> Option<ValueId> {
    let (n, ty) = (&graph.nodes[node], graph.ty(graph.nodes[node].operands[at]).clone());
    let kind = match (&ty, graph.params.get(n.operands[at].index()).map(|p| &p.kind)) {
        (_, Some(ParamKind::Weight { source })) => ParamKind::Weight { source: format!("other.{source}") },
        (Type::State(_), _) => ParamKind::State,
        (Type::Tensor(t), _) if t.dtype == DType::I32 => {
            let any = [(Op::Rope, 1), (Op::CausalMask, 1), (Op::ExpertLinear, 1), (Op::Embed, 0), (Op::Gather, 1)];
            any.contains(&(n.op, at)).then_some(ParamKind::Input)?
        }
        (Type::Tensor(t), _) => t.dtype.is_float().then_some(ParamKind::Input)?,
    };
    Some(out.param("other", kind, ty))
}

/// The value behind an operation of one operand.
fn passed(out: &mut Graph, x: ValueId, by: usize, rows: Option<ValueId>) -> Option<ValueId> {
    let t = out.ty(x).tensor()?.clone();
    let attr = |name: &'static str, value: Attr| Attrs::from([(name, value)]);
    let codes = DType::Quant(if t.dtype == DType::F32 { Quant::INT8_R } else { Quant::INT8_R_BF16 });
    let made = match by {
        0 if t.shape.first() == Some(&Dim::symbol(Symbol::T)) => out.push(Op::GatherRows, &[x, rows?], Attrs::new()),
        1 => out.push(Op::Quantize, &[x], attr("dtype", Attr::DType(codes))),
        2 => out.push(Op::Silu, &[x], Attrs::new()),
        3 => out.push(Op::Scale, &[x], attr("value", Attr::Float(Float(0.5)))),
        4 => {
            let narrow = out.push(Op::Convert, &[x], attr("dtype", Attr::DType(DType::F16))).ok()?;
            out.push(Op::Convert, &narrow, attr("dtype", Attr::DType(t.dtype)))
        }
        _ => return None,
    };
    made.ok().map(|v| v[0])
}

/// Hundreds of neighbours of regions by each kind of step; in every one, both sides of all steps agree.
#[test]
fn what_fires_one_step_away_is_right() {
    let mut seen = [0; KINDS.len()];
    for seed in 0..1000 {
        let (graph, mut r) = (graph_of(seed), Random(seed ^ 0x5DEE_CE66));
        let kind = seed as usize % KINDS.len();
        let found = (0..256).find_map(|_| {
            let step = Step::of(kind, &graph, &mut r)?;
            Some((taken(&graph, &step)?, step))
        });
        let Some((neighbour, step)) = found else { continue };
        let neighbour = if graph.name == "chains" { neighbour } else { canonicalize(neighbour).unwrap() };
        seen[kind] += 1;
        if let Err(e) = confirmed(&neighbour, seed, Numerics::Requantizes, rules::all()) {
            panic!("seed {seed}, {step:?}: {e}\n{neighbour}");
        }
    }
    println!("neighbours: {:?}", KINDS.iter().zip(seen).collect::<Vec<_>>());
    assert!(seen.iter().all(|n| *n >= 60), "{seen:?}");
}
