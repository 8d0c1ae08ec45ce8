//! Fusion by search: one e-graph for each layer class, rewrites to saturation, one extraction for each bucket by the catalog's costs.

mod analysis;
pub mod certificate;
mod classes;
mod extract;
mod forced;
pub(crate) mod language;
mod region;
mod report;
pub mod rules;
mod saturate;
mod splice;
pub(crate) mod words;

pub use certificate::{Certificate, CertificateError, ClassCertificate, Direction, Step, Term};
pub use extract::{Cost, stored_charge_nanos};
pub use forced::forced;
pub use report::{BucketReport, ClassReport, Form, FuseReport};
pub use saturate::{ITERATION_LIMIT, NODE_LIMIT, RuleStats, Stop};

use classes::LayerClass;
use deepfuse_ir::verify::{VerifyErrors, verify};
use deepfuse_ir::{Bucket, Catalog, Graph};
use indexmap::IndexMap;
use region::{FusedRegion, Origin, PlainRegion, fused_region, plain_region};
use saturate::{CompiledRule, Fired, Saturation, compiled, saturate};
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

/// What a rewrite may do to roundings; each class contains those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Numerics {
    /// The same roundings in the same places.
    Exact,
    /// An identity of real numbers: sums are ordered differently.
    Reassociates,
    /// Drops or moves a rounding to the activation type.
    Requantizes,
    /// No identity.
    Approximates,
}

impl Numerics {
    pub const ALL: [Self; 4] = [Self::Exact, Self::Reassociates, Self::Requantizes, Self::Approximates];

    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Reassociates => "reassociates",
            Self::Requantizes => "requantizes",
            Self::Approximates => "approximates",
        }
    }
}

impl FromStr for Numerics {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|n| n.name() == name).ok_or(())
    }
}

/// Limits of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuseOptions {
    pub numerics: Numerics,
    /// Names of rules that must not fire; `all` disables every rule, which leaves the identity extraction.
    pub disabled: Vec<String>,
}

/// Fused graphs, the proof, the numbers.
#[derive(Clone, Debug)]
pub struct Fused {
    /// One graph a bucket, in the order of the buckets. Parameters and outputs are those of the plain graph.
    pub graphs: Vec<(Bucket, Graph)>,
    pub certificate: Certificate,
    pub report: FuseReport,
}

/// Why a graph could not be fused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FuseError {
    #[error("there is no rule `{name}`; rules: {known}")]
    UnknownRule { name: String, known: String },
    /// No form of a value can be computed on the target.
    #[error("no kernel computes {value} in bucket {bucket}, in any form that the rules know\n{region}")]
    NoKernel { value: String, bucket: String, region: String },
    /// A stop produced, or was given, a graph that the verifier refuses.
    #[error("{stop}: the graph is not well-formed\n{errors}")]
    Verify { stop: &'static str, errors: VerifyErrors },
    /// A rule of ours is wrong.
    #[error("{message}\n{region}")]
    Bug {
        message: String,
        /// The layer class it happened in, as text.
        region: String,
    },
}

impl FuseError {
    fn bug(message: String) -> Self {
        Self::Bug { message, region: String::new() }
    }

    fn in_region(self, graph: &Graph) -> Self {
        match self {
            Self::Bug { message, .. } => Self::Bug { message, region: graph.to_string() },
            other => other,
        }
    }
}

/// Fuses a canonical graph, for every bucket. The same graph, costs and options give the same result.
///
/// Errors: [`FuseError`].
pub fn fuse(
    graph: &Graph,
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
) -> Result<Fused, FuseError> {
    fuse_timed(graph, catalog, buckets, options, &|| Duration::ZERO)
}

/// [`fuse`] with a clock, read around the rules for the report; time has no influence on the result.
pub fn fuse_timed(
    graph: &Graph,
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
    clock: &dyn Fn() -> Duration,
) -> Result<Fused, FuseError> {
    checked("fuse (input)", graph)?;
    let rules = enabled_rules(options)?;
    let classes = classes::classes(graph);
    let mut report = FuseReport { numerics: options.numerics, classes: vec![] };
    let mut certificate = Certificate { numerics: options.numerics, classes: vec![] };
    // By bucket, then by class.
    let mut forms: Vec<Vec<FusedRegion>> = vec![vec![]; buckets.len()];
    for class in &classes {
        let done = fuse_class(class, &rules, catalog, buckets, options, clock);
        let done = done.map_err(|e| e.in_region(&class.graph))?;
        for (of_bucket, form) in forms.iter_mut().zip(done.forms) {
            of_bucket.push(form);
        }
        report.classes.push(done.report);
        certificate.classes.push(done.certificate);
    }
    let names = |c: &ClassCertificate| c.steps.iter().map(|s| s.rule.clone()).collect::<Vec<_>>();
    let names: Vec<Vec<String>> = certificate.classes.iter().map(names).collect();
    let mut graphs = vec![];
    for (bucket, forms) in buckets.iter().zip(&forms) {
        let fused = splice::splice(graph, &classes, forms, &names);
        checked("fuse", &fused)?;
        graphs.push((bucket.clone(), fused));
    }
    Ok(Fused { graphs, certificate, report })
}

pub(crate) fn checked(stop: &'static str, graph: &Graph) -> Result<(), FuseError> {
    verify(graph).map_err(|errors| FuseError::Verify { stop, errors })
}

