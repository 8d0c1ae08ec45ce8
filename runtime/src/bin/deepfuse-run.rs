//! `deepfuse-run`: the runtime as a small command, without any compiler.

use clap::{Parser, Subcommand};
use deepfuse_runtime::cli::{self, EXIT_CODES};
use std::process::ExitCode;

/// Runs models that `deepfuse compile` wrote.
#[derive(Parser)]
#[command(name = "deepfuse-run", version, max_term_width = 110, after_help = EXIT_CODES)]
struct Cli {
    /// Print one JSON object, a result or an error, to stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Generate text from an artifact
    Run(cli::run::Args),
    /// Check an artifact: digests, a reference's outputs, perplexity
    Verify(cli::verify::Args),
    /// Measure an artifact: tokens per second and a table of its kernels
    Bench(cli::bench::Args),
    /// Say what this machine has and what would be used
    Doctor(cli::doctor::Args),
}

fn main() -> ExitCode {
    deepfuse_artifact::interrupt::end_with_reader();
    let cli: Cli = cli::parse();
    deepfuse_artifact::interrupt::install();
    ExitCode::from(match cli.verb {
        Verb::Run(a) => cli::run::main(&a, cli.json),
        Verb::Verify(a) => cli::verify::main(&a, cli.json),
        Verb::Bench(a) => cli::bench::main(&a, cli.json),
        Verb::Doctor(a) => cli::doctor::main(&a, cli.json),
    })
}
