//! What fusion made of a model, what decided it, and why other rules did not fire.
//!
//! Everything is told from a certificate: it holds the plain form of every layer class, the steps and the form of every bucket. Costs are worked
//! out by the catalog that `compile` asks, so that a table shows what decided.

use crate::catalog::BackendCatalog;
use crate::error::Error;
use deepfuse_artifact::report::{Report, exit};
use deepfuse_ir::kernel::appended_columns;
use deepfuse_ir::{Answer, Bucket, Call, Catalog, Graph, Layout, Op, Operand, Symbol};
use deepfuse_passes::check::pattern::{ReadRule, read_rules};
use deepfuse_passes::check::{CheckError, Replay};
use deepfuse_passes::fuse::{AllBuckets, ClassCertificate, Direction, FuseOptions, forced, stored_charge_nanos};
use deepfuse_passes::stored::stored_bytes;
use deepfuse_passes::why::{Outcome, why_not};
use deepfuse_tuner::Basis;
use indexmap::{IndexMap, IndexSet};

pub mod html;
mod story;
mod subject;
mod tell;

pub use story::{BucketStory, Class, Explanation, Form, Kernel, Lost, RuleInClass, RuleStory, Unused};
pub use subject::{Subject, certificate, report};
pub use tell::{buckets as buckets_text, memory_lines, outcome};

/// Explains all classes and rules.
///
/// Errors: `usage` if a bucket or rule is unknown; `certificate` if it does not prove what it says.
pub fn explain(subject: &Subject, rule: Option<&str>, bucket: Option<&str>) -> Result<Explanation, Error> {
    let (all, rules) = (Bucket::all(), read_rules());
    let (mut buckets, mut names): (Vec<&Bucket>, IndexSet<&str>) = (all.iter().collect(), IndexSet::new());
    names.extend(rules.iter().map(|r| r.rule.name));
    if let Some(r) = rule.filter(|r| !names.contains(r)) {
        let known: Vec<&str> = names.into_iter().collect();
        return Err(Error::usage(format!("there is no rule `{r}`"), format!("rules: {}", known.join(", "))));
    }
    if let Some(b) = bucket {
        buckets.retain(|known| known.name == b);
        if buckets.is_empty() {
            let known: Vec<&str> = all.iter().map(|b| b.name.as_str()).collect();
            return Err(Error::usage(format!("there is no bucket `{b}`"), format!("buckets: {}", known.join(", "))));
        }
    }
    let catalog = subject.catalog();
    let mut told = Told { subject, catalog: &catalog, classes: vec![] };
    for (number, class) in subject.certificate.classes.iter().enumerate() {
        told.classes.push(ReplayedClass::of(class, number, subject, &rules)?);
    }
    let asked = rules.iter().filter(|r| rule.is_none_or(|name| r.rule.name == name));
    let classes: Vec<Class> = told.classes.iter().map(|c| told.class(c, &all, &buckets)).collect();
    let mut kernels = classes.iter().flat_map(|c| &c.buckets).flat_map(|b| &b.kernels);
    let measured = kernels.any(|k| k.basis == Basis::Record.name());
    let basis = if measured { Basis::Record } else { Basis::Estimate };
    Ok(Explanation {
        schema: "deepfuse.explain/1",
        target: subject.target.name.to_owned(),
        basis: basis.name().to_owned(),
        numerics: subject.certificate.numerics.name(),
        gap_nanos: subject.fusion.gap_picos.map(|p| p as f64 / 1e3),
        gap_percent: subject.fusion.gap_percent(),
        proof: subject.fusion.proof(),
        memory: subject.fusion.memory.clone(),
        classes,
        rules: asked.map(|r| told.rule(r, &all, &buckets)).collect::<Result<_, _>>()?,
    })
}

/// What became of every layer class in every bucket, without the rules.
///
/// Errors: `certificate` if it does not prove what it says.
pub fn classes(subject: &Subject) -> Result<Vec<Class>, Error> {
    let (all, rules, catalog) = (Bucket::all(), read_rules(), subject.catalog());
    let told = Told { subject, catalog: &catalog, classes: vec![] };
    let buckets: Vec<&Bucket> = all.iter().collect();
    let replayed = subject.certificate.classes.iter().enumerate();
    let replayed = replayed.map(|(number, class)| ReplayedClass::of(class, number, subject, &rules));
    replayed.map(|class| Ok(told.class(&class?, &all, &buckets))).collect()
}

