//! Text form of a kernel spec.

use super::{KernelSpec, Layout, Operand};
use crate::types::{Dim, Symbol, Type};
use std::fmt;

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ty)?;
        match &self.layout {
            Layout::Dense => {}
            Layout::Vnni => f.write_str(" vnni")?,
            Layout::Strided(strides) => write!(f, " strides {strides:?}")?,
        }
        f.write_str(if self.constant { " weight" } else { "" })
    }
}

/// A kernel's operation, whatever its bucket: `linear(bf16[T, 2048], bf16[576, 2048] vnni weight) -> bf16[T, 576]`.
impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attrs: Vec<String> = self.attrs.iter().map(|(name, a)| format!("{name} = {a}")).collect();
        let attrs = if attrs.is_empty() { String::new() } else { format!(" {{{}}}", attrs.join(", ")) };
        let inputs: Vec<String> = self.inputs.iter().map(ToString::to_string).collect();
        let outputs: Vec<String> = self.outputs.iter().map(ToString::to_string).collect();
        write!(f, "{}{attrs}({}) -> {}", self.op.name(), inputs.join(", "), outputs.join(", "))
    }
}

impl KernelSpec {
    /// The same kernel over activations without gaps.
    #[must_use]
    pub fn dense(&self) -> Self {
        let mut dense = self.clone();
        for o in dense.inputs.iter_mut().filter(|o| matches!(o.layout, Layout::Strided(_))) {
            o.layout = Layout::Dense;
        }
        dense
    }

    /// Symbols of its types; the pages of a paged state count as one.
    pub fn symbols(&self) -> Vec<Symbol> {
        let types = self.inputs.iter().map(|o| &o.ty).chain(&self.outputs);
        let dims: Vec<Dim> = types.filter_map(Type::tensor).flat_map(|t| t.shape.iter().copied()).collect();
        let used = |s: Symbol| dims.iter().any(|d| d.terms[s as usize] > 0);
        Symbol::ALL.into_iter().filter(|s| used(*s)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::graph::Attr;
    use crate::kernel::{Family, KernelSpec, Layout, Operand};
    use crate::ops::Op;
    use crate::types::{DType, Dim, Symbol, TensorType};
    use crate::{Bucket, Float};

    #[test]
    fn text_and_symbols() {
        let tensor = |dims: &[Dim]| TensorType::new(DType::Bf16, dims.iter().copied());
        let [t, n] = [Dim::symbol(Symbol::T), Dim::fixed(64)];
        let operand = |ty: TensorType, layout, constant| Operand { layout, constant, ..Operand::dense(ty.into()) };
        let spec = KernelSpec {
            family: Family::Linear,
            op: Op::NormLinear,
            attrs: [("eps", Attr::Float(Float(1e-6)))].into_iter().collect(),
            inputs: vec![
                operand(tensor(&[t, n]), Layout::Strided(vec![128, 1]), false),
                operand(tensor(&[n, n]), Layout::Vnni, true),
            ],
            outputs: vec![tensor(&[t, n]).into()],
            prologue: vec![],
            epilogue: vec![],
            bucket: Bucket::decode(),
        };
        let text = "norm_linear {eps = 1e-6}(bf16[T, 64] strides [128, 1], bf16[64, 64] vnni weight) -> bf16[T, 64]";
        assert_eq!(spec.to_string(), text);
        assert_eq!(spec.dense().to_string(), text.replace(" strides [128, 1]", ""));
        assert_eq!(spec.symbols(), [Symbol::T]);
    }
}
