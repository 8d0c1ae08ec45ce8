//! `deepfuse tune`: measures the variants of a model's kernels, each against the others, and keeps what came of it.

use deepfuse::tune::{Model, Needed};
use deepfuse::{Error, Request};
use deepfuse_artifact::report::{Report, exit};
use deepfuse_cache::Store;
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_ir::Target;
use deepfuse_runtime::cpu;
use deepfuse_tuner::measure::{Event, serve};
use deepfuse_tuner::{Ask, Evidence, Failure, Machine, Records, Supervisor};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint directory, config.json, or artifact (NAME.dfz); no weight is read
    path: PathBuf,
    /// Directory that measurements are kept in; those that it has are not taken again
    #[arg(long, value_name = "DIR")]
    records: PathBuf,
    /// No kernel is begun later: 90s, 10m, 1h [default: until all are measured]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    budget: Option<Duration>,
    /// Threads that run a kernel; `compile` uses measurements by as many as the target has cores [default: that many]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Machine to tune for, one that this CPU can run: native, or one of the targets that `deepfuse doctor` lists
    #[arg(long, default_value = "native")]
    target: String,
    /// Kernels whose name has this part: expert_down, 'T=1:', 'int4g32['
    #[arg(long, value_name = "PART-OF-NAME")]
    kernel: Option<String>,
    /// Of a checkpoint: how far fusion may change results, see `deepfuse compile --help` [default: requantizes]
    #[arg(long, value_name = "CLASS")]
    numerics: Option<super::compile::NumericsArg>,
    /// Of a checkpoint: type of activations [default: bf16]
    #[arg(long, value_name = "TYPE")]
    activations: Option<super::compile::ActivationsArg>,
    /// Of a checkpoint: type to quantize matrices to [default: none]
    #[arg(long, value_name = "TYPE")]
    quant: Option<super::compile::QuantArg>,
}

#[derive(clap::Args)]
pub struct WorkerArgs {
    #[arg(long)]
    target: String,
    #[arg(long)]
    threads: u32,
}

/// Longest time that compiling or running a variant may take.
const DEADLINE: Duration = Duration::from_mins(1);

pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    let started = Instant::now();
    let target = runnable(&args.target)?;
    let threads = args.threads.unwrap_or(target.units);
    let model = if args.path.join("manifest.json").exists() {
        of_artifact(args)?
    } else {
        Model::of_checkpoint(&request(args, &target))?
    };
    let store = Store::new(&args.records);
    let mut supervisor = Supervisor::new(worker_command(&args.target, threads), DEADLINE);
    let mut failed: BTreeMap<String, String> = BTreeMap::new();
    let (mut done, mut best_read) = (0, 0);
    // Measured costs may choose other kernels: until all that are chosen have been measured.
    let (records, needed, left) = loop {
        let records = existing(&store, threads)?;
        let mut needed = model.kernels(&target, &records)?;
        needed.retain(|n| args.kernel.as_ref().is_none_or(|part| n.name.contains(part)));
        let open = |n: &&Needed| !records.measured(&n.spec, &target, &X86) && !failed.contains_key(&n.name);
        let todo: Vec<Needed> = needed.iter().filter(open).cloned().collect();
        let time_is_up = || args.budget.is_some_and(|b| started.elapsed() >= b);
        if todo.is_empty() || time_is_up() {
            break (records, needed, todo.len());
        }
        for (i, n) in todo.iter().enumerate().take_while(|_| !time_is_up()) {
            let variants = if n.variants == 1 { "one variant" } else { &format!("{} variants", n.variants) };
            tell!("{} of {}: {variants} of {}", i + 1, todo.len(), n.name);
            let ask =
                Ask::of(&n.spec).ok_or_else(|| Failure::Kernel("it is a view where operands are dense".to_owned()));
            match ask.and_then(|ask| supervisor.measure(ask)) {
                Ok(record) => {
                    store.add(&record)?;
                    done += 1;
                    best_read = best_read.max(record.read_mb_per_s);
                    if record.read_mb_per_s < best_read / 2 {
                        let [now, best] = [record.read_mb_per_s, best_read].map(|mb| mb as f64 / 1e3);
                        tell!(
                            "  the machine is busy: memory was read at {now:.1} GB/s, before at {best:.1}; what is measured now says little"
                        );
                    }
                }
                Err(Failure::Kernel(why)) => {
                    tell!("  not measured: {why}");
                    failed.insert(n.name.clone(), why);
                }
                Err(Failure::Process(why)) => return Err(lost(&why)),
            }
        }
    };
    let rows: Vec<(&Needed, Evidence)> =
        needed.iter().filter_map(|n| Some((n, records.evidence(&n.spec, &target, &X86)?))).collect();
    if json {
        print_object(args, &rows, &failed, (done, left));
    } else {
        print_table(args, &rows, (done, left));
    }
    Ok(())
}

