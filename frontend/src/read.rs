//! Weights as values of the reference evaluator.

use crate::error::{Code, Error, Result};
use crate::model::{Model, Weight};
use crate::safetensors::StoredType;
use deepfuse_ir::tensor::{Data, e4m3_value};
use deepfuse_ir::weights::source_names;
use deepfuse_ir::{DType, Quant, Tensor};
use half::{bf16, f16};

impl Model {
    /// Reads a source of the graph, `model.layers.3.mlp.experts.{0..256}.up_proj.weight`, with block scales applied in f32.
    ///
    /// This is for tests and small models: the whole tensor becomes f32 in memory.
    pub fn read(&self, source: &str) -> Result<Tensor> {
        let names = source_names(source);
        let mut values = vec![];
        let mut shape = vec![];
        let mut dtype = DType::F32;
        for name in &names {
            let w = self.weight(name)?;
            dtype = dtype_of(&w)?;
            shape = w.view.shape.iter().map(|d| *d as usize).collect();
            widen(&w, &mut values);
        }
        if names.len() != 1 || names[0] != source {
            shape.insert(0, names.len());
        }
        if matches!(dtype, DType::Quant(_)) {
            Ok(Tensor { dtype, shape, data: Data::Float(values) })
        } else {
            Ok(Tensor::float(dtype, &shape, values))
        }
    }
}

fn dtype_of(w: &Weight) -> Result<DType> {
    match w.view.dtype {
        StoredType::F32 => Ok(DType::F32),
        StoredType::Bf16 => Ok(DType::Bf16),
        StoredType::F16 => Ok(DType::F16),
        StoredType::F8E4m3 => Ok(DType::Quant(Quant::FP8_B128)),
        other => Err(Error::new(Code::TensorDtype, "no weight has this type")
            .file(w.view.file)
            .tensor(w.view.name)
            .values("BF16, F16, F32 or F8_E4M3", other.name())),
    }
}

fn widen(w: &Weight, out: &mut Vec<f32>) {
    let bytes = w.view.bytes;
    let words = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match (w.view.dtype, &w.scales) {
        (StoredType::F32, _) => out.extend(floats(bytes)),
        (StoredType::Bf16, _) => out.extend(words().map(|b| bf16::from_bits(b).to_f32())),
        (StoredType::F16, _) => out.extend(words().map(|b| f16::from_bits(b).to_f32())),
        (_, Some(scales)) => {
            let (cols, across) = (w.view.shape[1] as usize, scales.shape[1] as usize);
            let scales: Vec<f32> = floats(scales.bytes).collect();
            let scale = |i: usize| scales[i / cols / 128 * across + i % cols / 128];
            out.extend(bytes.iter().enumerate().map(|(i, code)| e4m3_value(*code) * scale(i)));
        }
        (_, None) => {}
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
