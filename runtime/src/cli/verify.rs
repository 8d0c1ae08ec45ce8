//! `verify`: digests, golden outputs, perplexity.

use super::{note, options, print};
use crate::golden::Golden;
use crate::isa::Emulate;
use crate::verify::{Check, Extra, Settings, Verdict, add, against_golden, integrity, nothing_more, perplexity};
use crate::{Artifact, Error};
use deepfuse_artifact::interrupt;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Artifact to check (NAME.dfz)
    artifact: PathBuf,
    /// Compare with what a reference computed: a safetensors file with prompt_ids, generated_ids, prefill_logits, decode_logits
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Largest difference of a logit that passes [default: 1e-3 with f32 activations and weights as they were, else none]
    #[arg(long, requires = "golden", value_name = "X", allow_negative_numbers = true)]
    tolerance: Option<f64>,
    /// Compute the perplexity of a text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of each window that the text is cut into
    #[arg(long, default_value_t = 256, value_name = "N")]
    window: u32,
    /// Most prompt tokens of one batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prefill_chunk: Option<u32>,
    /// Run the golden in so many sequences at once, each one step behind the one before
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    sequences: u32,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Run every batch with the plan of this bucket, one of those that `inspect` lists
    #[arg(long, value_name = "B")]
    force_bucket: Option<String>,
    /// Execute these instructions in software
    #[arg(long, value_name = "ISA")]
    emulate: Option<Emulate>,
}

/// Prints all checks. Exit code 1 if one failed, weights that are damaged among them; an artifact that cannot even be opened (a section, the
/// manifest, a header or a size is not as written) is 5.
pub fn main(args: &Args, json: bool) -> u8 {
    main_with(args, json, &nothing_more)
}

/// [`main`] with further checks.
pub fn main_with(args: &Args, json: bool, extra: Extra<'_>) -> u8 {
    super::finish(run(args, json, extra), json)
}

fn run(args: &Args, json: bool, extra: Extra<'_>) -> Result<bool, Error> {
    if args.tolerance.is_some_and(|t| t.is_nan() || t < 0.0) {
        return Err(Error::Usage("--tolerance is a number from 0 on".into()));
    }
    let golden = args.golden.as_deref().map(Golden::read).transpose()?;
    let artifact = Arc::new(Artifact::open(&args.artifact)?);
    if let (Some(path), Some(g)) = (&args.golden, &golden)
        && g.vocab != artifact.plan().vocab as usize
    {
        let reason = format!(
            "a golden of another model: logits for {} tokens, the artifact has {}",
            g.vocab,
            artifact.plan().vocab
        );
        return Err(Error::input(path, reason));
    }
    let options = crate::Options {
        emulate: args.emulate,
        ..options(args.threads, args.prefill_chunk, args.force_bucket.clone())
    };
    let mut checks = integrity(&artifact, &options, interrupt::flag())?;
    add(&mut checks, extra(&artifact));
    let sound = checks.iter().all(|c| c.ok || c.name == "target");
    if sound && let Some(golden) = &golden {
        let settings = Settings { options: options.clone(), tolerance: args.tolerance, sequences: args.sequences };
        checks.extend(against_golden(&artifact, golden, &settings)?);
    }
    if sound && let Some(text) = &args.text {
        checks.push(perplexity(&artifact, text, args.window, &options)?);
    }
    let verdict = Verdict::of(checks);
    if json {
        print(&format!("{}\n", serde_json::to_string(&verdict).expect("a verdict is plain data")));
    } else {
        verdict.checks.iter().for_each(|c| print(&line(c)));
        note(if verdict.ok { "verified" } else { "NOT verified" });
    }
    Ok(verdict.ok)
}

fn line(c: &Check) -> String {
    let mut text = format!("{}  {:<16}", if c.ok { "ok    " } else { "FAILED" }, c.name);
    let mut add = |name: &str, value: Option<f64>| {
        if let Some(x) = value {
            write!(text, " {name} {x:.3e}").expect("a string takes all text");
        }
    };
    add("max_abs", c.max_abs);
    add("rms", c.rms);
    add("kl", c.kl);
    if let Some(p) = c.perplexity {
        write!(text, " {p:.4}").expect("a string takes all text");
    }
    if let Some(d) = &c.detail {
        write!(text, " {d}").expect("a string takes all text");
    }
    if let Some(m) = &c.first_mismatch {
        let (at, expected, found, margin) = (m.position, m.expected, m.found, m.margin);
        write!(text, "; id {at}: expected {expected}, found {found} (margin {margin:.3e})")
            .expect("a string takes all text");
    }
    text + "\n"
}
