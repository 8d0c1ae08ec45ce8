//! Errors of loading and running.

use deepfuse_artifact::report::{Report, exit};
use std::path::{Path, PathBuf};

/// Why an artifact could not be loaded, or a step not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Artifact(#[from] deepfuse_artifact::Error),
    #[error("{}: artifact for another ISA: it needs {}, which this CPU does not have", path.display(), missing.join(", "))]
    Isa { path: PathBuf, target: String, needed: Vec<String>, missing: Vec<String>, present: Vec<String> },
    #[error("{}: {reason}", path.display())]
    Code { path: PathBuf, reason: String },
    #[error("{0}")]
    Tiles(String),
    #[error("an emulated instruction failed: {0}")]
    Emulation(crate::isa::Fault),
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
    #[error("not enough memory for {what}")]
    Memory { what: &'static str, needed: u64, available: u64 },
    #[error("this runtime cannot run {0}")]
    Unsupported(String),
    #[error("there is no bucket `{name}`")]
    NoBucket { name: String, known: Vec<String> },
    #[error("the bucket `{name}` does not take this batch: {reason}")]
    Bucket { name: String, reason: String },
    #[error("a limit is too small: {0}")]
    Limit(String),
    #[error("all {limit} sequences are in use")]
    TooManySequences { limit: u32 },
    #[error("there is no such sequence (it was removed, or belongs to another session)")]
    NoSequence,
    #[error("a sequence is given twice in one step")]
    SequenceTwice,
    #[error("a sequence is given no tokens")]
    NoTokens,
    #[error("the cache is full: {needed} more pages of 64 tokens are needed")]
    CacheFull { needed: u32, free: u32 },
    #[error("token id {id} is beyond the vocabulary")]
    Vocabulary { id: i64, vocab: u32 },
    #[error("the sequence would be longer than the context")]
    Context { tokens: u64, context: u32 },
    #[error("logits of {rows} tokens are asked for in one step")]
    TooManyRows { rows: u64, limit: u32 },
    #[error("a sequence of {tokens} tokens cannot be cut to {to}")]
    Truncate { tokens: u32, to: u32 },
    #[error("the model computed NaN for token {id}")]
    NotFinite { id: u32 },
    #[error("{}: {reason}", path.display())]
    Input { path: PathBuf, reason: String },
    #[error("the tokenizer of the artifact: {0}")]
    Tokenizer(String),
    #[error("the artifact has no tokenizer")]
    NoTokenizer,
    #[error("{0}")]
    Usage(String),
    #[error("interrupted")]
    Interrupted,
    #[error("bug: a worker thread panicked during a step")]
    Panicked,
}

impl From<crate::pool::Panicked> for Error {
    fn from(_: crate::pool::Panicked) -> Self {
        Self::Panicked
    }
}

impl Error {
    pub(crate) fn system(what: impl Into<String>) -> Self {
        Self::System { what: what.into(), source: std::io::Error::last_os_error() }
    }

    pub(crate) fn input(path: &Path, reason: impl Into<String>) -> Self {
        Self::Input { path: path.to_owned(), reason: reason.into() }
    }

