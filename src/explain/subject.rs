//! What is explained: the certificate of an artifact, or of a checkpoint that is fused anew.

use crate::catalog::BackendCatalog;
use crate::error::Error;
use crate::pipeline::{self, Request};
use crate::report::CompileReport;
use deepfuse_artifact::manifest::{FusionInfo, section};
use deepfuse_artifact::report::{Report, exit};
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_ir::Target;
use deepfuse_passes::fuse::{Certificate, CertificateError};
use deepfuse_runtime::Artifact;
use deepfuse_tuner::Records;
use std::path::Path;
use std::sync::Arc;

/// What is explained.
pub struct Subject {
    pub certificate: Certificate,
    pub target: Target,
    /// Name of the artifact or checkpoint.
    pub title: String,
    /// For people: what it is.
    pub facts: Vec<(&'static str, String)>,
    /// Names of parameters.
    pub report: CompileReport,
    /// Measurements that costs come from where there are any.
    pub records: Option<Arc<Records>>,
    /// Rules that were turned off, how good the result is, what a limit on memory cost.
    pub fusion: FusionInfo,
}

impl Subject {
    /// What kernels cost: by its records where there are any.
    pub fn catalog(&self) -> BackendCatalog<'_> {
        BackendCatalog::new(&self.target, &X86).with(self.records.as_deref())
    }

    /// From an artifact; costs are those of its target on a machine like this one.
    ///
    /// Errors: those of [`Artifact::open`]; `target::unknown`; `certificate` if there is none or it cannot be read.
    pub fn of_artifact(path: &Path) -> Result<Self, Error> {
        let artifact = Artifact::open(path)?;
        let name = &artifact.manifest().target.name;
        let native = targets::native();
        let target = if native.name == *name { Some(native) } else { targets::named(name) };
        let unknown = || {
            Report::new(
                "target::unknown",
                exit::UNSUPPORTED,
                format!("this deepfuse does not know the target `{name}`"),
            )
        };
        let certificate = certificate(&artifact)?;
        let model = &artifact.manifest().model;
        Ok(Self {
            certificate,
            target: target.ok_or_else(unknown)?,
            title: file_name(path),
            facts: vec![
                ("model", format!("{}, {} layers", model.architecture, model.layers)),
                ("activations", artifact.manifest().numerics.activations.clone()),
                ("artifact", artifact.digest().to_owned()),
                ("compiler", artifact.manifest().toolchain.clone()),
            ],
            fusion: artifact.manifest().fusion.clone(),
            report: report(&artifact),
            records: None,
        })
    }

    /// From a checkpoint or its config.json: fused anew.
    ///
    /// Errors: those of the compiler up to fusion.
    pub fn of_checkpoint(req: &Request) -> Result<Self, Error> {
        let model = pipeline::open(req)?;
        let catalog = BackendCatalog::of(req);
        let (graph, _) = pipeline::quantize(pipeline::build(&model, req)?, req)?;
        let fused = pipeline::fuse(&model, graph, req, &catalog)?;
        let path = req.checkpoint.canonicalize().unwrap_or_else(|_| req.checkpoint.clone());
        let named = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
        Ok(Self {
            fusion: crate::output::fusion_info(&fused.report, req),
            report: CompileReport::of(&fused),
            records: req.records.clone(),
            certificate: fused.certificate,
            target: req.target.clone(),
            title: file_name(named),
            facts: vec![
                (
                    "model",
                    format!("{}, {} layers", crate::output::architecture(model.config.family), model.config.layers),
                ),
                ("activations", crate::output::activations_name(req).to_owned()),
                ("compiler", format!("deepfuse {}", env!("CARGO_PKG_VERSION"))),
            ],
        })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// The certificate of an artifact.
///
/// Errors: `certificate` if there is none or it cannot be read.
pub fn certificate(artifact: &Artifact) -> Result<Certificate, Error> {
    let refused = |why: String| {
        Report::new("certificate", exit::REJECTED, format!("the certificate cannot be read: {why}"))
            .file(artifact.path())
    };
    let text = artifact.section(section::CERTIFICATE).ok_or_else(|| refused("there is none".into()))?;
    let text = std::str::from_utf8(text).map_err(|e| refused(e.to_string()))?;
    Ok(text.parse().map_err(|e: CertificateError| refused(e.to_string()))?)
}

/// The report of an artifact; an empty one if it has none that this release reads, for it proves nothing.
pub fn report(artifact: &Artifact) -> CompileReport {
    artifact.section(section::REPORT).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
}
