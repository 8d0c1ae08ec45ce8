use super::*;
use crate::types::Device;

pub const ATTRS: &[AttrSpec] = &[("device", AttrKind::Str)];

/// The same value on another device: `cpu0`, `gpu1`.
///
/// Errors: `ir::attribute` for a malformed device.
pub fn infer(t: &[&Type], a: &Attrs) -> Result<Vec<Type>, TypeError> {
    let text = str_of(a, "device");
    let device = device(text).ok_or_else(|| TypeError::new("ir::attribute", format!("transfer: `{text}` is no device")).help("write `cpu0` or `gpu1`"))?;
    Ok(vec![Type::Tensor(TensorType { device, ..tensor(t, 0)?.clone() })])
}

/// Parses `cpu0`, `gpu1`.
pub fn device(text: &str) -> Option<Device> {
    if let Some(n) = text.strip_prefix("cpu") {
        return n.parse().ok().map(Device::Cpu);
    }
    text.strip_prefix("gpu")?.parse().ok().map(Device::Gpu)
}

pub fn eval(x: &[&Tensor], _: &Attrs, _: &Sizes) -> Vec<Tensor> {
    vec![x[0].clone()]
}