/// The loop of the measuring process.
pub fn worker(args: &WorkerArgs) -> Result<(), Error> {
    let target = runnable(&args.target)?;
    let lines = std::io::stdin().lock();
    serve(lines, &target, args.threads, &mut |event: &Event| {
        say!("{}", serde_json::to_string(event).expect("an event is plain data"));
    })
    .map_err(|e| lost(&e.to_string()))
}

fn worker_command(target: &str, threads: u32) -> Box<dyn Fn() -> Command> {
    let (target, threads) = (target.to_owned(), threads.to_string());
    Box::new(move || {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "deepfuse".into()));
        command.args(["tune-worker", "--target", &target, "--threads", &threads]);
        command
    })
}

fn lost(why: &str) -> Error {
    Report::new("tune::process", exit::ENVIRONMENT, format!("the measuring process cannot work: {why}"))
        .help("what was measured is kept; run the command again")
        .into()
}

/// A target whose code this CPU runs.
fn runnable(name: &str) -> Result<Target, Error> {
    let target = targets::named(name).ok_or_else(|| super::compile::unknown_target(name))?;
    let missing = cpu::missing(&target.features);
    if missing.is_empty() {
        return Ok(target);
    }
    let message = format!("this CPU cannot run {}, so that nothing can be measured", target.name);
    Err(Report::new("tune::target", exit::ENVIRONMENT, message)
        .values(target.features.join(" "), format!("without {}", missing.join(" ")))
        .help("tune on a machine of that kind, or for another target; `deepfuse doctor` lists what this one runs")
        .into())
}

/// The records that there are; none if there is no directory yet.
fn existing(store: &Store, threads: u32) -> Result<Records, Error> {
    let machine = Machine::here(threads);
    if store.dir().exists() { Ok(Records::open(store, machine)?) } else { Ok(Records::of(vec![], machine)) }
}

fn of_artifact(args: &Args) -> Result<Model, Error> {
    if args.numerics.is_some() || args.activations.is_some() || args.quant.is_some() {
        let help = "give the checkpoint or its config.json instead of the artifact";
        return Err(Error::usage("--numerics, --activations and --quant are fixed in an artifact", help));
    }
    Model::of_artifact(&args.path)
}

fn request(args: &Args, target: &Target) -> Request {
    let usual = Request::new(args.path.clone(), PathBuf::new(), target.clone()); // nothing is written
    Request {
        activations: args.activations.map_or(usual.activations, Into::into),
        quant: args.quant.and_then(super::compile::QuantArg::types),
        numerics: args.numerics.map_or(usual.numerics, Into::into),
        shapes_only: true,
        ..usual
    }
}

/// `90s`, `10m`, `1h`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("`{other}` is no unit of time; write 90s, 10m, 1h")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("`{digits}` is no number"))?;
    if (0.0..1e6).contains(&number) {
        Ok(Duration::from_secs_f64(number * unit))
    } else {
        Err(format!("`{text}` is out of range"))
    }
}

fn print_table(args: &Args, rows: &[(&Needed, Evidence)], (done, left): (usize, usize)) {
    say!("{:>10} {:>10} {:>6}  {:<40} kernel", "default us", "best us", "ratio", "parameters");
    for (n, e) in rows.iter().filter(|(n, _)| n.variants > 1) {
        let best = if e.is_default { "as by default".to_owned() } else { e.variant.to_string() };
        let micros = |nanos: u64| format!("{:.1}", nanos as f64 / 1e3);
        let ratio = e.default_nanos as f64 / e.nanos as f64;
        say!("{:>10} {:>10} {ratio:>6.2}  {best:<40} {}", micros(e.default_nanos), micros(e.nanos), n.name);
    }
    let better = rows.iter().filter(|(_, e)| !e.is_default).count();
    let several = rows.iter().filter(|(n, _)| n.variants > 1).count();
    say!(
        "{several} kernels with several variants: {better} better than the default; {} with one, for their costs",
        rows.len() - several
    );
    say!("{done} measured now, {left} not yet, in {}", args.records.display());
    say!("next: deepfuse compile CHECKPOINT --records {}", args.records.display());
}

fn print_object(
    args: &Args,
    rows: &[(&Needed, Evidence)],
    failed: &BTreeMap<String, String>,
    (done, left): (usize, usize),
) {
    let row = |(n, e): &(&Needed, Evidence)| {
        serde_json::json!({
            "kernel": n.name,
            "launches": n.launches,
            "variants": n.variants,
            "default_nanos": e.default_nanos,
            "best_nanos": e.nanos,
            "parameters": e.variant.0.iter().collect::<BTreeMap<_, _>>(),
            "kept_default": e.is_default,
            "records": e.records,
        })
    };
    super::print_json(&serde_json::json!({
        "schema": "deepfuse.tune/1",
        "records": args.records.display().to_string(),
        "measured": done,
        "left": left,
        "kernels": rows.iter().map(row).collect::<Vec<_>>(),
        "failed": failed,
    }));
}