fn enabled_rules(options: &FuseOptions) -> Result<Vec<CompiledRule>, FuseError> {
    let all = rules::all();
    if let Some(name) = options.disabled.iter().find(|d| *d != "all" && !all.iter().any(|r| r.name == **d)) {
        let mut known: Vec<&str> = all.iter().map(|r| r.name).collect();
        known.dedup();
        return Err(FuseError::UnknownRule { name: name.clone(), known: known.join(", ") });
    }
    let disabled = |name: &str| options.disabled.iter().any(|d| d == "all" || d == name);
    Ok(all.into_iter().filter(|r| !disabled(r.name)).map(compiled).collect())
}

struct FusedClass {
    /// By bucket.
    forms: Vec<FusedRegion>,
    report: ClassReport,
    certificate: ClassCertificate,
}

fn fuse_class(
    class: &LayerClass,
    rules: &[CompiledRule],
    catalog: &dyn Catalog,
    buckets: &[Bucket],
    options: &FuseOptions,
    clock: &dyn Fn() -> Duration,
) -> Result<FusedClass, FuseError> {
    let mut region = plain_region(&class.graph);
    let Saturation { iterations, stop, mut fired, stats } =
        saturate(&mut region.egraph, rules, options.numerics, clock)?;
    let added: Vec<&[_]> = fired.iter().map(|f| f.added.as_slice()).collect();
    let origins = region.origins(&added);
    let regions: Vec<usize> = class.regions.iter().map(|r| r.index).collect();
    let mut report = ClassReport {
        regions: regions.clone(),
        plain_nodes: class.graph.nodes.len(),
        enodes: region.egraph.total_number_of_nodes(),
        eclasses: region.egraph.number_of_classes(),
        iterations,
        stop,
        buckets: vec![],
        rules: rules.iter().zip(stats).map(|(r, s)| (r.rule.name.to_owned(), s)).collect(),
    };
    let (mut forms, mut texts, mut kept) = (vec![], IndexMap::new(), BTreeSet::new());
    for bucket in buckets {
        let (form, cost) = form(&region, class, catalog, bucket, &origins, Among::All(&mut kept))?;
        checked("fuse (region)", &form.graph)?;
        let plain = self::form(&region, class, catalog, bucket, &origins, Among::Plain).ok();
        let plain = plain.map(|(form, cost)| Form { cost, kernels: form.kernels });
        let fused = Form { cost, kernels: form.kernels };
        report.buckets.push(BucketReport { bucket: bucket.name.clone(), plain, fused });
        mark_used(&region, &mut fired, &origins, &form, &bucket.name);
        texts.insert(bucket.name.clone(), form.graph.to_string().trim_end().to_owned());
        forms.push(form);
    }
    let certificate = ClassCertificate {
        regions,
        plain: class.graph.to_string().trim_end().to_owned(),
        steps: fired.into_iter().map(|f| f.step).collect(),
        fused: texts,
    };
    Ok(FusedClass { forms, report, certificate })
}

/// Nodes that an extraction may take.
enum Among<'a> {
    /// Those of the plain region.
    Plain,
    /// All; the classes that earlier buckets store as weights, to which those of this one are added.
    All(&'a mut BTreeSet<usize>),
}

/// The cheapest form in a bucket.
fn form(
    region: &PlainRegion,
    class: &LayerClass,
    catalog: &dyn Catalog,
    bucket: &Bucket,
    origins: &IndexMap<language::Enode, Origin>,
    among: Among<'_>,
) -> Result<(FusedRegion, Cost), FuseError> {
    let mut prices = region.prices(&class.graph, catalog, bucket, origins, matches!(among, Among::Plain));
    if let Among::All(kept) = &among {
        prices.problem.kept.clone_from(kept);
    }
    let (choice, cost) = extract::extract(&prices.problem).map_err(|root| {
        let output = prices.problem.roots.iter().position(|r| *r == root).unwrap_or(0);
        let value = format!("output {output}, {},", class.graph.ty(class.graph.outputs[output]));
        FuseError::NoKernel { value, bucket: bucket.name.clone(), region: class.graph.to_string() }
    })?;
    if let Among::All(kept) = among {
        kept.extend(extract::stored_classes(&prices.problem, &choice));
    }
    Ok((fused_region(&region.egraph, &class.graph, &prices, &choice)?, cost))
}

/// Marks the steps that a form rests on: those that added its nodes, and those that added what these steps matched.
fn mark_used(
    region: &PlainRegion,
    fired: &mut [Fired],
    origins: &IndexMap<language::Enode, Origin>,
    form: &FusedRegion,
    bucket: &str,
) {
    use egg::Language;
    let step = |o: &Origin| if let Origin::Step(s) = o { Some(*s) } else { None };
    let mut open: Vec<usize> = form.origins.iter().filter_map(step).collect();
    while let Some(at) = open.pop() {
        if fired[at].step.used.iter().any(|b| b == bucket) {
            continue;
        }
        fired[at].step.used.push(bucket.to_owned());
        let matched = fired[at].matched.iter().map(|e| e.clone().map_children(|c| region.egraph.find(c)));
        open.extend(matched.filter_map(|e| origins.get(&e).and_then(step)).filter(|s| *s < at));
    }
}

#[cfg(test)]
pub(crate) mod tests;