    fn kind(&self) -> (&'static str, u8) {
        match self {
            Self::Artifact(e) => (e.code(), e.exit()),
            Self::Isa { .. } => ("runtime::isa", exit::REJECTED),
            Self::Code { .. } => ("runtime::code", exit::REJECTED),
            Self::Tiles(_) => ("runtime::tiles", exit::ENVIRONMENT),
            Self::Emulation(_) => ("runtime::emulation", exit::BUG),
            Self::System { .. } => ("runtime::system", exit::ENVIRONMENT),
            Self::Memory { .. } => ("runtime::memory", exit::RESOURCES),
            Self::Unsupported(_) => ("runtime::unsupported", exit::UNSUPPORTED),
            Self::NoBucket { .. } => ("runtime::no-bucket", exit::USAGE),
            Self::Bucket { .. } => ("runtime::bucket", exit::USAGE),
            Self::Limit(_) => ("runtime::limit", exit::USAGE),
            Self::TooManySequences { .. } => ("runtime::sequences", exit::RESOURCES),
            Self::NoSequence => ("runtime::no-sequence", exit::USAGE),
            Self::SequenceTwice => ("runtime::sequence-twice", exit::USAGE),
            Self::NoTokens => ("runtime::no-tokens", exit::INPUT),
            Self::CacheFull { .. } => ("runtime::cache-full", exit::RESOURCES),
            Self::Vocabulary { .. } => ("runtime::vocabulary", exit::INPUT),
            Self::Context { .. } => ("runtime::context", exit::INPUT),
            Self::TooManyRows { .. } => ("runtime::rows", exit::USAGE),
            Self::Truncate { .. } => ("runtime::truncate", exit::USAGE),
            Self::NotFinite { .. } => ("runtime::not-finite", exit::INPUT),
            Self::Input { .. } => ("runtime::input", exit::INPUT),
            Self::Tokenizer(_) => ("runtime::tokenizer", exit::REJECTED),
            Self::NoTokenizer => ("runtime::no-tokenizer", exit::INPUT),
            Self::Usage(_) => ("usage", exit::USAGE),
            Self::Interrupted => ("interrupted", exit::INTERRUPTED),
            Self::Panicked => ("bug", exit::BUG),
        }
    }

    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        self.kind().0
    }

    /// Exit code of the process.
    pub fn exit(&self) -> u8 {
        self.kind().1
    }

    /// Everything the user should see.
    pub fn report(&self) -> Report {
        let r = Report::new(self.code(), self.exit(), self.to_string());
        match self {
            Self::Artifact(e) => e.report(),
            Self::Isa { path, target, needed, missing, present } => {
                let only_tiles = missing.iter().all(|f| f.starts_with("amx-"));
                let emulation = if only_tiles { "; --emulate amx runs it here, slowly" } else { "" };
                r.file(path).values(format!("{target} ({})", needed.join(" ")), present.join(" ")).help(format!(
                    "compile the checkpoint on this machine with --target native, or with the name of a smaller target{emulation}"
                ))
            }
            Self::Tiles(_) => r.help(
                "Linux gives tiles since 5.16, unless a sandbox forbids arch_prctl; --emulate amx does without, slowly, and a smaller --target of `compile` for good",
            ),
            Self::Code { path, .. } => r.file(path).help("compile the checkpoint again"),
            Self::System { .. } => r.help("`deepfuse-run doctor` shows what this machine allows"),
            Self::Memory { needed, available, .. } => r
                .values(format!("{needed} bytes"), format!("{available} bytes available"))
                .help("use a shorter --context, fewer sequences, or a machine with more memory"),
            Self::Unsupported(_) => r.help("use the release that compiled the artifact, or compile it again"),
            Self::NoBucket { name, known } => r.values(known.join(", "), name.clone()),
            Self::Bucket { .. } => r.help("let the runtime choose the bucket"),
            Self::CacheFull { needed, free } => r
                .values(format!("{needed} pages"), format!("{free} free"))
                .help("remove or truncate sequences, or give the cache more memory"),
            Self::Vocabulary { id, vocab } => r
                .values(format!("0 to {}", vocab - 1), id.to_string())
                .help("do the ids come from another model's tokenizer?"),
            Self::Context { tokens, context } => r
                .values(format!("at most {context} tokens"), format!("{tokens} tokens"))
                .help("shorten the prompt, ask for fewer new tokens, or raise --context up to the model's own limit"),
            Self::TooManyRows { rows, limit } => r.values(limit.to_string(), rows.to_string()),
            Self::Input { path, .. } => r.file(path),
            Self::NotFinite { .. } => r.help("are there NaN or Inf in the weights? `verify` counts them"),
            Self::NoTokenizer => r.help("give the prompt as --ids"),
            Self::Panicked | Self::Emulation(_) => r.help("please report this with the command that led to it"),
            _ => r,
        }
    }
}
