//! The plain graph under the reference evaluator against what transformers computes in float32 (`golden.safetensors`).
#![allow(clippy::unwrap_used)]

use deepfuse_frontend::{Activations, Model, Shard, StoredType, build};
use deepfuse_ir::eval::evaluate;
use deepfuse_ir::{Graph, Op, ParamKind, Sizes, Tensor, Type, ValueId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Difference to transformers that a float32 implementation stays below; transformers disagrees with itself by 1e-5.
const TOLERANCE: f32 = 1e-3;
const PAGE: usize = 64;

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(name)
}

/// `golden.safetensors` of a checkpoint.
struct Golden(Shard);

impl Golden {
    fn open(dir: &Path) -> Self {
        Self(Shard::open(&dir.join("golden.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let view = self.0.get(name).unwrap_or_else(|| panic!("the golden has {name}"));
        assert_eq!(view.dtype, StoredType::F32, "{name}");
        view.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ints(&self, name: &str) -> Vec<i32> {
        let view = self.0.get(name).unwrap_or_else(|| panic!("the golden has {name}"));
        assert_eq!(view.dtype, StoredType::I64, "{name}");
        view.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }
}

/// A sequence with pages anywhere in the cache.
struct Sequence {
    pages: Vec<i32>,
    len: usize,
}

impl Sequence {
    fn new(pages: &[i32]) -> Self {
        Self { pages: pages.to_vec(), len: 0 }
    }
}

/// A model with its cache, stepped by the evaluator.
struct Runner {
    graph: Graph,
    weights: HashMap<String, Tensor>,
    states: HashMap<String, Tensor>,
    /// Values that the last step was asked to keep.
    kept: HashMap<ValueId, Tensor>,
}

impl Runner {
    fn new(model: &Model, activations: Activations, pages: usize) -> Self {
        let graph = build(model, activations).unwrap();
        deepfuse_ir::verify::verify(&graph).unwrap_or_else(|e| panic!("{e}"));
        let (mut weights, mut states) = (HashMap::new(), HashMap::new());
        for p in &graph.params {
            match (&p.kind, &p.ty) {
                (ParamKind::Weight { source }, _) => {
                    weights.insert(p.name.clone(), model.read(source).unwrap());
                }
                (ParamKind::State, Type::State(s)) => {
                    // Rows that no token has written may hold anything finite.
                    let rubbish = vec![13.0; pages * PAGE * s.width as usize];
                    states.insert(p.name.clone(), Tensor::float(s.dtype, &[pages * PAGE, s.width as usize], rubbish));
                }
                _ => {}
            }
        }
        Self { graph, weights, states, kept: HashMap::new() }
    }

    /// Runs one step: new tokens for each sequence. Logits of all of them, one row a token.
    fn step(&mut self, batch: &mut [(&mut Sequence, &[i32])], keep: &[ValueId]) -> Tensor {
        let mut inputs: HashMap<&str, Vec<i32>> = HashMap::new();
        let mut start = vec![0];
        for (s, (sequence, ids)) in batch.iter_mut().enumerate() {
            for (i, id) in ids.iter().enumerate() {
                inputs.entry("ids").or_default().push(*id);
                inputs.entry("pos").or_default().push((sequence.len + i) as i32);
                inputs.entry("seq").or_default().push(s as i32);
            }
            sequence.len += ids.len();
            let used = sequence.len.div_ceil(PAGE);
            inputs.entry("pages").or_default().extend(&sequence.pages[..used]);
            start.push(start.last().unwrap() + used as i32);
        }
        let tokens = inputs["ids"].len();
        inputs.insert("rows", (0..tokens as i32).collect());
        inputs.insert("page_start", start);
        let sizes = Sizes([tokens as u64, batch.len() as u64, inputs["pages"].len() as u64, tokens as u64, 0]);
        let mut values = |name: &str, kind: &ParamKind| match kind {
            ParamKind::Input => inputs.get(name).map(|v| Tensor::int(&[v.len()], v.clone())),
            ParamKind::Weight { .. } => self.weights.get(name).cloned(),
            ParamKind::State => self.states.get(name).cloned(),
        };
        let kept = &mut self.kept;
        let result = evaluate(&self.graph, &sizes, &mut values, &mut |id, tensor| {
            if keep.contains(&id) {
                kept.insert(id, tensor.clone());
            }
        });
        let mut result = result.unwrap();
        self.states.extend(result.states);
        result.outputs.remove(0)
    }

    /// Results number `result` of all nodes of an op, in order.
    fn results(&self, op: Op, result: usize) -> Vec<ValueId> {
        self.graph.nodes.iter().filter(|n| n.op == op).map(|n| n.results[result]).collect()
    }
}

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of elements");
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m: f32, d| if d.is_nan() { f32::NAN } else { m.max(d) });
    assert!(worst <= TOLERANCE, "{what}: largest difference {worst}");
}

fn argmax(row: &[f32]) -> i32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i32
}

/// Prefill, hidden states, routing, then greedy decoding through the paged cache.
fn check(dir: &Path) {
    let (model, golden) = (Model::open(dir).unwrap(), Golden::open(dir));
    model.check_scales().unwrap();
    let mut run = Runner::new(&model, Activations::F32, 10);
    let hidden: Vec<ValueId> = run.graph.cuts.iter().map(|at| run.graph.nodes[*at].results[0]).collect();
    let embedded = run.graph.nodes.iter().filter(|n| n.op == Op::Embed).map(|n| n.results[0]).next().unwrap();
    let (chosen, weights): (Vec<ValueId>, Vec<ValueId>) = (
        run.results(Op::TopK, 1),
        run.graph.nodes.iter().filter(|n| n.op == Op::Combine).map(|n| n.operands[1]).collect(),
    );
    let keep: Vec<ValueId> = [vec![embedded], hidden.clone(), chosen.clone(), weights.clone()].concat();

    let prompt = golden.ints("prompt_ids");
    let mut sequence = Sequence::new(&[5, 2, 7, 0, 3, 1, 9, 4, 8]);
    let logits = run.step(&mut [(&mut sequence, &prompt)], &keep);
    close("hidden.0", run.kept[&embedded].floats(), &golden.floats("hidden.0"));
    for (i, id) in hidden.iter().enumerate() {
        close(&format!("hidden.{}", i + 1), run.kept[id].floats(), &golden.floats(&format!("hidden.{}", i + 1)));
    }
    let routed: Vec<u64> = (0..model.config.layers).filter(|i| golden.has(&format!("router.{i}.indices"))).collect();
    assert_eq!(routed.len(), chosen.len(), "layers with experts");
    for (layer, (idx, w)) in routed.iter().zip(chosen.iter().zip(&weights)) {
        same_routing(*layer, &run.kept[idx], &run.kept[w], &golden);
    }
    close("prefill_logits", logits.floats(), &golden.floats("prefill_logits"));

    let generated = golden.ints("generated_ids");
    assert_eq!(argmax(logits.row(prompt.len() - 1)), generated[0], "first greedy id");
    let vocab = logits.width();
    let expected = golden.floats("decode_logits");
    for (i, row) in expected.chunks_exact(vocab).enumerate() {
        let logits = run.step(&mut [(&mut sequence, &generated[i..=i])], &[]);
        close(&format!("decode_logits[{i}]"), logits.floats(), row);
        assert_eq!(argmax(logits.row(0)), generated[i + 1], "greedy id {i}");
    }
}

/// Chosen experts as sets, weights by expert.
fn same_routing(layer: u64, idx: &Tensor, weights: &Tensor, golden: &Golden) {
    let k = idx.width();
    let sorted = |idx: &[i32], w: &[f32]| {
        let mut pairs: Vec<(i32, f32)> = idx.iter().copied().zip(w.iter().copied()).collect();
        pairs.sort_by_key(|p| p.0);
        pairs.into_iter().unzip::<i32, f32, Vec<_>, Vec<_>>()
    };
    let (golden_idx, golden_w) =
        (golden.ints(&format!("router.{layer}.indices")), golden.floats(&format!("router.{layer}.weights")));
    for t in 0..idx.shape[0] {
        let at = t * k..(t + 1) * k;
        let (found, found_w) = sorted(&idx.ints()[at.clone()], &weights.floats()[at.clone()]);
        let (expected, expected_w) = sorted(&golden_idx[at.clone()], &golden_w[at]);
        assert_eq!(found, expected, "experts of layer {layer}, token {t}");
        close(&format!("router.{layer}.weights[{t}]"), &found_w, &expected_w);
    }
}

#[test]
fn v2_lite() {
    check(&checkpoint("tiny-v2"));
}

#[test]
fn v2_group_limited() {
    check(&checkpoint("tiny-v2-236b"));
}

#[test]
fn v3() {
    check(&checkpoint("tiny-v3"));
}

#[test]
fn v3_with_mtp_tensors_in_shards() {
    check(&checkpoint("tiny-v3-mtp"));
}

#[test]
fn v3_fp8_with_partial_blocks() {
    check(&checkpoint("tiny-v3-fp8"));
}

#[test]
fn v31_fp8_with_power_of_two_scales() {
    check(&checkpoint("tiny-v31-fp8"));
}

#[test]
fn trained_python_model() {
    check(&checkpoint("tiny-python"));
}

/// More checkpoints with goldens: `DEEPFUSE_GOLDENS=DIR` checks every directory in DIR.
#[test]
fn others_if_given() {
    let Some(dir) = std::env::var_os("DEEPFUSE_GOLDENS") else { return };
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|d| d.join("golden.safetensors").exists());
    dirs.sort();
    assert!(!dirs.is_empty(), "DEEPFUSE_GOLDENS holds checkpoints");
    let wrong: Vec<&PathBuf> = dirs.iter().filter(|dir| std::panic::catch_unwind(|| check(dir)).is_err()).collect();
    assert!(wrong.is_empty(), "{wrong:?} of {} checkpoints", dirs.len());
}

