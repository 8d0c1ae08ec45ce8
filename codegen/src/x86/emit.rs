//! Module text -> object or assembly, by LLVM.

use crate::EmitError;
use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use std::sync::Once;

/// What to make of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    /// Assembly in AT&T syntax, `.s`.
    Assembly,
    /// LLVM IR after the passes, `.ll`.
    Ir,
}

/// Kernels are explicit vector code with explicit loops, so the passes clean up and schedule but never vectorise.
const PASSES: &str = "default<O2>";

/// Compiles module `text` for `features`. Each call has its own LLVM context, so calls may run in parallel.
pub fn compile(text: &str, features: &[String], form: Form) -> Result<Vec<u8>, EmitError> {
    let machine = machine(features)?;
    let context = Context::create();
    let module = parse(&context, text)?;
    let options = PassBuilderOptions::create();
    options.set_loop_vectorization(false);
    options.set_loop_slp_vectorization(false);
    options.set_loop_unrolling(false);
    options.set_loop_interleaving(false);
    module.run_passes(PASSES, &machine, options).map_err(|e| EmitError::Llvm(e.to_string()))?;
    if form == Form::Ir {
        return Ok(module.print_to_string().to_string().into_bytes());
    }
    let kind = if form == Form::Object { FileType::Object } else { FileType::Assembly };
    let bytes = machine.write_to_memory_buffer(&module, kind).map_err(|e| EmitError::Llvm(e.to_string()))?;
    let slice = bytes.as_slice();
    // LLVM keeps a zero byte behind text buffers.
    let end = if kind == FileType::Assembly { slice.iter().position(|b| *b == 0) } else { None };
    Ok(slice[..end.unwrap_or(slice.len())].to_vec())
}

fn machine(features: &[String]) -> Result<TargetMachine, EmitError> {
    static START: Once = Once::new();
    START.call_once(|| Target::initialize_x86(&InitializationConfig::default()));
    let triple = TargetTriple::create("x86_64-unknown-linux-gnu");
    let target = Target::from_triple(&triple).map_err(|e| EmitError::Llvm(e.to_string()))?;
    target
        .create_target_machine(
            &triple,
            "x86-64",
            &feature_string(features),
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Small,
        )
        .ok_or_else(|| EmitError::Llvm("LLVM has no x86-64 target machine".into()))
}

fn parse<'c>(context: &'c Context, text: &str) -> Result<Module<'c>, EmitError> {
    let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "kernel");
    context.create_module_from_ir(buffer).map_err(|e| EmitError::Text { message: e.to_string() })
}

/// `+avx2,+fma`.
pub fn feature_string(features: &[String]) -> String {
    let list: Vec<String> = features.iter().map(|f| format!("+{f}")).collect();
    list.join(",")
}
