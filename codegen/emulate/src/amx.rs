//! Intel AMX (palette 1: eight tiles of 16 rows of 64 bytes) in software.
//!
//! | file | question |
//! |---|---|
//! | `decode.rs` | which instruction is it, and where are its operands? |
//! | `config.rs` | what shape has each tile? |
//! | `tiles.rs` | what does the instruction do to tiles and memory, and when does it fault? |
//! | `dot.rs` | the dot products, to the bit |
//! | `trap.rs` | how do instructions in running code get here, and how do faults leave? |
//!
//! Source: Intel SDM volume 2, the pages of the instructions and exception classes AMX-E1 to AMX-E6. Instructions: `ldtilecfg`,
//! `sttilecfg`, `tilerelease`, `tilezero`, `tileloadd`, `tileloaddt1`, `tilestored`, `tdpbf16ps`, `tdpbssd`, `tdpbsud`, `tdpbusd`,
//! `tdpbuud`.

mod config;
mod decode;
mod dot;
mod fault;
mod tiles;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod trap;

pub use config::{Config, Shape};
pub use decode::{Address, Base, Decoded, Instruction, MAX_LENGTH, Product, Rejected, Segment, decode};
pub use fault::{Fault, Reason};
pub use tiles::{Machine, ROW_BYTES, ROWS, TILES, Tiles};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub use trap::{Counts, catch, executed, install};