/// Sequences of one batch do not see each other, wherever their pages lie, and chunks of a prompt add up to the whole.
#[test]
fn ragged_batch_equals_single_sequences() {
    let model = Model::open(&checkpoint("tiny-v3")).unwrap();
    let golden = Golden::open(&checkpoint("tiny-v3"));
    let prompt = golden.ints("prompt_ids");
    let long: Vec<i32> = prompt.iter().cycle().take(100).copied().collect();
    let single = |ids: &[i32]| {
        let mut run = Runner::new(&model, Activations::F32, 4);
        run.step(&mut [(&mut Sequence::new(&[0, 1]), ids)], &[])
    };
    let (expected_a, expected_b, expected_c) = (single(&prompt), single(&long), single(&prompt[..1]));

    let mut run = Runner::new(&model, Activations::F32, 8);
    let (mut a, mut b, mut c) = (Sequence::new(&[6]), Sequence::new(&[3, 1]), Sequence::new(&[7]));
    let first = run.step(&mut [(&mut a, &prompt[..20]), (&mut b, &long[..7])], &[]);
    let second = run.step(&mut [(&mut b, &long[7..99]), (&mut c, &prompt[..1]), (&mut a, &prompt[20..])], &[]);
    let third = run.step(&mut [(&mut b, &long[99..])], &[]);
    let rows =
        |t: &Tensor, range: std::ops::Range<usize>| t.floats()[range.start * t.width()..range.end * t.width()].to_vec();
    close("a", &[rows(&first, 0..20), rows(&second, 93..121)].concat(), expected_a.floats());
    close("b", &[rows(&first, 20..27), rows(&second, 0..92), rows(&third, 0..1)].concat(), expected_b.floats());
    close("c", &rows(&second, 92..93), expected_c.floats());
}

/// bf16 activations stay near the float32 goldens: the root mean square of the difference, in units of the logits' spread.
#[test]
fn bf16_activations_are_near() {
    for name in ["tiny-v2", "tiny-v2-236b", "tiny-v3", "tiny-v3-fp8", "tiny-python"] {
        let (model, golden) = (Model::open(&checkpoint(name)).unwrap(), Golden::open(&checkpoint(name)));
        let mut run = Runner::new(&model, Activations::Bf16, 2);
        let logits = run.step(&mut [(&mut Sequence::new(&[1]), &golden.ints("prompt_ids"))], &[]);
        let expected = golden.floats("prefill_logits");
        let n = expected.len() as f32;
        let rms = |x: &mut dyn Iterator<Item = f32>| (x.map(|v| v * v).sum::<f32>() / n).sqrt();
        let error = rms(&mut logits.floats().iter().zip(&expected).map(|(a, b)| a - b));
        let spread = rms(&mut expected.iter().copied());
        assert!(error < 0.1 * spread, "{name}: rms {error} of {spread}");
        assert!(error > 1e-4, "{name}: bf16 rounds somewhere");
    }
}
