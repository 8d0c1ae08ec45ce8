//! Matrix weights into the stored layout of the GEMM kernels (`Layout::Vnni`); no LLVM here. Codes of int8 and int4 have panels of
//! their own, with their scales inside, so that a step reads one stream a panel.
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

/// `K` rounded up to the depth of a line group of int8 and int4 panels: 64 codes, one AMX row of int8.
pub fn padded_codes(k: usize) -> usize {
    k.next_multiple_of(64)
}

/// Bytes of one panel of int8 weights: `u8 [Kp/4, 16, 4]`, 16 f32 scales.
pub fn int8_panel_bytes(k: usize) -> usize {
    PANEL * padded_codes(k) + PANEL * 4
}

/// Bytes of a block of 64 columns of int4 weights: `f16 [2, 16]` scales, `u8 [2, 4, 16, 4]`.
pub const INT4_BLOCK: usize = 64 + 512;

/// Bytes of one panel of int4 weights.
pub fn int4_panel_bytes(k: usize) -> usize {
    padded_codes(k) / 64 * INT4_BLOCK
}

/// Packs up to 16 rows of int8 codes, one scale a row; a stored code is 128 above its value.
///
/// * `codes`: row after row of `k`      * `panel`: [`int8_panel_bytes`] bytes, overwritten
pub fn int8_panel(codes: &[i8], scales: &[f32], k: usize, panel: &mut [u8]) {
    assert_eq!(panel.len(), int8_panel_bytes(k), "panel of another size");
    let (lines, tail) = panel.split_at_mut(PANEL * padded_codes(k));
    tail.fill(0);
    if codes.len() < PANEL * k || !k.is_multiple_of(64) {
        lines.fill(128);
    }
    // 64 lines fit the L1 cache, and so do their 16 sources.
    const BLOCK: usize = 64;
    for (b, lines) in lines.chunks_mut(BLOCK * 64).enumerate() {
        for (i, row) in codes.chunks_exact(k).enumerate() {
            let (quads, rest) = row[(b * BLOCK * 4).min(k)..].as_chunks::<4>();
            let lines = lines.as_chunks_mut::<64>().0;
            for (line, quad) in lines.iter_mut().zip(quads) {
                line[i * 4..i * 4 + 4].copy_from_slice(&quad.map(above_128));
            }
            if let Some(line) = lines.get_mut(quads.len()) {
                line[i * 4..].iter_mut().zip(rest).for_each(|(byte, code)| *byte = above_128(*code));
            }
        }
    }
    for (slot, scale) in tail.chunks_exact_mut(4).zip(scales) {
        slot.copy_from_slice(&scale.to_le_bytes());
    }
}

fn above_128(code: i8) -> u8 {
    code.cast_unsigned() ^ 0x80
}

/// Packs up to 16 rows of int4 codes, one scale for 32 of a row; a stored code is 8 above its value.
///
/// * `codes`: row after row of `k`      * `scales`: row after row of `ceil(k/32)`, values of f16      * `panel`: [`int4_panel_bytes`] bytes, overwritten
pub fn int4_panel(codes: &[i8], scales: &[f32], k: usize, panel: &mut [u8]) {
    assert_eq!(panel.len(), int4_panel_bytes(k), "panel of another size");
    if codes.len() < PANEL * k || !k.is_multiple_of(64) {
        for block in panel.chunks_exact_mut(INT4_BLOCK) {
            block[..64].fill(0);
            block[64..].fill(0x88);
        }
    }
    for (i, (row, scales)) in codes.chunks_exact(k).zip(scales.chunks_exact(k.div_ceil(32))).enumerate() {
        for (g, (group, scale)) in row.chunks(32).zip(scales).enumerate() {
            let block = &mut panel[g / 2 * INT4_BLOCK..][..INT4_BLOCK];
            let half = half::f16::from_f32(*scale).to_le_bytes();
            block[(g % 2 * PANEL + i) * 2..][..2].copy_from_slice(&half);
            let lines = block[64 + g % 2 * 256..].as_chunks_mut::<64>().0;
            for (line, quad) in lines.iter_mut().zip(nibbles(group).as_chunks::<4>().0) {
                line[i * 4..i * 4 + 4].copy_from_slice(quad);
            }
        }
    }
}

/// Up to 32 codes as 16 bytes: code `j`, and above it code `j + 16`; those that are missing are 0.
fn nibbles(group: &[i8]) -> [u8; 16] {
    let mut codes = [8; 32];
    codes.iter_mut().zip(group).for_each(|(c, code)| *c = (code + 8).cast_unsigned());
    std::array::from_fn(|j| codes[j] | codes[j + 16] << 4)
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

    #[test]
    fn int8_lines_are_quads_of_sixteen_rows() {
        for (n, k) in [(16, 64), (3, 70), (1, 1)] {
            let code = |row: usize, col: usize| ((row * 37 + col * 11) % 255) as i32 as u8 as i8;
            let codes: Vec<i8> = (0..n * k).map(|i| code(i / k, i % k)).collect();
            let scales: Vec<f32> = (0..n).map(|i| i as f32 + 0.5).collect();
            let mut panel = vec![1; int8_panel_bytes(k)];
            int8_panel(&codes, &scales, k, &mut panel);
            for (row, col) in (0..16).flat_map(|r| (0..padded_codes(k)).map(move |c| (r, c))) {
                let want = if row < n && col < k { i32::from(code(row, col)) } else { 0 };
                assert_eq!(i32::from(panel[col / 4 * 64 + row * 4 + col % 4]) - 128, want, "{row}, {col}");
            }
            let tail = &panel[16 * padded_codes(k)..];
            assert_eq!(tail[..4], 0.5f32.to_le_bytes());
            assert!(tail[n * 4..].iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn int4_halves_are_lines_as_int8_has_them() {
        for (n, k) in [(16, 128), (5, 100), (2, 33)] {
            let code = |row: usize, col: usize| ((row * 5 + col * 3) % 16) as i8 - 8;
            let codes: Vec<i8> = (0..n * k).map(|i| code(i / k, i % k)).collect();
            let groups = k.div_ceil(32);
            let scales: Vec<f32> = (0..n * groups).map(|i| i as f32).collect();
            let mut panel = vec![1; int4_panel_bytes(k)];
            int4_panel(&codes, &scales, k, &mut panel);
            for (row, col) in (0..16).flat_map(|r| (0..padded_codes(k)).map(move |c| (r, c))) {
                let block = &panel[col / 64 * INT4_BLOCK..][..INT4_BLOCK];
                let (group, inside) = (col % 64 / 32, col % 32);
                let byte = block[64 + group * 256 + inside % 16 / 4 * 64 + row * 4 + inside % 4];
                let value = i32::from(byte >> (inside / 16 * 4) & 15) - 8;
                let there = row < n && col < k;
                assert_eq!(value, if there { i32::from(code(row, col)) } else { 0 }, "{row}, {col}");
                let at = (group * 16 + row) * 2;
                let scale = half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
                assert_eq!(scale, if there { scales[row * groups + col / 32] } else { scale });
            }
        }
    }
}
