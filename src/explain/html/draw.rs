//! A region as SVG.
//!
//! Weights stand inside the box that reads them, what is computed from weights alone too; the page lists of a batch are left out, for every
//! attention node reads them.

use super::escape::e;
use super::layout::{Size, layout};
use deepfuse_ir::{Attr, DType, Graph, Node, Op, ParamKind, Type, ValueId};
use indexmap::{IndexMap, IndexSet};
use std::fmt::Write;

/// Width of a letter of the monospaced font at 12 and at 10.5 pixels.
const TITLE_LETTER: f64 = 7.3;
const LINE_LETTER: f64 = 6.4;
const LINE_HEIGHT: f64 = 14.0;
const LONGEST_LINE: usize = 26;

/// How a node is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub form: usize,
    pub group: usize,
    /// Of a fusion; what is as it was has none.
    pub color: Option<usize>,
}

/// What is drawn.
pub struct Picture<'a> {
    pub graph: &'a Graph,
    /// What the parameters are called in the model.
    pub names: &'a [String],
    /// By node.
    pub marks: &'a [Vec<Mark>],
    /// For those who do not see it.
    pub label: String,
    /// Which class of the page this is.
    pub class: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Op(usize),
    Input,
    State,
    Output,
}

struct Shape {
    kind: Kind,
    title: String,
    /// Text, and whether it is a weight.
    lines: Vec<(String, bool)>,
    tip: String,
}

impl Shape {
    fn size(&self) -> Size {
        let letters = |t: &str| t.chars().count() as f64;
        let lines = self.lines.iter().map(|(l, weight)| letters(l) * LINE_LETTER + if *weight { 12.0 } else { 0.0 });
        let width = lines.fold(letters(&self.title) * TITLE_LETTER, f64::max) + 18.0;
        let height = 22.0 + LINE_HEIGHT * self.lines.len() as f64;
        Size { width: width.ceil(), height, low: matches!(self.kind, Kind::Input | Kind::State) }
    }
}

/// The picture as an `svg` element.
pub fn draw(p: &Picture<'_>) -> String {
    let (shapes, edges) = parts(p);
    let sizes: Vec<Size> = shapes.iter().map(Shape::size).collect();
    let lines: Vec<(usize, usize)> = edges.keys().copied().collect();
    let placed = layout(&sizes, &lines);
    let (w, h) = (placed.width.ceil(), placed.height.ceil());
    let mut svg = format!(
        "<svg class=\"graph\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"group\" aria-label=\"{}\">\n",
        e(&p.label)
    );
    for (route, state) in placed.routes.iter().zip(edges.values()) {
        let class = if *state { "edge via-state" } else { "edge" };
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{}\"/>", path(route));
    }
    let mut first = true;
    for ((shape, size), at) in shapes.iter().zip(&sizes).zip(&placed.places) {
        vertex(&mut svg, p, shape, *size, *at, std::mem::take(&mut first));
    }
    svg + "</svg>\n"
}

