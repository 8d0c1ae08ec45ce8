//! Verbs of the command line, one file each. Results go to stdout, progress and errors to stderr.

/// Prints a line of the result to stdout.
macro_rules! say {
    ($($text:tt)*) => { deepfuse_runtime::cli::print(&format!("{}\n", format_args!($($text)*))) };
}

/// Prints a line of progress or a remark to stderr.
macro_rules! tell {
    ($($text:tt)*) => { deepfuse_runtime::cli::note(&format!($($text)*)) };
}

mod compile;
mod completions;
mod diff;
mod explain;
mod inspect;
mod opt;
mod progress;
mod tune;

use clap::{Parser, Subcommand};
use deepfuse::Error;
use std::process::ExitCode;

/// What follows the list of verbs in `--help`.
fn after_help() -> String {
    let exit_codes = deepfuse_runtime::cli::EXIT_CODES;
    format!(
        "First steps:
  deepfuse inspect DIR                     what is this checkpoint, how much memory does it take?
  deepfuse compile DIR -o NAME.dfz         compile it for this machine
  deepfuse run NAME.dfz --prompt 'Hello'   generate text
  deepfuse bench NAME.dfz                  measure it

{exit_codes}"
    )
}

/// Compiles DeepSeek models ahead of time and runs them.
#[derive(Parser)]
#[command(name = "deepfuse", version, max_term_width = 110, after_help = after_help())]
pub struct Cli {
    /// Print one JSON object, a result or an error, to stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compile a checkpoint directory into an artifact
    Compile(compile::Args),
    /// Generate text from an artifact
    Run(deepfuse_runtime::cli::run::Args),
    /// Show what a checkpoint or an artifact is, without reading weights
    Inspect(inspect::Args),
    /// Say which kernels every layer became, what decided it, and why other fusion rules did not fire
    Explain(explain::Args),
    /// Say which kernels of two artifacts differ, and why; exit code 1 if they differ
    Diff(diff::Args),
    /// Run passes of the compiler over a graph in text form
    Opt(opt::Args),
    /// Measure the kernels of a model on this machine, for `compile --records`
    Tune(tune::Args),
    /// The process that `tune` runs kernels in
    #[command(hide = true)]
    TuneWorker(tune::WorkerArgs),
    /// Check an artifact: digests, the proof of its fusions, a reference's outputs, perplexity
    Verify(deepfuse_runtime::cli::verify::Args),
    /// Measure an artifact: tokens per second and a table of its kernels
    Bench(deepfuse_runtime::cli::bench::Args),
    /// Say what this machine has and what deepfuse would use
    Doctor(deepfuse_runtime::cli::doctor::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// Runs a verb; its exit code.
pub fn dispatch(cli: Cli) -> ExitCode {
    let json = cli.json;
    let shared = |code: u8| ExitCode::from(code);
    // These look at the flag that a signal sets; all others a signal just ends.
    if matches!(cli.verb, Verb::Compile(_) | Verb::Run(_) | Verb::Verify(_) | Verb::Bench(_)) {
        deepfuse_artifact::interrupt::install();
    }
    let result = match cli.verb {
        Verb::Run(a) => return shared(deepfuse_runtime::cli::run::main(&a, json)),
        Verb::Verify(a) => return shared(deepfuse_runtime::cli::verify::main_with(&a, json, &deepfuse::proof::checks)),
        Verb::Bench(a) => return shared(deepfuse_runtime::cli::bench::main(&a, json)),
        Verb::Doctor(a) => return shared(deepfuse_runtime::cli::doctor::main(&a, json)),
        Verb::Compile(a) => compile::run(&a, json),
        Verb::Tune(a) => tune::run(&a, json),
        Verb::TuneWorker(a) => tune::worker(&a),
        Verb::Inspect(a) => inspect::run(&a, json),
        Verb::Explain(a) => explain::run(&a, json),
        Verb::Diff(a) => match diff::run(&a, json) {
            Ok(equal) => return shared(u8::from(!equal)),
            Err(e) => Err(e),
        },
        Verb::Opt(a) => opt::run(&a, json),
        Verb::Completions(a) => completions::run(&a, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            deepfuse_artifact::interrupt::hold().forever(); // one of us tells the user
            fail(&e, json)
        }
    }
}

fn fail(e: &Error, json: bool) -> ExitCode {
    ExitCode::from(deepfuse_runtime::cli::fail(&e.report(), json))
}

/// Prints a value as one line of JSON.
fn print_json(value: &serde_json::Value) {
    say!("{value}");
}
