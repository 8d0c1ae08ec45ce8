//! `compile --max-error X`: how far fused forms are from the plain ones, by the reference evaluator.
//!
//! ```text
//! error = max over outputs and states y of  rms(y_fused - y_plain) / rms(y_plain)
//! ```
//!
//! Every layer class is evaluated alone in every bucket's form, on one ragged batch with random weights and several kinds of inputs. This is a
//! check of the forms, beside the proof that the certificate is: it sees how much the roundings that a rewrite moves matter.

use crate::catalog::BackendCatalog;
use crate::error::Error;
use crate::pipeline::Request;
use deepfuse_artifact::report::{Report, exit};
use deepfuse_codegen::x86::X86;
use deepfuse_ir::eval::{Evaluated, evaluate};
use deepfuse_ir::tensor::Data;
use deepfuse_ir::values::{Batch, Sequence, values};
use deepfuse_ir::{Bucket, Graph, ParamKind, Sizes, Symbol, Tensor};
use deepfuse_passes::fuse::{FuseOptions, Fused, Numerics, Step, fuse};
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;

/// Elements of all parameters of a layer class (f32 each in the evaluator) above which it is not evaluated: 4 GiB.
pub const ELEMENT_LIMIT: u64 = 1 << 30;

/// What one layer class was found to do.
#[derive(Clone, Debug, Serialize)]
pub struct ClassError {
    pub class: usize,
    /// By bucket; empty if the class is too large to be evaluated.
    pub errors: Vec<BucketError>,
    /// Elements of its parameters.
    pub elements: u64,
}

/// The error in one bucket.
#[derive(Clone, Debug, Serialize)]
pub struct BucketError {
    pub bucket: String,
    pub relative_rms: f64,
}

/// Kinds of inputs.
#[derive(Clone, Copy, Debug)]
enum Inputs {
    /// Uniform, variance 1.
    Random,
    /// A thousand times that.
    Large,
    /// Neighbours of opposite sign: sums cancel.
    Cancelling,
    /// All the same: scores and norms are equal.
    Equal,
    Zero,
}

const KINDS: [Inputs; 5] = [Inputs::Random, Inputs::Large, Inputs::Cancelling, Inputs::Equal, Inputs::Zero];

