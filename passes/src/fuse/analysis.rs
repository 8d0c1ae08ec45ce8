//! What is known of every e-class: types and constness, by the type rules of the operations.

use super::certificate::Term;
use super::language::Enode;
use deepfuse_ir::kernel::appended;
use deepfuse_ir::{Attr, Attrs, Op, Type};
use egg::{Analysis, DidMerge, Id};

/// An e-graph over one region.
pub type EGraph = egg::EGraph<Enode, Typing>;

/// What a class stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Attr(Attr),
    /// One type a result; one for all that is not an operation with several results.
    Values(Vec<Type>),
}

/// Facts of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub what: What,
    /// Depends on weights alone.
    pub constant: bool,
    /// A weight as the checkpoint holds it, or as it was quantized before fusion.
    pub parameter: bool,
    /// Last columns that are the same in every row; see [`deepfuse_ir::kernel::appended`].
    pub appended: u32,
    /// How a certificate names the class: its first term.
    pub term: Option<Term>,
}

impl Facts {
    /// Type of a single result.
    pub fn ty(&self) -> Option<&Type> {
        match &self.what {
            What::Values(types) if types.len() == 1 => types.first(),
            What::Values(_) | What::Attr(_) => None,
        }
    }

    pub fn attr(&self) -> Option<&Attr> {
        if let What::Attr(a) = &self.what { Some(a) } else { None }
    }
}

/// A value that enters the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFacts {
    pub ty: Type,
    pub constant: bool,
    pub parameter: bool,
}

/// The analysis: types are equal on merge or it is a bug, constness is joined (known beats unknown).
#[derive(Clone, Debug, Default)]
pub struct Typing {
    /// By value id of the region's graph.
    pub inputs: Vec<InputFacts>,
    /// The first contradiction; a bug of a rule.
    pub broken: Option<String>,
}

impl Analysis<Enode> for Typing {
    type Data = Facts;

    fn make(egraph: &mut EGraph, enode: &Enode, _: Id) -> Facts {
        let what = result_of(enode, &egraph.analysis.inputs, |id| egraph[id].data.what.clone());
        let what = what.unwrap_or_else(|e| {
            egraph.analysis.broken.get_or_insert(format!("ill-typed `{enode}` entered the e-graph: {e}"));
            What::Values(vec![])
        });
        let (constant, parameter) = match enode {
            Enode::Attr(_) => (true, false),
            Enode::Input(i) => {
                let input = &egraph.analysis.inputs[*i as usize];
                (input.constant, input.parameter)
            }
            Enode::Op(op, _) => {
                let all = |fact: fn(&Facts) -> bool| enode.operands().iter().all(|id| fact(&egraph[*id].data));
                (all(|f| f.constant), *op == Op::Quantize && all(|f| f.parameter))
            }
            Enode::Proj(_) => (enode.operands().iter().all(|id| egraph[*id].data.constant), false),
        };
        let term = if let Enode::Attr(a) = enode { Some(Term::Attr(a.clone())) } else { None };
        let appended = match enode {
            Enode::Op(op, _) => {
                let of = |id: &Id| egraph[*id].data.appended;
                let values = enode.attributes().iter().map(|id| egraph[*id].data.attr().cloned());
                named(*op, values).map_or(0, |a| appended(*op, &a, enode.operands().first().map_or(0, of)))
            }
            Enode::Proj(_) => enode.operands().first().map_or(0, |id| egraph[*id].data.appended),
            Enode::Attr(_) | Enode::Input(_) => 0,
        };
        Facts { what, constant, parameter, appended, term }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        if a.what != b.what {
            self.broken.get_or_insert(format!("equal terms with different types: {:?} and {:?}", a.what, b.what));
        }
        let joined = Facts {
            what: a.what.clone(),
            constant: a.constant || b.constant,
            parameter: a.parameter || b.parameter,
            appended: a.appended.max(b.appended),
            term: match (&a.term, &b.term) {
                (Some(p), Some(q)) => Some(p.min(q).clone()),
                (p, q) => p.as_ref().or(q.as_ref()).cloned(),
            },
        };
        let changed = DidMerge(joined != *a, joined != b);
        *a = joined;
        changed
    }
}

/// What a node is, from what its children are.
pub fn result_of(enode: &Enode, inputs: &[InputFacts], what: impl Fn(Id) -> What) -> Result<What, String> {
    let bad = |message: &str| Err(message.to_owned());
    match enode {
        Enode::Attr(a) => Ok(What::Attr(a.clone())),
        Enode::Input(i) => Ok(What::Values(vec![inputs[*i as usize].ty.clone()])),
        Enode::Proj([number, node]) => match (what(*number), what(*node)) {
            (What::Attr(Attr::Int(i)), What::Values(types)) if types.len() > 1 => {
                match usize::try_from(i).ok().and_then(|i| types.get(i)) {
                    Some(ty) => Ok(What::Values(vec![ty.clone()])),
                    None => bad("a projection beyond the results"),
                }
            }
            _ => bad("a projection takes a number and an operation with several results"),
        },
        Enode::Op(op, _) => {
            let attrs = enode.attributes().iter().map(|id| if let What::Attr(a) = what(*id) { Some(a) } else { None });
            let Some(attrs) = named(*op, attrs) else { return bad("an attribute is no attribute") };
            let mut types = vec![];
            for id in enode.operands() {
                match what(*id) {
                    What::Values(mut of) if of.len() == 1 => types.extend(of.pop()),
                    _ => return bad("an operand is no single value"),
                }
            }
            let types: Vec<&Type> = types.iter().collect();
            op.infer(&types, &attrs).map(What::Values).map_err(|e| e.to_string())
        }
    }
}

/// Attributes by name from their values in order.
pub fn named(op: Op, values: impl Iterator<Item = Option<Attr>>) -> Option<Attrs> {
    op.attrs().iter().zip(values).map(|((name, _), a)| Some((*name, a?))).collect()
}

/// Attributes of an operation of the e-graph.
pub fn attrs_of(egraph: &EGraph, op: Op, enode: &Enode) -> Attrs {
    let values = enode.attributes().iter().map(|id| egraph[*id].data.attr().cloned());
    named(op, values).expect("the analysis typed this node")
}
