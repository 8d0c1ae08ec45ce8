//! The text form of a plan, `.plan`: what `compile --stop-after plan` prints and what an artifact holds.
//!
//! ```text
//! plan 1                                        // version of the text form
//! vocab 2048
//! state layers.0.latent paged row 160           // also: every N, window N, fixed N
//! weight w00000 bytes 524288 note "bf16[2048, 128] dense embed_tokens"
//! kernel embed_0 family embed phases 1 bytes [0, 512, 0, 0, 0, 0, 0, 0] operations [0, 0, 0, 0, 0, 0, 0, 0]
//! bucket mixed tokens 1..max queries 1..max context 1..max pages 1..max {
//!   buffer %0 T offset 0 bytes 256              // arena: fixed, one symbol, or TP for tokens times pages
//!   launch embed_0(ids, $w00000, %0+64) label "embed"
//!   copy %0 -> %1 bytes 64
//! }
//! ```
//!
//! A bucket that does what an earlier one does is a line without braces: `bucket verify tokens .. pages 1..max as decode-8`.
//!
//! `%n` is a buffer of the bucket, `$name` a weight, `@name` a state, each with `+bytes` into it where the number is not zero; `ids`,
//! `pos`, `seq`, `pages`, `page_start`, `rows` and `logits` are the batch inputs and the result. Names that are not plain words are
//! quoted. `//` starts a comment.

mod lex;
mod parse;
mod print;

pub use parse::parse;
pub use print::print;

/// Version of the text form.
pub const VERSION: u32 = 1;

/// A plan text that is not a plan, with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plan:{line}:{column}: {message}\n{snippet}")]
pub struct PlanError {
    /// From 1; 0 where the error belongs to no line.
    pub line: u32,
    pub column: u32,
    pub message: String,
    /// The line with a mark under the place.
    snippet: String,
    help: &'static str,
}

impl PlanError {
    pub(crate) fn at(text: &str, offset: usize, message: impl Into<String>, help: &'static str) -> Self {
        let before = &text[..offset];
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let line = before.matches('\n').count() as u32 + 1;
        let column = text[start..offset].chars().count() as u32 + 1;
        let full: String = text[start..].lines().next().unwrap_or("").chars().take(160).collect();
        let snippet = format!("{line:>5} | {full}\n      | {}^", " ".repeat((column as usize - 1).min(160)));
        Self { line, column, message: message.into(), snippet, help }
    }

    pub(crate) fn invalid(problems: &[String]) -> Self {
        let message = problems.join("; ");
        Self {
            line: 0,
            column: 0,
            message,
            snippet: String::new(),
            help: "the text is well formed but breaks a rule of plans",
        }
    }

    pub fn help(&self) -> &'static str {
        self.help
    }
}
