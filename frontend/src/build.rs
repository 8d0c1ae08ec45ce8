//! The plain step graph: projections, rope, scores, softmax, experts, weighted sum. Nothing is fused here.
//!
//! A region between two cuts is a layer, shifted: it begins with the residual add of the layer before and ends just before its
//! own, so that the add and the norm behind it can become one kernel. The embedding belongs to the first region; the last one has no
//! cut before its own add: what only chosen rows need can be computed for those rows alone, up into the layer.

mod attention;
mod mlp;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::model::Model;
use crate::tensors::{LayerTensor, Role, layer};
use deepfuse_ir::ops::attrs;
use deepfuse_ir::weights::source_names;
use deepfuse_ir::{
    Attr, Attrs, DType, Device, Dim, Float, Graph, Op, ParamKind, StateKind, StateType, Symbol, TensorType, Type,
    ValueId,
};
use indexmap::IndexMap;

/// The type between operations: where the plain graph rounds. Accumulation is f32 in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    F32,
    Bf16,
}

impl Activations {
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
        }
    }
}

/// Builds the graph of one step over a ragged batch.
///
/// * inputs, i32: `ids [T]`, `pos [T]`, `seq [T]`, `pages [P]`, `page_start [S+1]`, `rows [R]`
/// * weights as stored, named `layers.3.mlp.gate`; the experts of a layer are one `[E, N, K]`
/// * states `cache.0 ..`: paged rows `[normed latent | rotated key]` of the activation type
/// * result: logits f32 `[R, V]`
///
/// Errors: [`Code::Graph`] if the IR refuses an operation, which is a bug of ours: the configuration was validated.
pub fn build(model: &Model, activations: Activations) -> Result<Graph> {
    let mut b = Builder::new(model, activations);
    let c = &model.config;
    let table = b.weight("embed_tokens", "model.embed_tokens.weight", &[c.vocab, c.hidden], Role::Embed);
    let layers: Vec<Layer> = (0..c.layers).map(|i| b.layer_params(i)).collect();
    let norm = b.weight("norm", "model.norm.weight", &[c.hidden], Role::Norm);
    let head = if c.tied { table } else { b.weight("lm_head", "lm_head.weight", &[c.vocab, c.hidden], Role::Head) };

    let embedded = b.op(Op::Embed, &[b.inputs.ids, table], &[])?;
    let mut x = b.converted(embedded, b.act)?;
    for (i, layer) in layers.iter().enumerate() {
        let d = b.layer(i as u64, layer, &mut x)?;
        if i + 1 < layers.len() {
            b.g.cut();
        }
        x = b.op(Op::Add, &[x, d], &[])?;
    }
    let normed = b.op(Op::RmsNorm, &[x, norm], &[("eps", float(c.norm_eps))])?;
    let rows = b.op(Op::GatherRows, &[normed, b.inputs.rows], &[])?;
    // Logits are not rounded to the activation type: equal neighbours would make the choice of a token arbitrary.
    let wide = b.converted(rows, DType::F32)?;
    let logits = b.op(Op::Linear, &[wide, head], &[])?;
    b.note(if c.tied { "model.embed_tokens" } else { "lm_head" });
    b.g.outputs.push(logits);
    Ok(b.g)
}

fn float(x: f64) -> Attr {
    Attr::Float(Float(x))
}

fn int(n: u64) -> Attr {
    Attr::Int(n as i64)
}

/// The batch: parameters that change with every step.
#[derive(Clone, Copy)]
struct Inputs {
    ids: ValueId,
    pos: ValueId,
    seq: ValueId,
    pages: ValueId,
    page_start: ValueId,
    rows: ValueId,
}

/// Parameters of one layer.
struct Layer {
    /// By their name in the table of tensors: `self_attn.o_proj.weight`.
    weights: IndexMap<String, ValueId>,
    cache: ValueId,
}

struct Builder<'m> {
    model: &'m Model,
    c: &'m Config,
    g: Graph,
    act: DType,
    inputs: Inputs,
    /// Prefix of comments: `model.layers.3`.
    place: String,
}

impl<'m> Builder<'m> {
    fn new(model: &'m Model, activations: Activations) -> Self {
        let mut g = Graph::new(format!("{}_step", model.config.model_type()));
        let mut input = |name: &str, dim: Dim| g.param(name, ParamKind::Input, TensorType::new(DType::I32, [dim]));
        let [t, s, p, r] = [Symbol::T, Symbol::S, Symbol::P, Symbol::R].map(Dim::symbol);
        let inputs = Inputs {
            ids: input("ids", t),
            pos: input("pos", t),
            seq: input("seq", t),
            pages: input("pages", p),
            page_start: input("page_start", Dim { constant: 1, ..s }),
            rows: input("rows", r),
        };
        Self { model, c: &model.config, g, act: activations.dtype(), inputs, place: String::new() }
    }

