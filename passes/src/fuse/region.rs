//! Between a region's graph and its e-graph: the plain region goes in, priced candidates and a fused region come out.

use super::FuseError;
use super::analysis::{EGraph, InputFacts, Typing, attrs_of};
use super::certificate::Term;
use super::extract::{Candidate, Choice, Form, Problem, stored_charge};
use super::language::Enode;
use crate::stored::stored_bytes;
use deepfuse_ir::{Answer, Attr, Bucket, Call, Catalog, Graph, Layout, Operand, ParamKind, ValueId};
use egg::{Id, Language};
use indexmap::IndexMap;

/// A region in an e-graph.
pub struct PlainRegion {
    pub egraph: EGraph,
    /// Class of every value of the region's graph.
    pub values: Vec<Id>,
    /// E-nodes of the plain region with the graph's node, children as they were.
    nodes: Vec<(Enode, usize)>,
}

/// Puts a layer class's graph into an e-graph.
pub fn plain_region(graph: &Graph) -> PlainRegion {
    let facts = |p: &deepfuse_ir::Param| InputFacts {
        ty: p.ty.clone(),
        constant: matches!(p.kind, ParamKind::Weight { .. }),
        parameter: matches!(p.kind, ParamKind::Weight { .. }) && p.name.starts_with('w'),
    };
    let mut egraph = EGraph::new(Typing { inputs: graph.params.iter().map(facts).collect(), broken: None });
    let mut values = vec![];
    let mut nodes = vec![];
    let named = |egraph: &mut EGraph, enode: Enode, term: Term| {
        let id = egraph.add(enode);
        egraph[id].data.term.get_or_insert(term);
        id
    };
    for i in 0..graph.params.len() as u32 {
        values.push(named(&mut egraph, Enode::Input(i), Term::Value(i)));
    }
    for (at, n) in graph.nodes.iter().enumerate() {
        let mut children: Vec<Id> = n.operands.iter().map(|v| values[v.index()]).collect();
        children.extend(n.attrs.values().map(|a| egraph.add(Enode::Attr(a.clone()))));
        let enode = Enode::Op(n.op, children.into());
        nodes.push((enode.clone(), at));
        if let [result] = n.results.as_slice() {
            values.push(named(&mut egraph, enode, Term::Value(result.0)));
            continue;
        }
        let node = named(&mut egraph, enode, Term::Node(at as u32));
        for (i, result) in n.results.iter().enumerate() {
            let number = egraph.add(Enode::Attr(Attr::Int(i as i64)));
            let proj = Enode::Proj([number, node]);
            nodes.push((proj.clone(), at));
            values.push(named(&mut egraph, proj, Term::Value(result.0)));
        }
    }
    egraph.rebuild();
    PlainRegion { egraph, values, nodes }
}

/// Where a node of a fused region comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The plain region has it: node index.
    Plain(usize),
    /// A step added it: step index.
    Step(usize),
}

/// A candidate with what it stands for.
#[derive(Clone, Debug)]
pub struct Priced {
    pub enode: Enode,
    pub kernel: bool,
    /// `None` for an input.
    pub origin: Option<Origin>,
}

/// Weights as kernels read them, with their bytes: one numbering for all buckets of a layer class.
pub type Forms = IndexMap<(Id, Layout), u64>;

/// Candidates of one bucket.
pub struct Prices {
    pub problem: Problem,
    /// Parallel to `problem.classes`.
    pub priced: Vec<Vec<Priced>>,
    index: IndexMap<Id, usize>,
}

impl PlainRegion {
    /// Every e-node with where it came from, children canonical.
    pub fn origins(&self, added: &[&[Enode]]) -> IndexMap<Enode, Origin> {
        let canonical = |e: &Enode| e.clone().map_children(|c| self.egraph.find(c));
        let mut origins = IndexMap::new();
        for (enode, at) in &self.nodes {
            origins.entry(canonical(enode)).or_insert(Origin::Plain(*at));
        }
        for (step, enodes) in added.iter().enumerate() {
            for enode in *enodes {
                origins.entry(canonical(enode)).or_insert(Origin::Step(step));
            }
        }
        origins
    }

