//! `run`: text or ids in, text out.

use super::{human_bytes, human_count, human_seconds, note, options, print};
use crate::generate::{Generated, Request, generate};
use crate::isa::Emulate;
use crate::sample::Sampling;
use crate::session::page_bytes;
use crate::tokenizer::Tokenizer;
use crate::trace::{Recording, chrome_trace};
use crate::verify::cache_bytes;
use crate::{Artifact, Error, Limits, Session};
use deepfuse_artifact::interrupt;
use deepfuse_artifact::manifest::section;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Longest batch: long enough for the kernels of long prompts, short enough for little memory.
const MAX_TOKENS: u32 = 512;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Artifact to run (NAME.dfz)
    artifact: PathBuf,
    /// Text to continue
    #[arg(long, required_unless_present = "ids", conflicts_with = "ids", value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, taken as they are (no BOS is added)
    #[arg(long, value_delimiter = ',', value_name = "1,2,3")]
    ids: Option<Vec<u32>>,
    /// Stop after so many new tokens
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: u32,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// Randomness; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    temperature: f32,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: u32,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Seed of the random choices; the same seed gives the same text
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Longest sequence in tokens, at most the model's [default: as long as needed]
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Most prompt tokens of one batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prefill_chunk: Option<u32>,
    /// Run every batch with the plan of this bucket, one of those that `inspect` lists
    #[arg(long, value_name = "B")]
    force_bucket: Option<String>,
    /// Execute these instructions in software
    #[arg(long, value_name = "ISA")]
    emulate: Option<Emulate>,
    /// Check the digests of all weights before running
    #[arg(long)]
    verify_weights: bool,
    /// Write the time of every kernel launch to this file, as a Chrome trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Say at the end what ran, with which sizes and how fast
    #[arg(long)]
    summary: bool,
}

/// Prints the answer as it comes (or one JSON object); the exit code.
pub fn main(args: &Args, json: bool) -> u8 {
    super::finish(run(args, json).map(|()| true), json)
}

fn run(args: &Args, json: bool) -> Result<(), Error> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.check()?;
    let start = Instant::now();
    let artifact = Arc::new(Artifact::open(&args.artifact)?);
    if args.verify_weights {
        verify_weights(&artifact, args)?;
    }
    let tokenizer = match Tokenizer::of(&artifact) {
        Err(Error::NoTokenizer) if args.ids.is_some() => None,
        t => Some(t?),
    };
    let prompt = match (&args.ids, &tokenizer, &args.prompt) {
        (Some(ids), ..) => ids.clone(),
        (None, Some(t), Some(text)) => t.encode(text)?,
        _ => return Err(Error::Usage("give --prompt or --ids".into())),
    };
    let mut session = load(&artifact, args, prompt.len())?;
    let load_seconds = start.elapsed().as_secs_f64();
    if args.trace.is_some() {
        session.record(Recording::Events);
    }
    let eos = if args.ignore_eos { vec![] } else { artifact.manifest().tokens.eos.clone() };
    let request = Request { prompt: &prompt, max_new_tokens: args.max_new_tokens, stop_ids: &eos, sampling };
    let (answer, text) = stream(&mut session, &request, tokenizer.as_ref(), json)?;
    if let Some(path) = &args.trace {
        let trace = chrome_trace(artifact.plan(), session.recorder()).to_string();
        std::fs::write(path, trace)
            .map_err(|source| Error::System { what: format!("write {}", path.display()), source })?;
    }
    if json {
        print(&format!("{}\n", result(&prompt, &answer, &text, load_seconds)));
    }
    if args.summary {
        note(&summary(args, &session, prompt.len(), &answer, load_seconds));
    }
    Ok(())
}

fn verify_weights(artifact: &Artifact, args: &Args) -> Result<(), Error> {
    let threads = args.threads.unwrap_or_else(crate::session::default_threads) as usize;
    let found = artifact.verify(threads, interrupt::flag())?;
    found.damaged.into_iter().next().map_or(Ok(()), |e| Err(e.into()))
}

