//! A checkpoint: configuration and mapped weights that agree with each other.

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::safetensors::StoredType;
use crate::shards::{Shards, TensorView};
use crate::tensors::{Expected, Parameters, Role, expected, parameters};
use deepfuse_ir::{DType, Quant};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A checkpoint that was opened and checked.
#[derive(Debug)]
pub struct Model {
    pub dir: PathBuf,
    pub config: Config,
    /// `None`: opened from `config.json` alone.
    pub tensors: Option<Shards>,
    /// What was seen and left out, one line each.
    pub notices: Vec<String>,
}

/// A projection as stored: codes or floats, and the block scales of the codes.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    pub view: TensorView<'a>,
    /// f32 `[ceil(N/128), ceil(K/128)]`; `value = code * scale`.
    pub scales: Option<TensorView<'a>>,
}

impl Model {
    /// Opens a checkpoint directory: `config.json`, `generation_config.json` if there, and the weights, whose presence, types
    /// and shapes are checked against the configuration. Weights are mapped and not read.
    pub fn open(dir: &Path) -> Result<Self> {
        let meta = std::fs::metadata(dir).map_err(|e| Error::io(dir, &e))?;
        if !meta.is_dir() {
            return Err(Error::new(Code::NotAFile, "a checkpoint is a directory").file(dir).help("give the directory that holds config.json"));
        }
        let mut model = Self::open_config(dir)?;
        let shards = Shards::open(dir)?;
        model.notices.extend(shards.notices().iter().cloned());
        check(&model.config, &shards, &mut model.notices)?;
        model.tensors = Some(shards);
        Ok(model)
    }

    /// Opens the configuration alone; `path` is a `config.json` or the directory that holds it.
    pub fn open_config(path: &Path) -> Result<Self> {
        let is_dir = std::fs::metadata(path).is_ok_and(|m| m.is_dir());
        let (dir, file) = if is_dir { (path, path.join("config.json")) } else { (path.parent().unwrap_or(path), path.to_owned()) };
        let mut config = Config::open(&file)?;
        let generation = dir.join("generation_config.json");
        if generation.exists() {
            config.add_generation(&generation)?;
        }
        let notices = config.notices.clone();
        Ok(Self { dir: dir.to_owned(), config, tensors: None, notices })
    }

    pub fn parameters(&self) -> Parameters {
        parameters(&self.config)
    }

    /// A tensor of the checkpoint by its full name.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let found = self.tensors.as_ref().and_then(|t| t.get(name));
        found.ok_or_else(|| Error::new(Code::TensorMissing, "the checkpoint does not hold this tensor").file(&self.dir).tensor(name))
    }

    /// A tensor and, if it is FP8, its block scales.
    pub fn weight(&self, name: &str) -> Result<Weight<'_>> {
        let view = self.tensor(name)?;
        let quantized = view.dtype == StoredType::F8E4m3;
        let scales = quantized.then(|| self.tensor(&format!("{name}_scale_inv"))).transpose()?;
        Ok(Weight { view, scales })
    }

    /// The type in which the graph sees a tensor: as stored, or, without weights, as the configuration says.
    pub fn dtype(&self, name: &str, role: Role) -> DType {
        match self.tensors.as_ref().and_then(|t| t.get(name)).map(|v| v.dtype) {
            Some(StoredType::F32) => DType::F32,
            Some(StoredType::F16) => DType::F16,
            Some(StoredType::F8E4m3) => DType::Quant(Quant::FP8_B128),
            Some(_) => DType::Bf16,
            None if role == Role::RouterBias => DType::F32,
            None if role.is_quantized() && self.config.quantization.is_some() => DType::Quant(Quant::FP8_B128),
            None => self.config.dtype,
        }
    }

    /// Reads all block scales and refuses NaN, infinite, zero and negative ones.
    pub fn check_scales(&self) -> Result<()> {
        let Some(shards) = &self.tensors else { return Ok(()) };
        let is_code = |e: &Expected| e.role.is_quantized() && shards.get(&e.name).is_some_and(|v| v.dtype == StoredType::F8E4m3);
        for e in expected(&self.config).filter(is_code) {
            check_scales(&self.tensor(&format!("{}_scale_inv", e.name))?)?;
        }
        Ok(())
    }
}