    /// Prices of all nodes that the catalog answers for; with `plain` only those of the plain region. `forms` takes the weights that are read;
    /// [`Prices::charge`] enters them when all buckets have been priced.
    pub fn prices(
        &self,
        graph: &Graph,
        catalog: &dyn Catalog,
        bucket: &Bucket,
        origins: &IndexMap<Enode, Origin>,
        plain: bool,
        forms: &mut Forms,
    ) -> Prices {
        let mut ids: Vec<Id> = self.egraph.classes().filter(|c| c.data.attr().is_none()).map(|c| c.id).collect();
        ids.sort_unstable();
        let index: IndexMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let mut prices = Prices { problem: Problem::default(), priced: vec![], index };
        for id in &ids {
            let (mut candidates, mut priced) = (vec![], vec![]);
            for enode in &self.egraph[*id].nodes {
                let enode = enode.clone().map_children(|c| self.egraph.find(c));
                let origin = origins.get(&enode).copied();
                let allowed = matches!(enode, Enode::Input(_)) || !plain || matches!(origin, Some(Origin::Plain(_)));
                let Some((candidate, kernel)) = self.price(&enode, *id, catalog, bucket, &prices.index, forms) else {
                    continue;
                };
                if allowed {
                    candidates.push(candidate);
                    priced.push(Priced { enode, kernel, origin });
                }
            }
            prices.problem.classes.push(candidates);
            prices.priced.push(priced);
        }
        let class = |v: &ValueId| prices.index[&self.egraph.find(self.values[v.index()])];
        prices.problem.roots = graph.outputs.iter().map(class).collect();
        let constant: Vec<bool> = ids.iter().map(|id| self.egraph[*id].data.constant).collect();
        prices.decide_constants(&constant);
        prices
    }

    fn price(
        &self,
        enode: &Enode,
        class: Id,
        catalog: &dyn Catalog,
        bucket: &Bucket,
        index: &IndexMap<Id, usize>,
        forms: &mut Forms,
    ) -> Option<(Candidate, bool)> {
        let children = enode.operands().iter().map(|id| index.get(id).copied()).collect::<Option<Vec<usize>>>()?;
        let free = Candidate { children, ..Candidate::default() };
        let Enode::Op(op, _) = enode else { return Some((free, false)) };
        let operand = |id: &Id| {
            let facts = &self.egraph[*id].data;
            Some(Operand { constant: facts.constant, appended: facts.appended, ..Operand::dense(facts.ty()?.clone()) })
        };
        let operands = enode.operands().iter().map(operand).collect::<Option<Vec<_>>>()?;
        let super::analysis::What::Values(results) = &self.egraph[class].data.what else { return None };
        let attrs = attrs_of(&self.egraph, *op, enode);
        match catalog.answer(&Call { op: *op, attrs: &attrs, operands: &operands, results }, bucket) {
            Answer::None => None,
            Answer::View | Answer::Constant => Some((free, false)),
            Answer::Kernel { nanos, spec } => {
                let read = enode.operands().iter().zip(&spec.inputs).filter(|(_, o)| o.constant);
                let mut stored = vec![];
                for (id, o) in read {
                    let bytes = o.tensor().map_or(0, |t| stored_bytes(t, &o.layout));
                    let entry = forms.entry((*id, o.layout.clone()));
                    stored.push(entry.index());
                    entry.or_insert(bytes);
                }
                let picos = (nanos.max(0.0) * 1000.0).round() as u64;
                Some((Candidate { picos, stored, ..free }, true))
            }
        }
    }
}

