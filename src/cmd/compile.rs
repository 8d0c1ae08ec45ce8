//! `deepfuse compile`

use super::progress::Progress;
use deepfuse::explain::memory_lines;
use deepfuse::max_error::{self, BucketError, ClassError};
use deepfuse::output::{self, Written};
use deepfuse::pipeline::Event;
use deepfuse::text::{Stop, at_stop};
use deepfuse::{Error, Request, pipeline, tune};
use deepfuse_artifact::interrupt;
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::{Activations, Model};
use deepfuse_ir::Quant;
use deepfuse_passes::fuse::Numerics;
use deepfuse_runtime::cli::{human_bytes, human_count};
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint directory: config.json, *.safetensors, tokenizer.json
    checkpoint: PathBuf,
    /// Artifact to write [default: the name of the checkpoint directory + .dfz, in the current directory]
    #[arg(short, long, value_name = "NAME.dfz")]
    output: Option<PathBuf>,
    /// Machine to compile for: native, or one of the targets that `deepfuse doctor` lists
    #[arg(long, default_value = "native")]
    target: String,
    /// Type to quantize the matrices of projections and experts to; `none` keeps the types of the checkpoint, FP8 stays FP8
    #[arg(long, value_name = "TYPE", default_value = "none")]
    quant: QuantArg,
    /// A text like those that the model will see, for int4: the model reads up to 8192 tokens of it, and weights are rounded so that least is lost of
    /// what they are multiplied by
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Type of activations, the values between operations (sums are f32 in either case)
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    activations: ActivationsArg,
    /// How far fusion may change results; each class includes those before it
    #[arg(long, value_name = "CLASS", default_value = "requantizes")]
    numerics: NumericsArg,
    /// Most memory that running the model may take, for example 24GiB: forms of weights are given up for it, those first without which steps of
    /// all kinds slow down least, each by its part; fail if that is not enough
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Directory of measurements by `deepfuse tune`: costs and variants of kernels come from them where there are any, else from the estimate
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// Compile from config.json alone: plan and code, but no weights, so that it cannot run
    #[arg(long)]
    shapes_only: bool,
    /// Print what the compiler has after this step and stop, without writing an artifact
    #[arg(long, value_name = "STOP")]
    stop_after: Option<Stop>,
    /// Bucket to print with --stop-after, such as decode-1 or prefill-512 [default: all]
    #[arg(long)]
    bucket: Option<String>,
    /// A fusion rule that must not fire (`all`: none may); can be given several times
    #[arg(long = "disable-rule", value_name = "RULE")]
    disabled: Vec<String>,
    /// Fail if a fused layer differs from its plain form by more than this (relative RMS, by the reference evaluator on random and hard
    /// inputs), and name the fusion
    #[arg(long, value_name = "X", value_parser = parse_error_limit)]
    max_error: Option<f64>,
    /// Threads that emit code and pack weights; the result does not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum ActivationsArg {
    F32,
    Bf16,
}

