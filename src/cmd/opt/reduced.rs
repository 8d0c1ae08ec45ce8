//! `opt --reduce`: the smallest graph found that fails in the same way.

use super::{Args, apply_all, check};
use deepfuse::Error;
use deepfuse::reduce::reduce;
use deepfuse_artifact::report::{Report, exit};
use deepfuse_ir::Graph;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

/// Code of a failure that is a panic of ours.
const PANIC: &str = "panic";

pub fn run(graph: &Graph, args: &Args, json: bool) -> Result<(), Error> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {})); // each attempt that panics would print it again
    let found = shrunk(graph, args);
    std::panic::set_hook(hook);
    let (small, code, attempts) = found?;
    let how = code.as_ref().map_or_else(String::new, |code| format!(" with `{code}`"));
    let (operations, of) = (small.nodes.len(), graph.nodes.len());
    tell!("fails{how}: {operations} of {of} operations, after {attempts} attempts");
    if json {
        super::super::print_json(&serde_json::json!({
            "schema": "deepfuse.reduce/1", "graph": small.to_string(), "code": code,
            "operations": {"before": of, "after": operations}, "attempts": attempts,
        }));
    } else {
        say!("{small}");
    }
    Ok(())
}

/// The small graph, the code that it fails with if no command decided, and the number of graphs tried.
fn shrunk(graph: &Graph, args: &Args) -> Result<(Graph, Option<String>, usize), Error> {
    let mut attempts = 0;
    let (small, code) = if let Some(command) = &args.fails_if {
        let cannot = |e: &std::io::Error| Report::new("opt::scratch", exit::ENVIRONMENT, e.to_string());
        let file = tempfile::Builder::new().suffix(".ir").tempfile().map_err(|e| cannot(&e))?;
        let mut fails = |g: &Graph| {
            attempts += 1;
            succeeds(command, file.path(), g)
        };
        (if fails(graph) { Some(reduce(graph, &mut fails)) } else { None }, None)
    } else {
        let first = failure(graph, args);
        if let Some(r) = first.as_ref().filter(|r| r.exit == exit::USAGE || r.code == "target::unknown") {
            return Err(r.clone().into()); // the arguments are wrong, not the graph
        }
        let first = first.map(|r| r.code.to_owned());
        let code = args.fails_with.clone().or_else(|| first.clone());
        let mut fails = |g: &Graph| {
            attempts += 1;
            failure(g, args).is_some_and(|r| Some(r.code) == code.as_deref())
        };
        (if first.is_some() && first == code { Some(reduce(graph, &mut fails)) } else { None }, code)
    };
    let help = "--check compares results, --fails-with names the error, --fails-if COMMAND decides by an exit code";
    let none = || Report::new("opt::no-failure", exit::INPUT, "the graph does not fail").help(help).into();
    small.map(|small| (small, code, attempts)).ok_or_else(none)
}

/// What the passes, or the comparison of their result, end with.
fn failure(graph: &Graph, args: &Args) -> Option<Report> {
    let attempt = || -> Result<(), Error> {
        let (result, _) = apply_all(graph, args)?;
        args.check.map_or(Ok(()), |limit| check(graph, &result, limit).map(drop))
    };
    match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(result) => result.err().map(|e| e.report()),
        Err(_) => Some(Report::new(PANIC, exit::BUG, "a pass panics")),
    }
}

/// Whether a command ends with code 0 when `file` holds the graph.
fn succeeds(command: &str, file: &Path, graph: &Graph) -> bool {
    let run = || Command::new("sh").arg("-c").arg(command).arg(file).output();
    std::fs::write(file, graph.to_string()).and_then(|()| run()).is_ok_and(|out| out.status.success())
}