/// Refuses NaN, infinite, zero and negative values in one tensor of f32 block scales.
pub fn check_scales(scales: &TensorView) -> Result<()> {
    let width = scales.shape.last().copied().unwrap_or(1).max(1) as usize;
    for (i, bytes) in scales.bytes.chunks_exact(4).enumerate() {
        let x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if !(x.is_finite() && x > 0.0) {
            return Err(Error::new(Code::ScaleValue, format!("the scale of block [{}, {}] is no scale", i / width, i % width))
                .file(scales.file)
                .tensor(scales.name)
                .values("a finite number above 0", format!("{x:?}"))
                .help("the checkpoint is damaged, or its conversion to FP8 failed"));
        }
    }
    Ok(())
}

/// Number of NaNs among stored elements; for a warning while weights are streamed, so `bytes` may be any whole number of elements.
pub fn count_nan(dtype: StoredType, bytes: &[u8]) -> u64 {
    let words = |mask: u16, infinity: u16| bytes.chunks_exact(2).filter(|b| u16::from_le_bytes([b[0], b[1]]) & mask > infinity).count() as u64;
    match dtype {
        StoredType::Bf16 => words(0x7fff, 0x7f80),
        StoredType::F16 => words(0x7fff, 0x7c00),
        StoredType::F32 => bytes.chunks_exact(4).filter(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_nan()).count() as u64,
        // One pattern a sign: e4m3 has no infinities.
        StoredType::F8E4m3 => bytes.iter().filter(|b| **b & 0x7f == 0x7f).count() as u64,
        _ => 0,
    }
}

/// Compares the weights with the configuration. Extra tensors end in `notices`.
fn check(config: &Config, shards: &Shards, notices: &mut Vec<String>) -> Result<()> {
    let mut used = vec![false; shards.len()];
    let mut missing = Missing::default();
    let mut stack: Option<(String, StoredType)> = None;
    for e in expected(config) {
        let Some(view) = shards.get(&e.name) else {
            missing.add(&e.name);
            if missing.count > shards.len() + 1000 {
                break;
            }
            continue;
        };
        mark(&mut used, shards, &e.name);
        check_tensor(config, &e, &view)?;
        check_stack(&e, &view, &mut stack)?;
        if view.dtype == StoredType::F8E4m3 {
            let name = format!("{}_scale_inv", e.name);
            match shards.get(&name) {
                None => missing.add(&name),
                Some(scales) => check_scale_shape(&e, &scales)?,
            }
            mark(&mut used, shards, &name);
        }
    }
    missing.finish(config, shards)?;
    let extra = shards.iter().zip(used).filter(|(_, used)| !used).map(|(v, _)| v.name);
    extras(config, extra.collect(), shards, notices)
}

fn mark(used: &mut [bool], shards: &Shards, name: &str) {
    if let Some(i) = shards.index_of(name) {
        used[i] = true;
    }
}

#[derive(Default)]
struct Missing {
    count: usize,
    first: Vec<String>,
}

impl Missing {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.first.len() < 3 {
            self.first.push(name.to_owned());
        }
    }

    fn finish(self, config: &Config, shards: &Shards) -> Result<()> {
        let Some(first) = self.first.first() else { return Ok(()) };
        let message = if self.count == 1 { "a tensor is missing".into() } else { format!("{} tensors are missing, the first: {}", self.count, self.first.join(", ")) };
        let e = Error::new(Code::TensorMissing, message).tensor(first);
        let e = match shards.files().next() {
            Some(path) => e.file(path.parent().unwrap_or(path)),
            None => e,
        };
        Err(e.help(format!("is every shard here, and does config.json ({} layers, {}) belong to these weights?", config.layers, config.model_type())))
    }
}

