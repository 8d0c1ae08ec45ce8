//! The `deepfuse` command.

mod cmd;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    deepfuse_artifact::interrupt::install();
    cmd::dispatch(cmd::Cli::parse())
}
