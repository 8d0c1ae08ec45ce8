//! `deepfuse opt`: passes over a graph in text form.

use deepfuse::Error;
use deepfuse::catalog::BackendCatalog;
use deepfuse_artifact::report::{Report, exit};
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_ir::{Bucket, Graph};
use deepfuse_passes::fuse::{FuseOptions, fuse_timed};
use std::path::PathBuf;

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
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Pass {
    Verify,
    Canonicalize,
    Fuse,
}

pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    let text = read(&args.file)?;
    let mut graph = deepfuse_ir::text::parse(&text).map_err(|errors| {
        let shown: Vec<String> = errors.iter().map(|e| e.render(&text)).collect();
        let count = if errors.len() == 1 { "1 error".to_owned() } else { format!("{} errors", errors.len()) };
        let message = format!("{}: {count}\n{}", args.file.display(), shown.join("\n"));
        Report::new("ir::syntax", exit::INPUT, message).file(&args.file)
    })?;
    for pass in &args.passes {
        graph = apply(*pass, graph, args)?;
    }
    if json {
        super::print_json(&serde_json::json!({"schema": "deepfuse.opt/1", "graph": graph.to_string()}));
    } else {
        say!("{graph}");
    }
    Ok(())
}

fn read(path: &std::path::Path) -> Result<String, Error> {
    let result =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    result.map_err(|e| Report::new("opt::read", exit::INPUT, format!("{}: {e}", path.display())).file(path).into())
}

fn apply(pass: Pass, graph: Graph, args: &Args) -> Result<Graph, Error> {
    match pass {
        Pass::Verify => {
            let Err(errors) = deepfuse_ir::verify::verify(&graph) else { return Ok(graph) };
            Err(Report::new("ir::verify", exit::INPUT, errors.to_string()).into())
        }
        Pass::Canonicalize => Ok(deepfuse_passes::canonicalize(graph)?),
        Pass::Fuse => fuse(&graph, args),
    }
}

fn fuse(graph: &Graph, args: &Args) -> Result<Graph, Error> {
    let target = targets::named(&args.target).ok_or_else(|| super::compile::unknown_target(&args.target))?;
    let unknown =
        || Error::usage(format!("there is no bucket `{}`", args.bucket), format!("buckets: {}", Bucket::names()));
    let bucket = Bucket::named(&args.bucket).ok_or_else(unknown)?;
    let options = FuseOptions { disabled: args.disabled.clone(), ..FuseOptions::new(args.numerics.into()) };
    let catalog = BackendCatalog::new(&target, &X86);
    let start = std::time::Instant::now();
    let fused = fuse_timed(graph, &catalog, &[bucket], &options, &|| start.elapsed())?;
    tell!("{}", fused.report);
    let mut graphs = fused.graphs;
    Ok(graphs.remove(0).1)
}
