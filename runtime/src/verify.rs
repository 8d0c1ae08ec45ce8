//! Does an artifact compute what it should? Digests, golden outputs, perplexity.

mod compare;
mod text;

pub use compare::{Difference, Mismatch};

use crate::golden::Golden;
use crate::session::page_bytes;
use crate::{Artifact, Error, Feed, Limits, Options, SequenceId, Session, cpu, isa};
use deepfuse_artifact::manifest::section;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    /// Of logits against the golden's: largest absolute difference, root mean square, and mean KL divergence in nats.
    pub max_abs: Option<f64>,
    pub rms: Option<f64>,
    pub kl: Option<f64>,
    pub first_mismatch: Option<Mismatch>,
    /// Of `--text`.
    pub perplexity: Option<f64>,
    pub detail: Option<String>,
}

impl Check {
    pub fn new(name: &'static str, ok: bool, detail: impl Into<Option<String>>) -> Self {
        let detail = detail.into();
        Self { name, ok, max_abs: None, rms: None, kl: None, first_mismatch: None, perplexity: None, detail }
    }
}

/// Everything that was checked; as JSON it is `deepfuse.verify/1`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    pub schema: &'static str,
    pub ok: bool,
    pub checks: Vec<Check>,
}

impl Verdict {
    pub fn of(checks: Vec<Check>) -> Self {
        Self { schema: "deepfuse.verify/1", ok: checks.iter().all(|c| c.ok), checks }
    }
}

/// Checks that the runtime cannot make by itself, given by whoever can: `deepfuse` replays the certificate. One with the name of a check of
/// the runtime's own takes its place.
pub type Extra<'a> = &'a dyn Fn(&Artifact) -> Vec<Check>;

/// No checks but the runtime's own.
pub fn nothing_more(_: &Artifact) -> Vec<Check> {
    vec![]
}

/// Puts further checks among those that were made.
pub fn add(checks: &mut Vec<Check>, more: Vec<Check>) {
    for check in more {
        match checks.iter_mut().find(|c| c.name == check.name) {
            Some(own) => *own = check,
            None => checks.push(check),
        }
    }
}

/// Digests of everything (sections were compared when the artifact was opened), the target, NaN and Inf in weights.
pub fn integrity(artifact: &Artifact, options: &Options, stop: &AtomicBool) -> Result<Vec<Check>, Error> {
    let manifest = artifact.manifest();
    let mut checks = vec![Check::new("sections", true, format!("{} sections", manifest.sections.len()))];
    let v = artifact.verify(options.threads as usize, stop)?;
    let size = format!("{} tensors, {} bytes", v.tensors, v.bytes);
    let damage = v.damaged.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    checks.push(Check::new("weights", v.damaged.is_empty(), if damage.is_empty() { size } else { damage }));
    let count = |(name, n): &(String, u64)| format!("{name}: {n}");
    let not_finite: Vec<String> = v.not_finite.iter().map(count).collect();
    // A NaN in a weight is the checkpoint's, not ours: told, not judged.
    let found = if not_finite.is_empty() {
        "no NaN or Inf".to_owned()
    } else {
        format!("NaN or Inf in {}", not_finite.join(", "))
    };
    checks.push(Check::new("finite", true, found));
    let missing = isa::missing(artifact, options.emulate);
    let target = if missing.is_empty() {
        let by = if cpu::missing(&manifest.target.features).is_empty() { "on this CPU" } else { "by emulation" };
        format!("{} runs {by}", manifest.target.name)
    } else {
        format!("{} needs {}, which this CPU does not have", manifest.target.name, missing.join(", "))
    };
    checks.push(Check::new("target", missing.is_empty(), target));
    let certificate =
        artifact.section(section::CERTIFICATE).map(|c| format!("{} bytes as written, not replayed", c.len()));
    checks.push(Check::new("certificate", true, certificate.unwrap_or_else(|| "none".into())));
    Ok(checks)
}

