//! Estimated time.

use crate::Nanos;
use deepfuse_ir::{KernelSpec, Target, Variant};

pub fn estimate(_spec: &KernelSpec, _variant: &Variant, target: &Target) -> Nanos {
    target.launch
}
