use super::*;
use crate::types::Device;

pub const ATTRS: &[AttrSpec] = &[("device", AttrKind::Str)];

/// The same value on another device: `cpu0`, `gpu1`.
///
/// Errors: `ir::attribute` for a malformed device.
/// Source: `.to(device)`.
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

#[cfg(test)]
mod tests {
    use crate::ops::cases::{gives, rejects};

    #[test]
    fn values() {
        gives("transfer", &["i32[T] = 1 2"], "device = gpu0", &["i32[T] on gpu0 = 1 2"]);
    }

    #[test]
    fn refused_types() {
        rejects("transfer", &["i32[T]"], "device = tpu0", "ir::attribute", "`tpu0` is no device");
        rejects("transfer", &["paged f32[2]"], "device = gpu0", "ir::dtype", "must be a tensor");
    }
}
