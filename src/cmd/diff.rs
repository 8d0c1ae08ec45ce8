//! `deepfuse diff`: which kernels of two artifacts differ, and why.

use deepfuse::Error;
use deepfuse::diff::{Content, Difference, FormDifference, diff};
use deepfuse::explain::Kernel;
use deepfuse_runtime::cli::{human_bytes, human_seconds};
use indexmap::IndexMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// An artifact (A.dfz)
    a: PathBuf,
    /// Another one (B.dfz)
    b: PathBuf,
}

/// Whether the artifacts are equal.
pub fn run(args: &Args, json: bool) -> Result<bool, Error> {
    let told = diff(&args.a, &args.b)?;
    if json {
        super::print_json(&serde_json::to_value(&told).expect("a difference is plain data"));
    } else {
        print(args, &told);
    }
    Ok(told.equal)
}

fn print(args: &Args, told: &Difference) {
    say!("A  {}  {}", told.digests[0], args.a.display());
    say!("B  {}  {}", told.digests[1], args.b.display());
    if told.equal {
        return say!("equal");
    }
    for s in &told.settings {
        say!("  {:<16} {} | {}", s.name, s.values[0], s.values[1]);
    }
    for c in &told.contents {
        content(c);
    }
    if !told.steps.is_empty() {
        say!("\n{:<16} {:>12} {:>24}", "a step", "kernels", "estimated time");
    }
    for s in &told.steps {
        say!("{:<16} {:>12} {:>24}", s.bucket, format!("{} | {}", s.kernels[0], s.kernels[1]), times(s.nanos));
    }
    // Buckets with the same difference are told together.
    let mut groups: IndexMap<String, Vec<&FormDifference>> = IndexMap::new();
    for f in &told.forms {
        groups.entry(kind(f)).or_default().push(f);
    }
    for g in groups.values() {
        group(g);
    }
    if !told.variants.is_empty() {
        say!("\nvariants of kernels that both have");
    }
    for v in &told.variants {
        say!("  {} {} | {} {}", v.symbols[0], v.variants[0], v.symbols[1], v.variants[1]);
    }
    if told.forms.is_empty() && told.variants.is_empty() {
        say!("\nno kernel changed");
    }
}

fn content(c: &Content) {
    let size = |b: Option<u64>| b.map_or("none".to_owned(), human_bytes);
    let same_size = c.bytes[0] == c.bytes[1];
    say!(
        "  {:<16} {} | {}{}",
        c.name,
        size(c.bytes[0]),
        size(c.bytes[1]),
        if same_size { ", other bytes" } else { "" }
    );
}

/// `4.57 ms | 5.64 ms (+23.4 %)`
fn times([a, b]: [f64; 2]) -> String {
    format!("{} | {} ({:+.1} %)", human_seconds(a / 1e9), human_seconds(b / 1e9), 100.0 * (b / a.max(1e-9) - 1.0))
}

/// Equal for forms that differ in the same kernels for the same reasons.
fn kind(f: &FormDifference) -> String {
    let kernels = f.only.each_ref().map(|all| all.iter().map(kernel).collect::<Vec<_>>());
    format!("{} {kernels:?} {:?}", f.class, f.why)
}

fn group(forms: &[&FormDifference]) {
    let first = forms[0];
    let layers = |n: usize| if n == 1 { "1 layer".to_owned() } else { format!("{n} layers") };
    let regions = match first.regions {
        [a, b] if a == b => layers(a),
        [a, b] => format!("{} | {}", layers(a), layers(b)),
    };
    say!("\nclass {} ({}, {regions}), kernels {} | {}", first.class, first.holds, first.kernels[0], first.kernels[1]);
    for (sign, kernels) in [("-", &first.only[0]), ("+", &first.only[1])] {
        let mut counts: IndexMap<String, usize> = IndexMap::new();
        for k in kernels {
            *counts.entry(kernel(k)).or_default() += 1;
        }
        for (kernel, n) in counts {
            let many = if n == 1 { String::new() } else { format!("{n} x ") };
            say!("  {sign} {many}{kernel}");
        }
    }
    for reason in &first.why {
        say!("  because {reason}");
    }
    for f in forms {
        say!("  in {:<14} {}", f.bucket, times(f.nanos));
    }
}

fn kernel(k: &Kernel) -> String {
    let rules = if k.rules.is_empty() { String::new() } else { format!(", by {}", k.rules.join(", ")) };
    format!("{}({}) -> {}{rules}", k.operation, k.operands.join(", "), k.results.join(", "))
}
