//! `deepfuse opt`: passes over a graph in text form.

mod reduced;
mod stats;

use deepfuse::Error;
use deepfuse::catalog::BackendCatalog;
use deepfuse::difference::{ELEMENT_LIMIT, elements, results, worst};
use deepfuse_artifact::report::{Report, exit};
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_ir::{Bucket, Graph};
use deepfuse_passes::fuse::{FuseOptions, FuseReport, fuse_timed};
use stats::PassStats;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// File with a graph in text form, as `compile --stop-after build` prints it; `-` reads stdin
    file: PathBuf,
    /// Passes to run, in this order
    #[arg(long = "pass", required = true, value_name = "PASS,..", value_delimiter = ',')]
    passes: Vec<Pass>,
    /// Bucket whose fused graph is printed, such as decode-1 or prefill-512
    #[arg(long, default_value = "decode-1")]
    bucket: String,
    /// Target whose costs decide between the forms
    #[arg(long, default_value = "native")]
    target: String,
    /// How far fusion may change results, see `deepfuse compile --help`
    #[arg(long, value_name = "CLASS", default_value = "requantizes")]
    numerics: super::compile::NumericsArg,
    /// A fusion rule that must not fire (`all`: none may); can be given several times
    #[arg(long = "disable-rule", value_name = "RULE")]
    disabled: Vec<String>,
    /// Print what every pass did and how long it took, and so for every fusion rule
    #[arg(long)]
    stats: bool,
    /// Evaluate the graph before and after the passes on random and hard inputs; fail if they differ by more than X (relative RMS)
    #[arg(long, value_name = "X", value_parser = super::compile::parse_error_limit, num_args = 0..=1, require_equals = true,
          default_missing_value = "0.02")]
    check: Option<f64>,
    /// Print the smallest graph found that fails in the same way, instead of the passes' result
    #[arg(long)]
    reduce: bool,
    /// With --reduce: the code of the error that must remain, such as passes::fuse [default: the one that there is]
    #[arg(long, value_name = "CODE", requires = "reduce", conflicts_with = "fails_if")]
    fails_with: Option<String>,
    /// With --reduce: a shell command that gets a graph's file as $0; a graph fails if the command ends with code 0
    #[arg(long, value_name = "COMMAND", requires = "reduce")]
    fails_if: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Pass {
    Verify,
    Canonicalize,
    Fuse,
}

pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    let text = read(&args.file)?;
    let graph = deepfuse_ir::text::parse(&text).map_err(|errors| {
        let shown: Vec<String> = errors.iter().map(|e| e.render(&text)).collect();
        let count = if errors.len() == 1 { "1 error".to_owned() } else { format!("{} errors", errors.len()) };
        let message = format!("{}: {count}\n{}", args.file.display(), shown.join("\n"));
        Report::new("ir::syntax", exit::INPUT, message).file(&args.file)
    })?;
    if args.reduce {
        return reduced::run(&graph, args, json);
    }
    let (result, passes) = apply_all(&graph, args)?;
    let difference = args.check.map(|limit| check(&graph, &result, limit)).transpose()?;
    for fused in passes.iter().filter_map(|p| p.fused.as_ref()) {
        tell!("{fused}");
    }
    if args.stats {
        tell!("{}", stats::table(&passes));
    }
    if let (false, Some(error)) = (json, difference) {
        tell!("differs by {error:.1e} (relative RMS)");
    }
    if json {
        super::print_json(&serde_json::json!({
            "schema": "deepfuse.opt/1", "graph": result.to_string(), "relative_rms": difference,
            "passes": passes.iter().map(PassStats::object).collect::<Vec<_>>(), "rules": stats::rules(&passes),
        }));
    } else {
        say!("{result}");
    }
    Ok(())
}

fn read(path: &std::path::Path) -> Result<String, Error> {
    let result =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    result.map_err(|e| Report::new("opt::read", exit::INPUT, format!("{}: {e}", path.display())).file(path).into())
}

/// What the passes make of a graph, and what each did.
fn apply_all(graph: &Graph, args: &Args) -> Result<(Graph, Vec<PassStats>), Error> {
    let mut graph = graph.clone();
    let mut done = vec![];
    for pass in &args.passes {
        let (start, before) = (Instant::now(), graph.nodes.len());
        let (next, fused) = apply(*pass, graph, args)?;
        let name = clap::ValueEnum::to_possible_value(pass).map_or_else(String::new, |v| v.get_name().to_owned());
        done.push(PassStats { name, operations: (before, next.nodes.len()), time: start.elapsed(), fused });
        graph = next;
    }
    Ok((graph, done))
}

/// The graph that a pass gives; of fusion also its numbers.
fn apply(pass: Pass, graph: Graph, args: &Args) -> Result<(Graph, Option<FuseReport>), Error> {
    match pass {
        Pass::Verify => {
            let Err(errors) = deepfuse_ir::verify::verify(&graph) else { return Ok((graph, None)) };
            Err(Report::new("ir::verify", exit::INPUT, errors.to_string()).into())
        }
        Pass::Canonicalize => Ok((deepfuse_passes::canonicalize(graph)?, None)),
        Pass::Fuse => fuse(&graph, args).map(|(graph, report)| (graph, Some(report))),
    }
}

fn fuse(graph: &Graph, args: &Args) -> Result<(Graph, FuseReport), Error> {
    let target = targets::named(&args.target).ok_or_else(|| super::compile::unknown_target(&args.target))?;
    let unknown =
        || Error::usage(format!("there is no bucket `{}`", args.bucket), format!("buckets: {}", Bucket::names()));
    let bucket = Bucket::named(&args.bucket).ok_or_else(unknown)?;
    let options = FuseOptions { disabled: args.disabled.clone(), ..FuseOptions::new(args.numerics.into()) };
    let catalog = BackendCatalog::new(&target, &X86);
    let start = Instant::now();
    let fused = fuse_timed(graph, &catalog, &[bucket], &options, &|| start.elapsed())?;
    let mut graphs = fused.graphs;
    Ok((graphs.remove(0).1, fused.report))
}

/// How far the result is from the graph, relative RMS.
///
/// Errors: `opt::mismatch` (exit 1) above `limit`; `opt::too-large` if the evaluator would take too much memory.
fn check(graph: &Graph, result: &Graph, limit: f64) -> Result<f64, Error> {
    deepfuse_passes::fuse::checked("check", graph)?;
    if elements(graph) > ELEMENT_LIMIT {
        let message = format!("{} elements are too many to evaluate the graph", elements(graph));
        return Err(Report::new("opt::too-large", exit::RESOURCES, message).into());
    }
    let error = worst(&results(graph), &results(result));
    if error <= limit {
        return Ok(error);
    }
    let message = format!("the passes change the result by {error:.1e} (relative RMS)");
    let help = "--reduce finds the smallest graph for which they do; --disable-rule leaves a rule out";
    Err(Report::new("opt::mismatch", exit::VERDICT, message)
        .values(format!("at most {limit:.1e}"), format!("{error:.1e}"))
        .help(help)
        .into())
}
