//! Lanes of 32 columns: loads, the interleaving of two rows, and the reduction of 16 vectors.

use crate::dsl::*;
use crate::mem::Mem;

/// Columns of the two vectors that [`unpacked`] makes of 32.
pub const UNPACKED: [u32; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[i] = (i as u32 / 4) * 8 + i as u32 % 4;
        order[16 + i] = order[i] + 4;
        i += 1;
    }
    order
};

/// Pairs `(a[c], b[c])` of bf16, columns in the order of [`UNPACKED`]: within each 128 bits, so it is one instruction a vector.
pub fn unpacked<'a>(a: Val<'a>, b: Val<'a>) -> [Val<'a>; 2] {
    [0, 16].map(|first| {
        let order: Vec<u32> = UNPACKED[first..first + 16].iter().flat_map(|c| [*c, 32 + c]).collect();
        a.shuffle(b, &order).bitcast(Ty::vec(Elem::Bf16, 32))
    })
}

/// 32 bf16, or the first `lanes` and zeros, as the dot product takes them.
pub fn bf16_lanes(m: Mem<'_>, lanes: u32) -> Val<'_> {
    let ty = Ty::vec(Elem::I16, 32);
    let bits = match lanes {
        32.. => m.base.load(ty, 2),
        1 => m.base.fx().zero(ty).with_lane(0, m.base.load(I16, 2)),
        _ => m.base.load_first(ty, lanes, 2),
    };
    bits.bitcast(Ty::vec(Elem::Bf16, 32))
}

/// Calls `body(offset, lanes)` for `0..n` in steps of 32, the last one with fewer lanes.
pub fn pieces<'a>(f: &'a Fx, n: u64, mut body: impl FnMut(Val<'a>, u32)) {
    let full = n / 32 * 32;
    if full > 0 {
        f.range(f.i(0), f.i(full), 32, |i| body(i, 32));
    }
    if n > full {
        body(f.i(full), (n - full) as u32);
    }
}

/// Lane `i` of the result is the lanes of `v[i]` reduced: a tree of 15 steps, each of which halves the lanes of two vectors.
pub fn reduce_16<'a>(v: &[Val<'a>], op: impl Fn(Val<'a>, Val<'a>) -> Val<'a>) -> Val<'a> {
    // What each step takes: the lanes of both vectors that are added to the lanes at the same place of the second list.
    let picks: [fn(u32) -> [u32; 2]; 4] = [
        |i| [if i < 8 { i } else { i + 8 }, if i < 8 { i + 8 } else { i + 16 }],
        |i| {
            let (lane, quarter) = (i % 4, i / 4);
            let first = [0, 8, 16, 24][quarter as usize] + lane;
            [first, first + 4]
        },
        |i| {
            let (quarter, place) = (i / 4 * 4, i % 4);
            let first = quarter + place % 2 + if place < 2 { 0 } else { 16 };
            [first, first + 2]
        },
        |i| {
            let (quarter, place) = (i / 4 * 4, i % 4);
            let first = quarter + place % 2 * 2 + if place < 2 { 0 } else { 16 };
            [first, first + 1]
        },
    ];
    // Follow which input ends in which lane, then feed the inputs so that each ends in its own.
    let mut labels: Vec<Vec<u32>> = (0..16).map(|i| vec![i; 16]).collect();
    for pick in picks {
        let join = |pair: &[Vec<u32>]| -> Vec<u32> {
            let both = [pair[0].clone(), pair[1].clone()].concat();
            (0..16).map(|i| both[pick(i)[0] as usize]).collect()
        };
        labels = labels.chunks_exact(2).map(join).collect();
    }
    let mut inputs = vec![v[0]; 16];
    for (lane, input) in labels[0].iter().enumerate() {
        inputs[*input as usize] = v[lane];
    }
    for pick in picks {
        let orders = [0, 1].map(|side| (0..16).map(|i| pick(i)[side]).collect::<Vec<u32>>());
        let join = |pair: &[Val<'a>]| op(pair[0].shuffle(pair[1], &orders[0]), pair[0].shuffle(pair[1], &orders[1]));
        inputs = inputs.chunks_exact(2).map(join).collect();
    }
    inputs[0]
}
