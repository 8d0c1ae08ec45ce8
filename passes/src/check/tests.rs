//! Certificates of random regions replay; random corruptions of them do not.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the score is printed

use super::*;
use crate::canonicalize;
use crate::fuse::tests::{Random, region};
use crate::fuse::{Direction, FuseOptions, Step, fuse};
use deepfuse_ir::cost::Roofline;
use deepfuse_ir::{Attr, Bucket};
use indexmap::IndexMap;

const LIMIT: Numerics = Numerics::Requantizes;

fn certificate(seed: u64) -> Certificate {
    let graph = canonicalize(deepfuse_ir::text::parse(&region(seed)).unwrap()).unwrap();
    let options = FuseOptions::new(LIMIT);
    fuse(&graph, &Roofline::SMALL_SERVER, &Bucket::all(), &options).unwrap().certificate
}

#[test]
fn certificates_replay() {
    let mut steps = 0;
    for seed in 0..120 {
        let certificate = certificate(seed);
        let report =
            check_text(&certificate.to_string(), LIMIT).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{certificate}"));
        assert_eq!((report.classes, report.regions), (1, 1));
        assert_eq!(report.buckets.join(", "), Bucket::names());
        steps += report.steps;
    }
    assert!(steps > 200, "{steps}");
}

/// Both readers of patterns number the places alike: a certificate names terms by them.
#[test]
fn patterns_are_read_as_the_compiler_reads_them() {
    use egg::{ENodeOrVar, Language, PatternAst};
    for rule in read_rules() {
        for p in rule.lhs.iter().chain(rule.equations.iter().flat_map(|(l, r)| [l, r])) {
            let theirs: PatternAst<crate::fuse::language::Enode> = p.text.parse().unwrap();
            assert_eq!(p.describe(p.root()), p.text);
            assert_eq!(theirs.len(), p.nodes.len(), "{}", p.text);
            for (ours, theirs) in p.nodes.iter().zip(&theirs) {
                match (ours, theirs) {
                    (pattern::Place::Var(a), ENodeOrVar::Var(b)) => assert_eq!(*a, b.to_string()),
                    (pattern::Place::Node(a), ENodeOrVar::ENode(b)) => {
                        assert_eq!(a.name(), b.to_string());
                        assert!(a.children().iter().copied().eq(b.children().iter().map(|c| usize::from(*c))));
                    }
                    _ => panic!("{}", p.text),
                }
            }
        }
    }
    for text in ["(linear ?x)", "(linear ?x ?w", "linear ?x ?w)", "(no_such_op ?x)", "()", "?x ?y"] {
        assert_eq!(pattern::Pattern::parse(text), None, "{text}");
    }
}

/// The checker may share the table of rules with the compiler, not its e-graph; and it stays small enough to be read.
#[test]
fn the_checker_is_small_and_independent() {
    let sources = [
        include_str!("launches.rs"),
        include_str!("mod.rs"),
        include_str!("pattern.rs"),
        include_str!("step.rs"),
        include_str!("table.rs"),
    ];
    for source in sources {
        assert!(!source.contains("egg::") && !source.contains("EGraph"));
        assert!(!source.contains("analysis::") && !source.contains("saturate") && !source.contains("language::"));
    }
    let lines: usize = sources.iter().map(|s| s.lines().count()).sum();
    assert!(lines < 1500, "{lines}");
}

// ---- corruptions ---------------------------------------------------------------------------------------------------------------

/// Another term of the same certificate, or one that does not exist.
fn other_term(r: &mut Random, class: &ClassCertificate, term: &Term) -> Term {
    let values = deepfuse_ir::text::parse(&class.plain).unwrap().value_count() as u64;
    let bound: Vec<&Term> = class.steps.iter().flat_map(|s| s.bindings.values()).collect();
    loop {
        let other = match r.below(6) {
            0 => Term::Value(r.below(values + 2) as u32),
            1 => Term::Made { step: r.below(class.steps.len() as u64 + 1) as u32, node: r.below(12) as u32 },
            2 => Term::Node(r.below(values) as u32),
            3 => match term {
                Term::Attr(Attr::Int(n)) => Term::Attr(Attr::Int(n + r.of(&[-1, 1, 64]))),
                Term::Attr(Attr::Float(x)) => Term::Attr(Attr::Float(deepfuse_ir::Float(x.0 * 2.0 + 1.0))),
                _ => Term::Attr(Attr::Str("max".into())),
            },
            _ => bound[r.below(bound.len() as u64) as usize].clone(),
        };
        if other != *term {
            return other;
        }
    }
}

