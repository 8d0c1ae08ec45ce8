//! Where rounding makes tokens choose other experts: `cargo run --release --example routing CHECKPOINT [rules to turn off ..]`.
//!
//! The checkpoint's golden is fed to the plain graph with f32 activations and to the fused one with bf16 activations (routers left unfused, so that
//! their scores can be seen). Told are the tokens for which the fused model chose another expert, how far the two experts' scores are apart in f32, how
//! far bf16 moved the scores of that row, and the divergence of the next token's distribution with and without such a choice. What a token chose
//! reaches later ones through the cache, and later layers.
#![allow(clippy::print_stdout)]

use deepfuse::pipeline::{Event, Request};
use deepfuse::{compile, output};
use deepfuse_artifact::plan::Action;
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::Activations;
use deepfuse_ir::kernel::AttrsExt;
use deepfuse_ir::{Op, Sizes};
use deepfuse_passes::fuse::{Numerics, rules};
use deepfuse_runtime::golden::Golden;
use deepfuse_runtime::look::Look;
use deepfuse_runtime::session::page_bytes;
use deepfuse_runtime::verify::Difference;
use deepfuse_runtime::{Artifact, Feed, Limits, Options, Session};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Failure = Box<dyn std::error::Error>;

/// A router's row: scores of all experts, those of groups that were left out masked, and the experts of the largest.
#[derive(Clone)]
struct Row {
    scores: Vec<f32>,
    masked: Vec<f32>,
    k: usize,
    /// Number of groups, and how many of an expert's best scores a group's score is the sum of.
    groups: (usize, usize),
}

/// Scores before groups are left out, and [`Row::groups`].
type Limited = (Vec<Vec<f32>>, (usize, usize));

/// What a model did with every token: rows by layer, and logits.
#[derive(Default)]
struct Run {
    rows: Vec<Vec<Row>>,
    logits: Vec<Vec<f32>>,
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let checkpoint = PathBuf::from(args.next().ok_or("usage: routing CHECKPOINT [rules to turn off ..]")?);
    let mut disabled: Vec<String> = args.collect();
    disabled.extend(rules::all().iter().map(|r| r.name.to_owned()).filter(|name| name.starts_with("route-")));
    let golden = Golden::read(&checkpoint.join("golden.safetensors"))?;
    let plain = run(&checkpoint, &golden, Activations::F32, Numerics::Exact, vec!["all".to_owned()])?;
    let fused = run(&checkpoint, &golden, Activations::Bf16, Numerics::Requantizes, disabled)?;
    compare(&golden, &plain, &fused);
    Ok(())
}

fn run(
    checkpoint: &Path,
    golden: &Golden,
    activations: Activations,
    numerics: Numerics,
    disabled_rules: Vec<String>,
) -> Result<Run, Failure> {
    let dir = tempfile::tempdir()?;
    let usual = Request::new(checkpoint.to_owned(), dir.path().join("m.dfz"), targets::native());
    let req = Request { activations, numerics, disabled_rules, ..usual };
    let compiled = compile(&req, &mut |_: Event<'_>| {})?;
    output::write(&compiled, &req, &mut |_| {})?;
    let artifact = Artifact::open(&req.out)?;
    let ids = golden.fed_ids();
    let limits = Limits {
        max_tokens: 512,
        max_sequences: 1,
        cache_bytes: ids.len().div_ceil(64) as u64 * page_bytes(artifact.plan()),
    };
    let mut session = Session::load(artifact.into(), limits, &Options::automatic())?;
    let sequence = session.add_sequence()?;
    let mut done = Run::default();
    let prompt = golden.prompt_ids.len();
    let steps = std::iter::once(0..prompt).chain((prompt..ids.len()).map(|i| i..i + 1));
    for step in steps {
        let (mut limited, mut rows): (Option<Limited>, Vec<Vec<Row>>) = (None, vec![]);
        session.step_observed(
            &[Feed::all(sequence, &ids[step.clone()])],
            Some(&mut |look: &Look<'_>| {
                let Action::Launch(launch) = look.action else { return };
                let spec = &compiled.planned.specs[launch.kernel as usize];
                match spec.op {
                    Op::GroupLimit => {
                        let best = if spec.attrs.str("by") == Some("top2") { 2 } else { 1 };
                        limited = Some((numbers(look, spec), (spec.attrs.int("groups").unwrap_or(1) as usize, best)));
                    }
                    Op::TopK => {
                        let masked = numbers(look, spec);
                        let k = spec.outputs[1].tensor().and_then(|t| t.shape[1].as_fixed()).unwrap_or(0) as usize;
                        let (scores, groups) = limited.take().unwrap_or_else(|| (masked.clone(), (1, 1)));
                        let row = |(scores, masked)| Row { scores, masked, k, groups };
                        rows.push(scores.into_iter().zip(masked).map(row).collect());
                    }
                    _ => {}
                }
            }),
        )?;
        done.rows.resize(rows.len(), vec![]);
        for (all, rows) in done.rows.iter_mut().zip(rows) {
            all.extend(rows);
        }
        done.logits.extend((0..step.len()).filter_map(|i| Some(session.logits(i)?.to_vec())));
    }
    Ok(done)
}

