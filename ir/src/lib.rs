//! Types, graph, operators, text form, verifier and reference evaluator of deepfuse.
//!
//! One graph describes one step of a model over a ragged batch. It is text first: [`text::parse`] and [`Graph`]'s `Display` are
//! inverse to each other. [`eval`] is the reference that every kernel and every rewrite is compared with.

pub mod bucket;
pub mod cost;
pub mod eval;
pub mod graph;
pub mod kernel;
pub mod ops;
pub mod premise;
pub mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod types;
pub mod values;
pub mod verify;
pub mod weights;

pub use bucket::Bucket;
pub use graph::{Attr, Attrs, Float, Graph, Node, Param, ParamKind, ValueId};
pub use kernel::{
    Answer, AttrsExt, Call, Catalog, Chain, Family, Isa, KernelSpec, Layout, Link, Operand, Target, Variant,
};
pub use ops::{Op, TypeError};
pub use tensor::Tensor;
pub use types::{
    Code, DType, Device, Dim, Expressed, PAGE_TOKENS, Quant, RowLayout, ScaleType, Sizes, StateKind, StateType, Symbol,
    TensorType, Type,
};
