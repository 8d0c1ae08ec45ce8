//! What can be wrong with a checkpoint: a stable code, the place, both values and a next step.

use std::fmt;
use std::path::{Path, PathBuf};

/// Who can fix it; the driver maps this to an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The checkpoint contradicts itself or its format.
    Invalid,
    /// A sound checkpoint of something that this front end does not build.
    Unsupported,
    /// The operating system refused.
    Environment,
}

/// One kind of mistake, with a stable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A file or directory cannot be opened or read, though it is there.
    Io,
    /// A file or directory is not there.
    NotFound,
    /// A path of the checkpoint is a directory, FIFO, socket or device.
    NotAFile,
    /// A JSON file is not JSON, repeats a key, or is absurdly large.
    JsonSyntax,
    /// A field of `config.json` or `generation_config.json` is absent, of the wrong type, or out of range.
    ConfigField,
    /// An architecture, router, rope or quantization that is not built here.
    Unsupported,
    /// The directory has neither `model.safetensors` nor its index.
    NoWeights,
    /// The shard index names something that is no plain file name, or maps a tensor to nothing.
    Index,
    /// A shard that the index names does not exist.
    ShardMissing,
    /// A shard ends before its header or its data does.
    ShardTruncated,
    /// The header of a shard is no valid safetensors header.
    ShardHeader,
    /// Offsets of a shard overlap, leave a hole, exceed the file, or contradict dtype and shape.
    ShardOffsets,
    /// The same tensor is in two shards.
    TensorDuplicate,
    /// A tensor that the configuration asks for is absent.
    TensorMissing,
    /// A tensor has an element type that its role does not allow.
    TensorDtype,
    /// A tensor has a shape that contradicts `config.json`.
    TensorShape,
    /// A block scale is NaN, infinite, zero or negative.
    ScaleValue,
    /// An operation of the graph does not accept its operands: a bug of ours.
    Graph,
}

impl Code {
    /// The name in messages and JSON: `frontend::config-field`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Io => "frontend::io",
            Self::NotFound => "frontend::not-found",
            Self::NotAFile => "frontend::not-a-file",
            Self::JsonSyntax => "frontend::json-syntax",
            Self::ConfigField => "frontend::config-field",
            Self::Unsupported => "frontend::unsupported",
            Self::NoWeights => "frontend::no-weights",
            Self::Index => "frontend::index",
            Self::ShardMissing => "frontend::shard-missing",
            Self::ShardTruncated => "frontend::shard-truncated",
            Self::ShardHeader => "frontend::shard-header",
            Self::ShardOffsets => "frontend::shard-offsets",
            Self::TensorDuplicate => "frontend::tensor-duplicate",
            Self::TensorMissing => "frontend::tensor-missing",
            Self::TensorDtype => "frontend::tensor-dtype",
            Self::TensorShape => "frontend::tensor-shape",
            Self::ScaleValue => "frontend::scale-value",
            Self::Graph => "frontend::graph",
        }
    }

    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Io => ErrorKind::Environment,
            Self::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Invalid,
        }
    }
}

/// Everything that is known about one mistake. Fields that do not apply are `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    pub code: Code,
    pub message: String,
    pub file: Option<PathBuf>,
    /// Path of a configuration field: `rope_scaling.factor`.
    pub field: Option<String>,
    pub tensor: Option<String>,
    pub expected: Option<String>,
    pub found: Option<String>,
    pub help: Option<String>,
}

/// An error of this crate; a box, so that results stay small. Its [`Details`] are read through `Deref`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error(Box<Details>);

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            code,
            message: message.into(),
            file: None,
            field: None,
            tensor: None,
            expected: None,
            found: None,
            help: None,
        }))
    }

    /// Names the file, unless one is named already.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        self.0.file.get_or_insert_with(|| path.to_owned());
        self
    }

    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    #[must_use]
    pub fn tensor(mut self, tensor: impl Into<String>) -> Self {
        self.0.tensor = Some(tensor.into());
        self
    }

    #[must_use]
    pub fn values(mut self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        self.0.expected = Some(expected.into());
        self.0.found = Some(found.into());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// An error of the operating system on a path.
    pub(crate) fn io(path: &Path, source: &std::io::Error) -> Self {
        let code = if source.kind() == std::io::ErrorKind::NotFound { Code::NotFound } else { Code::Io };
        let e = Self::new(code, format!("cannot read: {source}")).file(path);
        if code == Code::NotFound {
            e.help("a checkpoint is a directory with config.json and *.safetensors; is the path right, the download complete?")
        } else {
            e
        }
    }
}

impl std::ops::Deref for Error {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl fmt::Display for Error {
    /// `code: file: field or tensor: message (expected .., found ..); help`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.code.name())?;
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        for place in [&self.field, &self.tensor].into_iter().flatten() {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)?;
        match (&self.expected, &self.found) {
            (Some(e), Some(v)) => write!(f, " (expected {e}, found {v})")?,
            (Some(e), None) => write!(f, " (expected {e})")?,
            (None, Some(v)) => write!(f, " (found {v})")?,
            (None, None) => {}
        }
        if let Some(help) = &self.help {
            write!(f, "; help: {help}")?;
        }
        Ok(())
    }
}
