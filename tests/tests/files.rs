//! One test for every file `tests/cases/**/*.ir`.
//!
//! ```text
//! // test: parse | verify | pass <name>..        what to run; passes: canonicalize, fuse
//! // expect-error: ir::contract at %1            one line for each error, in the order of the text; none for a good case
//! graph @f(..) { .. }
//! // ---- expect
//! <the printed result, or the messages>          BLESS=1 writes this part
//! ```
//! `parse` reads and checks types; `verify` reads types as written and runs the verifier. `fuse` prices kernels by a roofline and takes
//! settings: `pass canonicalize fuse tokens=512 numerics=exact only=add-norm,swiglu disable=absorb-key`; `tokens` of one sequence of which
//! the last wants logits, 1 if it is not said.

use deepfuse_ir::cost::Roofline;
use deepfuse_ir::text::{ParseError, parse, parse_unchecked};
use deepfuse_ir::verify::{VerifyError, verify};
use deepfuse_ir::{Bucket, Graph, Sizes};
use deepfuse_passes::fuse::{FuseOptions, Numerics, fuse, rules};
use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXPECT: &str = "// ---- expect\n";

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut files = vec![];
    collect(&root, &mut files);
    files.sort();
    assert!(!files.is_empty(), "no cases under {}", root.display());
    let trial = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("collected below the root").with_extension("").display().to_string();
        Trial::test(name, move || check(&path).map_err(Failed::from))
    };
    let trials = files.into_iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "ir") {
            files.push(path);
        }
    }
}

/// What a case gave.
struct Outcome {
    text: String,
    /// `code at place`, one an error.
    errors: Vec<String>,
}

fn check(path: &Path) -> Result<(), String> {
    let content = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (case, expected) = content.split_once(EXPECT).unwrap_or((&content, ""));
    let first = case.lines().next().unwrap_or("");
    let Some(what) = first.strip_prefix("// test: ") else {
        return Err(format!("the first line is `// test: ..`, found `{first}`"));
    };
    let outcome = run(what, case)?;
    let wanted: Vec<&str> = case.lines().filter_map(|l| l.strip_prefix("// expect-error: ")).collect();
    if wanted != outcome.errors {
        return Err(format!("expected errors {wanted:?}, found {:?}\n{}", outcome.errors, outcome.text));
    }
    if expected == outcome.text {
        return Ok(());
    }
    if std::env::var_os("BLESS").is_some() {
        let separator = if case.ends_with('\n') { "" } else { "\n" };
        return std::fs::write(path, format!("{case}{separator}{EXPECT}{}", outcome.text)).map_err(|e| e.to_string());
    }
    Err(format!("{}\n(BLESS=1 rewrites the expectation)", diff(expected, &outcome.text)))
}

fn run(what: &str, case: &str) -> Result<Outcome, String> {
    let words: Vec<&str> = what.split_whitespace().collect();
    Ok(match words.as_slice() {
        ["parse"] => match parse(case) {
            Ok(g) => good(&g),
            Err(errors) => bad_text(case, &errors),
        },
        ["verify"] => match parse_unchecked(case) {
            Err(errors) => bad_text(case, &errors),
            Ok(g) => match verify(&g) {
                Ok(()) => good(&g),
                Err(errors) => bad_graph(&errors.0),
            },
        },
        ["pass", passes @ ..] => match parse(case) {
            Ok(g) => good(&run_passes(g, passes)?),
            Err(errors) => bad_text(case, &errors),
        },
        _ => return Err(format!("unknown test kind `{what}`; known are: parse, verify, pass")),
    })
}

fn run_passes(mut graph: Graph, words: &[&str]) -> Result<Graph, String> {
    let (settings, passes): (Vec<&str>, Vec<&str>) = words.iter().partition(|w| w.contains('='));
    for pass in passes {
        graph = match pass {
            "canonicalize" => deepfuse_passes::canonicalize(graph).map_err(|e| e.to_string())?,
            "fuse" => run_fuse(&graph, &settings)?,
            other => return Err(format!("unknown pass `{other}`; known are: canonicalize, fuse")),
        };
    }
    Ok(graph)
}

fn run_fuse(graph: &Graph, settings: &[&str]) -> Result<Graph, String> {
    let mut options = FuseOptions::new(Numerics::Requantizes);
    let mut bucket = Bucket::decode();
    for (name, value) in settings.iter().filter_map(|s| s.split_once('=')) {
        let mut list = value.split(',');
        match name {
            "bucket" => {
                bucket = Bucket::named(value).ok_or_else(|| format!("there is no bucket `{value}`"))?;
            }
            "tokens" => {
                let tokens = value.parse().map_err(|_| format!("`{value}` is no number of tokens"))?;
                bucket.typical = Sizes([tokens, 1, tokens.div_ceil(64), 1, 0]);
            }
            "numerics" => options.numerics = value.parse().map_err(|()| format!("there is no class `{value}`"))?,
            "disable" => options.disabled.extend(list.map(str::to_owned)),
            "only" => {
                let others = rules::all().into_iter().filter(|r| !list.clone().any(|name| name == r.name));
                options.disabled.extend(others.map(|r| r.name.to_owned()));
                if let Some(unknown) = list.find(|name| !rules::all().iter().any(|r| r.name == *name)) {
                    return Err(format!("there is no rule `{unknown}`"));
                }
            }
            _ => return Err(format!("unknown setting `{name}`")),
        }
    }
    let fused = fuse(graph, &Roofline::SMALL_SERVER, &[bucket], &options).map_err(|e| e.to_string())?;
    let mut graphs = fused.graphs;
    Ok(graphs.remove(0).1)
}

fn good(graph: &Graph) -> Outcome {
    Outcome { text: graph.to_string(), errors: vec![] }
}

fn bad_text(case: &str, errors: &[ParseError]) -> Outcome {
    let place = |e: &ParseError| e.at.clone().unwrap_or_else(|| format!("line {}", e.line));
    outcome(errors.iter().map(|e| (format!("{} at {}", e.code, place(e)), e.render(case))))
}

fn bad_graph(errors: &[VerifyError]) -> Outcome {
    outcome(errors.iter().map(|e| (format!("{} at {}", e.code, e.at), e.to_string())))
}

fn outcome(errors: impl Iterator<Item = (String, String)>) -> Outcome {
    let mut all = Outcome { text: String::new(), errors: vec![] };
    for (place, shown) in errors {
        all.errors.push(place);
        writeln!(all.text, "{shown}").expect("a string takes any text");
    }
    all
}

/// Lines that only one side has.
fn diff(expected: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let gone = a.iter().filter(|l| !b.contains(l)).map(|l| format!("- {l}"));
    let new = b.iter().filter(|l| !a.contains(l)).map(|l| format!("+ {l}"));
    gone.chain(new).collect::<Vec<_>>().join("\n")
}
