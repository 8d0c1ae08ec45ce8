//! A layer class with all its forms: the saturated e-graph and what everything costs in every bucket.

use super::budget::Group;
use super::certificate::{ClassCertificate, Step};
use super::classes::LayerClass;
use super::extract::{self, Extraction};
use super::joint::{Joint, JointExtraction, Scale};
use super::language::Enode;
use super::region::{Forms, FusedRegion, Origin, PlainRegion, Prices, fused_region, plain_region};
use super::report::{BucketReport, ClassReport, Form};
use super::saturate::{CompiledRule, Fired, RuleStats, Saturation, Stop, saturate};
use super::{FuseError, FuseOptions, checked};
use deepfuse_ir::weights::WeightExpr;
use deepfuse_ir::{Bucket, Catalog, Graph};
use egg::Language;
use indexmap::IndexMap;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

/// The forms of one layer class.
pub struct Space<'a> {
    pub class: &'a LayerClass,
    buckets: &'a [Bucket],
    region: PlainRegion,
    fired: Vec<Fired>,
    stats: Vec<RuleStats>,
    iterations: usize,
    stop: Stop,
    origins: IndexMap<Enode, Origin>,
    /// By bucket.
    prices: Vec<Prices>,
    /// The plain form by bucket, where the machine has all its kernels.
    plain: Vec<Option<Form>>,
    forms: Forms,
}

impl<'a> Space<'a> {
    /// Saturates the class's e-graph and prices it in all buckets.
    pub fn of(
        class: &'a LayerClass,
        rules: &[CompiledRule],
        catalog: &dyn Catalog,
        buckets: &'a [Bucket],
        options: &FuseOptions,
        clock: &dyn Fn() -> Duration,
    ) -> Result<Self, FuseError> {
        let mut region = plain_region(&class.graph);
        let Saturation { iterations, stop, fired, stats } =
            saturate(&mut region.egraph, rules, options.numerics, clock)?;
        let added: Vec<&[_]> = fired.iter().map(|f| f.added.as_slice()).collect();
        let origins = region.origins(&added);
        let mut forms = Forms::new();
        let mut price = |bucket, plain| region.prices(&class.graph, catalog, bucket, &origins, plain, &mut forms);
        let mut prices: Vec<Prices> = buckets.iter().map(|b| price(b, false)).collect();
        let mut plain_prices: Vec<Prices> = buckets.iter().map(|b| price(b, true)).collect();
        prices.iter_mut().chain(&mut plain_prices).for_each(|p| p.charge(&forms));
        let plain = plain_prices.iter().map(|p| {
            let e = extract::extract(&p.problem).ok()?;
            Some(Form { cost: e.cost, kernels: p.kernels(&e.choice) })
        });
        let plain = plain.collect();
        Ok(Self { class, buckets, region, fired, stats, iterations, stop, origins, prices, plain, forms })
    }

    /// The extraction problem of all buckets.
    pub fn group(&self, options: &FuseOptions) -> Group {
        let weight = |at: usize| Scale { by: options.weights.get(at).copied().unwrap_or(1), of: 1 };
        let joint = Joint {
            problems: self.prices.iter().map(|p| p.problem.clone()).collect(),
            weights: (0..self.prices.len()).map(weight).collect(),
            charges: Scale::ONE,
        };
        Group { joint, regions: self.class.regions.len() as u64 }
    }

    /// No kernel computes this root in this bucket.
    pub fn no_kernel(&self, (bucket, root): (usize, usize)) -> FuseError {
        let graph = &self.class.graph;
        let output = self.prices[bucket].problem.roots.iter().position(|r| *r == root).unwrap_or(0);
        let value = format!("output {output}, {},", graph.ty(graph.outputs[output]));
        FuseError::NoKernel { value, bucket: self.buckets[bucket].name.clone(), region: graph.to_string() }
    }

