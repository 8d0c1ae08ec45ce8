//! The verifier: what every graph satisfies between two passes. It reports all errors, not just the first.
//!
//! * values are defined before they are used, once, with consecutive ids
//! * every op has its operand count, its attributes with their kinds, and results of the types that its rule gives
//! * operands of one op live on one device; `transfer` alone changes it
//! * a state is written at most once, and nothing reads it as it was before after that write
//! * names are unique, outputs exist, cuts ascend, sizes are positive and fit 2^60 bytes

mod size;
mod state;
#[cfg(test)]
mod tests;

use crate::graph::{Attr, Graph, Node, ParamKind, ValueId};
use crate::ops::Op;
use crate::text::{Line, Names, header_lines, list, marked, nearest, node_line, param_text, rule_message, type_of};
use crate::types::{Device, Type};
use size::{sized, weight_shape};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Where in a graph an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Index into `params`.
    Param(usize),
    /// Index into `nodes`.
    Node(usize),
    /// Index into `cuts`.
    Cut(usize),
    /// Index into `outputs`.
    Output(usize),
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// `ir::contract`, `ir::dtype`, `ir::rank`, `ir::arity`, `ir::attribute` (type rules), `ir::name`, `ir::order`, `ir::results`, `ir::state`,
    /// `ir::device`, `ir::dim`, `ir::weight`, `ir::cut`.
    pub code: &'static str,
    pub place: Place,
    /// The value, as printed: `%1`; `return` for outputs.
    pub at: String,
    pub message: String,
    pub help: Option<String>,
    /// The printed line that is wrong.
    pub line: String,
    /// Its number in the printed form, from 1.
    pub number: usize,
    /// The bytes of `line` to look at.
    pub mark: Range<usize>,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&marked(
            self.code,
            &self.message,
            &self.number.to_string(),
            &self.line,
            &self.mark,
            self.help.as_deref(),
        ))
    }
}

impl std::error::Error for VerifyError {}

/// All errors of a graph; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyErrors(pub Vec<VerifyError>);

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join("\n"))
    }
}

impl std::error::Error for VerifyErrors {}

/// Checks a graph.
pub fn verify(graph: &Graph) -> Result<(), VerifyErrors> {
    let mut check =
        Check { graph, names: Names::of(graph), defined: graph.params.len(), constant: vec![], errors: vec![] };
    check.params();
    for (i, node) in graph.nodes.iter().enumerate() {
        check.node(i, node);
    }
    check.cuts();
    check.outputs();
    if check.errors.iter().all(|e| e.code != "ir::results") {
        state::check(&mut check);
    }
    check.errors.sort_by_key(|e| e.number);
    if check.errors.is_empty() { Ok(()) } else { Err(VerifyErrors(check.errors)) }
}

struct Check<'g> {
    graph: &'g Graph,
    names: Names,
    /// Values below this id are defined by what has been checked so far.
    defined: usize,
    /// Which of them depend on weights alone.
    constant: Vec<bool>,
    errors: Vec<VerifyError>,
}

/// What to mark on a node's line.
#[derive(Clone, Copy)]
enum Mark {
    Call,
    Operand(usize),
    Attrs,
    Types,
    Results,
}

