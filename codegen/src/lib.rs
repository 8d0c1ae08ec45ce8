//! Emits kernels: x86 through LLVM.
