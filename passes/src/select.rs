//! Kernel selection: operations become calls of kernels, weights become stored forms, views become offsets.

use deepfuse_ir::kernel::{appended_columns, view_of};
use deepfuse_ir::weights::{StoredWeight, WeightExpr};
use deepfuse_ir::{Answer, Bucket, Call, Catalog, Graph, KernelSpec, Layout, Operand, ParamKind, Type, ValueId};
use indexmap::IndexSet;

/// Where a kernel argument comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A batch input, by name.
    Input(String),
    /// A result of an earlier call, and the elements skipped by views.
    Value { value: usize, offset: u64 },
    /// A state, by index into [`Selection::states`].
    State(usize),
    /// A stored weight, by index into [`Weights`].
    Weight(usize),
}

/// One kernel call.
#[derive(Clone, Debug)]
pub struct KernelCall {
    pub spec: KernelSpec,
    pub inputs: Vec<Source>,
    /// Index into [`Selection::values`] of each result, `None` for a state.
    pub outputs: Vec<Option<usize>>,
    /// Where in the model: the checkpoint tensor the node came from, else the op's name.
    pub label: String,
    /// Estimated or measured cost in the bucket, nanoseconds.
    pub nanos: f64,
}

/// Stored weights of all buckets. Equal expressions in equal layouts are stored once.
pub type Weights = IndexSet<StoredWeight>;

/// The calls of one bucket, in order.
#[derive(Clone, Debug)]
pub struct Selection {
    pub bucket: Bucket,
    pub calls: Vec<KernelCall>,
    /// Types of the values that calls produce.
    pub values: Vec<deepfuse_ir::TensorType>,
    pub states: Vec<(String, deepfuse_ir::StateType)>,
    /// The value that is the step's result.
    pub logits: usize,
}

/// Why a graph cannot be turned into kernels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No kernel computes this node on the target.
    #[error("no kernel computes `{0}`")]
    NoKernel(String),
    /// The graph's outputs are not one f32 tensor that a kernel computes.
    #[error("the step must have one result, f32 logits computed by a kernel; found {0}")]
    Output(String),
}

#[derive(Clone, Debug)]
enum Place {
    Input(String),
    State(usize),
    Constant,
    Value { value: usize, offset: u64, layout: Layout },
}

/// Selects kernels for one bucket's graph. Weights go into `weights`, shared by all buckets.
///
/// Errors: [`SelectError::NoKernel`] if the catalog knows no kernel for a node that is no view and no constant.
pub fn select(
    graph: &Graph,
    catalog: &dyn Catalog,
    bucket: &Bucket,
    weights: &mut Weights,
) -> Result<Selection, SelectError> {
    let mut places: Vec<Option<Place>> = vec![None; graph.value_count()];
    let mut s = Selection { bucket: bucket.clone(), calls: vec![], values: vec![], states: vec![], logits: usize::MAX };
    for (i, p) in graph.params.iter().enumerate() {
        places[i] = Some(match (&p.kind, &p.ty) {
            (ParamKind::Input, _) => Place::Input(p.name.clone()),
            (ParamKind::Weight { .. }, _) => Place::Constant,
            (ParamKind::State, ty) => {
                s.states.push((p.name.clone(), ty.state().expect("a state parameter has a state type").clone()));
                Place::State(s.states.len() - 1)
            }
        });
    }
    let appended = appended_columns(graph);
    for (at, node) in graph.nodes.iter().enumerate() {
        let operands: Vec<Operand> = node.operands.iter().map(|v| operand(graph, &places, &appended, *v)).collect();
        let call = Call { op: node.op, attrs: &node.attrs, operands: &operands, results: &node.types };
        let sources: Vec<Place> =
            node.operands.iter().map(|v| places[v.index()].clone().expect("operands come first")).collect();
        match catalog.answer(&call, bucket) {
            Answer::Constant => {
                for r in &node.results {
                    places[r.index()] = Some(Place::Constant);
                }
            }
            Answer::View => {
                let (shift, strides) =
                    view_of(node.op, &node.attrs, &operands[0]).expect("the catalog answered with a view");
                let Type::Tensor(ty) = &node.types[0] else { continue };
                places[node.results[0].index()] = Some(match &sources[0] {
                    Place::Value { value, offset, .. } => {
                        let layout = simplest(ty, strides);
                        Place::Value { value: *value, offset: offset + shift, layout }
                    }
                    other => other.clone(),
                });
            }
            Answer::Kernel { spec, nanos } => {
                let operands = node.operands.iter().zip(&sources).zip(&spec.inputs);
                let inputs = operands.map(|((v, place), o)| source(graph, place, *v, o, weights)).collect();
                let mut outputs = vec![];
                for (r, ty) in node.results.iter().zip(&node.types) {
                    outputs.push(match ty {
                        Type::Tensor(t) => {
                            s.values.push(t.clone());
                            let value = s.values.len() - 1;
                            places[r.index()] = Some(Place::Value { value, offset: 0, layout: Layout::Dense });
                            Some(value)
                        }
                        Type::State(_) => {
                            places[r.index()] = sources.iter().find(|p| matches!(p, Place::State(_))).cloned();
                            None
                        }
                    });
                }
                let label = node.comment.clone().unwrap_or_else(|| node.op.name().to_owned());
                s.calls.push(KernelCall { spec: *spec, inputs, outputs, label, nanos });
            }
            Answer::None => return Err(SelectError::NoKernel(describe(graph, at))),
        }
    }
    s.logits = logits(graph, &places)?;
    Ok(s)
}