/// Boxes and edges; an edge is true if it carries a state.
fn parts(p: &Picture<'_>) -> (Vec<Shape>, IndexMap<(usize, usize), bool>) {
    let (g, constant) = (p.graph, p.graph.constant_values());
    let used: IndexSet<ValueId> = g.nodes.iter().flat_map(|n| n.operands.iter().copied()).collect();
    let (mut shapes, mut edges) = (vec![], IndexMap::new());
    let mut shape_of: IndexMap<ValueId, usize> = IndexMap::new();
    for (i, param) in g.params.iter().enumerate() {
        let v = ValueId(i as u32);
        if constant[i] || is_batch_list(&param.ty) || !used.contains(&v) {
            continue;
        }
        let name = p.names.get(i).map_or(param.name.as_str(), String::as_str);
        let (kind, title) = if param.kind == ParamKind::State {
            (Kind::State, "cache".to_owned())
        } else {
            (Kind::Input, if name == "value" { "from before".to_owned() } else { name.to_owned() })
        };
        shape_of.insert(v, shapes.len());
        shapes.push(Shape { kind, tip: format!("{name}\n{}", param.ty), title, lines: vec![] });
    }
    for (at, n) in g.nodes.iter().enumerate() {
        if n.results.iter().all(|v| constant[v.index()]) {
            continue;
        }
        for v in n.operands.iter().filter_map(|v| shape_of.get(v).map(|s| (*s, g.ty(*v).state().is_some()))) {
            edges.insert((v.0, shapes.len()), v.1);
        }
        shape_of.extend(n.results.iter().map(|v| (*v, shapes.len())));
        shapes.push(operation(p, at, n, &constant));
    }
    for v in g.outputs.iter().filter(|v| g.ty(**v).tensor().is_some()) {
        let Some(from) = shape_of.get(v).copied() else { continue };
        edges.insert((from, shapes.len()), false);
        let logits = g.nodes.iter().any(|n| n.op == Op::GatherRows);
        let title = if logits { "logits" } else { "to the next" }.to_owned();
        let tip = format!("output\n{}", g.ty(*v));
        shapes.push(Shape { kind: Kind::Output, title, lines: vec![], tip });
    }
    (shapes, edges)
}

/// `pos`, `seq`, `pages` and their like.
fn is_batch_list(ty: &Type) -> bool {
    ty.tensor().is_some_and(|t| t.dtype == DType::I32 && t.rank() == 1)
}

fn operation(p: &Picture<'_>, at: usize, n: &Node, constant: &[bool]) -> Shape {
    let mut lines: Vec<(String, bool)> = detail(n).map(|d| (cut(&d), false)).into_iter().collect();
    let mut tip = format!("{}{}", n.op.name(), attributes(n));
    for v in &n.operands {
        let what = if constant[v.index()] {
            let names = weights_of(p, *v);
            let short: Vec<String> = names.iter().map(|n| short(n)).collect();
            lines.push((cut(&short.join(" + ")), true));
            format!("   weight {}", names.join(" + "))
        } else {
            String::new()
        };
        let _ = write!(tip, "\nin   {}{what}", p.graph.ty(*v));
    }
    for ty in &n.types {
        let _ = write!(tip, "\nout  {ty}");
    }
    Shape { kind: Kind::Op(at), title: n.op.name().to_owned(), lines, tip }
}

/// What tells one slice from another.
fn detail(n: &Node) -> Option<String> {
    let int = |name: &str| if let Some(Attr::Int(i)) = n.attrs.get(name) { Some(*i) } else { None };
    match n.op {
        Op::Slice => Some(format!("{} .. {}", int("start")?, int("start")? + int("len")?)),
        Op::Reshape => Some(n.types[0].to_string()),
        _ => None,
    }
}

fn attributes(n: &Node) -> String {
    let list: Vec<String> = n.attrs.iter().map(|(name, a)| format!("{name} = {a}")).collect();
    if list.is_empty() { String::new() } else { format!("  {{{}}}", list.join(", ")) }
}

/// Names of the weights that a value is made of.
fn weights_of(p: &Picture<'_>, v: ValueId) -> Vec<String> {
    let (mut open, mut names) = (vec![v], IndexSet::new());
    while let Some(v) = open.pop() {
        match p.graph.definition(v) {
            None => {
                let given = p.names.get(v.index()).filter(|n| *n != "value");
                names.insert(given.unwrap_or(&p.graph.params[v.index()].name).clone());
            }
            Some((at, _)) => open.extend(p.graph.nodes[at].operands.iter().rev()),
        }
    }
    names.into_iter().collect()
}

