//! Compares weights with the configuration that they belong to.

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::safetensors::StoredType;
use crate::shards::{Shards, TensorView};
use crate::tensors::{Expected, Role, expected};
use deepfuse_ir::Quant;
use std::collections::BTreeMap;
use std::path::Path;

/// With as many tensors missing as the checkpoint has, and this many more, the rest need not be counted: a hostile configuration
/// may ask for millions.
const MANY: usize = 1000;

/// Compares the weights with the configuration. Extra tensors end in `notices`.
pub(crate) fn check(config: &Config, shards: &Shards, notices: &mut Vec<String>) -> Result<()> {
    let mut used = vec![false; shards.len()];
    let mut missing = Missing::default();
    let mut stack: Option<(String, StoredType)> = None;
    for e in expected(config) {
        let Some(view) = shards.get(&e.name) else {
            missing.add(&e.name);
            if missing.count > shards.len() + MANY {
                missing.more = true;
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
    /// Counting stopped.
    more: bool,
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
        let message = if self.count == 1 {
            "a tensor is missing".into()
        } else {
            let more = if self.more { "or more " } else { "" };
            format!("{} {more}tensors are missing, the first: {}", self.count, self.first.join(", "))
        };
        let e = Error::new(Code::TensorMissing, message).tensor(first);
        let e = match shards.files().next() {
            Some(path) => e.file(path.parent().unwrap_or(path)),
            None => e,
        };
        Err(e.help(format!(
            "is every shard here, and does config.json ({} layers, {}) belong to these weights?",
            config.layers,
            config.model_type()
        )))
    }
}

fn check_tensor(config: &Config, e: &Expected, view: &TensorView) -> Result<()> {
    if !e.role.allows(view.dtype) {
        let allowed = if e.role.is_quantized() { "one of: BF16, F16, F32, F8_E4M3" } else { "one of: BF16, F16, F32" };
        return Err(Error::new(Code::TensorDtype, "wrong element type")
            .file(view.file)
            .tensor(&e.name)
            .values(allowed, view.dtype.name()));
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
        return Err(
            error(Code::TensorDtype, "block scales have the wrong element type").values("F32", scales.dtype.name())
        );
    }
    let blocks = Quant::FP8_B128.blocks(e.shape[0], e.shape[1]);
    if scales.shape != blocks {
        return Err(error(Code::TensorShape, "block scales have the wrong shape").values(
            format!("{blocks:?} = [ceil({}/128), ceil({}/128)]", e.shape[0], e.shape[1]),
            format!("{:?}", scales.shape),
        ));
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
            None if name == "lm_head.weight" => {
                notices.push("lm_head.weight ignored: tie_word_embeddings is true".into());
            }
            None => unknown.push(name),
        }
    }
    for (i, count) in mtp {
        if shards.get(&format!("model.layers.{i}.eh_proj.weight")).is_none() {
            return Err(Error::new(
                Code::ConfigField,
                format!("the checkpoint has {count} tensors of layer {i}, which is no MTP layer"),
            )
            .file(&shards.files().next().and_then(Path::parent).unwrap_or(Path::new("")).join("config.json"))
            .field("num_hidden_layers")
            .values(format!("more than {i}"), config.layers.to_string()));
        }
        notices.push(format!("layer {i} is for multi-token prediction: its {count} tensors are left out"));
    }
    if let Some(first) = unknown.first() {
        notices.push(format!(
            "{} tensors are unknown to {} and ignored, the first: {first}",
            unknown.len(),
            config.model_type()
        ));
    }
    Ok(())
}
