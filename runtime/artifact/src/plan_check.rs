//! Rules that a plan obeys beyond its grammar; checked when one is written and when one is read.

use crate::plan::*;
use std::collections::HashSet;

/// Largest size or end of a buffer, per unit of its symbol: 1 TiB. Keeps products with limits inside 64 bits.
const MAX_UNIT_BYTES: u64 = 1 << 40;

/// Alignment of buffers in bytes.
pub const ALIGN: u64 = 64;

impl Range {
    /// Contains every size that a step can have.
    pub fn is_general(self) -> bool {
        self.min <= 1 && self.max == u32::MAX
    }
}

/// All broken rules, each with its place in words; empty for a valid plan.
pub fn problems(plan: &Plan) -> Vec<String> {
    let mut found = vec![];
    if plan.vocab == 0 {
        found.push("vocab is 0".to_owned());
    }
    unique(&mut found, "state", plan.states.iter().map(|s| s.name.as_str()));
    unique(&mut found, "weight", plan.weights.iter().map(|w| w.name.as_str()));
    unique(&mut found, "kernel", plan.kernels.iter().map(|k| k.symbol.as_str()));
    unique(&mut found, "bucket", plan.buckets.iter().map(|b| b.name.as_str()));
    plan.states.iter().for_each(|s| state(&mut found, s));
    for w in &plan.weights {
        if w.bytes == 0 || w.bytes > MAX_UNIT_BYTES {
            found.push(format!("weight {}: {} bytes", w.name, w.bytes));
        }
    }
    plan.kernels.iter().for_each(|k| kernel(&mut found, k));
    plan.buckets.iter().for_each(|b| bucket(&mut found, plan, b));
    match plan.buckets.last() {
        None => found.push("there is no bucket".to_owned()),
        Some(b) => {
            if !b.assumptions.is_general() {
                found.push(format!("bucket {}: the last bucket must take any batch (1..max in all ranges)", b.name));
            }
        }
    }
    found
}

fn unique<'a>(found: &mut Vec<String>, what: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() {
            found.push(format!("a {what} has no name"));
        } else if !seen.insert(name) {
            found.push(format!("two {what}s have the name {name}"));
        }
    }
}

fn state(found: &mut Vec<String>, s: &State) {
    let size = match s.kind {
        StateKind::Paged => 1,
        StateKind::PagedEvery { every: n } | StateKind::Window { window: n } | StateKind::Fixed { rows: n } => n,
    };
    if size == 0 {
        found.push(format!("state {}: a size of 0 rows", s.name));
    }
    if s.row_bytes == 0 || s.row_bytes > MAX_UNIT_BYTES / 64 {
        found.push(format!("state {}: {} bytes a row", s.name, s.row_bytes));
    }
}

fn kernel(found: &mut Vec<String>, k: &Kernel) {
    let identifier = k.symbol.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if !identifier || k.symbol.starts_with(|c: char| c.is_ascii_digit()) {
        found.push(format!("kernel {:?}: not a symbol name", k.symbol));
    }
    if k.phases == 0 || k.phases > 64 {
        found.push(format!("kernel {}: {} phases, there can be 1 to 64", k.symbol, k.phases));
    }
    if k.bytes.iter().chain(&k.operations).any(|x| !x.is_finite()) {
        found.push(format!("kernel {}: a size that is not finite", k.symbol));
    }
}

fn bucket(found: &mut Vec<String>, plan: &Plan, b: &BucketPlan) {
    for (what, range) in b.assumptions.ranges() {
        if range.min > range.max || range.max == 0 {
            found.push(format!("bucket {}: the range of {what} is empty", b.name));
        }
    }
    for (i, buffer) in b.buffers.iter().enumerate() {
        let place = || format!("bucket {}, buffer %{i}", b.name);
        if !buffer.offset.is_multiple_of(ALIGN) || !buffer.bytes.is_multiple_of(ALIGN) {
            found.push(format!(
                "{}: offset {} and bytes {} must be multiples of {ALIGN}",
                place(),
                buffer.offset,
                buffer.bytes
            ));
        }
        if buffer.bytes == 0 || buffer.offset > MAX_UNIT_BYTES || buffer.bytes > MAX_UNIT_BYTES {
            found.push(format!("{}: {} bytes at {}", place(), buffer.bytes, buffer.offset));
        }
    }
    for (i, action) in b.actions.iter().enumerate() {
        let place = || format!("bucket {}, action {i}", b.name);
        let mut check =
            |arg: &Arg| argument(plan, b, *arg).into_iter().for_each(|p| found.push(format!("{}: {p}", place())));
        match action {
            Action::Launch(l) => {
                l.args.iter().for_each(&mut check);
                if l.kernel as usize >= plan.kernels.len() {
                    found.push(format!("{}: kernel {} of {}", place(), l.kernel, plan.kernels.len()));
                }
            }
            Action::Copy { from, to, bytes } => {
                check(from);
                check(to);
                if matches!(to, Arg::Weight { .. }) {
                    found.push(format!("{}: copies into a weight", place()));
                }
                if [from, to].into_iter().any(|a| room(plan, b, *a).is_some_and(|n| *bytes > n)) {
                    found.push(format!("{}: copies {bytes} bytes, more than there are", place()));
                }
            }
            Action::Collective { buffer, .. } => check(buffer),
            Action::Wait { .. } => {}
        }
    }
}

/// Bytes from the argument's start to the end of what it points to, where the plan alone says so.
fn room(plan: &Plan, b: &BucketPlan, arg: Arg) -> Option<u64> {
    match arg {
        Arg::Buffer { index, offset } => Some(b.buffers.get(index as usize)?.bytes.saturating_sub(offset)),
        Arg::Weight { index, offset } => Some(plan.weights.get(index as usize)?.bytes.saturating_sub(offset)),
        Arg::Input(_) | Arg::State(_) | Arg::Logits => None,
    }
}

fn argument(plan: &Plan, b: &BucketPlan, arg: Arg) -> Option<String> {
    let (what, index, len, offset, bytes) = match arg {
        Arg::Input(_) | Arg::Logits => return None,
        Arg::State(index) => ("state", index, plan.states.len(), 0, 1),
        Arg::Buffer { index, offset } => {
            ("buffer", index, b.buffers.len(), offset, b.buffers.get(index as usize).map_or(0, |x| x.bytes))
        }
        Arg::Weight { index, offset } => {
            ("weight", index, plan.weights.len(), offset, plan.weights.get(index as usize).map_or(0, |x| x.bytes))
        }
    };
    if index as usize >= len {
        return Some(format!("{what} {index} of {len}"));
    }
    (offset >= bytes).then(|| format!("byte {offset} of {what} {index}, which has {bytes}"))
}
