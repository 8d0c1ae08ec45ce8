//! `deepfuse completions`

use clap::CommandFactory;
use deepfuse::Error;

#[derive(clap::Args)]
pub struct Args {
    /// The shell to complete in
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) -> Result<(), Error> {
    clap_complete::generate(args.shell, &mut super::Cli::command(), "deepfuse", &mut std::io::stdout());
    Ok(())
}