/// How outputs are compared.
#[derive(Clone, Debug)]
pub struct Settings {
    pub options: Options,
    /// Largest absolute difference of logits; `None`: 1e-3 with f32 activations and weights as they were, no limit else.
    pub tolerance: Option<f64>,
    /// The golden is run in so many sequences at once, each a step behind the one before.
    pub sequences: u32,
}

/// Default tolerance with f32 activations.
pub const TOLERANCE_F32: f64 = 1e-3;

/// Feeds the golden's ids and compares logits and greedy ids.
pub fn against_golden(artifact: &Arc<Artifact>, golden: &Golden, settings: &Settings) -> Result<Vec<Check>, Error> {
    let vocab = artifact.plan().vocab;
    if golden.vocab != vocab as usize {
        let reason = format!("the golden has logits for {} tokens, the artifact for {vocab}", golden.vocab);
        return Err(Error::Usage(reason));
    }
    let ids = golden.fed_ids();
    let prompt = golden.prompt_ids.len();
    let tokens = prompt as u32 + settings.sequences;
    let limits = Limits {
        max_tokens: tokens,
        max_sequences: settings.sequences,
        cache_bytes: cache_bytes(artifact, ids.len() as u64, settings.sequences),
    };
    let mut session = Session::load(artifact.clone(), limits, &settings.options)?;
    let numerics = &artifact.manifest().numerics;
    let faithful = numerics.activations == "f32" && numerics.quant == "none";
    let tolerance = settings.tolerance.or(faithful.then_some(TOLERANCE_F32));
    let mut prefill = Difference::default();
    let mut decode = Difference::default();
    let mut greedy = compare::Greedy::new(tolerance);
    let sequences: Vec<SequenceId> =
        (0..settings.sequences).map(|_| session.add_sequence()).collect::<Result<_, _>>()?;
    // Sequence i starts at step i: batches mix one prompt with the others' next tokens.
    let steps = settings.sequences as usize + ids.len() - prompt;
    for step in 0..steps {
        let part = |i: usize| match step.checked_sub(i)? {
            0 => Some(0..prompt),
            n => Some(prompt + n - 1..prompt + n).filter(|r| r.end <= ids.len()),
        };
        let parts: Vec<_> = (0..sequences.len()).filter_map(|i| Some((sequences[i], part(i)?))).collect();
        let feeds: Vec<Feed<'_>> = parts.iter().map(|(id, range)| Feed::all(*id, &ids[range.clone()])).collect();
        session.step(&feeds)?;
        for (row, at) in parts.iter().flat_map(|(_, range)| range.clone()).enumerate() {
            let (ours, theirs) = (session.logits(row).expect("all rows were asked for"), golden.logits(at));
            let difference = if at < prompt { &mut prefill } else { &mut decode };
            difference.add(ours, theirs);
            if let Some(next) = (at + 1).checked_sub(prompt) {
                greedy.add(next, golden.generated_ids[next], ours, theirs)?;
            }
        }
    }
    let rows = |n: usize| format!("{n} rows x {} sequences", settings.sequences);
    Ok(vec![
        prefill.check("prefill_logits", tolerance, &rows(prompt)),
        decode.check("decode_logits", tolerance, &rows(ids.len() - prompt)),
        greedy.check(),
    ])
}

/// Perplexity of a text file in windows of `window` tokens, each on its own, the last partial one dropped: the exponential of the mean
/// negative log-likelihood of every token but the first of a window. Ids are the beginning-of-sentence token and the encoded text.
pub fn perplexity(artifact: &Arc<Artifact>, file: &Path, window: u32, options: &Options) -> Result<Check, Error> {
    text::perplexity(artifact, file, window, options)
}

/// Cache for sequences of so many tokens.
pub(crate) fn cache_bytes(artifact: &Artifact, tokens: u64, sequences: u32) -> u64 {
    tokens.div_ceil(u64::from(deepfuse_artifact::PAGE_TOKENS)) * u64::from(sequences) * page_bytes(artifact.plan())
}
