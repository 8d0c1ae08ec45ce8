//! Variants of a kernel, the default first.

use deepfuse_ir::{KernelSpec, Target, Variant};

pub fn variants(_spec: &KernelSpec, _target: &Target) -> Vec<Variant> {
    vec![Variant::default()]
}