    fn weight(&mut self, name: &str, source: &str, shape: &[u64], role: Role) -> ValueId {
        let ty =
            TensorType::new(self.model.dtype(&source_names(source)[0], role), shape.iter().copied().map(Dim::fixed));
        self.g.param(name, ParamKind::Weight { source: source.to_owned() }, ty)
    }

    fn layer_params(&mut self, i: u64) -> Layer {
        let mut weights = IndexMap::new();
        for t in layer(self.c, self.c.is_moe(i)) {
            let id = self.layer_weight(i, &t);
            weights.insert(t.name, id);
        }
        let ty =
            StateType { kind: StateKind::Paged, dtype: self.act, width: self.c.cache_width(), device: Device::DEFAULT };
        Layer { weights, cache: self.g.param(format!("cache.{i}"), ParamKind::State, Type::State(ty)) }
    }

    /// One tensor of a layer; the experts stacked along a new first axis.
    fn layer_weight(&mut self, i: u64, t: &LayerTensor) -> ValueId {
        let name = t.name.replace("{e}.", "");
        let name = format!("layers.{i}.{}", name.strip_suffix(".weight").unwrap_or(&name));
        let (mut source, mut shape) = (format!("model.layers.{i}.{}", t.name), t.shape.clone());
        if t.role == Role::Expert {
            let experts = self.c.moe.as_ref().map_or(0, |m| m.experts);
            source = source.replace("{e}", &format!("{{0..{experts}}}"));
            shape.insert(0, experts);
        }
        self.weight(&name, &source, &shape, t.role)
    }

    /// From the residual stream before a layer to the residual stream after its attention (in `x`) and the MLP's output.
    fn layer(&mut self, i: u64, layer: &Layer, x: &mut ValueId) -> Result<ValueId> {
        self.place = format!("model.layers.{i}");
        let eps = [("eps", float(self.c.norm_eps))];
        let h = self.op(Op::RmsNorm, &[*x, layer.weights["input_layernorm.weight"]], &eps)?;
        let attention = self.attention(layer, h)?;
        *x = self.op(Op::Add, &[*x, attention], &[])?;
        let h = self.op(Op::RmsNorm, &[*x, layer.weights["post_attention_layernorm.weight"]], &eps)?;
        if self.c.is_moe(i) { self.experts(layer, h) } else { self.dense(layer, "mlp", h) }
    }

    /// Adds an operation with one result.
    fn op(&mut self, op: Op, operands: &[ValueId], list: &[(&'static str, Attr)]) -> Result<ValueId> {
        let results = self.ops(op, operands, attrs(list))?;
        Ok(results[0])
    }

    fn ops(&mut self, op: Op, operands: &[ValueId], attrs: Attrs) -> Result<Vec<ValueId>> {
        let refused =
            |e: deepfuse_ir::TypeError| Error::new(Code::Graph, format!("{}: {}: {}", op.name(), e.code, e.message));
        self.g.push(op, operands, attrs).map_err(refused)
    }

    /// A projection, and its bias if it has one; `name` is relative to the layer: `self_attn.o_proj`.
    fn projection(&mut self, layer: &Layer, name: &str, x: ValueId) -> Result<ValueId> {
        let y = self.op(Op::Linear, &[x, layer.weights[&format!("{name}.weight")]], &[])?;
        self.note_layer(name);
        match layer.weights.get(&format!("{name}.bias")) {
            Some(bias) => self.op(Op::Add, &[y, *bias], &[]),
            None => Ok(y),
        }
    }

    /// The value in another type; itself if it has it.
    fn converted(&mut self, x: ValueId, dtype: DType) -> Result<ValueId> {
        if self.g.ty(x).tensor().is_some_and(|t| t.dtype == dtype) {
            return Ok(x);
        }
        self.op(Op::Convert, &[x], &[("dtype", Attr::DType(dtype))])
    }

    fn sliced(&mut self, x: ValueId, axis: u64, start: u64, len: u64) -> Result<ValueId> {
        self.op(Op::Slice, &[x], &[("axis", int(axis)), ("start", int(start)), ("len", int(len))])
    }

    fn reshaped(&mut self, x: ValueId, shape: Vec<Dim>) -> Result<ValueId> {
        self.op(Op::Reshape, &[x], &[("shape", Attr::Shape(shape))])
    }

    /// Comments the last operation with the tensor that it uses.
    fn note_layer(&mut self, name: &str) {
        let text = format!("{}.{name}", self.place);
        self.note(&text);
    }

    fn note(&mut self, text: &str) {
        if let Some(node) = self.g.nodes.last_mut() {
            node.comment = Some(text.to_owned());
        }
    }
}
