//! A tiny artifact with kernels written in C, and what its logits must be.
#![allow(clippy::unwrap_used, dead_code)]

use deepfuse_artifact::elements::{Element, Elements};
use deepfuse_artifact::interrupt;
use deepfuse_artifact::manifest::{FusionInfo, ModelInfo, NumericsInfo, TargetInfo, TokensInfo, section};
use deepfuse_artifact::weights::WeightDecl;
use deepfuse_artifact::writer::{About, ArtifactWriter};
use deepfuse_runtime::pool::Pinning;
use deepfuse_runtime::{Artifact, Limits, Options, Session};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

pub const VOCAB: u32 = 320;
pub const CONTEXT: u32 = 1000;
/// Bytes of a cache page.
pub const PAGE_BYTES: u64 = 64 * 16;

pub const PLAN: &str = "plan 1
vocab 320
state cache paged row 16
weight table bytes 2560
kernel embed family embed phases 2 bytes [0, 64, 0, 0, 0, 0, 0, 0] operations [0, 1, 0, 0, 0, 0, 0, 0]
kernel write family rope_cache phases 1 bytes [0, 80, 0, 0, 0, 0, 0, 0] operations [0, 0, 0, 0, 0, 0, 0, 0]
kernel head family linear phases 1 bytes [0, 0, 0, 1024, 1280, 0, 0, 0] operations [0, 0, 0, 0, 0, 0, 64, 0]
kernel head_long family linear phases 1 bytes [0, 0, 0, 1024, 1280, 0, 0, 0] operations [0, 0, 0, 0, 0, 0, 64, 0]
bucket long tokens 8..max queries 8..max context 1..max pages 1..4 {
  buffer %0 T offset 0 bytes 64
  buffer %1 T offset 64 bytes 64
  launch embed(ids, pos, $table, %0) label \"embed\"
  copy %0 -> %1 bytes 0
  launch write(%0, pos, seq, pages, page_start, @cache)
  launch head_long(rows, pos, seq, pages, page_start, @cache, logits) label \"head\"
}
bucket few tokens 1..2 queries 1..2 context 1..40 pages 1..max {
  buffer %0 T offset 128 bytes 64
  launch embed(ids, pos, $table, %0) label \"embed\"
  launch write(%0, pos, seq, pages, page_start, @cache)
  launch head(rows, pos, seq, pages, page_start, @cache, logits) label \"head\"
}
bucket general tokens 1..max queries 1..max context 1..max pages 1..max as few
";

fn table(id: u32) -> u64 {
    (u64::from(id) + 1).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Logits after a token sequence.
pub fn expected(ids: &[u32]) -> Vec<f32> {
    let mut h = 0u64;
    for (pos, id) in ids.iter().enumerate() {
        let x = table(*id).wrapping_add(1_000_003 * pos as u64);
        h = (h ^ x).wrapping_mul(0x0100_0000_01b3);
        h ^= h >> 29;
    }
    let logit = |v: u64| (h.wrapping_add(v).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / 16_777_216.0;
    (0..u64::from(VOCAB)).map(logit).collect()
}

/// The kernels as a shared object; compiled once a process.
pub fn kernels() -> &'static [u8] {
    static CODE: OnceLock<Vec<u8>> = OnceLock::new();
    CODE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (source, object) =
            (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/fake.c"), dir.path().join("fake.so"));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-nostdlib", "-fPIC", "-O1", "-fno-builtin", "-fno-stack-protector", "-o"]);
        let out = cc.arg(&object).arg(&source).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read(object).unwrap()
    })
}

/// What differs between the artifacts of the tests.
pub struct Kind<'a> {
    pub plan: &'a str,
    pub features: &'a [&'a str],
    pub tokenizer: Option<&'a Path>,
    pub weights: bool,
}

pub const PLAIN: Kind<'static> = Kind { plan: PLAN, features: &[], tokenizer: None, weights: true };