/// A session that is just large enough.
fn load(artifact: &Arc<Artifact>, args: &Args, prompt: usize) -> Result<Session, Error> {
    let model = artifact.manifest().limits.context;
    let wanted = (prompt as u64 + u64::from(args.max_new_tokens)).clamp(1, u64::from(model)) as u32;
    let context = args.context.unwrap_or(wanted);
    let limits = Limits {
        max_tokens: MAX_TOKENS.min(prompt.max(1) as u32),
        max_sequences: 1,
        cache_bytes: cache_bytes(artifact, u64::from(context.min(wanted).max(1)), 1),
    };
    let mut options = options(args.threads, args.prefill_chunk, args.force_bucket.clone());
    options.context = Some(context);
    options.emulate = args.emulate;
    Session::load(artifact.clone(), limits, &options)
}

/// Generates; the text goes to stdout as it comes, unless the result will be JSON.
fn stream(
    session: &mut Session,
    request: &Request<'_>,
    tokenizer: Option<&Tokenizer>,
    json: bool,
) -> Result<(Generated, String), Error> {
    let mut text = String::new();
    let mut decoder = tokenizer.map(Tokenizer::stream);
    let mut show = |piece: &str| {
        text.push_str(piece);
        if !json {
            print(piece);
        }
    };
    let mut first = true;
    let answer = generate(session, request, &mut |id| {
        match &mut decoder {
            Some(d) => show(&d.push(id)?),
            None => show(&format!("{}{id}", if first { "" } else { "," })),
        }
        first = false;
        if interrupt::requested() { Err(Error::Interrupted) } else { Ok(ControlFlow::Continue(())) }
    });
    if let Some(d) = decoder {
        show(&d.finish()?);
    }
    if !json && (answer.is_ok() || !text.is_empty()) {
        print("\n");
    }
    Ok((answer?, text))
}

fn result(prompt: &[u32], answer: &Generated, text: &str, load_seconds: f64) -> serde_json::Value {
    let prompt_seconds = answer.prompt_time.as_secs_f64();
    serde_json::json!({
        "schema": "deepfuse.run/1",
        "prompt_ids": prompt,
        "generated_ids": answer.ids,
        "text": text,
        "stop_reason": answer.stop.name(),
        "timings": {
            "load_s": load_seconds,
            "prompt_s": prompt_seconds,
            "prompt_tokens_per_s": prompt.len() as f64 / prompt_seconds,
            "decode_s": answer.decode_time.as_secs_f64(),
            "decode_tokens_per_s": answer.decode_tokens_per_second(),
        },
    })
}

fn summary(args: &Args, session: &Session, prompt: usize, answer: &Generated, load_seconds: f64) -> String {
    let artifact = session.artifact();
    let (m, plan) = (artifact.manifest(), artifact.plan());
    let code = m.section(section::CODE).map_or(0, |s| s.bytes);
    let launches = plan.launches();
    let prompt_seconds = answer.prompt_time.as_secs_f64();
    let decode = answer.decode_tokens_per_second().map_or(String::new(), |r| format!(" ({r:.0} tokens/s)"));
    let program = std::env::args().next().unwrap_or_else(|| "deepfuse".into());
    format!(
        "
model     {}, {} layers, {} parameters ({} a token), {} activations
artifact  {}: weights {}, code {} for {}
kernels   {} kernels, {launches}
memory    {} of cache a page of 64 tokens, {} anonymous memory in use
speed     {} threads, loaded in {}, prompt of {prompt} tokens in {} ({:.0} tokens/s), then {} tokens in {}{decode}
next      {program} bench {}",
        m.model.architecture,
        m.model.layers,
        human_count(m.model.parameters),
        human_count(m.model.active_parameters),
        m.numerics.activations,
        artifact.path().display(),
        human_bytes(artifact.weights().total_bytes()),
        human_bytes(code),
        m.target.name,
        plan.kernels.len(),
        human_bytes(page_bytes(plan)),
        human_bytes(crate::memory::resident_anonymous_bytes()),
        session.threads(),
        human_seconds(load_seconds),
        human_seconds(prompt_seconds),
        prompt as f64 / prompt_seconds,
        answer.ids.len().saturating_sub(1),
        human_seconds(answer.decode_time.as_secs_f64()),
        args.artifact.display(),
    )
}