/// Evaluates all classes in all buckets.
///
/// Errors: `fusion::error` (exit 1) names the class, the bucket and the guilty fusion if an error is above `limit`.
pub fn check(fused: &Fused, limit: f64, req: &Request) -> Result<Vec<ClassError>, Error> {
    let catalog = BackendCatalog::new(&req.target, &X86);
    let options = FuseOptions { disabled: req.disabled_rules.clone(), ..FuseOptions::new(req.numerics) };
    let mut found = vec![];
    for (number, class) in fused.certificate.classes.iter().enumerate() {
        let names = &fused.report.classes[number].inputs;
        let plain = Named::of(&class.plain, names)?;
        let mut result = ClassError { class: number, errors: vec![], elements: plain.elements() };
        if result.elements <= ELEMENT_LIMIT {
            let expected = plain.run_all();
            let mut known: IndexMap<&str, f64> = IndexMap::new();
            for (bucket, text) in &class.fused {
                let error = match known.get(text.as_str()) {
                    Some(error) => *error,
                    None => worst(&expected, &Named::of(text, names)?.run_all()),
                };
                known.insert(text, error);
                if error > limit || error.is_nan() {
                    let used = class.steps.iter().filter(|s| s.used.iter().any(|b| b == bucket));
                    // Those that move no rounding come last: they are guilty only if they are wrong.
                    let (exact, moving): (Vec<_>, Vec<_>) = used.partition(|s| s.class == Numerics::Exact);
                    let of = |steps: Vec<&Step>| steps.into_iter().map(|s| s.rule.clone()).collect::<IndexSet<_>>();
                    let suspects = [of(moving), of(exact)];
                    let guilty = guilty(&plain, &expected, &suspects, bucket, &catalog, &options)?;
                    return Err(above(number, bucket, error, limit, guilty));
                }
                result.errors.push(BucketError { bucket: bucket.clone(), relative_rms: error });
            }
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
    plain: &Named,
    expected: &[Evaluated],
    suspects: &[IndexSet<String>],
    bucket: &str,
    catalog: &BackendCatalog<'_>,
    options: &FuseOptions,
) -> Result<Option<(String, f64)>, Error> {
    let Some(bucket) = Bucket::all().into_iter().find(|b| b.name == bucket) else { return Ok(None) };
    let error = |disabled: Vec<String>| -> Result<f64, Error> {
        let options = FuseOptions { disabled, ..options.clone() };
        let fused = fuse(&plain.0, catalog, std::slice::from_ref(&bucket), &options)?;
        Ok(worst(expected, &Named(fused.graphs[0].1.clone()).run_all()))
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

/// The largest error over kinds of inputs, outputs and states.
fn worst(expected: &[Evaluated], found: &[Evaluated]) -> f64 {
    let errors = expected.iter().zip(found).flat_map(|(e, f)| {
        let outputs = e.outputs.iter().zip(&f.outputs).map(|(e, f)| relative(e, f));
        let states = e.states.iter().map(|(name, e)| f.states.get(name).map_or(f64::NAN, |f| relative(e, f)));
        outputs.chain(states).collect::<Vec<_>>()
    });
    errors.fold(0.0, |worst, e| if e.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(e) })
}

/// `rms(found - expected) / rms(expected)`; 0 where both are the same, infinite where something stands for nothing.
fn relative(expected: &Tensor, found: &Tensor) -> f64 {
    match (&expected.data, &found.data) {
        (Data::Float(e), Data::Float(f)) if e.len() == f.len() => {
            let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
            let off = squares(&mut e.iter().zip(f).map(|(e, f)| f64::from(*f) - f64::from(*e)));
            let size = squares(&mut e.iter().map(|e| f64::from(*e)));
            if off == 0.0 { 0.0 } else { (off / size).sqrt() }
        }
        (Data::Int(e), Data::Int(f)) if e == f => 0.0,
        _ => f64::INFINITY,
    }
}

/// A layer class whose inputs have the names that they have in the model, so that batches are consistent.
struct Named(Graph);

impl Named {
    fn of(text: &str, names: &[String]) -> Result<Self, Error> {
        let unreadable = |e| Report::new("certificate", exit::BUG, format!("a form of a class cannot be read: {e}"));
        let mut graph = deepfuse_passes::check::graph(text).map_err(unreadable)?;
        for (p, name) in graph.params.iter_mut().zip(names).filter(|(p, _)| p.kind == ParamKind::Input) {
            p.name.clone_from(name);
        }
        Ok(Self(graph))
    }

    fn elements(&self) -> u64 {
        let sizes = Sizes([1; Symbol::COUNT]);
        self.0.params.iter().filter_map(|p| p.ty.tensor()).map(|t| t.elements(&sizes)).sum()
    }

    /// One result for each kind of inputs.
    fn run_all(&self) -> Vec<Evaluated> {
        KINDS.into_iter().map(|kind| self.run(kind)).collect()
    }

    fn run(&self, inputs: Inputs) -> Evaluated {
        let sequence = |(cached, new)| Sequence { cached, new };
        let batch = Batch { sequences: [(0, 3), (70, 1), (63, 2)].map(sequence).to_vec() };
        let mut random = values(&self.0, &batch, 1);
        let mut all = |name: &str, kind: &ParamKind| {
            let value = random(name, kind)?;
            Some(if *kind == ParamKind::Input { inputs.of(value) } else { value })
        };
        evaluate(&self.0, &batch.sizes(), &mut all, &mut |_, _| {}).expect("every parameter has a value")
    }
}

impl Inputs {
    /// Activations of this kind; whole numbers (positions, pages) stay as they are.
    fn of(self, value: Tensor) -> Tensor {
        let Data::Float(mut x) = value.data else { return value };
        match self {
            Self::Random => {}
            Self::Large => x.iter_mut().for_each(|x| *x *= 1e3),
            Self::Cancelling => x.chunks_exact_mut(2).for_each(|pair| pair[1] = -pair[0]),
            Self::Equal => x.fill(1.0),
            Self::Zero => x.fill(0.0),
        }
        Tensor::float(value.dtype, &value.shape, x)
    }
}
