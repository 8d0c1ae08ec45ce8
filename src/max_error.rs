//! `compile --max-error X`: how far fused forms are from the plain ones, by the reference evaluator ([`crate::difference`]).
//!
//! Every layer class is evaluated alone in every bucket's form. A class that is too large for it is evaluated with fewer experts and narrower
//! matrices: the same operations in the same order, fused by the same rules. This is a check of the forms, beside the proof that the certificate
//! is: it sees how much the roundings that a rewrite moves matter.

use crate::catalog::BackendCatalog;
use crate::difference::{ELEMENT_LIMIT, elements, results, worst};
use crate::error::Error;
use crate::pipeline::Request;
use crate::resize::{Changes, changed, halvings, resized, sizes};
use deepfuse_artifact::report::{Report, exit};
use deepfuse_ir::eval::Evaluated;
use deepfuse_ir::{Bucket, Graph, Param, ParamKind};
use deepfuse_passes::fuse::{ClassCertificate, FuseOptions, Fused, Numerics, Step, fuse};
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;
use std::cmp::Reverse;

/// Elements of the instance that stands for a class above [`ELEMENT_LIMIT`]: seconds, not minutes.
const REDUCED_LIMIT: u64 = 1 << 26;
/// Sizes up to this stay as they are: numbers of groups and of experts a token.
const LEAST_SIZE: u64 = 8;

/// What one layer class was found to do.
#[derive(Clone, Debug, Serialize)]
pub struct ClassError {
    pub class: usize,
    /// By bucket; empty if the class is too large to be evaluated, and no smaller instance of it was found.
    pub errors: Vec<BucketError>,
    /// Elements of its parameters.
    pub elements: u64,
    /// Sizes that are smaller in the instance that was evaluated, and what they are there.
    pub reduced: Vec<(u64, u64)>,
}

/// The error in one bucket.
#[derive(Clone, Debug, Serialize)]
pub struct BucketError {
    pub bucket: String,
    pub relative_rms: f64,
}

/// Evaluates all classes in all buckets.
///
/// Errors: `fusion::error` (exit 1) names the class, the bucket and the guilty fusion if an error is above `limit`.
pub fn check(fused: &Fused, limit: f64, req: &Request) -> Result<Vec<ClassError>, Error> {
    let catalog = BackendCatalog::of(req);
    let options = FuseOptions { disabled: req.disabled_rules.clone(), ..FuseOptions::new(req.numerics) };
    let mut found = vec![];
    for (number, class) in fused.certificate.classes.iter().enumerate() {
        let forms = Forms::of(class, &fused.report.classes[number].inputs)?;
        let mut result =
            ClassError { class: number, errors: vec![], elements: elements(&forms.plain), reduced: vec![] };
        let evaluated =
            if result.elements > ELEMENT_LIMIT { forms.smaller(REDUCED_LIMIT) } else { Some((forms, vec![])) };
        if let Some((forms, reduced)) = evaluated {
            result.reduced = reduced;
            result.errors = forms.errors(class, number, limit, &catalog, &options)?;
        }
        found.push(result);
    }
    Ok(found)
}

fn above(class: usize, bucket: &str, error: f64, limit: f64, guilty: Option<(String, f64)>) -> Error {
    let who = match &guilty {
        Some((rule, without)) => format!("it comes from `{rule}`, without which it is {without:.1e}"),
        None => "no single fusion makes it".to_owned(),
    };
    let message = format!(
        "layer class {class} in bucket {bucket} differs from its plain form by {error:.1e} (relative RMS); {who}"
    );
    let help = match guilty {
        Some((rule, _)) => format!("--disable-rule {rule}, or a stricter class such as --numerics exact"),
        None => "a stricter class such as --numerics exact".to_owned(),
    };
    Report::new("fusion::error", exit::VERDICT, message)
        .values(format!("at most {limit:.1e}"), format!("{error:.1e}"))
        .help(help)
        .into()
}

/// The rule without which the class's error in a bucket is least, and that error; `None` if it is never lower. Later suspects are looked at only
/// if it is none of the earlier ones.
fn guilty(
    plain: &Graph,
    expected: &[Evaluated],
    suspects: &[IndexSet<String>],
    bucket: &str,
    catalog: &BackendCatalog<'_>,
    options: &FuseOptions,
) -> Result<Option<(String, f64)>, Error> {
    let Some(bucket) = Bucket::all().into_iter().find(|b| b.name == bucket) else { return Ok(None) };
    let error = |disabled: Vec<String>| -> Result<f64, Error> {
        let options = FuseOptions { disabled, ..options.clone() };
        let fused = fuse(plain, catalog, std::slice::from_ref(&bucket), &options)?;
        Ok(worst(expected, &results(&fused.graphs[0].1)))
    };
    let with_all = error(options.disabled.clone())?;
    for rules in suspects {
        let mut best: Option<(String, f64)> = None;
        for rule in rules {
            let without = error(options.disabled.iter().chain([rule]).cloned().collect())?;
            if without < with_all && best.as_ref().is_none_or(|b| without < b.1) {
                best = Some((rule.clone(), without));
            }
        }
        if best.is_some() {
            return Ok(best);
        }
    }
    Ok(None)
}

/// A layer class: its plain form, the distinct fused ones, and which one each bucket has. Inputs have the names that they have in the model,
/// so that batches are consistent.
struct Forms {
    plain: Graph,
    fused: Vec<Graph>,
    buckets: Vec<(String, usize)>,
}

