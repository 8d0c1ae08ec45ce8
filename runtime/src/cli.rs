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

/// Exit codes, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 negative verdict of verify or doctor, 2 usage, 3 invalid input data (checkpoint, prompt, ids, files),
            4 unsupported model or target, 5 artifact or record rejected (damaged, wrong version, other ISA),
            6 environment (system, permission), 7 resources (memory, disk), 70 a bug of deepfuse, 130 interrupted";

/// Parses the command line. Help and version end the process; wrong arguments do so with exit code 2, as JSON if `--json` is among them.
pub fn parse<C: clap::Parser>() -> C {
    let e = match C::try_parse() {
        Ok(cli) => return cli,
        Err(e) => e,
    };
    let json = std::env::args_os().skip(1).take_while(|a| a != "--").any(|a| a == "--json");
    if !e.use_stderr() || !json {
        e.exit();
    }
    let text = e.render().to_string();
    let (message, help) = text.trim().split_once("\n\n").unwrap_or((text.trim(), ""));
    let help = help.split("\n\n").filter(|h| !h.is_empty()).collect::<Vec<_>>().join("; ");
    let report = Report::usage(message.trim_start_matches("error: ")).help(help.trim().replace('\n', " "));
    std::process::exit(i32::from(fail(&report, true)))
}

/// Writes a result to stdout. A reader that went away ends the output quietly; what else goes wrong ends the process.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            note(&Report::new("stdout", exit::RESOURCES, format!("cannot write to stdout: {e}")).to_string());
            std::process::exit(i32::from(exit::RESOURCES))
        }
        _ => {}
    }
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
    Options {
        threads,
        pinning: crate::pool::Pinning::WithCaller,
        prefill_chunk,
        force_bucket,
        context: None,
        emulate: None,
    }
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

/// `1.25 s`, `3.40 ms`, `56 us`, `0.40 us`
pub fn human_seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s if s >= 1e-5 => format!("{:.0} us", s * 1e6),
        s => format!("{:.2} us", s * 1e6),
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
            [human_seconds(1.5), human_seconds(0.0025), human_seconds(5e-5), human_seconds(4e-7)],
            ["1.50 s", "2.50 ms", "50 us", "0.40 us"]
        );
    }
}
