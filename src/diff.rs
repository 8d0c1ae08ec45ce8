//! What became different between two artifacts, and why.
//!
//! Kernels are compared by what they compute (operation, types of operands and results), by layer class and bucket; reasons come from the
//! certificates of both: a rule that one form rests on and the other does not was disabled, not allowed, without a match, or lost on cost.

use crate::error::Error;
use crate::explain::{BucketStory, Class, Kernel, Subject, classes};
use deepfuse_artifact::manifest::{Manifest, section};
use deepfuse_passes::fuse::{ClassCertificate, Step};
use deepfuse_runtime::Artifact;
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;
use std::path::Path;

/// Value of `schema`.
pub const SCHEMA: &str = "deepfuse.diff/1";

/// Everything that differs; as JSON it is `deepfuse.diff/1`.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub schema: &'static str,
    /// Both artifacts have the same bytes.
    pub equal: bool,
    /// Digests of the manifests of A and B, which cover everything else.
    pub digests: [String; 2],
    /// What the artifacts are and were asked to be, where they differ.
    pub settings: Vec<Setting>,
    /// Files and weights whose bytes differ.
    pub contents: Vec<Content>,
    /// By bucket, where kernels differ: what a step takes.
    pub steps: Vec<StepDifference>,
    /// Layer classes and buckets whose kernels differ.
    pub forms: Vec<FormDifference>,
    /// Kernels of equal work that are computed in another way.
    pub variants: Vec<VariantDifference>,
}

/// A setting of both artifacts.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    pub name: &'static str,
    pub values: [String; 2],
}

/// A part of both artifacts; bytes are absent where an artifact does not have it.
#[derive(Clone, Debug, Serialize)]
pub struct Content {
    pub name: String,
    pub bytes: [Option<u64>; 2],
}

/// A step in one bucket.
#[derive(Clone, Debug, Serialize)]
pub struct StepDifference {
    pub bucket: String,
    /// Launches, all layers together.
    pub kernels: [usize; 2],
    /// Sum over them by the costs of each target, nanoseconds.
    pub nanos: [f64; 2],
}

/// One layer class in one bucket.
#[derive(Clone, Debug, Serialize)]
pub struct FormDifference {
    pub class: usize,
    /// For people: `attention + experts`.
    pub holds: String,
    /// Regions of the class in A and B.
    pub regions: [usize; 2],
    pub bucket: String,
    pub kernels: [usize; 2],
    /// Sum over the kernels by the costs of each target, nanoseconds.
    pub nanos: [f64; 2],
    pub only: [Vec<Kernel>; 2],
    pub why: Vec<String>,
}

/// A kernel that both have.
#[derive(Clone, Debug, Serialize)]
pub struct VariantDifference {
    /// Its name in A and B.
    pub symbols: [String; 2],
    pub variants: [String; 2],
}

/// Compares two artifacts. No weight is read.
///
/// Errors: those of [`Artifact::open`]; `certificate` and `target::unknown` as [`Subject::of_artifact`].
pub fn diff(a: &Path, b: &Path) -> Result<Difference, Error> {
    let opened = [Artifact::open(a)?, Artifact::open(b)?];
    let digests = opened.each_ref().map(|x| x.digest().to_owned());
    let [ma, mb] = opened.each_ref().map(Artifact::manifest);
    let equal = digests[0] == digests[1];
    let mut told = Difference {
        schema: SCHEMA,
        equal,
        digests,
        settings: settings(ma, mb),
        contents: contents(ma, mb),
        steps: vec![],
        forms: vec![],
        variants: variants(&opened),
    };
    let sections = |m: &Manifest| m.sections.iter().find(|s| s.name == section::CERTIFICATE).map(|s| s.blake3.clone());
    let same_target = ma.target == mb.target;
    if !equal && (sections(ma) != sections(mb) || !same_target) {
        let subjects = [Subject::of_artifact(a)?, Subject::of_artifact(b)?];
        let both = [classes(&subjects[0])?, classes(&subjects[1])?];
        told.forms = forms(&subjects, &both, same_target);
        told.steps = steps(&both, &told.forms);
    }
    Ok(told)
}