fn check_tensor(config: &Config, e: &Expected, view: &TensorView) -> Result<()> {
    if !e.role.allows(view.dtype) {
        let allowed = if e.role.is_quantized() { "one of: BF16, F16, F32, F8_E4M3" } else { "one of: BF16, F16, F32" };
        return Err(Error::new(Code::TensorDtype, "wrong element type").file(view.file).tensor(&e.name).values(allowed, view.dtype.name()));
    }
    if view.dtype == StoredType::F8E4m3 && config.quantization.is_none() {
        return Err(Error::new(Code::TensorDtype, "FP8 weights, but config.json has no quantization_config")
            .file(view.file)
            .tensor(&e.name)
            .values("one of: BF16, F16, F32", view.dtype.name()));
    }
    if e.shape != view.shape {
        return Err(Error::new(Code::TensorShape, "the shape contradicts config.json")
            .file(view.file)
            .tensor(&e.name)
            .values(format!("{:?} = {}", e.shape, e.formula), format!("{:?}", view.shape))
            .help("config.json belongs to another model, or one of these fields was edited"));
    }
    Ok(())
}

/// The experts of one layer are one value of the graph, so they have one type.
fn check_stack(e: &Expected, view: &TensorView, stack: &mut Option<(String, StoredType)>) -> Result<()> {
    if e.role != Role::Expert {
        *stack = None;
        return Ok(());
    }
    let projection = |name: &str| {
        let mut parts: Vec<&str> = name.split('.').collect();
        parts.remove(5); // model.layers.3.mlp.experts.7.up_proj.weight
        parts.join(".")
    };
    let key = projection(&e.name);
    match stack {
        Some((name, dtype)) if *name == key => {
            if *dtype == view.dtype {
                return Ok(());
            }
            Err(Error::new(Code::TensorDtype, "the experts of a layer must have one element type")
                .file(view.file)
                .tensor(&e.name)
                .values(dtype.name(), view.dtype.name()))
        }
        _ => {
            *stack = Some((key, view.dtype));
            Ok(())
        }
    }
}

fn check_scale_shape(e: &Expected, scales: &TensorView) -> Result<()> {
    let error = |code, message: &str| Error::new(code, message).file(scales.file).tensor(scales.name);
    if scales.dtype != StoredType::F32 {
        return Err(error(Code::TensorDtype, "block scales have the wrong element type").values("F32", scales.dtype.name()));
    }
    let blocks = Quant::FP8_B128.blocks(e.shape[0], e.shape[1]);
    if scales.shape != blocks {
        return Err(error(Code::TensorShape, "block scales have the wrong shape")
            .values(format!("{blocks:?} = [ceil({}/128), ceil({}/128)]", e.shape[0], e.shape[1]), format!("{:?}", scales.shape)));
    }
    Ok(())
}

/// Number of the layer that a name belongs to.
fn layer_of(name: &str) -> Option<u64> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Sorts out tensors that the model does not use: MTP layers and known leftovers pass with a notice; a whole layer that is no MTP
/// layer means that `num_hidden_layers` is wrong.
fn extras(config: &Config, names: Vec<&str>, shards: &Shards, notices: &mut Vec<String>) -> Result<()> {
    let mut mtp: BTreeMap<u64, usize> = BTreeMap::new();
    let mut unknown = vec![];
    for name in names {
        match layer_of(name).filter(|i| *i >= config.layers) {
            Some(i) => *mtp.entry(i).or_default() += 1,
            None if name.ends_with(".rotary_emb.inv_freq") => {}
            None if name == "lm_head.weight" => notices.push("lm_head.weight ignored: tie_word_embeddings is true".into()),
            None => unknown.push(name),
        }
    }
    for (i, count) in mtp {
        if shards.get(&format!("model.layers.{i}.eh_proj.weight")).is_none() {
            return Err(Error::new(Code::ConfigField, format!("the checkpoint has {count} tensors of layer {i}, which is no MTP layer"))
                .file(&shards.files().next().and_then(Path::parent).unwrap_or(Path::new("")).join("config.json"))
                .field("num_hidden_layers")
                .values(format!("more than {i}"), config.layers.to_string()));
        }
        notices.push(format!("layer {i} is for multi-token prediction: its {count} tensors are left out"));
    }
    if let Some(first) = unknown.first() {
        notices.push(format!("{} tensors are unknown to {} and ignored, the first: {first}", unknown.len(), config.model_type()));
    }
    Ok(())
}