impl Prices {
    /// A value that depends on weights alone gets one expression, that with the fewest nodes: the same in every bucket, so that it is stored once.
    fn decide_constants(&mut self, constant: &[bool]) {
        let classes = &mut self.problem.classes;
        let mut best: Vec<Option<(u64, usize)>> = vec![None; classes.len()];
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for class in (0..classes.len()).filter(|c| constant[*c]) {
                for (i, c) in classes[class].iter().enumerate().filter(|(_, c)| c.children.iter().all(|d| constant[*d]))
                {
                    let below = c.children.iter().map(|d| best[*d].map(|(nodes, _)| nodes)).sum::<Option<u64>>();
                    let Some(nodes) = below.map(|n| n.saturating_add(1)) else { continue };
                    if best[class].is_none_or(|(known, _)| nodes < known) {
                        best[class] = Some((nodes, i));
                        changed = true;
                    }
                }
            }
        }
        for (class, pick) in best.iter().enumerate() {
            if let Some((_, i)) = pick {
                classes[class] = vec![classes[class].swap_remove(*i)];
                self.priced[class] = vec![self.priced[class].swap_remove(*i)];
            }
        }
    }

    /// Kernels that a choice starts.
    pub fn kernels(&self, choice: &Choice) -> usize {
        self.priced.iter().zip(choice).filter(|(priced, c)| c.is_some_and(|c| priced[c].kernel)).count()
    }

    /// A value that depends on weights alone as text, the parameters of the region by `name`.
    pub fn expression(&self, id: Id, name: &dyn Fn(u32) -> String) -> String {
        let priced = self.index.get(&id).and_then(|class| self.priced[*class].first());
        match priced.map(|p| &p.enode) {
            Some(Enode::Input(i)) => name(*i),
            Some(e @ Enode::Op(op, _)) => {
                let operands: Vec<String> = e.operands().iter().map(|id| self.expression(*id, name)).collect();
                format!("{}({})", op.name(), operands.join(", "))
            }
            Some(Enode::Proj(_) | Enode::Attr(_)) | None => "?".to_owned(),
        }
    }

    /// Enters the forms, all at the usual charge.
    pub fn charge(&mut self, forms: &Forms) {
        let form = |bytes: &u64| Form { bytes: *bytes, charge: Some(stored_charge(*bytes)) };
        self.problem.forms = forms.values().map(form).collect();
    }
}

/// A fused region: a graph with the parameters and outputs of the plain one.
#[derive(Clone, Debug)]
pub struct FusedRegion {
    pub graph: Graph,
    /// Of every node.
    pub origins: Vec<Origin>,
    pub kernels: usize,
}

/// The graph of a choice; nodes in depth-first order from the outputs.
pub fn fused_region(
    egraph: &EGraph,
    plain: &Graph,
    prices: &Prices,
    choice: &Choice,
) -> Result<FusedRegion, FuseError> {
    let mut graph = Graph::new("region");
    for p in &plain.params {
        graph.param(p.name.clone(), p.kind.clone(), p.ty.clone());
    }
    let mut b =
        Instance { egraph, prices, choice, values: vec![None; choice.len()], origins: vec![], kernels: 0, graph };
    for root in &prices.problem.roots {
        let values = b.values(*root)?;
        b.graph.outputs.push(values[0]);
    }
    Ok(FusedRegion { graph: b.graph, origins: b.origins, kernels: b.kernels })
}

struct Instance<'a> {
    egraph: &'a EGraph,
    prices: &'a Prices,
    choice: &'a Choice,
    /// Results of every class that has been placed.
    values: Vec<Option<Vec<ValueId>>>,
    origins: Vec<Origin>,
    kernels: usize,
    graph: Graph,
}

impl Instance<'_> {
    fn values(&mut self, class: usize) -> Result<Vec<ValueId>, FuseError> {
        if let Some(known) = &self.values[class] {
            return Ok(known.clone());
        }
        let chosen = self.choice[class].expect("an extraction chooses for every class that it needs");
        let Priced { enode, kernel, origin } = self.prices.priced[class][chosen].clone();
        let children: Vec<usize> = enode.operands().iter().map(|id| self.prices.index[id]).collect();
        let mut operands = vec![];
        for child in children {
            operands.push(self.values(child)?);
        }
        let results = match &enode {
            Enode::Attr(_) => unreachable!("attributes are no classes of the problem"),
            Enode::Input(i) => vec![ValueId(*i)],
            Enode::Proj([number, _]) => {
                let Some(Attr::Int(i)) = self.egraph[*number].data.attr() else {
                    return Err(FuseError::bug("a projection without a number".into()));
                };
                vec![operands[0][*i as usize]]
            }
            Enode::Op(op, _) => {
                let operands: Vec<ValueId> = operands.iter().map(|v| v[0]).collect();
                let results = self.graph.push(*op, &operands, attrs_of(self.egraph, *op, &enode));
                self.origins.push(origin.expect("a node is of the plain region or of a step"));
                self.kernels += usize::from(kernel);
                results.map_err(|e| FuseError::bug(format!("extracted an ill-typed {}: {e}", op.name())))?
            }
        };
        self.values[class] = Some(results.clone());
        Ok(results)
    }
}
