//! Graph to text.

use super::names::{Names, is_word, quoted, with_sigil};
use crate::graph::{Attr, Graph, Node, Param, ParamKind, ValueId};
use crate::types::{DType, Type};
use std::fmt;
use std::ops::Range;

/// Longest header that stays on one line, in bytes.
const HEADER_WIDTH: usize = 120;

/// Writes the text form. Total: a graph that the verifier rejects is printed as well as it can be.
pub fn print(graph: &Graph, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let names = Names::of(graph);
    writeln!(f, "{}", header(graph))?;
    for (i, node) in graph.nodes.iter().enumerate() {
        cuts(graph, f, |at| at == i)?;
        write!(f, "  {}", node_line(node, &names).text)?;
        match comment(node) {
            Some(c) => writeln!(f, "  // {c}")?,
            None => writeln!(f)?,
        }
    }
    cuts(graph, f, |at| at >= graph.nodes.len())?;
    let outputs = graph.outputs.iter().map(|v| names.get(*v));
    writeln!(f, "  {}", ["return".to_owned(), join(outputs)].join(" ").trim_end())?;
    f.write_str("}\n")
}

fn cuts(graph: &Graph, f: &mut fmt::Formatter<'_>, here: impl Fn(usize) -> bool) -> fmt::Result {
    graph.cuts.iter().filter(|at| here(**at)).try_for_each(|_| writeln!(f, "  ---- cut"))
}

/// Lines before the first node.
pub(crate) fn header_lines(graph: &Graph) -> usize {
    header(graph).lines().count()
}

fn header(graph: &Graph) -> String {
    let name = with_sigil('@', &graph.name);
    let params: Vec<String> = graph.params.iter().map(param_text).collect();
    let type_text = |v: &ValueId| type_of(graph, *v).map_or_else(|| "?".to_owned(), ToString::to_string);
    let results = match join(graph.outputs.iter().map(type_text)) {
        types if types.is_empty() => String::new(),
        types => format!(" -> {types}"),
    };
    let one_line = format!("graph {name}({}){results} {{", params.join(", "));
    if one_line.len() <= HEADER_WIDTH && !params.iter().any(|p| p.starts_with("weight") || p.starts_with("state")) {
        return one_line;
    }
    format!("graph {name}(\n  {},\n){results} {{", params.join(",\n  "))
}

/// A parameter as the header lists it.
pub(crate) fn param_text(p: &Param) -> String {
    match &p.kind {
        ParamKind::Input => format!("{}: {}", with_sigil('%', &p.name), p.ty),
        ParamKind::Weight { source } => format!("weight {}: {} @ {}", with_sigil('%', &p.name), p.ty, quoted(source)),
        ParamKind::State => format!("state {}: {}", with_sigil('@', &p.name), p.ty),
    }
}

/// Like `Graph::ty`, for graphs that may be broken.
pub(crate) fn type_of(graph: &Graph, v: ValueId) -> Option<&Type> {
    if let Some(p) = graph.params.get(v.index()) {
        return Some(&p.ty);
    }
    let (node, result) = graph.definition(v)?;
    graph.nodes[node].types.get(result)
}

/// One printed node with the places of its parts, in bytes; for messages that mark a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub text: String,
    pub results: Vec<Range<usize>>,
    pub op: Range<usize>,
    pub operands: Vec<Range<usize>>,
    /// The attributes with their braces; empty if there are none.
    pub attrs: Range<usize>,
    pub types: Vec<Range<usize>>,
}

impl Line {
    fn add(&mut self, text: &str) -> Range<usize> {
        let start = self.text.len();
        self.text.push_str(text);
        start..self.text.len()
    }

    fn add_list(&mut self, items: impl Iterator<Item = String>) -> Vec<Range<usize>> {
        let mut places = vec![];
        for item in items {
            if !places.is_empty() {
                self.add(", ");
            }
            places.push(self.add(&item));
        }
        places
    }
}

/// The printed form of a node, without its comment.
pub fn node_line(node: &Node, names: &Names) -> Line {
    let mut line = Line::default();
    line.results = line.add_list(node.results.iter().map(|v| names.get(*v)));
    line.add(" = ");
    line.op = line.add(node.op.name());
    if !node.operands.is_empty() {
        line.add(" ");
        line.operands = line.add_list(node.operands.iter().map(|v| names.get(*v)));
    }
    if !node.attrs.is_empty() {
        line.add(" ");
        let attrs = join(node.attrs.iter().map(|(name, a)| format!("{name} = {}", attr(a))));
        line.attrs = line.add(&format!("{{{attrs}}}"));
    }
    line.add(" : ");
    line.types = line.add_list(node.types.iter().map(ToString::to_string));
    line
}

/// Comments are one line: line breaks become spaces.
fn comment(node: &Node) -> Option<String> {
    let text = node.comment.as_ref()?.replace(['\n', '\r'], " ");
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn attr(a: &Attr) -> String {
    match a {
        Attr::Int(n) => n.to_string(),
        Attr::Float(x) => format!("{:?}", x.0),
        Attr::Str(s) if is_word(s) && DType::from_name(s).is_none() => s.clone(),
        Attr::Str(s) => quoted(s),
        Attr::Ints(v) => format!("[{}]", join(v.iter().map(ToString::to_string))),
        Attr::Shape(v) => format!("[{}]", join(v.iter().map(ToString::to_string))),
        Attr::DType(d) => d.to_string(),
    }
}

fn join(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
