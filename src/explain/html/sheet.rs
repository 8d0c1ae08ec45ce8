//! What the page says of a layer class, gathered before anything is written.

use super::draw::{Mark, Picture, draw, short};
use super::groups::{Group, groups};
use super::{HUES, words};
use crate::error::Error;
use crate::explain::{Class, Explanation, ReplayedClass, Subject, Told, holds};
use deepfuse_ir::{Bucket, Graph};
use deepfuse_passes::check::pattern::read_rules;
use deepfuse_passes::fuse::{Direction, Step, Term};
use indexmap::{IndexMap, IndexSet};

/// One layer class.
pub struct Sheet {
    pub number: usize,
    pub holds: String,
    pub regions: Vec<usize>,
    /// The plain region, coloured for every form.
    pub plain: String,
    pub operations: usize,
    /// Different forms, in the order of the buckets that chose them.
    pub forms: Vec<Form>,
    /// By bucket.
    pub costs: Vec<Costs>,
}

/// A fused form.
pub struct Form {
    pub picture: String,
    pub kernels: usize,
    pub fusions: Vec<Fusion>,
}

/// Operations that became kernels.
pub struct Fusion {
    pub id: String,
    pub color: usize,
    pub name: String,
    pub replaced: Vec<&'static str>,
    /// What the step's number is, and the step.
    pub steps: Vec<(usize, Step)>,
    /// By step: what its variables are.
    pub bindings: Vec<Vec<String>>,
}

/// A class in one bucket.
pub struct Costs {
    pub bucket: String,
    pub form: usize,
    pub rows: Vec<Row>,
}

/// What some operations cost, and the kernels that they became.
pub struct Row {
    pub name: String,
    pub color: Option<usize>,
    pub plain: f64,
    pub fused: f64,
}

/// All classes.
///
/// Errors: `certificate` if it does not prove what it says.
pub fn sheets(subject: &Subject, explained: &Explanation) -> Result<Vec<Sheet>, Error> {
    let rules = read_rules();
    let (catalog, buckets) = (subject.catalog(), Bucket::all());
    let told = Told { subject, catalog: &catalog, classes: vec![] };
    // One colour a kind of fusion, on the whole page.
    let mut colors: IndexSet<String> = IndexSet::new();
    let classes = subject.certificate.classes.iter().zip(&explained.classes).enumerate();
    let sheet = |(number, (certificate, class))| {
        let replayed = ReplayedClass::of(certificate, number, subject, &rules)?;
        let names = subject.report.inputs.get(number).map_or(&[][..], Vec::as_slice);
        Ok(of_class(&told, &replayed, class, number, names, &buckets, &mut colors))
    };
    classes.map(sheet).collect()
}

/// A form with its groups; the colour of each.
struct Grouped<'a> {
    graph: &'a Graph,
    groups: Vec<(Group, Option<usize>)>,
}

fn of_class(
    told: &Told<'_>,
    class: &ReplayedClass<'_>,
    story: &Class,
    number: usize,
    names: &[String],
    buckets: &[Bucket],
    colors: &mut IndexSet<String>,
) -> Sheet {
    let mut forms: Vec<Grouped<'_>> = vec![];
    let mut form_of: Vec<usize> = vec![];
    for bucket in &story.buckets {
        let graph = class.form(&bucket.bucket).unwrap_or(&class.replay.plain);
        let known = forms.iter().position(|f| f.graph == graph);
        form_of.push(known.unwrap_or(forms.len()));
        if known.is_none() {
            let colored = |g: Group| {
                let name = computing(graph, &g);
                let color = (!g.steps.is_empty()).then(|| colors.insert_full(name).0 % HUES.len());
                (g, color)
            };
            let found = groups(class, graph).unwrap_or_default();
            forms.push(Grouped { graph, groups: found.into_iter().map(colored).collect() });
        }
    }
    let plain = &class.replay.plain;
    let mut marks: Vec<Vec<Mark>> = vec![vec![]; plain.nodes.len()];
    for (form, grouped) in forms.iter().enumerate() {
        for (group, (g, color)) in grouped.groups.iter().enumerate() {
            g.plain.iter().for_each(|n| marks[*n].push(Mark { form, group, color: *color }));
        }
    }
    let label =
        format!("{} before fusion, {} operations. Arrow keys move between nodes.", story.holds, plain.nodes.len());
    let costs = story.buckets.iter().zip(&form_of).filter_map(|(b, form)| {
        let bucket = buckets.iter().find(|known| known.name == b.bucket)?;
        Some(costs(told, class, &forms[*form], *form, bucket, names))
    });
    Sheet {
        number,
        holds: holds(plain),
        regions: story.regions.clone(),
        plain: draw(&Picture { graph: plain, names, marks: &marks, label, class: number }),
        operations: plain.nodes.len(),
        costs: costs.collect(),
        forms: forms.iter().enumerate().map(|(i, f)| form(class, f, i, number, names, &story.holds)).collect(),
    }
}

