//! Errors of the driver, each with a code, an exit code and what the user can do.

use deepfuse_artifact::report::{Report, exit};
use deepfuse_frontend::ErrorKind;
use deepfuse_passes::fuse::FuseError;

/// Anything that ends a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] deepfuse_frontend::Error),
    #[error(transparent)]
    Artifact(#[from] deepfuse_artifact::Error),
    #[error(transparent)]
    Weight(#[from] crate::weights::WeightError),
    #[error(transparent)]
    Fuse(#[from] FuseError),
    #[error(transparent)]
    Select(#[from] deepfuse_passes::select::SelectError),
    #[error(transparent)]
    Plan(#[from] deepfuse_passes::plan::PlanError),
    #[error(transparent)]
    Run(#[from] deepfuse_runtime::Error),
    #[error(transparent)]
    Emit(#[from] deepfuse_codegen::EmitError),
    #[error(transparent)]
    Records(#[from] deepfuse_cache::Error),
    /// An error that is complete as it is.
    #[error("{0}")]
    Report(Box<Report>),
}

impl From<Report> for Error {
    fn from(r: Report) -> Self {
        Self::Report(Box::new(r))
    }
}

impl Error {
    /// Wrong arguments.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Report::new("usage", exit::USAGE, message).help(help).into()
    }

    /// Everything the user should see.
    pub fn report(&self) -> Report {
        match self {
            Self::Report(r) => (**r).clone(),
            Self::Artifact(e) => e.report(),
            Self::Checkpoint(e) => checkpoint(e),
            Self::Weight(e) => weight(e),
            Self::Fuse(FuseError::UnknownRule { name, known }) => {
                Report::new("usage", exit::USAGE, format!("there is no rule `{name}`")).help(format!("rules: {known}"))
            }
            Self::Fuse(e @ FuseError::NoKernel { .. }) => Report::new("passes::fuse", exit::UNSUPPORTED, e.to_string()),
            Self::Fuse(e) => bug("passes::fuse", e),
            Self::Select(e) => Report::new("passes::select", exit::UNSUPPORTED, e.to_string())
                .help("this target has no kernel for it; `deepfuse doctor` lists the targets"),
            Self::Plan(e) => bug("passes::plan", e),
            Self::Emit(e) => emit(e),
            Self::Run(e) => e.report(),
            Self::Records(e) => records(e),
        }
    }
}

fn bug(code: &'static str, e: &dyn std::fmt::Display) -> Report {
    Report::new(code, exit::BUG, e.to_string())
        .help("please report this with the command and the config.json that led to it")
}

fn checkpoint(e: &deepfuse_frontend::Error) -> Report {
    let exit = match e.code.kind() {
        ErrorKind::Invalid => exit::INPUT,
        ErrorKind::Unsupported => exit::UNSUPPORTED,
        ErrorKind::Environment => exit::ENVIRONMENT,
    };
    let place = e.field.as_ref().map_or_else(|| e.message.clone(), |f| format!("{f}: {}", e.message));
    let message = e.file.as_ref().map_or_else(|| place.clone(), |f| format!("{}: {place}", f.display()));
    let mut r = Report::new(e.code.name(), exit, message);
    r.file = e.file.as_ref().map(|f| f.display().to_string());
    r.tensor.clone_from(&e.tensor);
    r.expected.clone_from(&e.expected);
    r.found.clone_from(&e.found);
    r.help.clone_from(&e.help);
    if r.code == "frontend::no-weights" {
        r.help = Some(format!("{}; --shapes-only compiles from config.json alone", r.help.unwrap_or_default()));
    }
    r
}

fn weight(e: &crate::weights::WeightError) -> Report {
    use crate::weights::WeightError as W;
    match e {
        W::Missing(name) => Report::new("weights::missing", exit::INPUT, e.to_string()).tensor(name),
        W::Unsupported(_) => bug("weights::expression", e),
        W::Scale { name, value, .. } => Report::new("weights::scale", exit::INPUT, e.to_string())
            .tensor(name)
            .values("a finite number", value.to_string())
            .help("the checkpoint is damaged: copy this shard again and compare its checksum"),
        W::Sink(inner) => Report::new("weights::write", exit::ENVIRONMENT, inner.to_string()),
        W::Artifact(inner) => inner.report(),
    }
}

fn records(e: &deepfuse_cache::Error) -> Report {
    use deepfuse_cache::Error as E;
    match e {
        E::Damaged { path, .. } => Report::new("records::damaged", exit::REJECTED, e.to_string())
            .file(path)
            .help("delete the file, or copy it again from where it came: the other records do not depend on it"),
        E::Io { path, .. } => Report::new("records::io", exit::ENVIRONMENT, e.to_string())
            .file(path)
            .help("--records takes a directory; `deepfuse tune` makes it"),
    }
}

fn emit(e: &deepfuse_codegen::EmitError) -> Report {
    use deepfuse_codegen::EmitError as E;
    match e {
        E::NoLinker { .. } | E::Io { .. } | E::Link { .. } => {
            Report::new("codegen::link", exit::ENVIRONMENT, e.to_string())
        }
        E::Unsupported { .. } => Report::new("codegen::unsupported", exit::UNSUPPORTED, e.to_string()),
        E::Text { .. } | E::Llvm(_) => bug("codegen::llvm", e),
    }
}
