//! Verbs that `deepfuse` and `deepfuse-run` share. Each module has the arguments and a `main` that prints and returns the exit code.

pub mod bench;
pub mod doctor;
pub mod run;
pub mod verify;

use crate::Error;
use crate::session::{Options, default_threads};
use deepfuse_artifact::exit;
use deepfuse_artifact::report::Report;
use std::io::Write;

/// Writes a result to stdout. A reader that went away ends the output quietly.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes progress or a remark to stderr.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints what went wrong, as JSON to stdout or as text to stderr; the exit code.
pub fn fail(report: &Report, json: bool) -> u8 {
    if json {
        print(&format!("{}\n", serde_json::to_string(report).expect("a report is plain data")));
    } else {
        note(&report.to_string());
    }
    report.exit
}

/// The exit code of a verb that returns whether its verdict is good.
fn finish(result: Result<bool, Error>, json: bool) -> u8 {
    match result {
        Ok(true) => exit::DONE,
        Ok(false) => exit::VERDICT,
        Err(e) => fail(&e.report(), json),
    }
}

/// Options of a session from the flags that most verbs have.
fn options(threads: Option<u32>, prefill_chunk: Option<u32>, force_bucket: Option<String>) -> Options {
    let threads = threads.unwrap_or_else(default_threads);
    Options { threads, pinning: crate::pool::Pinning::WithCaller, prefill_chunk, force_bucket, context: None }
}

/// `1.5 GiB`
pub fn human_bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `671.0 B`, `2.2 M` parameters.
pub fn human_count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} B", n as f64 / 1e9),
    }
}

/// `1.25 s`, `3.4 ms`, `56 us`
pub fn human_seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!((human_bytes(1023), human_bytes(1536)), ("1023 B".into(), "1.5 KiB".into()));
        assert_eq!((human_count(671_026_404_352), human_count(2_228_000)), ("671.0 B".into(), "2.2 M".into()));
        assert_eq!(
            (human_seconds(1.5), human_seconds(0.0025), human_seconds(5e-5)),
            ("1.50 s".into(), "2.50 ms".into(), "50 us".into())
        );
    }
}