/// `kv_b_proj`, `shared up_proj`, `256 × up_proj` of a tensor's name.
pub fn short(name: &str) -> String {
    let bare = name.strip_suffix(".weight").unwrap_or(name);
    let last = bare.rsplit('.').next().unwrap_or(bare);
    match deepfuse_ir::weights::stacked_count(name) {
        Some(n) => format!("{n} × {last}"),
        None if name.contains(".shared_experts.") => format!("shared {last}"),
        None => last.to_owned(),
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST_LINE {
        return text.to_owned();
    }
    text.chars().take(LONGEST_LINE - 1).chain(['…']).collect()
}

/// A line through points, bent where it moves sideways.
fn path(points: &[(f64, f64)]) -> String {
    let mut d = format!("M{:.0} {:.0}", points[0].0, points[0].1);
    for w in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (w[0], w[1]);
        let y = f64::midpoint(y0, y1);
        if (x0 - x1).abs() < 0.5 {
            let _ = write!(d, "V{y1:.0}");
        } else {
            let _ = write!(d, "C{x0:.0} {y:.0} {x1:.0} {y:.0} {x1:.0} {y1:.0}");
        }
    }
    d
}

fn vertex(svg: &mut String, p: &Picture<'_>, shape: &Shape, size: Size, at: (f64, f64), first: bool) {
    let (x, y) = ((at.0 - size.width / 2.0).round(), (at.1 - size.height / 2.0).round());
    let mut class = match shape.kind {
        Kind::Op(n) if is_view(p.graph.nodes[n].op) => "node view".to_owned(),
        Kind::Op(_) => "node".to_owned(),
        Kind::Input | Kind::Output => "node end".to_owned(),
        Kind::State => "node state".to_owned(),
    };
    let mut groups = String::new();
    if let Kind::Op(n) = shape.kind {
        for mark in &p.marks[n] {
            if let Some(color) = mark.color {
                let _ = write!(class, " f{}k{color}", mark.form);
            }
            let id = if mark.color.is_some() { format!("c{}f{}g{}", p.class, mark.form, mark.group) } else { continue };
            groups.push_str(if groups.is_empty() { "" } else { " " });
            groups.push_str(&id);
        }
    }
    let role =
        if groups.is_empty() { "role=\"img\"".to_owned() } else { format!("role=\"button\" data-groups=\"{groups}\"") };
    let lines: Vec<&str> = shape.lines.iter().map(|l| l.0.as_str()).collect();
    let spoken = format!("{} {}", shape.title, lines.join(", "));
    let _ = write!(
        svg,
        "<g class=\"{class}\" {role} tabindex=\"{}\" aria-label=\"{}\" data-tip=\"{}\">\
         <rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"{}\"/>",
        if first { 0 } else { -1 },
        e(spoken.trim()),
        e(&shape.tip),
        size.width,
        size.height,
        if matches!(shape.kind, Kind::Op(_)) { 5 } else { 11 },
    );
    let _ = write!(svg, "<text x=\"{}\" y=\"{}\">{}</text>", at.0, y + 15.0, e(&shape.title));
    for (i, (line, weight)) in shape.lines.iter().enumerate() {
        let below = y + 15.0 + LINE_HEIGHT * (i + 1) as f64;
        let class = if *weight { "weight" } else { "note" };
        if *weight {
            let left = at.0 - (line.chars().count() as f64 * LINE_LETTER) / 2.0 - 6.0;
            let _ = write!(
                svg,
                "<rect class=\"weight\" x=\"{left:.0}\" y=\"{}\" width=\"7\" height=\"7\" rx=\"1\"/>",
                below - 8.0
            );
        }
        let shift = if *weight { 5.0 } else { 0.0 };
        let _ = write!(svg, "<text class=\"{class}\" x=\"{}\" y=\"{below}\">{}</text>", at.0 + shift, e(line));
    }
    svg.push_str("</g>\n");
}

/// Drawn small: it costs no kernel, as a rule.
fn is_view(op: Op) -> bool {
    matches!(op, Op::Slice | Op::Reshape)
}
