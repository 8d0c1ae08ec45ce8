//! All layer classes of a graph with all their forms, and what is taken of them within a limit on stored weights.

use super::budget::{Budgeted, Group, Ways};
use super::certificate::{Certificate, ClassCertificate};
use super::classes::LayerClass;
use super::joint::JointExtraction;
use super::region::FusedRegion;
use super::report::{FuseReport, GivenUp, MemoryReport};
use super::saturate::CompiledRule;
use super::space::Space;
use super::{FuseError, FuseOptions, Fused, checked, enabled_rules, splice};
use deepfuse_ir::{Bucket, Catalog, Graph};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::time::Duration;

/// A graph after the search, before the choice.
pub struct Prepared<'a> {
    graph: &'a Graph,
    classes: &'a [LayerClass],
    buckets: &'a [Bucket],
    options: &'a FuseOptions,
    rules: Vec<CompiledRule>,
    spaces: Vec<Space<'a>>,
    groups: Vec<Group>,
    /// Without a limit.
    fastest: Budgeted,
    /// Only needed within a limit.
    ways: OnceCell<Ways>,
}

impl<'a> Prepared<'a> {
    /// Searches the forms of all classes, and the cheapest. Errors: those of [`super::fuse`].
    pub fn of(
        graph: &'a Graph,
        classes: &'a [LayerClass],
        catalog: &dyn Catalog,
        buckets: &'a [Bucket],
        options: &'a FuseOptions,
        clock: &dyn Fn() -> Duration,
    ) -> Result<Self, FuseError> {
        checked("fuse (input)", graph)?;
        let rules = enabled_rules(options)?;
        let mut spaces = vec![];
        for class in classes {
            let space = Space::of(class, &rules, catalog, buckets, options, clock);
            spaces.push(space.map_err(|e| e.in_region(&class.graph))?);
        }
        let groups: Vec<Group> = spaces.iter().map(|s| s.group(options)).collect();
        let fastest = groups.iter().zip(&spaces).map(|(g, s)| g.fastest().map_err(|at| s.no_kernel(at)));
        let fastest = fastest.collect::<Result<Vec<_>, _>>()?;
        let gap = sum(&groups, &fastest, |e| e.gap);
        let fastest = Budgeted { groups: fastest, gap };
        Ok(Self { graph, classes, buckets, options, rules, spaces, groups, fastest, ways: OnceCell::new() })
    }

    /// The cheapest forms whose weights take at most `limit` bytes; the smallest if none do.
    pub fn fused(&self, limit: Option<u64>) -> Result<Fused, FuseError> {
        let taken = limit.map_or_else(|| Ok(self.fastest.clone()), |limit| self.within(limit))?;
        let mut report = FuseReport {
            numerics: self.options.numerics,
            classes: vec![],
            total: sum(&self.groups, &taken.groups, |e| e.total),
            gap: taken.gap,
            memory: limit.map(|limit| self.memory(limit, &taken)),
        };
        let mut certificate = Certificate { numerics: self.options.numerics, classes: vec![] };
        // By bucket, then by class.
        let mut forms: Vec<Vec<FusedRegion>> = vec![vec![]; self.buckets.len()];
        for ((space, class), taken) in self.spaces.iter().zip(self.classes).zip(&taken.groups) {
            let mut done = space.fused(&self.rules, taken).map_err(|e| e.in_region(&class.graph))?;
            done.report.inputs = class.input_names(self.graph);
            for (of_bucket, form) in forms.iter_mut().zip(done.forms) {
                of_bucket.push(form);
            }
            report.classes.push(done.report);
            certificate.classes.push(done.certificate);
        }
        let names = |c: &ClassCertificate| c.steps.iter().map(|s| s.rule.clone()).collect::<Vec<_>>();
        let names: Vec<Vec<String>> = certificate.classes.iter().map(names).collect();
        let mut graphs = vec![];
        for (bucket, forms) in self.buckets.iter().zip(&forms) {
            let fused = splice::splice(self.graph, self.classes, forms, &names);
            checked("fuse", &fused)?;
            graphs.push((bucket.clone(), fused));
        }
        Ok(Fused { plain: self.graph.clone(), graphs, certificate, report })
    }

    fn within(&self, limit: u64) -> Result<Budgeted, FuseError> {
        if self.stored(&self.fastest) <= limit {
            return Ok(self.fastest.clone());
        }
        if self.ways.get().is_none() {
            let found = Ways::of(&self.groups).map_err(|(class, at)| self.spaces[class].no_kernel(at))?;
            self.ways.get_or_init(|| found);
        }
        let ways = self.ways.get().expect("it was set above");
        Ok(ways.within(limit).unwrap_or_else(|smallest| ways.within(smallest).expect("the smallest is a way")))
    }

    fn stored(&self, taken: &Budgeted) -> u64 {
        self.groups.iter().zip(&taken.groups).map(|(g, e)| g.stored(&e.stored)).sum()
    }

    /// What a limit costs.
    fn memory(&self, limit: u64, taken: &Budgeted) -> MemoryReport {
        let mut slower = vec![0; self.buckets.len()];
        let mut given_up = vec![];
        for (class, (space, group)) in self.spaces.iter().zip(&self.groups).enumerate() {
            let (all, kept) = (&self.fastest.groups[class], &taken.groups[class]);
            for form in all.stored.difference(&kept.stored) {
                let bytes = group.stored(&BTreeSet::from([*form]));
                given_up.push(GivenUp { class, form: space.form_name(*form, self.graph), bytes });
            }
            for ((slower, all), kept) in slower.iter_mut().zip(&all.buckets).zip(&kept.buckets) {
                *slower += group.regions as i64 * (kept.cost.picos as i64 - all.cost.picos as i64);
            }
        }
        let slower = self.buckets.iter().map(|b| b.name.clone()).zip(slower).collect();
        MemoryReport { limit, stored: self.stored(taken), wanted: self.stored(&self.fastest), given_up, slower }
    }
}

fn sum(groups: &[Group], all: &[JointExtraction], of: impl Fn(&JointExtraction) -> u128) -> u128 {
    groups.iter().zip(all).map(|(g, e)| u128::from(g.regions) * of(e)).sum()
}
