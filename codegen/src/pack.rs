//! Matrix weights into the stored layout of the GEMM kernels (`Layout::Vnni`); no LLVM here.
//!
//! A matrix `w[N, K]` becomes panels of 16 rows: `[ceil(N/16)][Kp/2][16][2]` with `Kp = ceil(K/32)*32`, zero padded. The packer
//! works panel by panel, so a caller can stream a matrix of any size through one small buffer.

/// Rows of a panel.
pub const PANEL: usize = 16;

/// `K` rounded up to the depth of one AMX tile.
pub fn padded_depth(k: usize) -> usize {
    k.next_multiple_of(32)
}

/// Bytes of one panel of a matrix with `k` columns of `element` bytes.
pub fn panel_bytes(k: usize, element: usize) -> usize {
    PANEL * padded_depth(k) * element
}

/// Bytes of the packed elements or codes of a matrix `[n, k]`, without scales.
pub fn codes_bytes(n: usize, k: usize, element: usize) -> usize {
    n.div_ceil(PANEL) * panel_bytes(k, element)
}

/// Bytes of a packed matrix: codes, then `scales` f32 block scales from a 64-byte border, then up to a 64-byte border.
pub fn matrix_bytes(n: usize, k: usize, element: usize, scales: usize) -> usize {
    codes_bytes(n, k, element).next_multiple_of(64) + (scales * 4).next_multiple_of(64)
}

/// Packs up to 16 rows into one panel.
///
/// * `rows`: row `i` starts at `i * stride` bytes and has `k * element` bytes; `count` rows are there
/// * `panel`: [`panel_bytes`] bytes, overwritten
///
/// `element` is 1, 2 or 4.
pub fn panel(rows: &[u8], stride: usize, count: usize, k: usize, element: usize, panel: &mut [u8]) {
    assert!(count <= PANEL, "a panel has at most 16 rows");
    assert_eq!(panel.len(), panel_bytes(k, element), "panel of another size");
    match element {
        1 => pack::<2>(rows, stride, count, k, panel),
        2 => pack::<4>(rows, stride, count, k, panel),
        4 => pack::<8>(rows, stride, count, k, panel),
        _ => unreachable!("elements have 1, 2 or 4 bytes"),
    }
}

/// `PAIR` is the size of two elements: the unit that moves.
fn pack<const PAIR: usize>(rows: &[u8], stride: usize, count: usize, k: usize, panel: &mut [u8]) {
    // 32 pairs of 16 rows fit the L1 cache for every element size, and so do their 16 sources.
    const BLOCK: usize = 32;
    let pairs = k / 2;
    let used = k.div_ceil(2) * PANEL * PAIR;
    panel[used..].fill(0);
    if count < PANEL || k % 2 == 1 {
        panel[..used].fill(0);
    }
    for first in (0..pairs).step_by(BLOCK) {
        let here = BLOCK.min(pairs - first);
        let out = &mut panel[first * PANEL * PAIR..(first + here) * PANEL * PAIR];
        for i in 0..count {
            let row = &rows[i * stride + first * PAIR..][..here * PAIR];
            for (line, pair) in out.chunks_exact_mut(PANEL * PAIR).zip(row.chunks_exact(PAIR)) {
                line[i * PAIR..(i + 1) * PAIR].copy_from_slice(pair);
            }
        }
    }
    if k % 2 == 1 {
        let half = PAIR / 2;
        for i in 0..count {
            let last = &rows[i * stride + pairs * PAIR..][..half];
            panel[(pairs * PANEL + i) * PAIR..][..half].copy_from_slice(last);
        }
    }
}

/// Packs a whole dense matrix `[n, k]`; see [`matrix_bytes`]. `scales` is the row-major block-scale table, empty without one.
pub fn matrix(dense: &[u8], n: usize, k: usize, element: usize, scales: &[f32]) -> Vec<u8> {
    let mut out = vec![0; matrix_bytes(n, k, element, scales.len())];
    let (stride, size) = (k * element, panel_bytes(k, element));
    for p in 0..n.div_ceil(PANEL) {
        let count = PANEL.min(n - p * PANEL);
        let rows = &dense[p * PANEL * stride..][..count * stride];
        panel(rows, stride, count, k, element, &mut out[p * size..(p + 1) * size]);
    }
    let start = codes_bytes(n, k, element).next_multiple_of(64);
    for (slot, scale) in out[start..].chunks_exact_mut(4).zip(scales) {
        slot.copy_from_slice(&scale.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_lands_in_its_place() {
        for (n, k) in [(1, 1), (16, 32), (17, 33), (31, 70), (48, 129)] {
            let dense: Vec<u8> = (0..n * k).flat_map(|i| (i as u16 + 1).to_le_bytes()).collect();
            let packed = matrix(&dense, n, k, 2, &[]);
            let at = |row: usize, col: usize| {
                let line = (row / 16) * (padded_depth(k) / 2) + col / 2;
                let byte = (line * 32 + (row % 16) * 2 + col % 2) * 2;
                u16::from_le_bytes([packed[byte], packed[byte + 1]])
            };
            for row in 0..n.next_multiple_of(16) {
                for col in 0..padded_depth(k) {
                    let want = if row < n && col < k { (row * k + col) as u16 + 1 } else { 0 };
                    assert_eq!(at(row, col), want, "{n}x{k} at {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn scales_follow_the_codes() {
        let packed = matrix(&[7; 20 * 40], 20, 40, 1, &[1.5, 2.5]);
        assert_eq!(packed.len(), 2 * 16 * 64 + 64);
        assert_eq!(packed[2048..2056], [1.5f32.to_le_bytes(), 2.5f32.to_le_bytes()].concat());
    }
}
