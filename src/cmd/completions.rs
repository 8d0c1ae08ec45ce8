//! `deepfuse completions`

use clap::CommandFactory;
use deepfuse::Error;

#[derive(clap::Args)]
pub struct Args {
    /// The shell to complete in
    shell: clap_complete::Shell,
}

#[expect(clippy::unnecessary_wraps, reason = "all verbs look alike")]
pub fn run(args: &Args, json: bool) -> Result<(), Error> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut super::Cli::command(), "deepfuse", &mut script);
    let script = String::from_utf8_lossy(&script);
    if json {
        super::print_json(
            &serde_json::json!({"schema": "deepfuse.completions/1", "shell": args.shell.to_string(), "script": script}),
        );
    } else {
        deepfuse_runtime::cli::print(&script);
    }
    Ok(())
}