pub fn write(path: &Path, kind: &Kind<'_>) -> PathBuf {
    let mut w = ArtifactWriter::create(path, interrupt::flag()).unwrap();
    w.section(section::PLAN, "model.plan", kind.plan.as_bytes()).unwrap();
    w.section(section::CODE, "kernels-test.so", kernels()).unwrap();
    if let Some(dir) = kind.tokenizer {
        w.section(section::TOKENIZER, "tokenizer.json", &std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
        w.section(
            section::TOKENIZER_CONFIG,
            "tokenizer_config.json",
            &std::fs::read(dir.join("tokenizer_config.json")).unwrap(),
        )
        .unwrap();
    }
    if kind.weights {
        let decl = [WeightDecl { name: "table".into(), bytes: 2560, elements: Elements::all(Element::U8) }];
        let bytes: Vec<u8> = (0..VOCAB).flat_map(|id| table(id).to_le_bytes()).collect();
        let mut weights = w.weights(&decl, 1 << 20).unwrap();
        weights.append(0, &bytes).unwrap();
        weights.finish().unwrap();
    }
    w.finish(about(kind)).unwrap();
    path.to_owned()
}

fn about(kind: &Kind<'_>) -> About {
    About {
        toolchain: "test".into(),
        target: TargetInfo { name: "test".into(), features: kind.features.iter().map(|f| (*f).to_owned()).collect() },
        model: ModelInfo {
            architecture: "Hash".into(),
            layers: 1,
            hidden: 1,
            vocab: VOCAB,
            parameters: 50,
            active_parameters: 1,
        },
        context: CONTEXT,
        numerics: NumericsInfo {
            activations: "f32".into(),
            class: "exact".into(),
            quant: "none".into(),
            calibration: None,
        },
        fusion: FusionInfo::default(),
        tokens: TokensInfo { bos: Some(0), eos: vec![1, 2] },
    }
}

pub fn artifact() -> Arc<Artifact> {
    static ARTIFACT: OnceLock<Arc<Artifact>> = OnceLock::new();
    ARTIFACT
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            Arc::new(Artifact::open(&write(&dir.path().join("fake.dfz"), &PLAIN)).unwrap())
        })
        .clone()
}

pub fn options(threads: u32) -> Options {
    Options { threads, pinning: Pinning::Off, prefill_chunk: None, force_bucket: None, context: None, emulate: None }
}

pub fn limits(max_tokens: u32, max_sequences: u32, pages: u64) -> Limits {
    Limits { max_tokens, max_sequences, cache_bytes: pages * PAGE_BYTES }
}

pub fn session(limits: Limits, options: &Options) -> Session {
    Session::load(artifact(), limits, options).unwrap()
}

/// Ids that look random.
pub fn ids(seed: u64, n: usize) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let next = |_| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) as u32 % VOCAB
    };
    (0..n).map(next).collect()
}

/// A golden file of the fake model: greedy ids after a prompt, and all logits.
pub fn write_golden(path: &Path, prompt: &[u32], new: usize, change: impl Fn(usize, &mut Vec<f32>)) {
    let mut text = prompt.to_vec();
    let mut logits = vec![];
    for i in 0..prompt.len() + new - 1 {
        let row = expected(&text[..=i]);
        if i + 1 >= prompt.len() {
            text.push(deepfuse_runtime::sample::greedy(&row).unwrap());
        }
        let mut row = row;
        change(i, &mut row);
        logits.extend(row.iter().flat_map(|x| x.to_le_bytes()));
    }
    let wide = |ids: &[u32]| ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect::<Vec<u8>>();
    let (prefill, decode) = logits.split_at(prompt.len() * VOCAB as usize * 4);
    let tensors = [
        ("generated_ids", "I64", vec![new], wide(&text[prompt.len()..])),
        ("prompt_ids", "I64", vec![prompt.len()], wide(prompt)),
        ("prefill_logits", "F32", vec![prompt.len(), VOCAB as usize], prefill.to_vec()),
        ("decode_logits", "F32", vec![new - 1, VOCAB as usize], decode.to_vec()),
    ];
    let (mut header, mut data) = (serde_json::json!({"__metadata__": {"golden": "test"}}), vec![]);
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header[name] = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
    }
    let header = header.to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

/// A checkpoint of `tests/checkpoints`.
pub fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name)
}