/// A class whose certificate was replayed.
struct ReplayedClass<'a> {
    certificate: &'a ClassCertificate,
    replay: Replay,
    /// `plain`, then the distinct forms, each with the first bucket that has it.
    forms: Vec<(String, Graph)>,
    /// Index of the form of every bucket.
    form_of: IndexMap<String, usize>,
}

impl<'a> ReplayedClass<'a> {
    fn of(
        certificate: &'a ClassCertificate,
        number: usize,
        subject: &Subject,
        rules: &[ReadRule],
    ) -> Result<Self, Error> {
        let refused =
            |e: String| Report::new("certificate", exit::REJECTED, format!("the certificate proves nothing: {e}"));
        let replay = Replay::of(certificate, number, subject.certificate.numerics, rules);
        let replay = replay.map_err(|e: CheckError| refused(e.to_string()))?;
        let mut forms = vec![("plain".to_owned(), replay.plain.clone())];
        let (mut form_of, mut texts) = (IndexMap::new(), IndexMap::new());
        for (bucket, text) in &certificate.fused {
            let at = *texts.entry(text).or_insert(forms.len());
            if at == forms.len() {
                forms.push((bucket.clone(), deepfuse_passes::check::graph(text).map_err(|e| refused(e.to_string()))?));
            }
            form_of.insert(bucket.clone(), at);
        }
        Ok(Self { certificate, replay, forms, form_of })
    }

    /// The steps that built a term, the last one first.
    fn steps(&self, term: usize) -> IndexSet<usize> {
        let made_by = |term: usize| {
            let step = self.replay.steps.partition_point(|s| s.first_new <= term);
            if term < self.replay.plain_terms { None } else { step.checked_sub(1) }
        };
        let (mut open, mut steps): (Vec<usize>, IndexSet<usize>) =
            (made_by(term).into_iter().collect(), IndexSet::new());
        while let Some(step) = open.pop() {
            if steps.insert(step) {
                open.extend(self.replay.steps[step].matched.iter().filter_map(|t| made_by(*t)).filter(|s| *s < step));
            }
        }
        steps.sort_unstable_by(|a, b| b.cmp(a));
        steps
    }

    /// The form of a bucket.
    fn form(&self, bucket: &str) -> Option<&Graph> {
        Some(&self.forms[*self.form_of.get(bucket)?].1)
    }

    /// The rules that built a term, the last one first.
    fn chain(&self, term: usize) -> Vec<String> {
        let name = |s: usize| {
            let step = &self.certificate.steps[s];
            if step.direction == Direction::Forward { step.rule.clone() } else { format!("{} backwards", step.rule) }
        };
        self.steps(term).into_iter().map(name).collect::<IndexSet<String>>().into_iter().collect()
    }
}

/// A form with its costs at a bucket.
#[derive(Default)]
struct Priced {
    /// Index of the node, kernel.
    kernels: Vec<(usize, Kernel)>,
    nanos: f64,
    /// In a step of the bucket's typical sizes.
    bytes: f64,
    /// An operation that the target has no kernel for.
    missing: bool,
    /// Weights that kernels read: class of equal terms, layout, bytes.
    stored: IndexMap<(usize, Layout), u64>,
}

struct Told<'a> {
    subject: &'a Subject,
    catalog: &'a BackendCatalog<'a>,
    classes: Vec<ReplayedClass<'a>>,
}