    /// What a form is, by the tensors of the class's first region: `head_rows(model.layers.0.self_attn.kv_b_proj.weight)`.
    pub fn form_name(&self, form: usize, graph: &Graph) -> String {
        let name = |i: u32| {
            let value = self.class.regions[0].inputs[i as usize];
            WeightExpr::of(graph, value).map_or_else(|| format!("value.{i}"), |e| crate::stored::describe(&e))
        };
        self.form_text(form, &name)
    }

    /// The parameters of the region that a form is made of.
    pub fn form_inputs(&self, form: usize) -> BTreeSet<u32> {
        let inputs = RefCell::new(BTreeSet::new());
        self.form_text(form, &|i| {
            inputs.borrow_mut().insert(i);
            String::new()
        });
        inputs.into_inner()
    }

    fn form_text(&self, form: usize, name: &dyn Fn(u32) -> String) -> String {
        let id = self.forms.get_index(form).map(|((id, _), _)| *id);
        id.map_or_else(String::new, |id| self.prices[0].expression(id, name))
    }

    /// The fused regions of all buckets, with their report and proof.
    pub fn fused(&self, rules: &[CompiledRule], done: &JointExtraction) -> Result<FusedClass, FuseError> {
        let regions: Vec<usize> = self.class.regions.iter().map(|r| r.index).collect();
        let mut report = self.report(regions.clone(), rules, done);
        let mut steps: Vec<Step> = self.fired.iter().map(|f| f.step.clone()).collect();
        let (mut forms, mut texts) = (vec![], IndexMap::new());
        for (at, Extraction { choice, cost, gap, .. }) in done.buckets.iter().enumerate() {
            let form = fused_region(&self.region.egraph, &self.class.graph, &self.prices[at], choice)?;
            checked("fuse (region)", &form.graph)?;
            let bucket = &self.buckets[at].name;
            let fused = Form { cost: *cost, kernels: form.kernels };
            report.buckets.push(BucketReport { bucket: bucket.clone(), plain: self.plain[at], fused, gap: *gap });
            self.mark_used(&mut steps, &form, bucket);
            texts.insert(bucket.clone(), form.graph.to_string().trim_end().to_owned());
            forms.push(form);
        }
        let certificate = ClassCertificate {
            regions,
            plain: self.class.graph.to_string().trim_end().to_owned(),
            steps,
            fused: texts,
        };
        Ok(FusedClass { forms, report, certificate })
    }

    fn report(&self, regions: Vec<usize>, rules: &[CompiledRule], done: &JointExtraction) -> ClassReport {
        ClassReport {
            inputs: vec![], // the caller knows the whole graph
            regions,
            plain_nodes: self.class.graph.nodes.len(),
            enodes: self.region.egraph.total_number_of_nodes(),
            eclasses: self.region.egraph.number_of_classes(),
            iterations: self.iterations,
            stop: self.stop,
            buckets: vec![],
            stored: done.stored.iter().map(|f| self.forms[*f]).sum(),
            gap: done.gap,
            rules: rules.iter().zip(&self.stats).map(|(r, s)| (r.rule.name.to_owned(), *s)).collect(),
        }
    }

    /// Marks the steps that a form rests on: those that added its nodes, and those that added what these steps matched.
    fn mark_used(&self, steps: &mut [Step], form: &FusedRegion, bucket: &str) {
        let step = |o: &Origin| if let Origin::Step(s) = o { Some(*s) } else { None };
        let mut open: Vec<usize> = form.origins.iter().filter_map(step).collect();
        while let Some(at) = open.pop() {
            if steps[at].used.iter().any(|b| b == bucket) {
                continue;
            }
            steps[at].used.push(bucket.to_owned());
            let egraph = &self.region.egraph;
            let matched = self.fired[at].matched.iter().map(|e| e.clone().map_children(|c| egraph.find(c)));
            open.extend(matched.filter_map(|e| self.origins.get(&e).and_then(step)).filter(|s| *s < at));
        }
    }
}

/// What became of a layer class.
pub struct FusedClass {
    /// By bucket.
    pub forms: Vec<FusedRegion>,
    pub report: ClassReport,
    pub certificate: ClassCertificate,
}
