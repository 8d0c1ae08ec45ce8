//! A small artifact to read, write and damage.
#![allow(clippy::unwrap_used, dead_code)]

use deepfuse_artifact::elements::{Element, Elements};
use deepfuse_artifact::manifest::*;
use deepfuse_artifact::weights::WeightDecl;
use deepfuse_artifact::writer::{About, ArtifactWriter};
use deepfuse_artifact::{Error, interrupt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

pub const PLAN: &str = "plan 1
vocab 16
state latent paged row 64
weight table bytes 1000
weight gain bytes 64
weight experts bytes 4160
kernel k family embed phases 1 bytes [0, 0, 0, 0, 0, 0, 0, 0] operations [0, 0, 0, 0, 0, 0, 0, 0]
bucket all tokens 1..max queries 1..max context 1..max pages 1..max {
  launch k(ids, logits)
}
";

pub fn about() -> About {
    About {
        toolchain: "deepfuse 0.1.0".into(),
        target: TargetInfo { name: "x86-avx2".into(), features: vec!["avx2".into()] },
        model: ModelInfo {
            architecture: "Test".into(),
            layers: 1,
            hidden: 8,
            vocab: 16,
            parameters: 99,
            active_parameters: 9,
        },
        context: 4096,
        numerics: NumericsInfo {
            activations: "f32".into(),
            class: "reassociates".into(),
            quant: "none".into(),
            calibration: None,
        },
        fusion: FusionInfo::default(),
        tokens: TokensInfo { bos: Some(0), eos: vec![1, 2] },
    }
}

pub fn decls() -> Vec<WeightDecl> {
    let quantized = Elements::runs(&[(Element::F8E4m3, 1024), (Element::F32, 16)]).unwrap();
    vec![
        WeightDecl { name: "table".into(), bytes: 1000, elements: Elements::all(Element::Bf16) },
        WeightDecl { name: "gain".into(), bytes: 64, elements: Elements::all(Element::F32) },
        WeightDecl { name: "experts".into(), bytes: 4160, elements: quantized },
    ]
}

pub fn content(i: usize, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|j| (j * 7 + i as u64 * 13) as u8 & 0x3f).collect()
}

pub fn write_sections(w: &mut ArtifactWriter) -> Result<(), Error> {
    w.section(section::PLAN, "plan", PLAN.as_bytes())?;
    w.section(section::CODE, "kernels-x86-avx2.so", &[7; 5000])?;
    w.section(section::TOKENIZER, "tokenizer.json", b"{}")
}

pub fn write(path: &Path, max_file_bytes: u64, chunk: usize, stop: &'static AtomicBool) -> Result<Manifest, Error> {
    let mut w = ArtifactWriter::create(path, stop)?;
    write_sections(&mut w)?;
    let decls = decls();
    let mut weights = w.weights(&decls, max_file_bytes)?;
    for (i, d) in decls.iter().enumerate() {
        for part in content(i, d.bytes).chunks(chunk) {
            weights.append(i, part)?;
        }
    }
    weights.finish()?;
    w.finish(about())
}

pub fn write_default(path: &Path) -> Manifest {
    write(path, 1 << 20, 100, interrupt::flag()).unwrap()
}

/// All files of a directory with their content.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.file_type().unwrap().is_file())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