impl From<ActivationsArg> for Activations {
    fn from(a: ActivationsArg) -> Self {
        match a {
            ActivationsArg::F32 => Self::F32,
            ActivationsArg::Bf16 => Self::Bf16,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum QuantArg {
    None,
    /// 8 bits, a scale a row; activations 8 bits, a scale a token
    Int8,
    /// 4 bits, a scale per 32 (4.5 bits a weight); activations 8 bits, a scale a token
    Int4,
}

impl QuantArg {
    pub fn types(self) -> Option<Quant> {
        match self {
            Self::None => None,
            Self::Int8 => Some(Quant::INT8_R),
            Self::Int4 => Some(Quant::INT4_G32),
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum NumericsArg {
    /// Every value is rounded where the unfused model rounds it
    Exact,
    /// Sums may be ordered differently
    Reassociates,
    /// Values that no longer reach memory need not be rounded
    Requantizes,
    /// Reserved: no rule goes further
    Approximates,
}

impl From<NumericsArg> for Numerics {
    fn from(n: NumericsArg) -> Self {
        match n {
            NumericsArg::Exact => Self::Exact,
            NumericsArg::Reassociates => Self::Reassociates,
            NumericsArg::Requantizes => Self::Requantizes,
            NumericsArg::Approximates => Self::Approximates,
        }
    }
}

pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    let req = request(args)?;
    interrupt::watch(move || {
        deepfuse_runtime::cli::fail(&deepfuse_artifact::Error::Interrupted.report(), json);
    });
    if let Some(stop) = args.stop_after {
        let text = at_stop(&req, stop, args.bucket.as_deref())?;
        interrupt::hold().forever();
        if json {
            let stop = clap::ValueEnum::to_possible_value(&stop).map(|v| v.get_name().to_owned());
            super::print_json(&serde_json::json!({"schema": "deepfuse.text/1", "stop": stop, "text": text}));
        } else {
            say!("{text}");
        }
        return Ok(());
    }
    let started = Instant::now();
    let mut progress = Progress::new(json);
    interrupt::survive_writes();
    let compiled = pipeline::compile(&req, &mut |event| match event {
        Event::Stage(name) => progress.stage(name),
        Event::Needs(model, needs) if !json => progress.above(|| tell_needs(model, needs)),
        Event::Needs(..) => {}
    })?;
    let errors = match args.max_error {
        Some(limit) => max_error::check(&compiled.fused, limit, &req)?,
        None => vec![],
    };
    let seconds_compile = started.elapsed().as_secs_f64();
    interrupt::hold().forever(); // the writer looks at the flag
    progress.bytes(if req.shapes_only { 0 } else { compiled.needs.weights });
    let written = output::write(&compiled, &req, &mut |done| progress.advance(done))?;
    progress.finish();
    for warning in &written.warnings {
        tell!("warning: {warning}");
    }
    let total = started.elapsed().as_secs_f64();
    if json {
        print_object(&compiled, &written, &req, &errors, seconds_compile, total);
    } else {
        print_summary(&compiled, &written, &req, seconds_compile, total);
        print_errors(&errors);
    }
    Ok(())
}

fn tell_needs(model: &Model, needs: &output::Needs) {
    for notice in &model.notices {
        tell!("note: {notice}");
    }
    tell!(
        "needs: {} of disk; to run, {} of weights (mapped), {} for batches of {} tokens, {} of cache for {} tokens",
        human_bytes(needs.disk),
        human_bytes(needs.weights),
        human_bytes(needs.activations),
        output::TYPICAL_TOKENS,
        human_bytes(needs.cache),
        needs.context,
    );
}

fn request(args: &Args) -> Result<Request, Error> {
    let target = targets::named(&args.target).ok_or_else(|| unknown_target(&args.target))?;
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    Ok(Request {
        checkpoint: args.checkpoint.clone(),
        out: args.output.clone().unwrap_or_else(|| pipeline::default_output(&args.checkpoint)),
        records: tune::records(args.records.as_deref(), &target)?,
        target,
        activations: args.activations.into(),
        quant: args.quant.types(),
        calibration: calibration(args)?,
        numerics: args.numerics.into(),
        shapes_only: args.shapes_only,
        disabled_rules: args.disabled.clone(),
        memory: args.memory,
        jobs,
    })
}

/// The text, if it can be used with the other arguments.
fn calibration(args: &Args) -> Result<Option<PathBuf>, Error> {
    let Some(text) = &args.calibration else { return Ok(None) };
    if !matches!(args.quant, QuantArg::Int4) {
        return Err(Error::usage("--calibration is for --quant int4 only", "leave it out, or add --quant int4"));
    }
    if args.shapes_only {
        return Err(Error::usage("--calibration needs weights, and --shapes-only reads none", "leave one of them out"));
    }
    Ok(Some(text.clone()))
}

pub fn unknown_target(name: &str) -> Error {
    let known: Vec<&str> = targets::names().collect();
    deepfuse_artifact::report::Report::new(
        "target::unknown",
        deepfuse_artifact::report::exit::UNSUPPORTED,
        format!("there is no target `{name}`"),
    )
    .help(format!("targets: native, {}", known.join(", ")))
    .into()
}

/// A positive number.
pub fn parse_error_limit(text: &str) -> Result<f64, String> {
    let limit: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if limit > 0.0 { Ok(limit) } else { Err("the limit must be above 0".to_owned()) }
}

/// `24GiB`, `512MiB`, `1000000`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1u64 << 40,
        other => return Err(format!("`{other}` is no unit; write 24GiB, 512MiB")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("`{digits}` is no number"))?;
    if number > 0.0 && number < 1e15 {
        Ok((number * unit as f64) as u64)
    } else {
        Err(format!("`{text}` is out of range"))
    }
}

fn print_summary(c: &pipeline::Compiled, w: &Written, req: &Request, compile: f64, total: f64) {
    let (p, out, shapes_only) = (c.model.parameters(), &req.out, req.shapes_only);
    say!("{}", out.display());
    say!("  parameters   {} total, {} active a token", human_count(p.total), human_count(p.active));
    say!(
        "  kernels      {} distinct, {} of code; {}",
        c.planned.plan.kernels.len(),
        human_bytes(w.code_bytes),
        c.planned.plan.launches()
    );
    let fusion = output::fusion_info(&c.fused.report, req);
    let proof = fusion.proof().unwrap_or_default();
    let (measured, costs) = (tune::measured(&c.choices), if req.records.is_some() { "these" } else { "estimated" });
    if let Some(records) = &req.records {
        let (all, here) = (c.choices.len(), records.machine());
        say!("  records      {measured} of {all} kernels chosen by measurements on this CPU, {} threads", here.threads);
    }
    say!("  fusion       {} layer classes, {proof} by {costs} costs", c.fused.report.classes.len());
    for line in fusion.memory.iter().flat_map(memory_lines) {
        say!("  {line}");
    }
    say!("  plan         {}", human_bytes(w.plan_bytes));
    if shapes_only {
        say!("  weights      none (--shapes-only); packed they would take {}", human_bytes(w.weight_bytes));
    } else {
        let packing = (total - compile).max(1e-9);
        say!(
            "  weights      {} packed in {packing:.1} s, {:.2} GB/s",
            human_bytes(w.weight_bytes),
            w.weight_bytes as f64 / packing / 1e9
        );
    }
    say!(
        "  time         {total:.2} s, {compile:.2} s of it for graph, fusion and code; peak memory {} (without mapped files)",
        human_bytes(output::peak_memory())
    );
    if let Some((worst, loss)) = w.losses.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
        let mean = w.losses.iter().map(|l| l.1).sum::<f64>() / w.losses.len() as f64;
        say!(
            "  quantized    {} weights, off by {:.2} % of their size on average (RMS), at most {:.2} %: {worst}",
            w.losses.len(),
            100.0 * mean,
            100.0 * loss
        );
    }
    let program = std::env::args().next().unwrap_or_else(|| "deepfuse".into());
    let next = if shapes_only { "inspect" } else { "run" };
    let prompt = if shapes_only { "" } else { " --prompt 'Hello'" };
    say!("next: {program} {next} {}{prompt}", out.display());
}

fn print_errors(errors: &[ClassError]) {
    for e in errors {
        let of_bucket = |b: &BucketError| format!("{} {:.1e}", b.bucket, b.relative_rms);
        let shown = if e.errors.is_empty() {
            format!("not evaluated: {} elements are too many", human_count(e.elements))
        } else {
            e.errors.iter().map(of_bucket).collect::<Vec<_>>().join(", ")
        };
        let sizes: Vec<String> = e.reduced.iter().map(|(from, to)| format!("{from} -> {to}")).collect();
        let reduced = if sizes.is_empty() { String::new() } else { format!(" (with sizes {})", sizes.join(", ")) };
        say!("  error        layer class {}{reduced}: {shown}", e.class);
    }
}

fn print_object(c: &pipeline::Compiled, w: &Written, req: &Request, errors: &[ClassError], compile: f64, total: f64) {
    let (p, needs) = (c.model.parameters(), &c.needs);
    let fusion = output::fusion_info(&c.fused.report, req);
    super::print_json(&serde_json::json!({
        "schema": "deepfuse.compile/1",
        "artifact": req.out.display().to_string(),
        "target": req.target.name,
        "parameters": {"total": p.total, "active": p.active},
        "kernels": c.planned.plan.kernels.len(),
        "measured": tune::measured(&c.choices),
        "launches": c.planned.plan.buckets.iter().map(|b| (b.name.clone(), b.actions.len())).collect::<std::collections::BTreeMap<_, _>>(),
        "errors": errors,
        "fusion": {
            "classes": c.fused.report.classes.len(),
            "gap_nanos": fusion.gap_picos.map(|p| p as f64 / 1e3),
            "gap_percent": fusion.gap_percent(),
            "memory": fusion.memory,
        },
        "bytes": {"code": w.code_bytes, "plan": w.plan_bytes, "weights": w.weight_bytes},
        "needs": {"disk": needs.disk, "weights": needs.weights, "activations": needs.activations, "cache": needs.cache},
        "seconds": {"compile": compile, "total": total},
        "peak_memory": output::peak_memory(),
        "notices": c.model.notices,
        "warnings": w.warnings,
        "losses": w.losses.iter().map(|(name, rms)| serde_json::json!({"weight": name, "relative_rms": rms})).collect::<Vec<_>>(),
    }));
}