/// Corrupts one thing; its kind and the step.
fn corrupt(r: &mut Random, c: &mut Certificate) -> (&'static str, usize) {
    let at = r.below(c.classes[0].steps.len() as u64) as usize;
    let class = c.classes[0].clone();
    let names: Vec<&str> = crate::fuse::rules::all().iter().map(|r| r.name).collect();
    let steps = &mut c.classes[0].steps;
    let step: &mut Step = &mut steps[at];
    let kind = match r.below(12) {
        0 => {
            let others: Vec<&&str> = names.iter().filter(|n| **n != step.rule).collect();
            step.rule = others[r.below(others.len() as u64) as usize].to_string();
            "rule"
        }
        1 => {
            step.direction =
                if step.direction == Direction::Forward { Direction::Backward } else { Direction::Forward };
            "direction"
        }
        2 => {
            let others: Vec<Numerics> = Numerics::ALL.into_iter().filter(|n| *n != step.class).collect();
            step.class = r.of(&others);
            "class"
        }
        3..=5 => {
            let number = r.below(class.steps[at].bindings.len() as u64) as usize;
            let term = &mut step.bindings[number];
            *term = other_term(r, &class, term);
            "substitution"
        }
        6 => {
            let (i, j) = (r.below(step.bindings.len() as u64) as usize, r.below(step.bindings.len() as u64) as usize);
            if step.bindings[i] == step.bindings[j] {
                step.bindings.shift_remove_index(i);
            } else {
                let swapped = (step.bindings[i].clone(), step.bindings[j].clone());
                (step.bindings[j], step.bindings[i]) = swapped;
            }
            "substitution"
        }
        7 => {
            if step.premises.pop().is_none() || r.below(2) == 0 {
                step.premises.push("constant(?x)".into());
            }
            "premise"
        }
        8 => {
            let text = step.premises.first().map_or_else(|| "differ(?x, ?y)".into(), |p| p.replacen('?', "?z", 1));
            step.premises = vec![text];
            "premise"
        }
        9 => {
            steps.remove(at);
            "step left out"
        }
        10 => {
            let again = steps[at].clone();
            steps.push(again);
            "step repeated"
        }
        _ => {
            let with = r.below(steps.len() as u64) as usize;
            steps.swap(at, with);
            if at == with {
                steps[at].used.push("no bucket".into());
            }
            "order"
        }
    };
    (kind, at)
}

/// Whether every step of an accepted certificate says what the original proves too: a corruption that leaves a proof. The original saturated,
/// so that it contains every true instance of a rule: the corrupted one must be among its equalities.
fn harmless(original: &ClassCertificate, corrupted: &ClassCertificate) -> bool {
    let rules = read_rules();
    let known = Replay::of(original, 0, LIMIT, &rules).unwrap();
    let accepted = Replay::of(corrupted, 0, LIMIT, &rules).unwrap();
    // Terms of the accepted proof within the original's table.
    let mut image: Vec<usize> = vec![];
    for node in &accepted.table.nodes {
        let attribute = matches!(node, Node::Attr(_));
        let mapped = node.map(|c| image[c]);
        let Some(term) = known.table.lookup(&mapped) else {
            if attribute {
                image.push(usize::MAX);
                continue;
            }
            return false;
        };
        image.push(term);
    }
    (0..image.len()).all(|t| {
        image[t] == usize::MAX || known.table.find(image[t]) == known.table.find(image[accepted.table.find(t)])
    })
}