fn settings(a: &Manifest, b: &Manifest) -> Vec<Setting> {
    let list = |m: &Manifest| {
        let rules = &m.fusion.disabled_rules;
        let none_if_empty = |s: String| if s.is_empty() { "none".to_owned() } else { s };
        [
            ("compiler", m.toolchain.clone()),
            ("target", m.target.name.clone()),
            ("features", m.target.features.join(" ")),
            ("model", format!("{}, {} layers, hidden {}", m.model.architecture, m.model.layers, m.model.hidden)),
            ("activations", m.numerics.activations.clone()),
            ("weights", m.numerics.quant.clone()),
            ("rewrites up to", m.numerics.class.clone()),
            ("disabled rules", none_if_empty(rules.join(", "))),
            ("shapes only", m.shapes_only.to_string()),
        ]
    };
    let pairs = list(a).into_iter().zip(list(b));
    pairs.filter(|(a, b)| a.1 != b.1).map(|(a, b)| Setting { name: a.0, values: [a.1, b.1] }).collect()
}

/// Digest and bytes of everything an artifact holds, by name.
fn parts(m: &Manifest) -> IndexMap<String, (String, u64)> {
    let sections = m.sections.iter().map(|s| (s.name.clone(), (s.blake3.clone(), s.bytes)));
    let digest = |f: &deepfuse_artifact::manifest::WeightFile| {
        let tensors: Vec<&str> = f.tensors.iter().map(|t| t.blake3.as_str()).collect();
        format!("{} {}", f.header_blake3, tensors.join(" "))
    };
    let weights = m.weights.iter().map(|f| (f.file.clone(), (digest(f), f.bytes)));
    sections.chain(weights).collect()
}

fn contents(a: &Manifest, b: &Manifest) -> Vec<Content> {
    let both = [parts(a), parts(b)];
    let names: IndexSet<&String> = both.iter().flat_map(IndexMap::keys).collect();
    let differs = |name: &&String| both[0].get(*name).map(|p| &p.0) != both[1].get(*name).map(|p| &p.0);
    let content = |name: &String| Content {
        name: name.clone(),
        bytes: both.each_ref().map(|parts| parts.get(name).map(|p| p.1)),
    };
    names.into_iter().filter(differs).map(content).collect()
}

/// Variants by what a kernel does: its family, and its work as a formula of the step's sizes.
fn chosen(artifact: &Artifact) -> IndexMap<String, (String, String)> {
    let text = artifact.section(section::CHOICES).map(String::from_utf8_lossy).unwrap_or_default();
    let variant = |symbol: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(symbol)?.strip_prefix(": "));
        line.map(|l| l.split(" by ").next().unwrap_or(l).trim().to_owned()).unwrap_or_default()
    };
    let key = |k: &deepfuse_artifact::plan::Kernel| format!("{} {:?} {:?}", k.family, k.bytes, k.operations);
    let mut by_work = IndexMap::new();
    for k in &artifact.plan().kernels {
        by_work.entry(key(k)).or_insert_with(|| (k.symbol.clone(), variant(&k.symbol)));
    }
    by_work
}

fn variants(opened: &[Artifact; 2]) -> Vec<VariantDifference> {
    let [a, b] = opened.each_ref().map(chosen);
    let both = a.into_iter().filter_map(|(work, a)| Some((a, b.get(&work)?.clone())));
    let changed = both.filter(|(a, b)| a.1 != b.1);
    changed.map(|(a, b)| VariantDifference { symbols: [a.0, b.0], variants: [a.1, b.1] }).collect()
}

/// The steps of buckets in which some form differs.
fn steps(told: &[Vec<Class>; 2], forms: &[FormDifference]) -> Vec<StepDifference> {
    let buckets: IndexSet<&String> = forms.iter().map(|f| &f.bucket).collect();
    let step = |bucket: &String| {
        let kernels = |c: &Class| {
            let story = c.buckets.iter().find(|b| b.bucket == *bucket);
            let kernels = story.map_or(&[][..], |b| b.kernels.as_slice());
            (c.regions.len() * kernels.len(), c.regions.len() as f64 * kernels.iter().map(|k| k.nanos).sum::<f64>())
        };
        let sums = told
            .each_ref()
            .map(|all| all.iter().map(kernels).fold((0, 0.0), |(n, nanos), (more, time)| (n + more, nanos + time)));
        StepDifference { bucket: bucket.clone(), kernels: sums.map(|s| s.0), nanos: sums.map(|s| s.1) }
    };
    buckets.into_iter().map(step).collect()
}

