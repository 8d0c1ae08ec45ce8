//! All layer classes of a graph with all their forms, and what is taken of them within a limit on stored weights.

use super::budget::{Budgeted, Group, Ways, relative, step_picos};
use super::certificate::{Certificate, ClassCertificate};
use super::classes::LayerClass;
use super::extract::stored_charge;
use super::given_up::{self, Lost};
use super::joint::JointExtraction;
use super::region::FusedRegion;
use super::report::{FuseReport, GivenUp, MemoryReport, Slower, StoredForm};
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
            let groups = relative(&self.groups, &step_picos(&self.groups, &self.fastest.groups));
            let found = Ways::of(&groups).map_err(|(class, at)| self.spaces[class].no_kernel(at))?;
            self.ways.get_or_init(|| found);
        }
        let ways = self.ways.get().expect("it was set above");
        let found = ways.within(limit);
        Ok(self.in_time(found.unwrap_or_else(|smallest| ways.within(smallest).expect("the smallest is a way"))))
    }

    /// Totals as times and charges; gaps are the same part of them as they were of what was made small.
    fn in_time(&self, found: Budgeted) -> Budgeted {
        let part = |gap: u128, of: u128, total: u128| (gap as f64 / of.max(1) as f64 * total as f64).ceil() as u128;
        let weighted = sum(&self.groups, &found.groups, |e| e.total);
        let timed = |(g, e): (&Group, JointExtraction)| {
            let charges = e.stored.iter().map(|f| u128::from(stored_charge(g.joint.bytes(*f)))).sum::<u128>();
            let total = charges + e.buckets.iter().map(|b| u128::from(b.cost.picos)).sum::<u128>();
            JointExtraction { gap: part(e.gap, e.total, total), total, ..e }
        };
        let groups: Vec<JointExtraction> = self.groups.iter().zip(found.groups).map(timed).collect();
        let gap = part(found.gap, weighted, sum(&self.groups, &groups, |e| e.total));
        Budgeted { groups, gap }
    }

    fn stored(&self, taken: &Budgeted) -> u64 {
        self.groups.iter().zip(&taken.groups).map(|(g, e)| g.stored(&e.stored)).sum()
    }

    /// What a limit costs.
    fn memory(&self, limit: u64, taken: &Budgeted) -> MemoryReport {
        let (before, after) = (&self.fastest.groups, &taken.groups);
        let steps = [before, after].map(|all| step_picos(&self.groups, all));
        let slower = self.buckets.iter().zip(steps[0].iter().zip(&steps[1])).map(|(b, (before, after))| Slower {
            bucket: b.name.clone(),
            picos: *after as i64 - *before as i64,
            of_picos: *before,
        });
        let of_class = |class: usize| {
            let found = given_up::lost(&self.spaces[class], &self.groups[class], &before[class], &after[class]);
            found.into_iter().map(move |lost| (class, lost))
        };
        let form = |class: usize, f: usize| StoredForm {
            name: self.spaces[class].form_name(f, self.graph),
            bytes: self.groups[class].stored(&BTreeSet::from([f])),
            new: !before[class].stored.contains(&f),
        };
        let told = |(class, lost): (usize, Lost)| GivenUp {
            class,
            regions: self.classes[class].regions.len(),
            forms: lost.forms.iter().map(|f| form(class, *f)).collect(),
            instead: lost.instead.iter().map(|f| form(class, *f)).collect(),
            slower: self.slower(&lost, &steps[0]),
        };
        MemoryReport {
            limit,
            stored: self.stored(taken),
            wanted: self.stored(&self.fastest),
            given_up: (0..self.groups.len()).flat_map(of_class).map(told).collect(),
            slower: slower.collect(),
        }
    }

    /// Buckets that the lost forms would make faster.
    fn slower(&self, lost: &Lost, steps: &[u64]) -> Vec<Slower> {
        let all = self.buckets.iter().zip(&lost.saves).zip(steps);
        let slower = all.filter(|((_, picos), _)| **picos > 0).map(|((bucket, picos), of)| Slower {
            bucket: bucket.name.clone(),
            picos: *picos as i64,
            of_picos: *of,
        });
        slower.collect()
    }
}

fn sum(groups: &[Group], all: &[JointExtraction], of: impl Fn(&JointExtraction) -> u128) -> u128 {
    groups.iter().zip(all).map(|(g, e)| u128::from(g.regions) * of(e)).sum()
}