/// Names of the group's operations that are no views.
fn computing(graph: &Graph, group: &Group) -> String {
    let ops = group.fused.iter().map(|n| graph.nodes[*n].op);
    let names: Vec<&str> = ops
        .filter(|op| !matches!(op, deepfuse_ir::Op::Slice | deepfuse_ir::Op::Reshape))
        .map(deepfuse_ir::Op::name)
        .collect();
    words::listed(if names.is_empty() { vec!["view"] } else { names }.into_iter())
}

/// The same with what the weights are called.
fn called(graph: &Graph, group: &Group, names: &[String]) -> String {
    let constant = graph.constant_values();
    let mut weights: IndexSet<String> = IndexSet::new();
    for v in group.fused.iter().flat_map(|n| &graph.nodes[*n].operands).filter(|v| constant[v.index()]) {
        let mut open = vec![*v];
        while let Some(v) = open.pop() {
            match graph.definition(v) {
                Some((at, _)) => open.extend(graph.nodes[at].operands.iter().rev()),
                None => weights.extend(names.get(v.index()).map(|n| short(n))),
            }
        }
    }
    let weights: Vec<String> = weights.into_iter().collect();
    let name = computing(graph, group);
    if weights.is_empty() { name } else { format!("{name}: {}", weights.join(", ")) }
}

fn form(class: &ReplayedClass<'_>, f: &Grouped<'_>, form: usize, number: usize, names: &[String], holds: &str) -> Form {
    let mut marks: Vec<Vec<Mark>> = vec![vec![]; f.graph.nodes.len()];
    let mut fusions = vec![];
    for (group, (g, color)) in f.groups.iter().enumerate() {
        g.fused.iter().for_each(|n| marks[*n].push(Mark { form, group, color: *color }));
        let Some(color) = *color else { continue };
        let steps: Vec<(usize, Step)> = g.steps.iter().map(|s| (*s, class.certificate.steps[*s].clone())).collect();
        fusions.push(Fusion {
            id: format!("c{number}f{form}g{group}"),
            color,
            name: called(f.graph, g, names),
            replaced: g.plain.iter().map(|n| class.replay.plain.nodes[*n].op.name()).collect(),
            bindings: steps.iter().map(|(_, step)| bindings(class, step, names)).collect(),
            steps,
        });
    }
    let computing = f.graph.nodes.iter().filter(|n| !matches!(n.op, deepfuse_ir::Op::Slice | deepfuse_ir::Op::Reshape));
    let constant = f.graph.constant_values();
    let kernels = computing.filter(|n| n.results.iter().any(|v| !constant[v.index()])).count();
    let label = format!("{holds} after fusion, {kernels} kernels. Arrow keys move between nodes.");
    Form { picture: draw(&Picture { graph: f.graph, names, marks: &marks, label, class: number }), kernels, fusions }
}

/// `?x = rms_norm : bf16[T, 7168]`; what a step made is named by the step.
fn bindings(class: &ReplayedClass<'_>, step: &Step, names: &[String]) -> Vec<String> {
    let plain = &class.replay.plain;
    let shown = |term: &Term| match term {
        Term::Value(v) => {
            let v = deepfuse_ir::ValueId(*v);
            let what = match plain.definition(v) {
                Some((at, _)) => plain.nodes[at].op.name().to_owned(),
                None => names.get(v.index()).cloned().unwrap_or_else(|| plain.params[v.index()].name.clone()),
            };
            format!("{what} : {}", plain.ty(v))
        }
        Term::Node(at) => plain.nodes[*at as usize].op.name().to_owned(),
        Term::Attr(a) => a.to_string(),
        Term::Made { step, .. } => format!("made by step {step}"),
    };
    step.bindings.iter().map(|(var, term)| format!("{var} = {}", shown(term))).collect()
}

fn costs(
    told: &Told<'_>,
    class: &ReplayedClass<'_>,
    f: &Grouped<'_>,
    form: usize,
    bucket: &Bucket,
    names: &[String],
) -> Costs {
    let by_node = |graph: &Graph| -> IndexMap<usize, f64> {
        told.price(class, graph, bucket).kernels.into_iter().map(|(at, k)| (at, k.nanos)).collect()
    };
    let (plain, fused) = (by_node(&class.replay.plain), by_node(f.graph));
    let mut left: f64 = plain.values().sum();
    let mut rows = vec![];
    for (g, color) in &f.groups {
        let sum =
            |nodes: &[usize], costs: &IndexMap<usize, f64>| nodes.iter().filter_map(|n| costs.get(n)).sum::<f64>();
        let row = Row {
            name: called(f.graph, g, names),
            color: *color,
            plain: sum(&g.plain, &plain),
            fused: sum(&g.fused, &fused),
        };
        left -= row.plain;
        if row.plain > 0.0 || row.fused > 0.0 {
            rows.push(row);
        }
    }
    if left > 1.0 {
        rows.push(Row { name: "not needed any more".to_owned(), color: None, plain: left, fused: 0.0 });
    }
    Costs { bucket: bucket.name.clone(), form, rows }
}

/// `absorb-key`, `absorb-key backwards`.
pub fn step_name(step: &Step) -> String {
    if step.direction == Direction::Forward { step.rule.clone() } else { format!("{} backwards", step.rule) }
}