fn forms(subjects: &[Subject; 2], told: &[Vec<Class>; 2], same_target: bool) -> Vec<FormDifference> {
    let mut differences = vec![];
    for number in 0..told[0].len().max(told[1].len()) {
        let of_class = told.each_ref().map(|t| t.get(number));
        let names = of_class.iter().flatten().flat_map(|c| c.buckets.iter().map(|b| b.bucket.as_str()));
        for bucket in names.collect::<IndexSet<_>>() {
            let story = of_class.map(|c| c?.buckets.iter().find(|b| b.bucket == bucket));
            let only = only(story);
            if only.iter().all(Vec::is_empty) {
                continue;
            }
            let count = |f: fn(&Class) -> usize| of_class.map(|c| c.map_or(0, f));
            differences.push(FormDifference {
                class: number,
                holds: of_class.iter().flatten().next().map(|c| c.holds.clone()).unwrap_or_default(),
                regions: count(|c| c.regions.len()),
                bucket: bucket.to_owned(),
                kernels: story.map(|s| s.map_or(0, |s| s.kernels.len())),
                nanos: story.map(|s| s.map_or(0.0, |s| s.kernels.iter().map(|k| k.nanos).sum())),
                only,
                why: why(subjects, number, bucket, same_target),
            });
        }
    }
    differences
}

/// Kernels that only one of both has, each as often as it is missing in the other.
fn only(stories: [Option<&BucketStory>; 2]) -> [Vec<Kernel>; 2] {
    let key = |k: &Kernel| (k.operation, k.operands.clone(), k.results.clone());
    let kernels = stories.map(|s| s.map_or(&[][..], |s| s.kernels.as_slice()));
    let missing = |mine: &[Kernel], theirs: &[Kernel]| {
        let mut left: IndexMap<_, usize> = IndexMap::new();
        for k in theirs {
            *left.entry(key(k)).or_default() += 1;
        }
        let mut found = vec![];
        for k in mine {
            match left.get_mut(&key(k)) {
                Some(n) if *n > 0 => *n -= 1,
                _ => found.push(k.clone()),
            }
        }
        found
    };
    [missing(kernels[0], kernels[1]), missing(kernels[1], kernels[0])]
}

/// Why a class has other kernels in a bucket.
fn why(subjects: &[Subject; 2], class: usize, bucket: &str, same_target: bool) -> Vec<String> {
    let certificates = subjects.each_ref().map(|s| s.certificate.classes.get(class));
    let [Some(a), Some(b)] = certificates else {
        return vec!["only one of both has such a layer class".to_owned()];
    };
    let mut reasons = vec![];
    if a.plain != b.plain {
        reasons.push("the graphs before fusion differ".to_owned());
    }
    let used = [a, b].map(|c| rules_used(c, bucket));
    for (mine, theirs) in [(0, 1), (1, 0)] {
        for rule in used[mine].difference(&used[theirs]) {
            let (name, with) = (["A", "B"][theirs], ["A", "B"][mine]);
            let reason = absent(rule, &subjects[theirs], certificates[theirs], certificates[mine], same_target);
            reasons.push(format!("{with} rests on `{rule}`; in {name} {reason}"));
        }
    }
    if reasons.is_empty() && !same_target {
        reasons.push("the targets' costs differ".to_owned());
    }
    if reasons.is_empty() {
        reasons.push("the same rules, applied to other values: other costs".to_owned());
    }
    reasons
}

fn rules_used(c: &ClassCertificate, bucket: &str) -> IndexSet<String> {
    let used = |s: &&Step| s.used.iter().any(|b| b == bucket);
    c.steps.iter().filter(used).map(|s| s.rule.clone()).collect()
}

/// Why a form does not rest on a rule that the other artifact's form rests on.
fn absent(
    rule: &str,
    subject: &Subject,
    own: Option<&ClassCertificate>,
    other: Option<&ClassCertificate>,
    same_target: bool,
) -> String {
    if subject.fusion.disabled_rules.iter().any(|d| d == rule || d == "all") {
        return "it is disabled".to_owned();
    }
    if own.is_some_and(|c| c.steps.iter().any(|s| s.rule == rule)) {
        let target = if same_target { String::new() } else { format!(" on {}", subject.target.name) };
        return format!("it is legal, and another form costs less{target}");
    }
    let needed = other.and_then(|c| c.steps.iter().filter(|s| s.rule == rule).map(|s| s.class).min());
    match needed {
        Some(class) if class > subject.certificate.numerics => {
            format!("rewrites go up to `{}`, and it is `{}`", subject.certificate.numerics.name(), class.name())
        }
        _ => "it has no match".to_owned(),
    }
}