fn operand(graph: &Graph, places: &[Option<Place>], appended: &[u32], v: ValueId) -> Operand {
    let (layout, constant) = match places[v.index()].as_ref().expect("operands come first") {
        Place::Value { layout, .. } => (layout.clone(), false),
        Place::Constant => (Layout::Dense, true),
        Place::Input(_) | Place::State(_) => (Layout::Dense, false),
    };
    Operand { layout, constant, appended: appended[v.index()], ..Operand::dense(graph.ty(v).clone()) }
}

/// A view with the strides of a dense tensor is dense.
fn simplest(ty: &deepfuse_ir::TensorType, strides: Vec<u64>) -> Layout {
    let dense = Operand::dense(Type::Tensor(ty.clone()));
    if dense.strides().as_ref() == Some(&strides) { Layout::Dense } else { Layout::Strided(strides) }
}

fn source(graph: &Graph, place: &Place, v: ValueId, operand: &Operand, weights: &mut Weights) -> Source {
    match place {
        Place::Input(name) => Source::Input(name.clone()),
        Place::State(i) => Source::State(*i),
        Place::Value { value, offset, .. } => Source::Value { value: *value, offset: *offset },
        Place::Constant => {
            let expr = WeightExpr::of(graph, v).expect("a constant depends on weights alone");
            Source::Weight(weights.insert_full(StoredWeight { expr, layout: operand.layout.clone() }).0)
        }
    }
}

fn logits(graph: &Graph, places: &[Option<Place>]) -> Result<usize, SelectError> {
    let shown = || graph.outputs.iter().map(|v| graph.ty(*v).to_string()).collect::<Vec<_>>().join(", ");
    let [v] = graph.outputs.as_slice() else { return Err(SelectError::Output(shown())) };
    let f32_result = graph.ty(*v).tensor().is_some_and(|t| t.dtype == deepfuse_ir::DType::F32);
    match &places[v.index()] {
        Some(Place::Value { value, offset: 0, layout: Layout::Dense }) if f32_result => Ok(*value),
        _ => Err(SelectError::Output(shown())),
    }
}

fn describe(graph: &Graph, at: usize) -> String {
    let n = &graph.nodes[at];
    let operands: Vec<String> = n.operands.iter().map(|v| graph.ty(*v).to_string()).collect();
    format!("{}({})", n.op.name(), operands.join(", "))
}
