//! Variants of a kernel, the default first.
//!
//! | name | what | values |
//! |---|---|---|
//! | `rows`, `panels` | highest register tile: rows of activations x panels of 16 columns | by the number of vector registers |
//! | `group` | panels that all rows pass before the next ones; their weights (or a block of them) stay in L2 | 2 to 8 |
//! | `prefetch` | passes over the rows fetch the next group's weights meanwhile | 0, 1 |
//!
//! A kernel without a matrix has one variant without names.

use deepfuse_ir::kernel::packed_operands;
use deepfuse_ir::{DType, KernelSpec, Op, Target, Variant};

/// A point of the space.
#[derive(Clone, Copy)]
struct Point {
    rows: u32,
    panels: u32,
    group: u32,
    prefetch: u32,
}

pub fn variants(spec: &KernelSpec, target: &Target) -> Vec<Variant> {
    let Some(first) = packed_operands(spec.op).first().filter(|_| spec.op != Op::ExpertLinear) else {
        return vec![Variant::default()];
    };
    let default = default_point(spec, *first, target);
    let mut points = vec![default];
    let mut add = |p: Point| points.push(p);
    if target.lanes == 16 {
        // Fewer rows leave registers for more panels: better where the rows of an expert are few.
        for (rows, panels) in [(12, 2), (8, 2)] {
            add(Point { rows, panels, ..default });
        }
    }
    for group in [2, 8] {
        add(Point { group, ..default });
    }
    add(Point { prefetch: 0, ..default });
    points
        .iter()
        .map(|p| Variant::of(&[("rows", p.rows), ("panels", p.panels), ("group", p.group), ("prefetch", p.prefetch)]))
        .collect()
}

fn default_point(spec: &KernelSpec, matrix: usize, target: &Target) -> Point {
    let types = |i: usize| spec.inputs.get(i).and_then(deepfuse_ir::Operand::tensor);
    let weight = types(matrix).map_or(DType::F32, |t| t.dtype);
    let dot = target.has("avx512bf16")
        && matches!(weight, DType::Bf16 | DType::Quant(_))
        && types(0).is_some_and(|t| t.dtype == DType::Bf16);
    // Sums, one line of weights for each panel and one broadcast must fit the vector registers: 32 of 16 lanes with AVX-512,
    // 16 of 8 with AVX2 (a panel takes two), 16 of 4 below (a panel takes four).
    let (rows, panels) = match (target.lanes, dot, weight) {
        (16, true, _) => (6, 4),
        (16, false, DType::F32) => (6, 2),
        (16, false, _) => (8, 2),
        (8, _, DType::F32) => (2, 1),
        (8, ..) => (4, 1),
        _ => (2, 1),
    };
    Point { rows, panels, group: 4, prefetch: 1 }
}