#[test]
fn corruptions_are_refused() {
    let mut scores: IndexMap<&str, [usize; 3]> = IndexMap::new();
    let mut wrong = vec![];
    for seed in 0..60 {
        let original = certificate(seed);
        if original.classes[0].steps.is_empty() {
            continue;
        }
        for i in 0..25 {
            let mut corrupted = original.clone();
            let (kind, at) = corrupt(&mut Random(seed * 1000 + i), &mut corrupted);
            if corrupted == original {
                continue;
            }
            let score = scores.entry(kind).or_default();
            match check(&corrupted, LIMIT) {
                Err(_) => score[0] += 1,
                Ok(_) if harmless(&original.classes[0], &corrupted.classes[0]) => score[1] += 1,
                Ok(_) => {
                    score[2] += 1;
                    wrong.push(format!(
                        "seed {seed}, {kind} at {at}: {}",
                        corrupted.classes[0].steps.get(at).map(ToString::to_string).unwrap_or_default()
                    ));
                }
            }
        }
    }
    let total: usize = scores.values().flatten().sum();
    let refused: usize = scores.values().map(|s| s[0]).sum();
    let harmless: usize = scores.values().map(|s| s[1]).sum();
    println!(
        "{total} corruptions: {refused} refused, {harmless} leave another proof of the same, {} accepted wrongly",
        wrong.len()
    );
    println!("kind: refused, harmless, wrong: {scores:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(total > 800 && refused * 10 > total * 8, "{refused} of {total}");
}

/// A certificate is refused whichever byte of its text changes, unless it states the same.
#[test]
fn corrupted_texts_are_refused() {
    let mut accepted = vec![];
    for seed in 0..30 {
        let text = certificate(seed).to_string();
        let mut r = Random(seed);
        for _ in 0..30 {
            let at = r.below(text.len() as u64) as usize;
            let with = r.of(b"0123456789abcxyz?.,:;=>< ()[]{}\n");
            let mut bytes = text.clone().into_bytes();
            if bytes[at] == with {
                continue;
            }
            bytes[at] = with;
            let corrupted = String::from_utf8(bytes).unwrap();
            // What a bucket is called is the plan's business.
            let renamed = text[..at].rsplit('\n').next().is_some_and(|l| l.starts_with("fused "));
            if !renamed && check_text(&corrupted, LIMIT).is_ok() {
                let line = |t: &str| t.lines().nth(text[..at].matches('\n').count()).unwrap().to_owned();
                accepted.push(format!("seed {seed}: {}\n  {}", line(&text), line(&corrupted)));
            }
        }
    }
    assert!(accepted.is_empty(), "{}", accepted.join("\n"));
}

#[test]
fn limits_and_graphs_are_checked() {
    let mut seeds = (0..200).map(certificate);
    let far = seeds.find(|c| c.classes[0].steps.iter().any(|s| s.class == LIMIT)).unwrap();
    let refused = |c: &Certificate, limit| check(c, limit).unwrap_err().to_string();
    assert!(refused(&far, Numerics::Exact).contains("`requantizes` is beyond the limit `exact`"));
    let mut lower = far.clone();
    lower.numerics = Numerics::Exact;
    assert!(refused(&lower, LIMIT).contains("beyond the limit"), "{}", refused(&lower, LIMIT));
    let mut other = far.clone();
    other.classes[0].regions = vec![1];
    assert!(refused(&other, LIMIT).contains("regions"));
    // Without its steps a fused region is not proved.
    let mut bare = far.clone();
    bare.classes[0].steps.clear();
    assert!(refused(&bare, LIMIT).contains("is not proved"), "{}", refused(&bare, LIMIT));
    // A fused region that computes something else.
    let mut changed = far.clone();
    let plain = changed.classes[0].plain.clone();
    let first = plain.lines().find(|l| l.trim_start().starts_with('%')).unwrap();
    let fused = changed.classes[0].fused.values_mut().next().unwrap();
    *fused = plain.replacen(first, &format!("{first}\n{first}"), 1);
    assert!(check(&changed, LIMIT).is_err());
}
