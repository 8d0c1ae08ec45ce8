//! Errors of reading and writing artifacts.

use crate::plan_text::PlanError;
use crate::report::{Report, exit};
use std::io;
use std::path::{Path, PathBuf};

/// Why an artifact could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error("{}: no such artifact", path.display())]
    NotFound { path: PathBuf },
    #[error("{}: not an artifact: {reason}", path.display())]
    NotAnArtifact { path: PathBuf, reason: String },
    #[error("{}: format version {found} is not one that this runtime reads", path.display())]
    Version { path: PathBuf, found: u64 },
    #[error("{}: {section}: the content does not match its digest", path.display())]
    Digest { path: PathBuf, section: String, expected: String, found: String },
    #[error("{}: weight `{tensor}`: the content does not match its digest", path.display())]
    WeightDigest { path: PathBuf, tensor: String, expected: String, found: String },
    #[error("{}: {section}: the file has the wrong size", path.display())]
    Length { path: PathBuf, section: String, expected: u64, found: u64 },
    #[error("{}: {section}: {reason}", path.display())]
    Malformed { path: PathBuf, section: String, reason: String },
    #[error("{}: {source}", path.display())]
    Plan { path: PathBuf, source: PlanError },
    #[error("{}: the weights do not fit the plan: {reason}", path.display())]
    Weights { path: PathBuf, reason: String },
    #[error("{}: compiled with --shapes-only, it has no weights to run", path.display())]
    ShapesOnly { path: PathBuf },
    #[error("{}: exists and is not an artifact ({reason}); it is left as it is", path.display())]
    Occupied { path: PathBuf, reason: String },
    #[error("{}: not enough disk space", path.display())]
    Space { path: PathBuf, needed: u64, available: u64 },
    #[error("{}: no room ({source}); nothing was kept", path.display())]
    DiskFull { path: PathBuf, source: io::Error },
    #[error("interrupted; nothing was kept")]
    Interrupted,
    #[error("bug: {0}")]
    Bug(String),
}

impl Error {
    /// An error of the operating system while doing `action` at `path`.
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::DiskFull { path, source },
            _ => Self::Io { path, action, source },
        }
    }

    pub(crate) fn malformed(path: &Path, section: &str, reason: &dyn std::fmt::Display) -> Self {
        Self::Malformed { path: path.to_owned(), section: section.to_owned(), reason: format!("{reason}") }
    }

    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "artifact::io",
            Self::NotFound { .. } => "artifact::not-found",
            Self::NotAnArtifact { .. } => "artifact::not-an-artifact",
            Self::Version { .. } => "artifact::version",
            Self::Digest { .. } => "artifact::digest",
            Self::WeightDigest { .. } => "artifact::weight-digest",
            Self::Length { .. } => "artifact::length",
            Self::Malformed { .. } => "artifact::malformed",
            Self::Plan { .. } => "artifact::plan",
            Self::Weights { .. } => "artifact::weights",
            Self::ShapesOnly { .. } => "artifact::shapes-only",
            Self::Occupied { .. } => "artifact::occupied",
            Self::Space { .. } => "artifact::space",
            Self::DiskFull { .. } => "artifact::disk-full",
            Self::Interrupted => "interrupted",
            Self::Bug(_) => "bug",
        }
    }

    /// Exit code of the process.
    pub fn exit(&self) -> u8 {
        match self {
            Self::Io { .. } => exit::ENVIRONMENT,
            Self::NotFound { .. } | Self::Occupied { .. } => exit::INPUT,
            Self::NotAnArtifact { .. }
            | Self::Version { .. }
            | Self::Digest { .. }
            | Self::WeightDigest { .. }
            | Self::Length { .. }
            | Self::Malformed { .. }
            | Self::Plan { .. }
            | Self::Weights { .. }
            | Self::ShapesOnly { .. } => exit::REJECTED,
            Self::Space { .. } | Self::DiskFull { .. } => exit::RESOURCES,
            Self::Interrupted => exit::INTERRUPTED,
            Self::Bug(_) => exit::BUG,
        }
    }

    /// Everything the user should see.
    pub fn report(&self) -> Report {
        let r = Report::new(self.code(), self.exit(), self.to_string());
        let damaged = "the artifact was changed or damaged after it was written; copy or compile it again";
        match self {
            Self::Io { path, .. } => r.file(path).help("is the directory there, and may you read and write in it?"),
            Self::NotFound { path } => r.file(path).help("give the path of a directory that `deepfuse compile -o` wrote"),
            Self::NotAnArtifact { path, .. } => r.file(path).help("an artifact is a directory with a manifest.json, written by `deepfuse compile`"),
            Self::Version { path, found } => {
                let supported = crate::manifest::READABLE_VERSIONS.map(|v| v.to_string()).join(" or ");
                r.file(path).values(supported, found.to_string()).help("compile the checkpoint again, or use the deepfuse release that wrote it")
            }
            Self::Digest { path, expected, found, .. } => r.file(path).values(expected, found).help(damaged),
            Self::WeightDigest { path, tensor, expected, found } => r.file(path).tensor(tensor).values(expected, found).help(damaged),
            Self::Length { path, expected, found, .. } => {
                r.file(path).values(format!("{expected} bytes"), format!("{found} bytes")).help(damaged)
            }
            Self::Malformed { path, .. } | Self::Weights { path, .. } => r.file(path).help(damaged),
            Self::Plan { path, source } => r.file(path).help(source.help()),
            Self::ShapesOnly { path } => r.file(path).help("compile the checkpoint without --shapes-only"),
            Self::Occupied { path, .. } => r.file(path).help("choose another name for -o, or remove what is there"),
            Self::Space { path, needed, available } => r
                .file(path)
                .values(format!("{needed} bytes"), format!("{available} bytes available"))
                .help("free some space or write to another disk; an artifact that is replaced counts until the new one is complete"),
            Self::DiskFull { path, .. } => r.file(path).help("free some space, write to another disk, or raise the limit (quota, ulimit -f)"),
            Self::Interrupted => r,
            Self::Bug(_) => r.help("please report this with the command that led to it"),
        }
    }
}
