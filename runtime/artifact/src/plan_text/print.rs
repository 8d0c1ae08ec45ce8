//! Plan to text.

use super::lex::is_word;
use crate::plan::*;
use std::fmt::{self, Write};

/// The text form of a plan; [`super::parse`] gives the plan back.
pub fn print(plan: &Plan) -> String {
    let mut out = String::new();
    write_plan(&mut out, plan).expect("writing to a string cannot fail");
    out
}

fn write_plan(out: &mut String, plan: &Plan) -> fmt::Result {
    writeln!(out, "plan {}\nvocab {}", super::VERSION, plan.vocab)?;
    for s in &plan.states {
        write!(out, "state {} ", Name(&s.name))?;
        match s.kind {
            StateKind::Paged => write!(out, "paged")?,
            StateKind::PagedEvery { every } => write!(out, "every {every}")?,
            StateKind::Window { window } => write!(out, "window {window}")?,
            StateKind::Fixed { rows } => write!(out, "fixed {rows}")?,
        }
        writeln!(out, " row {}", s.row_bytes)?;
    }
    for w in &plan.weights {
        write!(out, "weight {} bytes {}", Name(&w.name), w.bytes)?;
        if w.matrices != 1 {
            write!(out, " matrices {}", w.matrices)?;
        }
        if !w.note.is_empty() {
            write!(out, " note {}", Quoted(&w.note))?;
        }
        out.push('\n');
    }
    for k in &plan.kernels {
        write!(out, "kernel {} family {} phases {}", Name(&k.symbol), Name(&k.family), k.phases)?;
        if k.saturates > 0 {
            write!(out, " saturates {}", k.saturates)?;
        }
        writeln!(out, " bytes {} operations {}", Terms(&k.bytes), Terms(&k.operations))?;
    }
    (0..plan.buckets.len()).try_for_each(|at| write_bucket(out, plan, at))
}

fn write_bucket(out: &mut String, plan: &Plan, at: usize) -> fmt::Result {
    let b = &plan.buckets[at];
    write!(out, "bucket {}", Name(&b.name))?;
    for (what, range) in b.assumptions.ranges() {
        write!(out, " {what} {range}")?;
    }
    let does_the_same = |e: &&BucketPlan| e.buffers == b.buffers && e.actions == b.actions;
    if let Some(earlier) = plan.buckets[..at].iter().find(does_the_same) {
        return writeln!(out, " as {}", Name(&earlier.name));
    }
    out.push_str(" {\n");
    for (i, buffer) in b.buffers.iter().enumerate() {
        let arena = match buffer.arena {
            Arena::Fixed => "fixed",
            Arena::Per(s) => s.name(),
            Arena::PerTokenPage => "TP",
        };
        writeln!(out, "  buffer %{i} {arena} offset {} bytes {}", buffer.offset, buffer.bytes)?;
    }
    for action in &b.actions {
        write_action(out, plan, action)?;
    }
    out.push_str("}\n");
    Ok(())
}

fn write_action(out: &mut String, plan: &Plan, action: &Action) -> fmt::Result {
    match action {
        Action::Launch(l) => {
            write!(out, "  launch {}(", Name(&plan.kernels[l.kernel as usize].symbol))?;
            for (i, arg) in l.args.iter().enumerate() {
                write!(out, "{}{}", if i == 0 { "" } else { ", " }, Argument(plan, *arg))?;
            }
            out.push(')');
            if !l.label.is_empty() {
                write!(out, " label {}", Quoted(&l.label))?;
            }
            out.push('\n');
            Ok(())
        }
        Action::Copy { from, to, bytes } => {
            writeln!(out, "  copy {} -> {} bytes {bytes}", Argument(plan, *from), Argument(plan, *to))
        }
        Action::Collective { kind, buffer, bytes } => {
            writeln!(out, "  collective {} {} bytes {bytes}", Name(kind), Argument(plan, *buffer))
        }
        Action::Wait { queue } => writeln!(out, "  wait {queue}"),
    }
}

impl Input {
    pub const ALL: [Self; 6] = [Self::Ids, Self::Pos, Self::Seq, Self::Pages, Self::PageStart, Self::Rows];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ids => "ids",
            Self::Pos => "pos",
            Self::Seq => "seq",
            Self::Pages => "pages",
            Self::PageStart => "page_start",
            Self::Rows => "rows",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

struct Argument<'a>(&'a Plan, Arg);

impl fmt::Display for Argument<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = match self.1 {
            Arg::Input(i) => return f.write_str(i.name()),
            Arg::Logits => return f.write_str("logits"),
            Arg::State(i) => return write!(f, "@{}", Name(&self.0.states[i as usize].name)),
            Arg::Buffer { index, offset } => {
                write!(f, "%{index}")?;
                offset
            }
            Arg::Weight { index, offset } => {
                write!(f, "${}", Name(&self.0.weights[index as usize].name))?;
                offset
            }
        };
        if offset > 0 { write!(f, "+{offset}") } else { Ok(()) }
    }
}

struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_word(self.0) { f.write_str(self.0) } else { Quoted(self.0).fmt(f) }
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.max == u32::MAX { write!(f, "{}..max", self.min) } else { write!(f, "{}..{}", self.min, self.max) }
    }
}

struct Terms<'a>(&'a [f64]);

impl fmt::Display for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (i, x) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            if x.fract() == 0.0 && x.abs() < 1e15 { write!(f, "{x}")? } else { write!(f, "{x:?}")? }
        }
        f.write_char(']')
    }
}
