//! `deepfuse diff`: which kernels of two artifacts differ, and why.

use deepfuse::Error;
use deepfuse::diff::{Content, Difference, FormDifference, diff};
use deepfuse::explain::Kernel;
use deepfuse_runtime::cli::human_bytes;
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
    for f in &told.forms {
        form(f);
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

fn form(f: &FormDifference) {
    say!(
        "\nclass {} ({}, regions: {} | {}) in {}: kernels {} | {}, {:.1} us | {:.1} us",
        f.class,
        f.holds,
        f.regions[0],
        f.regions[1],
        f.bucket,
        f.kernels[0],
        f.kernels[1],
        f.nanos[0] / 1e3,
        f.nanos[1] / 1e3
    );
    for (sign, kernels) in [("-", &f.only[0]), ("+", &f.only[1])] {
        for k in kernels {
            say!("  {sign} {}", kernel(k));
        }
    }
    for reason in &f.why {
        say!("  because {reason}");
    }
}

fn kernel(k: &Kernel) -> String {
    let rules = if k.rules.is_empty() { String::new() } else { format!(", by {}", k.rules.join(", ")) };
    format!("{}({}) -> {}, {:.1} us{rules}", k.operation, k.operands.join(", "), k.results.join(", "), k.nanos / 1e3)
}
