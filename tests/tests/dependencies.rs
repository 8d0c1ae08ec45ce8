//! The architecture as a test: which crate may depend on which, and what may occur in whose source.

#![allow(clippy::unwrap_used)]

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Allowed edges between our crates, without the prefix `deepfuse-`; the root package is `deepfuse`. The same table stands in ARCHITECTURE.md.
const EDGES: &[(&str, &[&str])] = &[
    ("ir", &[]),
    ("artifact", &[]),
    ("cache", &[]),
    ("emulate", &[]),
    ("frontend", &["ir"]),
    ("passes", &["ir", "artifact"]),
    ("codegen", &["ir", "artifact"]),
    ("runtime", &["artifact", "emulate"]),
    ("tuner", &["ir", "codegen", "runtime", "artifact", "cache"]),
    ("deepfuse", &["ir", "frontend", "passes", "codegen", "emulate", "runtime", "artifact", "tuner", "cache"]),
    ("build", &["deepfuse"]),
];

/// Crates that only these of ours may depend on.
const RESERVED: &[(&str, &[&str])] =
    &[("inkwell", &["codegen"]), ("llvm-sys", &["codegen"]), ("egg", &["passes"]), ("cranelift", &["codegen"])];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn short(package: &str) -> &str {
    package.strip_prefix("deepfuse-").unwrap_or(package)
}

/// Normal and build dependencies of our packages, by short name.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".into()])
        .exec()
        .unwrap();
    let of = |p: &cargo_metadata::Package| {
        let normal = p.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        (short(&p.name).to_owned(), normal.map(|d| d.name.clone()).collect())
    };
    metadata.packages.iter().map(of).collect()
}

#[test]
fn our_crates_depend_as_designed() {
    let mut wrong = vec![];
    for (name, used) in dependencies() {
        if name == "tests" {
            continue; // depends on all that it tests
        }
        let Some((_, allowed)) = EDGES.iter().find(|(n, _)| *n == name) else {
            wrong.push(format!("the crate `{name}` has no row in EDGES"));
            continue;
        };
        let ours = used.iter().filter(|d| d.starts_with("deepfuse")).map(|d| short(d));
        wrong.extend(ours.filter(|d| !allowed.contains(d)).map(|d| format!("{name} -> {d}")));
    }
    assert!(wrong.is_empty(), "edges that the design does not have: {wrong:#?}");
}

#[test]
fn compilers_stay_where_they_belong() {
    let mut wrong = vec![];
    for (name, used) in dependencies() {
        for (reserved, owners) in RESERVED {
            let uses = used.iter().any(|d| d == reserved || d.starts_with(&format!("{reserved}-")));
            if uses && !owners.contains(&name.as_str()) {
                wrong.push(format!("{name} -> {reserved}, reserved for {owners:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The runtime is shipped without a compiler: nothing that it needs, however far, is ours to compile with.
#[test]
fn the_runtime_reaches_no_compiler() {
    let all = dependencies();
    let mut seen = BTreeSet::new();
    let mut open = vec!["runtime".to_owned()];
    while let Some(name) = open.pop() {
        if seen.insert(name.clone()) {
            open.extend(all.get(&name).into_iter().flatten().map(|d| short(d).to_owned()));
        }
    }
    let forbidden = ["ir", "passes", "codegen", "frontend", "tuner", "deepfuse", "egg", "inkwell", "llvm-sys"];
    let reached: Vec<&str> = forbidden.into_iter().filter(|f| seen.contains(*f)).collect();
    assert!(reached.is_empty(), "the runtime reaches {reached:?}");
}

// ---- source text --------------------------------------------------------------------------------------------------------------

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code (comments and text after `//` cut off) that have one of the words, as `file:line: code`. Files `tests.rs` and under `tests/` are not shipped.
fn occurrences(dir: &str, words: &[&str], skip: impl Fn(&Path) -> bool) -> Vec<String> {
    let (root, mut files) = (root(), vec![]);
    sources(&root.join(dir), &mut files);
    files.sort();
    let mut hits = vec![];
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let of_tests = relative.ends_with("tests.rs") || relative.components().any(|c| c.as_os_str() == "tests");
        if skip(relative) || of_tests {
            continue;
        }
        for (i, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if words.iter().any(|w| code.contains(w)) {
                hits.push(format!("{}:{}: {}", relative.display(), i + 1, code.trim()));
            }
        }
    }
    hits
}

#[test]
fn ir_and_passes_do_no_io() {
    let words = [
        "std::fs",
        "std::io",
        "std::env",
        "std::net",
        "std::process",
        "std::thread",
        "thread::spawn",
        "File::",
        "env!(",
        "Instant::now",
        "SystemTime",
    ];
    for dir in ["ir/src", "passes/src"] {
        let hits = occurrences(dir, &words, |_| false);
        assert!(hits.is_empty(), "no I/O, environment, clock or thread in {dir}: {hits:#?}");
    }
}

#[test]
fn only_codegen_names_llvm() {
    for dir in [
        "src",
        "ir/src",
        "frontend/src",
        "passes/src",
        "codegen/emulate/src",
        "runtime/src",
        "runtime/artifact/src",
        "tuner/src",
        "tuner/cache/src",
    ] {
        let hits = occurrences(dir, &["inkwell", "llvm_sys"], |_| false);
        assert!(hits.is_empty(), "LLVM outside codegen: {hits:#?}");
    }
}

#[test]
fn only_commands_and_binaries_print() {
    let prints = ["println!", "print!(", "eprintln!", "eprint!(", "dbg!("];
    let may_print =
        |p: &Path| p.starts_with("src/cmd") || p.ends_with("main.rs") || p.components().any(|c| c.as_os_str() == "bin");
    for dir in [
        "src",
        "ir/src",
        "frontend/src",
        "passes/src",
        "codegen/src",
        "codegen/emulate/src",
        "runtime/src",
        "runtime/artifact/src",
        "tuner/src",
        "tuner/cache/src",
    ] {
        let hits = occurrences(dir, &prints, may_print);
        assert!(hits.is_empty(), "printing belongs to src/cmd and the binaries: {hits:#?}");
    }
}
