//! A checkpoint: configuration and mapped weights that agree with each other.

use crate::check::check;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::safetensors::StoredType;
use crate::shards::{Shards, TensorView};
use crate::tensors::{Expected, Parameters, Role, expected, parameters};
use deepfuse_ir::{DType, Dim, Quant, Sizes, Symbol, TensorType};
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

/// Weights of one stored type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeUse {
    pub dtype: DType,
    pub tensors: u64,
    pub elements: u64,
    pub bytes: u64,
}

impl Model {
    /// Opens a checkpoint directory: `config.json`, `generation_config.json` if there, and the weights, whose presence, types
    /// and shapes are checked against the configuration. Weights are mapped and not read.
    pub fn open(dir: &Path) -> Result<Self> {
        let meta = std::fs::metadata(dir).map_err(|e| Error::io(dir, &e))?;
        if !meta.is_dir() {
            return Err(Error::new(Code::NotAFile, "a checkpoint is a directory")
                .file(dir)
                .help("give the directory that holds config.json"));
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
        let (dir, file) =
            if is_dir { (path, path.join("config.json")) } else { (path.parent().unwrap_or(path), path.to_owned()) };
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
        found.ok_or_else(|| {
            Error::new(Code::TensorMissing, "the checkpoint does not hold this tensor").file(&self.dir).tensor(name)
        })
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

    /// How many tensors, elements and bytes are stored in each type, block scales included; the order is that of the types.
    pub fn types(&self) -> Vec<TypeUse> {
        let mut uses: BTreeMap<DType, TypeUse> = BTreeMap::new();
        for e in expected(&self.config) {
            let dtype = self.dtype(&e.name, e.role);
            let ty = TensorType::new(dtype, e.shape.iter().copied().map(Dim::fixed));
            let sizes = Sizes([1; Symbol::COUNT]);
            let sum = uses.entry(dtype).or_insert(TypeUse { dtype, tensors: 0, elements: 0, bytes: 0 });
            sum.tensors += 1;
            sum.elements = sum.elements.saturating_add(ty.elements(&sizes));
            sum.bytes = sum.bytes.saturating_add(ty.bytes(&sizes));
        }
        uses.into_values().collect()
    }

    /// Drops the resident pages of a tensor; reading it again is legal and costs a read.
    pub fn release(&self, name: &str) {
        if let Some(t) = &self.tensors {
            t.release(name);
        }
    }

    /// Reads all block scales and refuses NaN, infinite, zero and negative ones.
    pub fn check_scales(&self) -> Result<()> {
        let Some(shards) = &self.tensors else { return Ok(()) };
        let is_code =
            |e: &Expected| e.role.is_quantized() && shards.get(&e.name).is_some_and(|v| v.dtype == StoredType::F8E4m3);
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
            return Err(Error::new(
                Code::ScaleValue,
                format!("the scale of block [{}, {}] is no scale", i / width, i % width),
            )
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
    let words = |mask: u16, infinity: u16| {
        bytes.chunks_exact(2).filter(|b| u16::from_le_bytes([b[0], b[1]]) & mask > infinity).count() as u64
    };
    match dtype {
        StoredType::Bf16 => words(0x7fff, 0x7f80),
        StoredType::F16 => words(0x7fff, 0x7c00),
        StoredType::F32 => {
            bytes.chunks_exact(4).filter(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_nan()).count() as u64
        }
        // One pattern a sign: e4m3 has no infinities.
        StoredType::F8E4m3 => bytes.iter().filter(|b| **b & 0x7f == 0x7f).count() as u64,
        _ => 0,
    }
}
