//! Names of values as they are printed.

use crate::graph::{Graph, ParamKind, ValueId};
use std::fmt::Write;

/// Printed names of all values of a graph, sigils included. Never panics, whatever the graph: broken graphs are printed too.
#[derive(Clone, Debug)]
pub struct Names(Vec<Option<String>>);

impl Names {
    pub fn of(graph: &Graph) -> Self {
        let mut names = vec![None; graph.value_count().max(graph.params.len())];
        for (slot, p) in names.iter_mut().zip(&graph.params) {
            let sigil = if p.kind == ParamKind::State { '@' } else { '%' };
            *slot = Some(with_sigil(sigil, &p.name));
        }
        let results = graph.nodes.iter().flat_map(|n| &n.results);
        for (number, v) in results.enumerate() {
            if let Some(slot) = names.get_mut(v.index()) {
                *slot = Some(format!("%{number}"));
            }
        }
        Self(names)
    }

    /// The name of a value; `%?7` for an id that nothing defines.
    pub fn get(&self, v: ValueId) -> String {
        let known = self.0.get(v.index()).and_then(Clone::clone);
        known.unwrap_or_else(|| format!("%?{}", v.0))
    }
}

/// `%name`, or `%"name"` where the name is no word.
pub(super) fn with_sigil(sigil: char, name: &str) -> String {
    if is_word(name) { format!("{sigil}{name}") } else { format!("{sigil}{}", quoted(name)) }
}

/// A letter or `_`, then letters, digits, `_` and `.`; ASCII.
pub(super) fn is_word(s: &str) -> bool {
    let head = s.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    head && s.bytes().all(is_word_byte)
}

pub(super) fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'.'
}

/// In double quotes, with `\"`, `\\` and `\u{hex}` for control characters.
pub(super) fn quoted(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => write!(out, "\\u{{{:x}}}", u32::from(c)).expect("a string takes any text"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
