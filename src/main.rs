//! The `deepfuse` command.

mod cmd;

use std::process::ExitCode;

fn main() -> ExitCode {
    deepfuse_artifact::interrupt::end_with_reader();
    cmd::dispatch(deepfuse_runtime::cli::parse())
}
