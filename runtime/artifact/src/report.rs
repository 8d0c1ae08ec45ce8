//! What an error tells the user, in one shape for people and programs.

use serde::Serialize;
use std::fmt::{self, Display};

/// Process exit codes, the same for every verb.
pub mod exit {
    pub const DONE: u8 = 0;
    /// A negative verdict of `verify` or `diff`.
    pub const VERDICT: u8 = 1;
    pub const USAGE: u8 = 2;
    /// Invalid input data: a checkpoint, a prompt beyond the context, an id beyond the vocabulary.
    pub const INPUT: u8 = 3;
    /// Unsupported model, op or target.
    pub const UNSUPPORTED: u8 = 4;
    /// Artifact or record rejected: digest, signature, version, wrong ISA.
    pub const REJECTED: u8 = 5;
    /// Device, driver, permission.
    pub const ENVIRONMENT: u8 = 6;
    /// Memory or disk.
    pub const RESOURCES: u8 = 7;
    /// A bug of ours.
    pub const BUG: u8 = 70;
    pub const INTERRUPTED: u8 = 130;
}

/// One error for the user; as JSON it is `deepfuse.error/1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    /// Stable name of the error, `artifact::digest`.
    pub code: &'static str,
    /// Exit code of the process, see [`exit`].
    pub exit: u8,
    pub message: String,
    pub file: Option<String>,
    pub tensor: Option<String>,
    pub expected: Option<String>,
    pub found: Option<String>,
    pub help: Option<String>,
}

impl Report {
    pub fn new(code: &'static str, exit: u8, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            schema: "deepfuse.error/1",
            code,
            exit,
            message,
            file: None,
            tensor: None,
            expected: None,
            found: None,
            help: None,
        }
    }

    /// Wrong arguments.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new("usage", exit::USAGE, message)
    }

    #[must_use]
    pub fn file(mut self, path: &std::path::Path) -> Self {
        self.file = Some(path.display().to_string());
        self
    }

    #[must_use]
    pub fn tensor(mut self, name: &str) -> Self {
        self.tensor = Some(name.to_owned());
        self
    }

    #[must_use]
    pub fn values(mut self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self.found = Some(found.into());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        // A place that the message names already is not repeated.
        let place = |p: &Option<String>| p.as_ref().filter(|p| !self.message.contains(p.as_str())).cloned();
        let lines = [
            ("    file", place(&self.file)),
            ("  tensor", place(&self.tensor)),
            ("expected", self.expected.clone()),
            ("   found", self.found.clone()),
            ("    help", self.help.clone()),
        ];
        lines
            .iter()
            .filter_map(|(name, text)| Some((name, text.as_ref()?)))
            .try_for_each(|(name, text)| write!(f, "\n  {name}: {text}"))
    }
}
