//! Errors that point at a place in a text.

use crate::ops::{Op, TypeError};
use crate::types::Type;
use std::fmt;
use std::ops::Range;

/// Why a text is no graph, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// `ir::syntax`, `ir::name`, `ir::limit`, or the code of the broken type rule (`ir::contract`, `ir::dtype`, ..).
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
    /// Bytes of the source.
    pub span: Range<usize>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The value whose definition is wrong, as written: `%1`, `@kv`.
    pub at: Option<String>,
}

impl ParseError {
    /// Several lines: code, message, the source line with the place marked, help.
    pub fn render(&self, source: &str) -> String {
        let start = source[..self.span.start].rfind('\n').map_or(0, |i| i + 1);
        let line = source[start..].lines().next().unwrap_or("");
        let mark = self.span.start - start..self.span.end.min(start + line.len()).saturating_sub(start);
        marked(self.code, &self.message, &self.line.to_string(), line, &mark, self.help.as_deref())
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.line, self.column, self.code, self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}

impl std::error::Error for ParseError {}

/// The shape of all our messages about a text:
/// ```text
/// ir::contract × linear: contracted sizes differ
///    1 │ %1 = linear %x, %w : bf16[8, 2048]
///      ·             ──────
///   help: ..
/// ```
pub(crate) fn marked(
    code: &str,
    message: &str,
    number: &str,
    line: &str,
    mark: &Range<usize>,
    help: Option<&str>,
) -> String {
    let before = line.get(..mark.start).map_or(0, |s| s.chars().count());
    let width = line.get(mark.clone()).map_or(1, |s| s.chars().count()).max(1);
    let tabs_kept: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let mut text = format!("{code} × {message}\n{number:>4} │ {line}\n     · {tabs_kept}{}", "─".repeat(width));
    if let Some(help) = help {
        text.push_str("\n  help: ");
        text.push_str(help);
    }
    text
}

/// The candidate closest to `word`, if it is close enough to be a slip of the pen.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let limit = word.len().div_ceil(3).min(3);
    let best = candidates.map(|c| (distance(word, c), c)).min()?;
    (best.0 <= limit).then_some(best.1)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Message and help of a broken type rule, with the types of the operands.
pub(crate) fn rule_message(op: Op, operands: &[&Type], e: &TypeError) -> (String, String) {
    let named = e.message.starts_with(op.name()) || e.message.starts_with(&format!("`{}`", op.name()));
    let message = if named { e.message.clone() } else { format!("{}: {}", op.name(), e.message) };
    let types = format!("the operands are {}", list(operands.iter().copied()));
    let help = e.help.as_ref().map_or_else(|| types.clone(), |help| format!("{help}; {types}"));
    (message, help)
}

pub(crate) fn list<'t>(types: impl Iterator<Item = &'t Type>) -> String {
    types.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