/// The first operand of a launch, `f32[tokens, experts]`.
fn numbers(look: &Look<'_>, spec: &deepfuse_ir::KernelSpec) -> Vec<Vec<f32>> {
    let (operand, sizes) = (&spec.inputs[0], Sizes(look.sizes.symbols()));
    let (Some(bytes), Some(t), Some(strides)) = (look.bytes(0), operand.tensor(), operand.strides()) else {
        return vec![];
    };
    let [rows, experts] = [0, 1].map(|axis| t.shape[axis].eval(&sizes) as usize);
    let number = |at: usize| f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let row = |r: usize| (0..experts).map(|e| number(4 * (r * strides[0] as usize + e))).collect();
    (0..rows).map(row).collect()
}

impl Row {
    fn chosen(&self) -> BTreeSet<usize> {
        let mut order: Vec<usize> = (0..self.masked.len()).collect();
        order.sort_by(|a, b| self.masked[*b].total_cmp(&self.masked[*a]).then(a.cmp(b)));
        order.into_iter().take(self.k).collect()
    }

    fn group_of(&self, expert: usize) -> usize {
        expert * self.groups.0 / self.scores.len()
    }

    /// Groups whose experts could be chosen.
    fn kept(&self) -> BTreeSet<usize> {
        let kept = |e: &usize| self.masked[*e] == self.scores[*e];
        (0..self.scores.len()).filter(kept).map(|e| self.group_of(e)).collect()
    }

    fn group_score(&self, group: usize) -> f32 {
        let mut of: Vec<f32> =
            (0..self.scores.len()).filter(|e| self.group_of(*e) == group).map(|e| self.scores[e]).collect();
        of.sort_by(|a, b| b.total_cmp(a));
        of.into_iter().take(self.groups.1).sum()
    }

    /// The smallest score that was chosen.
    fn last(&self) -> f32 {
        self.chosen().into_iter().map(|e| self.scores[e]).fold(f32::INFINITY, f32::min)
    }
}

/// Root mean square of differences relative to the last chosen score, of the scores at least half as large: those that could be chosen.
fn moved(plain: &Row, fused: &Row) -> f64 {
    let last = f64::from(plain.last());
    let near = plain.scores.iter().zip(&fused.scores).filter(|(a, _)| f64::from(**a) > 0.5 * last);
    let squares: Vec<f64> = near.map(|(a, b)| ((f64::from(*a) - f64::from(*b)) / last).powi(2)).collect();
    (squares.iter().sum::<f64>() / squares.len().max(1) as f64).sqrt()
}

fn divergence(plain: &[f32], fused: &[f32]) -> f64 {
    let mut d = Difference::default();
    d.add(fused, plain);
    d.kl()
}

fn compare(golden: &Golden, plain: &Run, fused: &Run) {
    let prompt = golden.prompt_ids.len();
    for (phase, tokens) in [("prompt", 0..prompt), ("decode", prompt..plain.logits.len())] {
        let (mut same, mut other) = (vec![], vec![]);
        for t in tokens.clone() {
            let kl = divergence(&plain.logits[t], &fused.logits[t]);
            let mut swaps = vec![];
            for (layer, (a, b)) in plain.rows.iter().zip(&fused.rows).enumerate() {
                let (a, b) = (&a[t], &b[t]);
                let (before, after) = (a.chosen(), b.chosen());
                if before == after {
                    continue;
                }
                let told = |what: &str, names: [usize; 2], scores: [f32; 2]| {
                    let apart = 100.0 * f64::from((scores[1] - scores[0]) / scores[1]);
                    format!(
                        "router {layer}: {what} {} for {}, scores {:.5} and {:.5}, {apart:.3} % apart; bf16 moves the scores of this row by {:.2} %",
                        names[0],
                        names[1],
                        scores[0],
                        scores[1],
                        100.0 * moved(a, b)
                    )
                };
                let (groups, now) = (a.kept(), b.kept());
                for (lost, taken) in groups.difference(&now).zip(now.difference(&groups)) {
                    swaps.push(told("group", [*taken, *lost], [*taken, *lost].map(|g| a.group_score(g))));
                }
                let in_both = |e: &&usize| groups.contains(&a.group_of(**e)) && now.contains(&a.group_of(**e));
                let (lost, taken) =
                    (before.difference(&after).filter(in_both), after.difference(&before).filter(in_both));
                for (lost, taken) in lost.zip(taken) {
                    swaps.push(told("expert", [*taken, *lost], [a.scores[*taken], a.scores[*lost]]));
                }
            }
            if !swaps.is_empty() {
                println!("{phase}, token {t}: KL {kl:.1e}");
                for s in &swaps {
                    println!("  {s}");
                }
            }
            if swaps.is_empty() { &mut same } else { &mut other }.push(kl);
        }
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
        let worst = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
        println!(
            "{phase}: {} tokens chose as in f32, mean KL {:.1e}, worst {:.1e}; {} chose other experts, mean KL {:.1e}, worst {:.1e}\n",
            same.len(),
            mean(&same),
            worst(&same),
            other.len(),
            mean(&other),
            worst(&other)
        );
    }
}
