//! Text form of a graph: [`print()`] and [`parse()`] are inverse to each other.
//!
//! ```text
//! graph @mlp(
//!   %x: bf16[T, 7168],                                                  // given with each step
//!   weight %gate: fp8b128[2048, 7168] @ "model.layers.3.mlp.gate_proj.weight",
//!   state @kv.3: paged bf16[576],                                       // lives from step to step
//! ) -> bf16[T, 2048] {
//!   %0 = linear %x, %gate : bf16[T, 2048]  // a comment belongs to the node before it
//!   %1, %2 = top_k %0 {k = 8} : bf16[T, 8], i32[T, 8]
//!   ---- cut
//!   return %0
//! }
//! ```
//!
//! * Names: `%name` for values, `@name` for states and the graph. A name that is no word is quoted: `%"0"`.
//! * Node results are numbered from `%0` in the printed form; the parser takes any name.
//! * Types are always written: `bf16[T, 64*P+1]`, `paged bf16[576]`, ` on gpu0` where the device is not the default.
//! * Attributes: `{k = 8, eps = 1e-6, by = top2, eq = "tnd,xnd->tnx", shape = [T, 16, 192], axes = [0, 2, 1], dtype = f32}`.
//!   The op table says which kind an attribute has, so `[0, 2, 1]` is a shape or a list of integers by its name alone.
//! * White space and line ends carry no meaning, except that a comment belongs to the node on its line.

mod cursor;
mod error;
mod lex;
mod names;
mod node;
mod parse;
mod print;
mod value;

pub use error::ParseError;
pub(crate) use error::{list, marked, nearest, rule_message};
pub use names::Names;
pub use parse::{MAX_ERRORS, MAX_RANK, MAX_TEXT_BYTES, parse, parse_unchecked};
pub use print::{Line, node_line, print};
pub(crate) use print::{header_lines, param_text, type_of};

#[cfg(test)]
mod tests;
