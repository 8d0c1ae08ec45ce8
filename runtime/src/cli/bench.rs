//! `bench`: tokens per second and a table of kernels.

use super::{human_seconds, note, options, print};
use crate::bench::{KernelRow, Report, Settings, median, run as measure};
use crate::{Artifact, Error};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Kernels shown of each phase.
const SHOWN: usize = 12;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Artifact to measure (NAME.dfz)
    artifact: PathBuf,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to decode after it
    #[arg(long, default_value_t = 32, value_name = "N")]
    new_tokens: u32,
    /// Numbers of sequences at once, each measured
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "1,8", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,
    /// Tokens that every sequence has before the prompt, each number measured
    #[arg(long, value_delimiter = ',', default_value = "0", value_name = "0,4096")]
    depth: Vec<u32>,
    /// Times to measure; the median counts
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Most tokens of one batch
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_tokens: u32,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Most prompt tokens of one sequence in one batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prefill_chunk: Option<u32>,
    /// Run every batch with the plan of this bucket, one of those that `inspect` lists
    #[arg(long, value_name = "B")]
    force_bucket: Option<String>,
}

/// Prints the measurements; the exit code.
pub fn main(args: &Args, json: bool) -> u8 {
    super::finish(run(args, json).map(|()| true), json)
}

fn run(args: &Args, json: bool) -> Result<(), Error> {
    let artifact = Arc::new(Artifact::open(&args.artifact)?);
    let settings = Settings {
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        batches: args.batch.clone(),
        depths: args.depth.clone(),
        samples: args.samples,
        max_tokens: args.max_tokens,
        options: options(args.threads, args.prefill_chunk, args.force_bucket.clone()),
    };
    let report = measure(&artifact, &settings, &mut |done, all| {
        if done > 0 && done < all {
            note(&format!("sample {done} of {}", all - 1));
        }
    })?;
    print(&if json { serde_json::to_string(&report).expect("a report is plain data") + "\n" } else { table(&report) });
    Ok(())
}

fn percent(x: Option<f64>) -> String {
    x.map_or_else(|| "-".to_owned(), |x| format!("{:.0} %", x * 100.0))
}

fn table(r: &Report) -> String {
    let mut text = String::new();
    let m = &r.machine;
    let mut put = |line: String| writeln!(text, "{line}").expect("a string takes all text");
    let pinned = if m.pinned { "pinned" } else { "not pinned" };
    put(format!("{}, {} cores, {} threads {pinned}, code for {}\n", m.cpu, m.cores, m.threads, m.target));
    if !r.read_gb_per_s.is_empty() {
        let all = &r.read_gb_per_s;
        let (low, high) = all.iter().fold((f64::MAX, 0f64), |(a, b), s| (a.min(*s), b.max(*s)));
        put(format!(
            "read bandwidth {:.1} GB/s ({low:.1} .. {high:.1}), measured before every sample by the same threads\n",
            median(all)
        ));
    }
    for peak in &r.peaks {
        put(format!("peak of {} {:.0} Gop/s, measured as often", peak.instruction, median(&peak.gop_per_s)));
    }
    put(format!(
        "{:<8} {:>5} {:>7} {:>12} {:>12} {:>22} {:>7} {:>8} {:>8}",
        "phase", "batch", "depth", "tokens/s", "median time", "all samples", "GB/s", "of read", "of roof"
    ));
    for row in &r.rows {
        let (low, high) = row.samples_s.iter().fold((f64::MAX, 0f64), |(a, b), s| (a.min(*s), b.max(*s)));
        let spread = format!("{} .. {}", human_seconds(low), human_seconds(high));
        let middle = human_seconds(median(&row.samples_s));
        let (of_read, of_roof) = (percent(row.of_read_bandwidth), percent(row.of_roofline));
        put(format!(
            "{:<8} {:>5} {:>7} {:>12.1} {middle:>12} {spread:>22} {:>7.1} {of_read:>8} {of_roof:>8}",
            row.phase, row.batch, row.depth, row.tokens_per_s, row.gb_per_s
        ));
    }
    for row in &r.rows {
        let of_row = |k: &&KernelRow| (k.phase, k.batch, k.depth) == (row.phase, row.batch, row.depth);
        put(format!("\n{}, batch {}, depth {}: kernels by time", row.phase, row.batch, row.depth));
        put(format!(
            "{:<40} {:>7} {:>7} {:>12} {:>9} {:>9} {:>8}",
            "kernel", "calls", "share", "a call", "GB/s", "GFLOP/s", "of roof"
        ));
        for k in r.kernels.iter().filter(of_row).take(SHOWN) {
            let call = human_seconds(k.seconds / k.calls as f64);
            let share = format!("{:.1} %", k.share * 100.0);
            put(format!(
                "{:<40} {:>7} {share:>7} {call:>12} {:>9.1} {:>9.1} {:>8}",
                k.kernel,
                k.calls,
                k.gb_per_s,
                k.gflop_per_s,
                percent(k.of_roofline)
            ));
        }
        let hidden = r.kernels.iter().filter(of_row).count().saturating_sub(SHOWN);
        if hidden > 0 {
            put(format!("and {hidden} more"));
        }
    }
    text
}