impl Forms {
    fn of(class: &ClassCertificate, names: &[String]) -> Result<Self, Error> {
        let mut texts: IndexSet<&str> = IndexSet::new();
        let buckets = class.fused.iter().map(|(bucket, text)| (bucket.clone(), texts.insert_full(text).0)).collect();
        let fused = texts.iter().map(|text| named(text, names)).collect::<Result<_, _>>()?;
        Ok(Self { plain: named(&class.plain, names)?, fused, buckets })
    }

    /// An instance of at most `limit` elements, with what became of the sizes; `None` if the forms do not agree on one.
    fn smaller(&self, limit: u64) -> Option<(Self, Vec<(u64, u64)>)> {
        let mut now: Vec<(u64, u64)> = sizes(&self.plain, LEAST_SIZE).into_iter().map(|n| (n, n)).collect();
        let mut plain = self.plain.clone();
        while elements(&plain) > limit {
            let mut smaller: Vec<Candidate> = halvings(&plain, LEAST_SIZE)
                .into_iter()
                .filter_map(|changes| Some(Candidate { graph: resized(&plain, &changes)?, changes }))
                .filter(|c| elements(&c.graph) < elements(&plain))
                .collect();
            smaller.sort_by_key(Candidate::key);
            let next =
                |c: &Candidate| now.iter().map(|(from, to)| (*from, changed(*to, &c.changes))).collect::<Vec<_>>();
            let agree = |now: &Changes| self.fused.iter().all(|g| resized(g, now).is_some());
            (now, plain) = smaller.into_iter().map(|c| (next(&c), c.graph)).find(|(now, _)| agree(now))?;
        }
        now.retain(|(from, to)| from != to);
        let fused = self.fused.iter().map(|g| resized(g, &now)).collect::<Option<_>>()?;
        Some((Self { plain, fused, buckets: self.buckets.clone() }, now))
    }

    fn errors(
        &self,
        class: &ClassCertificate,
        number: usize,
        limit: f64,
        catalog: &BackendCatalog<'_>,
        options: &FuseOptions,
    ) -> Result<Vec<BucketError>, Error> {
        let expected = results(&self.plain);
        let mut known: IndexMap<usize, f64> = IndexMap::new();
        let mut errors = vec![];
        for (bucket, form) in &self.buckets {
            let error = *known.entry(*form).or_insert_with(|| worst(&expected, &results(&self.fused[*form])));
            if error > limit || error.is_nan() {
                let used = class.steps.iter().filter(|s| s.used.iter().any(|b| b == bucket));
                // Those that move no rounding come last: they are guilty only if they are wrong.
                let (exact, moving): (Vec<_>, Vec<_>) = used.partition(|s| s.class == Numerics::Exact);
                let of = |steps: Vec<&Step>| steps.into_iter().map(|s| s.rule.clone()).collect::<IndexSet<_>>();
                let guilty = guilty(&self.plain, &expected, &[of(moving), of(exact)], bucket, catalog, options)?;
                return Err(above(number, bucket, error, limit, guilty));
            }
            errors.push(BucketError { bucket: bucket.clone(), relative_rms: error });
        }
        Ok(errors)
    }
}

/// A smaller instance.
struct Candidate {
    changes: Vec<(u64, u64)>,
    graph: Graph,
}

impl Candidate {
    /// What comes first changes the fewest sizes, then the largest, so that all come near each other.
    fn key(&self) -> (usize, Reverse<u64>) {
        (self.changes.len(), Reverse(self.changes.iter().map(|(n, _)| *n).max().unwrap_or(0)))
    }
}

fn named(text: &str, names: &[String]) -> Result<Graph, Error> {
    let unreadable = |e| Report::new("certificate", exit::BUG, format!("a form of a class cannot be read: {e}"));
    let mut graph = deepfuse_passes::check::graph(text).map_err(unreadable)?;
    // Several inputs may be values of earlier regions, which have no name of their own: they must differ.
    let batch = |(p, name): &(&mut Param, &String)| {
        p.kind == ParamKind::Input && names.iter().filter(|n| n == name).count() == 1
    };
    for (p, name) in graph.params.iter_mut().zip(names).filter(batch) {
        p.name.clone_from(name);
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::explain::tests::request;
    use crate::pipeline::{build, fuse, open};

    /// Every layer class of the largest model has an instance that fits, in the same forms.
    #[test]
    fn large_classes_have_small_instances() {
        let req = request("deepseek-v3-config", Numerics::Requantizes, &[]);
        let catalog = BackendCatalog::of(&req);
        let model = open(&req).unwrap();
        let fused = fuse(&model, build(&model, &req).unwrap(), &req, &catalog).unwrap();
        for (class, report) in fused.certificate.classes.iter().zip(&fused.report.classes) {
            let forms = Forms::of(class, &report.inputs).unwrap();
            let (small, reduced) = forms.smaller(REDUCED_LIMIT).unwrap();
            assert!(elements(&small.plain) <= REDUCED_LIMIT && !reduced.is_empty());
            for (form, small) in forms.fused.iter().zip(&small.fused) {
                let ops = |g: &Graph| g.nodes.iter().map(|n| n.op).collect::<Vec<_>>();
                assert_eq!(ops(form), ops(small));
            }
        }
    }
}