impl Check<'_> {
    fn node_error(&mut self, node: usize, mark: Mark, code: &'static str, message: String, help: Option<String>) {
        let n = &self.graph.nodes[node];
        let line = node_line(n, &self.names);
        let at = n.results.first().map_or_else(|| n.op.name().to_owned(), |v| self.names.get(*v));
        let number = header_lines(self.graph) + self.graph.cuts.iter().filter(|c| **c <= node).count() + node + 1;
        let mark = mark_of(&line, mark);
        self.errors.push(VerifyError {
            code,
            place: Place::Node(node),
            at,
            message,
            help,
            line: line.text,
            number,
            mark,
        });
    }

    fn param_error(&mut self, i: usize, code: &'static str, message: String, help: Option<String>) {
        let line = param_text(&self.graph.params[i]);
        let (at, mark) = (self.names.get(ValueId(i as u32)), 0..line.len());
        let number = if header_lines(self.graph) == 1 { 1 } else { i + 2 };
        self.errors.push(VerifyError { code, place: Place::Param(i), at, message, help, line, number, mark });
    }

    fn end_error(&mut self, place: Place, code: &'static str, message: String, help: Option<String>) {
        let outputs: Vec<String> = self.graph.outputs.iter().map(|v| self.names.get(*v)).collect();
        let mut line = format!("return {}", outputs.join(", "));
        let mut mark = 0..line.len();
        match place {
            Place::Output(i) => {
                let start = "return ".len() + outputs[..i].iter().map(|o| o.len() + 2).sum::<usize>();
                mark = start..start + outputs[i].len();
            }
            Place::Cut(_) | Place::Param(_) | Place::Node(_) => {
                "---- cut".clone_into(&mut line);
                mark = 0..line.len();
            }
        }
        let number = header_lines(self.graph) + self.graph.nodes.len() + self.graph.cuts.len() + 1;
        self.errors.push(VerifyError { code, place, at: "return".into(), message, help, line, number, mark });
    }

    // ---- parameters ------------------------------------------------------------------------------------------------------------

    fn params(&mut self) {
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, p) in self.graph.params.iter().enumerate() {
            self.constant.push(matches!(p.kind, ParamKind::Weight { .. }));
            if let Some(earlier) = first.insert(&p.name, i) {
                let message = format!("parameters {earlier} and {i} are both named `{}`", p.name);
                self.param_error(i, "ir::name", message, Some("the runtime finds parameters by name".into()));
            }
            match (&p.kind, &p.ty) {
                (ParamKind::State, Type::Tensor(t)) => {
                    self.param_error(i, "ir::dtype", format!("the state `{}` has the tensor type {t}", p.name), None);
                }
                (ParamKind::Input | ParamKind::Weight { .. }, Type::State(s)) => {
                    self.param_error(
                        i,
                        "ir::dtype",
                        format!("`{}` has the type {s}, which only a state can have", p.name),
                        None,
                    );
                }
                _ => {}
            }
            if let Err((message, help)) = sized(&p.ty).and_then(|()| weight_shape(p)) {
                self.param_error(i, "ir::dim", format!("`{}`: {message}", p.name), help);
            }
        }
    }

    // ---- nodes -----------------------------------------------------------------------------------------------------------------

    fn node(&mut self, i: usize, n: &Node) {
        let operands = self.operands(i, n);
        let mut sound = operands.is_some() & self.arity(i, n) & self.attrs(i, n);
        if let (Some(types), true) = (&operands, sound) {
            sound = self.rule(i, n, types);
            self.devices(i, n, types);
        }
        self.results(i, n);
        for ty in &n.types {
            if let (true, Err((message, help))) = (sound, sized(ty)) {
                self.node_error(i, Mark::Types, "ir::dim", message, help);
            }
        }
    }

    /// Types of the operands, if all are defined before.
    fn operands(&mut self, i: usize, n: &Node) -> Option<Vec<Type>> {
        let mut types = vec![];
        for (k, v) in n.operands.iter().enumerate() {
            let name = self.names.get(*v);
            if v.index() < self.defined {
                types.extend(type_of(self.graph, *v).cloned());
            } else if v.index() < self.graph.value_count() {
                let message = format!("{} uses {name} before it is defined", n.op.name());
                self.node_error(
                    i,
                    Mark::Operand(k),
                    "ir::order",
                    message,
                    Some("nodes stand in the order of their uses".into()),
                );
            } else {
                let message =
                    format!("{} uses value {}, the graph has {} values", n.op.name(), v.0, self.graph.value_count());
                self.node_error(i, Mark::Operand(k), "ir::order", message, None);
            }
        }
        (types.len() == n.operands.len()).then_some(types)
    }

    fn arity(&mut self, i: usize, n: &Node) -> bool {
        let (arity, found) = (n.op.arity(), n.operands.len());
        if !arity.contains(&found) {
            let (least, most) = (arity.start(), arity.end());
            let wanted = if least == most { format!("{least}") } else { format!("{least} to {most}") };
            self.node_error(
                i,
                Mark::Call,
                "ir::arity",
                format!("`{}` takes {wanted} operands, found {found}", n.op.name()),
                None,
            );
        }
        arity.contains(&found)
    }

    fn attrs(&mut self, i: usize, n: &Node) -> bool {
        let (specs, before) = (n.op.attrs(), self.errors.len());
        for (name, kind) in specs {
            let message = match n.attrs.get(name) {
                None => format!("`{}` needs the attribute `{name}` ({kind:?})", n.op.name()),
                Some(a) if !kind.admits(a) => {
                    format!("attribute `{name}` of `{}` is {kind:?}, found {a:?}", n.op.name())
                }
                Some(Attr::Float(x)) if !x.0.is_finite() => {
                    format!("attribute `{name}` of `{}` is {}, not a finite number", n.op.name(), x.0)
                }
                Some(_) => continue,
            };
            let mark = if n.attrs.is_empty() { Mark::Call } else { Mark::Attrs };
            self.node_error(i, mark, "ir::attribute", message, None);
        }
        for name in n.attrs.keys().filter(|k| !specs.iter().any(|(name, _)| name == *k)) {
            let near = nearest(name, specs.iter().map(|(name, _)| *name)).map(|near| format!("did you mean `{near}`?"));
            self.node_error(
                i,
                Mark::Attrs,
                "ir::attribute",
                format!("`{}` has no attribute `{name}`", n.op.name()),
                near,
            );
        }
        self.errors.len() == before
    }

    fn rule(&mut self, i: usize, n: &Node, operands: &[Type]) -> bool {
        let types: Vec<&Type> = operands.iter().collect();
        match n.op.infer(&types, &n.attrs) {
            Err(e) => {
                let (message, help) = rule_message(n.op, &types, &e);
                let mark = e.operand.map_or(Mark::Call, Mark::Operand);
                self.node_error(i, mark, e.code, message, Some(help));
                false
            }
            Ok(inferred) if inferred != n.types => {
                let message =
                    format!("`{}` gives {}, written is {}", n.op.name(), list(inferred.iter()), list(n.types.iter()));
                self.node_error(i, Mark::Types, "ir::contract", message, None);
                false
            }
            Ok(_) => true,
        }
    }

    fn devices(&mut self, i: usize, n: &Node, operands: &[Type]) {
        let devices: Vec<Device> = operands.iter().map(Type::device).collect();
        let Some(k) = devices.iter().position(|d| *d != devices[0]) else { return };
        let (a, b) = (self.names.get(n.operands[0]), self.names.get(n.operands[k]));
        let message = format!("`{}` reads {a} on {} and {b} on {}", n.op.name(), devices[0], devices[k]);
        let help = format!("move one of them: `transfer {b} {{device = {}}}`", devices[0]);
        self.node_error(i, Mark::Operand(k), "ir::device", message, Some(help));
    }

    fn results(&mut self, i: usize, n: &Node) {
        let consecutive = n.results.iter().enumerate().all(|(k, v)| v.index() == self.defined + k);
        if n.results.is_empty() || n.results.len() != n.types.len() || !consecutive {
            let ids: Vec<u32> = n.results.iter().map(|v| v.0).collect();
            let message = format!(
                "`{}` has results {ids:?} and {} types; the next free id is {}",
                n.op.name(),
                n.types.len(),
                self.defined
            );
            self.node_error(i, Mark::Results, "ir::results", message, Some("build nodes with `Graph::push`".into()));
        }
        let weights = !n.operands.is_empty() && n.operands.iter().all(|v| self.constant.get(v.index()) == Some(&true));
        if weights_only(n.op) && !weights {
            let k = n.operands.iter().position(|v| self.constant.get(v.index()) != Some(&true)).unwrap_or(0);
            let name = n.operands.get(k).map_or_else(String::new, |v| self.names.get(*v));
            let message = format!("`{}` is computed at compile time, but {name} is known only in a step", n.op.name());
            self.node_error(
                i,
                Mark::Operand(k),
                "ir::weight",
                message,
                Some("its operand must depend on weights alone".into()),
            );
        }
        self.defined += n.results.len();
        self.constant.resize(self.defined, weights);
    }

    // ---- the graph as a whole --------------------------------------------------------------------------------------------------

    fn cuts(&mut self) {
        let (cuts, nodes) = (&self.graph.cuts, self.graph.nodes.len());
        for (i, at) in cuts.iter().enumerate() {
            if *at > nodes {
                self.end_error(
                    Place::Cut(i),
                    "ir::cut",
                    format!("cut {i} stands before node {at}, the graph has {nodes}"),
                    None,
                );
            } else if i > 0 && cuts[i - 1] >= *at {
                let message = format!("cut {i} stands before node {at}, the cut before it before node {}", cuts[i - 1]);
                self.end_error(Place::Cut(i), "ir::cut", message, Some("cuts ascend, and a region has a node".into()));
            }
        }
    }

    fn outputs(&mut self) {
        for (i, v) in self.graph.outputs.iter().enumerate() {
            if v.index() >= self.defined {
                let message = format!("output {i} is value {}, the graph has {} values", v.0, self.defined);
                self.end_error(Place::Output(i), "ir::order", message, None);
            }
        }
    }
}

fn mark_of(line: &Line, mark: Mark) -> Range<usize> {
    let span = |places: &[Range<usize>]| Some(places.first()?.start..places.last()?.end);
    let call = line.op.start..line.operands.last().map_or(line.op.end, |o| o.end);
    let found = match mark {
        Mark::Call => None,
        Mark::Operand(k) => line.operands.get(k).cloned(),
        Mark::Attrs => Some(line.attrs.clone()),
        Mark::Types => span(&line.types),
        Mark::Results => span(&line.results),
    };
    found.unwrap_or(call)
}

/// Ops whose operands must depend on weights alone.
fn weights_only(op: Op) -> bool {
    op == Op::HeadRows
}