impl Told<'_> {
    fn price(&self, class: &ReplayedClass<'_>, graph: &Graph, bucket: &Bucket) -> Priced {
        let appended = appended_columns(graph);
        let (constant, terms) = (graph.constant_values(), class.replay.terms(graph).ok());
        let mut priced = Priced::default();
        for (at, n) in graph.nodes.iter().enumerate() {
            let operand = |v: &deepfuse_ir::ValueId| Operand {
                constant: constant[v.index()],
                appended: appended[v.index()],
                ..Operand::dense(graph.ty(*v).clone())
            };
            let operands: Vec<Operand> = n.operands.iter().map(operand).collect();
            match self
                .catalog
                .answer(&Call { op: n.op, attrs: &n.attrs, operands: &operands, results: &n.types }, bucket)
            {
                Answer::View | Answer::Constant => {}
                Answer::None => priced.missing = true,
                Answer::Kernel { spec, nanos } => {
                    let name = |v: &deepfuse_ir::ValueId| {
                        let weight = if constant[v.index()] { "weight " } else { "" };
                        format!("{weight}{}", graph.ty(*v))
                    };
                    let rules = terms.as_ref().map(|t| class.chain(t.nodes[at])).unwrap_or_default();
                    let basis = self.catalog.cost(&spec).map_or(Basis::Estimate, |(_, basis)| basis).name();
                    let (operation, family) = (n.op.name(), spec.family.name());
                    let results = n.types.iter().map(ToString::to_string).collect();
                    let kernel = Kernel {
                        operation,
                        family,
                        operands: n.operands.iter().map(name).collect(),
                        results,
                        nanos,
                        basis,
                        rules,
                    };
                    priced.kernels.push((at, kernel));
                    priced.nanos += nanos;
                    priced.bytes += deepfuse_ir::cost::spec_work(&spec, &bucket.typical).bytes;
                    for (v, o) in n.operands.iter().zip(&spec.inputs).filter(|(_, o)| o.constant) {
                        let bytes = o.tensor().map_or(0, |t| stored_bytes(t, &o.layout));
                        let stored_as =
                            terms.as_ref().map_or(usize::MAX, |t| class.replay.table.find(t.values[v.index()]));
                        priced.stored.insert((stored_as, o.layout.clone()), bytes);
                    }
                }
            }
        }
        priced
    }

    /// Weights that the forms of the other buckets store.
    fn kept(&self, class: &ReplayedClass<'_>, all: &[Bucket], bucket: &Bucket) -> IndexSet<(usize, Layout)> {
        let others = all.iter().filter(|b| b.name != bucket.name);
        let forms: IndexSet<usize> = others.filter_map(|b| class.form_of.get(&b.name).copied()).collect();
        forms.into_iter().flat_map(|f| self.price(class, &class.forms[f].1, bucket).stored.into_keys()).collect()
    }

    fn forms(&self, class: &ReplayedClass<'_>, all: &[Bucket], bucket: &Bucket) -> Vec<(Form, Priced)> {
        let kept = self.kept(class, all, bucket);
        let own = class.form_of.get(&bucket.name);
        let form = |(at, (name, graph)): (usize, &(String, Graph))| {
            let priced = self.price(class, graph, bucket);
            let anew: u64 = priced.stored.iter().filter(|(at, _)| !kept.contains(*at)).map(|(_, bytes)| bytes).sum();
            let attention = [Op::MlaAbsorbed, Op::MlaAbsorbedSplit, Op::MlaExpanded]
                .into_iter()
                .filter(|op| graph.nodes.iter().any(|n| n.op == *op));
            let form = Form {
                name: name.clone(),
                chosen: own == Some(&at),
                attention: attention.map(Op::name).collect(),
                kernels: priced.kernels.len(),
                nanos: (!priced.missing).then_some(priced.nanos),
                bytes_per_token: priced.bytes / bucket.typical.get(Symbol::T).max(1) as f64,
                charge_nanos: stored_charge_nanos(anew),
            };
            (form, priced)
        };
        class.forms.iter().enumerate().map(form).collect()
    }

    fn class(&self, class: &ReplayedClass<'_>, all: &[Bucket], buckets: &[&Bucket]) -> Class {
        let story = |bucket: &&Bucket| {
            let (mut forms, mut kernels) = (vec![], vec![]);
            for (form, priced) in self.forms(class, all, bucket) {
                if form.chosen {
                    kernels = priced.kernels.into_iter().map(|(_, k)| k).collect();
                }
                forms.push(form);
            }
            BucketStory { bucket: bucket.name.clone(), typical: bucket.typical_text(), forms, kernels }
        };
        Class {
            regions: class.certificate.regions.clone(),
            holds: holds(&class.replay.plain),
            operations: class.replay.plain.nodes.len(),
            buckets: buckets.iter().map(story).collect(),
        }
    }

    fn rule(&self, rule: &ReadRule, all: &[Bucket], buckets: &[&Bucket]) -> Result<RuleStory, Error> {
        let stories = self.classes.iter().enumerate().map(|(at, class)| self.rule_in(rule, at, class, all, buckets));
        Ok(RuleStory {
            rule: rule.rule.name,
            direction: rule.rule.direction.arrow(),
            left: rule.rule.lhs.clone(),
            right: rule.rule.equations.iter().map(|(_, r)| *r).collect(),
            premises: rule.rule.premises.iter().map(ToString::to_string).collect(),
            classes: stories.collect::<Result<_, _>>()?,
        })
    }

    fn rule_in(
        &self,
        rule: &ReadRule,
        at: usize,
        class: &ReplayedClass<'_>,
        all: &[Bucket],
        buckets: &[&Bucket],
    ) -> Result<RuleInClass, Error> {
        let name = rule.rule.name;
        let steps = class.certificate.steps.iter().filter(|s| s.rule == name && s.direction == rule.rule.direction);
        let (mut fired, mut used) = (0, IndexSet::new());
        for step in steps {
            fired += 1;
            used.extend(step.used.iter().cloned());
        }
        let mut story = RuleInClass {
            class: at,
            fired,
            used: used.into_iter().collect(),
            lost: vec![],
            unused: None,
            why_not: None,
            distance: (0, 0),
        };
        if fired == 0 {
            let outcome = why_not(&class.replay, rule, self.subject.certificate.numerics);
            story.distance = outcome.distance();
            let disabled = self.subject.fusion.disabled_rules.iter().any(|d| d == "all" || d == name);
            let told = if disabled && outcome == Outcome::Left {
                "it applies, and is disabled".to_owned()
            } else {
                outcome.to_string()
            };
            story.why_not = Some(told);
            return Ok(story);
        }
        if story.used.is_empty() {
            story.unused = self.unused(name, class, all, buckets)?;
        } else {
            let lost = buckets.iter().filter(|b| !story.used.contains(&b.name));
            story.lost = lost.filter_map(|b| self.lost(class, all, b, &story.used)).collect();
        }
        Ok(story)
    }

    /// Costs in a bucket without a rule and with it: in the form of another bucket that uses it.
    fn lost(&self, class: &ReplayedClass<'_>, all: &[Bucket], bucket: &Bucket, used: &[String]) -> Option<Lost> {
        let forms = self.forms(class, all, bucket);
        let total = |f: &Form| f.nanos.map(|n| n + f.charge_nanos);
        let own = forms.iter().find(|(f, _)| f.chosen).and_then(|(f, _)| total(f))?;
        let with =
            forms.iter().filter(|(f, _)| used.contains(&f.name)).filter_map(|(f, _)| total(f)).reduce(f64::min)?;
        Some(Lost { bucket: bucket.name.clone(), nanos: [own, with] })
    }

    /// Costs without and with a rule that no bucket uses: where it has to be used, the other buckets and the stored weights adapt.
    fn unused(
        &self,
        rule: &str,
        class: &ReplayedClass<'_>,
        all: &[Bucket],
        buckets: &[&Bucket],
    ) -> Result<Option<Unused>, Error> {
        let options = FuseOptions {
            disabled: self.subject.fusion.disabled_rules.clone(),
            ..FuseOptions::new(self.subject.certificate.numerics)
        };
        let chosen: Vec<&Graph> = class.forms.iter().skip(1).map(|(_, form)| form).collect(); // the first one is plain
        let with = forced(&class.replay.plain, rule, &chosen, self.catalog, all, &options)?;
        let Some(with) = with else { return Ok(None) };
        let mut own = AllBuckets { nanos: vec![], stored: 0 };
        let mut weights = IndexMap::new();
        for bucket in all {
            let priced = class.form(&bucket.name).map(|form| self.price(class, form, bucket)).unwrap_or_default();
            own.nanos.push(priced.nanos);
            weights.extend(priced.stored);
        }
        own.stored = weights.values().sum();
        let total = |a: &AllBuckets| a.nanos.iter().sum::<f64>() + stored_charge_nanos(a.stored);
        let asked = all.iter().zip(own.nanos.iter().zip(&with.nanos)).filter(|(b, _)| buckets.contains(b));
        Ok(Some(Unused {
            total_nanos: [total(&own), total(&with)],
            stored: [own.stored, with.stored],
            buckets: asked.map(|(b, (own, with))| Lost { bucket: b.name.clone(), nanos: [*own, *with] }).collect(),
        }))
    }
}

/// What a region holds, for people.
fn holds(graph: &Graph) -> String {
    let has = |op: Op| graph.nodes.iter().any(|n| n.op == op);
    let layers = [
        (has(Op::Embed), "embedding"),
        (has(Op::CausalMask), "attention"),
        (has(Op::ExpertLinear), "experts"),
        (has(Op::Silu) && !has(Op::ExpertLinear), "dense MLP"),
        (has(Op::GatherRows), "rows that want logits, head"),
    ];
    let names: Vec<&str> = layers.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
    if names.is_empty() { "values between layers".to_owned() } else { names.join(" + ") }
}

#[cfg(test)]
pub(crate) mod tests;
