//! A graph under construction: parameters appear when they are first needed and come first in the finished graph.

use crate::graph::{Attrs, Graph, Param, ParamKind, ValueId};
use crate::ops::Op;
use crate::types::{DType, Dim, StateKind, StateType, Symbol, TensorType, Type};

/// A value of the graph under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref {
    Param(usize),
    /// Node and result index.
    Result(usize, usize),
}

struct Draft {
    op: Op,
    operands: Vec<Ref>,
    attrs: Attrs,
    types: Vec<Type>,
    comment: Option<String>,
}

/// Builds a graph from a list of choices; when they run out, every choice is the first one.
pub struct Builder<'a> {
    choices: std::slice::Iter<'a, u16>,
    /// Type of activations.
    pub(super) act: DType,
    params: Vec<Param>,
    nodes: Vec<Draft>,
    cuts: Vec<usize>,
    /// Float activations that later nodes may use.
    pub(super) pool: Vec<Ref>,
    /// The latent cache: its current version, and whether it was written.
    pub(super) state: Option<(Ref, bool)>,
}

impl<'a> Builder<'a> {
    pub fn new(choices: &'a [u16]) -> Self {
        let mut b = Self {
            choices: choices.iter(),
            act: DType::F32,
            params: vec![],
            nodes: vec![],
            cuts: vec![],
            pool: vec![],
            state: None,
        };
        b.act = b.of(&[DType::F32, DType::Bf16]);
        let width = Dim::fixed(b.width());
        let x = b.input("x", TensorType::new(b.act, [Dim::symbol(Symbol::T), width]));
        b.pool.push(x);
        b
    }

    pub fn more(&self) -> bool {
        self.choices.len() > 0
    }

    // ---- choices ---------------------------------------------------------------------------------------------------------------

    /// A number below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.choices.next().copied().unwrap_or(0)) % n
    }

    pub(super) fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// A small even width; not all are multiples of 16.
    pub(super) fn width(&mut self) -> u64 {
        self.of(&[8, 12, 16, 34, 48])
    }

    pub(super) fn float(&mut self) -> f64 {
        self.of(&[1.0, 0.5, -2.0, 0.072_168_783_648_703_22, 1e-6])
    }

    /// A value of the pool, rather a late one.
    pub(super) fn value(&mut self) -> Ref {
        let back = self.below(self.pool.len()).min(self.below(self.pool.len()));
        self.pool[self.pool.len() - 1 - back]
    }

    /// A value of the pool that fits, rather a late one.
    pub(super) fn find(&mut self, fits: impl Fn(&TensorType) -> bool) -> Option<Ref> {
        let fitting: Vec<Ref> = self.pool.iter().copied().filter(|r| fits(self.tensor(*r))).collect();
        if fitting.is_empty() {
            return None;
        }
        let back = self.below(fitting.len());
        Some(fitting[fitting.len() - 1 - back])
    }

    // ---- values ----------------------------------------------------------------------------------------------------------------

    pub fn ty(&self, r: Ref) -> &Type {
        match r {
            Ref::Param(i) => &self.params[i].ty,
            Ref::Result(node, i) => &self.nodes[node].types[i],
        }
    }

    /// The type of a value that is known to be a tensor.
    pub fn tensor(&self, r: Ref) -> &TensorType {
        self.ty(r).tensor().expect("the builder keeps tensors and states apart")
    }

    fn param(&mut self, name: String, kind: ParamKind, ty: Type) -> Ref {
        let same = self.params.iter().position(|p| p.name == name);
        Ref::Param(same.unwrap_or_else(|| {
            self.params.push(Param { name, kind, ty });
            self.params.len() - 1
        }))
    }

    /// An input; the same name is the same input.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Ref {
        self.param(name.into(), ParamKind::Input, ty.into())
    }

    /// `ids`, `pos`, `seq` `[T]`, `pages` `[P]`, `page_start` `[S + 1]`, `rows` `[R]`.
    pub fn batch(&mut self, name: &str) -> Ref {
        let dim = match name {
            "pages" => Dim::symbol(Symbol::P),
            "page_start" => Dim { constant: 1, ..Dim::symbol(Symbol::S) },
            "rows" => Dim::symbol(Symbol::R),
            _ => Dim::symbol(Symbol::T),
        };
        self.input(name, TensorType::new(DType::I32, [dim]))
    }

    /// A new weight.
    pub fn weight(&mut self, dtype: DType, shape: &[u64]) -> Ref {
        let n = self.params.len();
        let source = match *shape {
            [experts, _, _] => format!("model.w{n}.{{0..{experts}}}.weight"),
            _ => format!("model.w{n}.weight"),
        };
        let ty = TensorType::new(dtype, shape.iter().map(|d| Dim::fixed(*d)));
        self.param(format!("w{n}"), ParamKind::Weight { source }, ty.into())
    }

    /// The state, declared at its first use with this width.
    pub(super) fn state(&mut self, width: u64) -> Ref {
        if let Some((now, _)) = self.state {
            return now;
        }
        let ty = StateType { kind: StateKind::Paged, dtype: self.act, width, device: crate::Device::DEFAULT };
        let r = self.param("kv.0".into(), ParamKind::State, Type::State(ty));
        self.state = Some((r, false));
        r
    }

    // ---- nodes -----------------------------------------------------------------------------------------------------------------

    /// A node, if the type rule accepts it; its results.
    pub fn node(&mut self, op: Op, operands: &[Ref], attrs: Attrs) -> Option<Vec<Ref>> {
        let types: Vec<&Type> = operands.iter().map(|r| self.ty(*r)).collect();
        let types = op.infer(&types, &attrs).ok()?;
        let at = self.nodes.len();
        let results = (0..types.len()).map(|i| Ref::Result(at, i)).collect();
        self.nodes.push(Draft { op, operands: operands.to_vec(), attrs, types, comment: None });
        Some(results)
    }

    pub(super) fn comment(&mut self, text: &str) {
        if let Some(n) = self.nodes.last_mut() {
            n.comment = Some(text.into());
        }
    }

    pub(super) fn cut(&mut self) {
        if self.cuts.last() != Some(&self.nodes.len()) {
            self.cuts.push(self.nodes.len());
        }
    }

    /// The graph; its outputs are the last values of the pool.
    pub fn finish(self) -> Graph {
        let mut g = Graph::new("random");
        for p in &self.params {
            g.param(p.name.clone(), p.kind.clone(), p.ty.clone());
        }
        let mut results: Vec<Vec<ValueId>> = vec![];
        let id = |results: &[Vec<ValueId>], r: &Ref| match *r {
            Ref::Param(i) => ValueId(i as u32),
            Ref::Result(node, i) => results[node][i],
        };
        for (i, n) in self.nodes.into_iter().enumerate() {
            if self.cuts.contains(&i) {
                g.cut();
            }
            let operands = n.operands.iter().map(|r| id(&results, r)).collect();
            results.push(g.push_typed(n.op, operands, n.attrs, n.types));
            g.nodes[i].comment = n.comment;
        }
        if self.cuts.contains(&g.nodes.len()) {
            g.cut();
        }
        g.outputs = self.pool.iter().rev().take(2).map(|r| id(&results, r)).collect();
        g
    }
}
