//! Layered layout of a small acyclic graph, from top to bottom.
//!
//! Layers by longest path; long edges pass through points of their own in every layer between; the order inside layers by sweeps of
//! barycenters, the best of all sweeps by crossings; then every layer gets the positions that are closest, in squares, to the means
//! of the neighbours and keep order and distances (pool adjacent violators). No randomness and no hash order: equal input, equal picture.

/// Between layers, between neighbours in a layer.
const GAP_Y: f64 = 22.0;
const GAP_X: f64 = 14.0;
const SWEEPS: usize = 60;

/// A box to place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub width: f64,
    pub height: f64,
    /// A source that stands as low as its users allow.
    pub low: bool,
}

/// Where everything stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub width: f64,
    pub height: f64,
    /// Centre of each box.
    pub places: Vec<(f64, f64)>,
    /// By edge: points from the source's lower border to the target's upper border. Between two points of one x the line is straight.
    pub routes: Vec<Vec<(f64, f64)>>,
}

/// Places boxes; every edge goes from a smaller to a larger index.
pub fn layout(sizes: &[Size], edges: &[(usize, usize)]) -> Layout {
    let layer = layers(sizes, edges);
    let mut all: Vec<Size> = sizes.to_vec();
    let mut at_layer = layer.clone();
    let mut links: Vec<(usize, usize)> = vec![];
    let mut chains: Vec<Vec<usize>> = vec![];
    for &(from, to) in edges {
        let mut chain = vec![from];
        for l in layer[from] + 1..layer[to] {
            chain.push(all.len());
            all.push(Size { width: 4.0, height: 0.0, low: false });
            at_layer.push(l);
        }
        chain.push(to);
        links.extend(chain.windows(2).map(|w| (w[0], w[1])));
        chains.push(chain);
    }
    let near = Neighbours::of(all.len(), &links, sizes.len());
    let rows = ordered(&at_layer, &near);
    let x = columns(&rows, &all, &near);
    let (mut tops, mut height) = (vec![], 8.0);
    for row in &rows {
        let tall = row.iter().map(|v| all[*v].height).fold(0.0, f64::max);
        tops.push((height, height + tall));
        height += tall + GAP_Y;
    }
    let middle = |v: usize| f64::midpoint(tops[at_layer[v]].0, tops[at_layer[v]].1);
    let places: Vec<(f64, f64)> = (0..sizes.len()).map(|v| (x[v], middle(v))).collect();
    let width = (0..sizes.len()).map(|v| x[v] + all[v].width / 2.0).chain(x.iter().copied()).fold(0.0, f64::max) + 8.0;
    let route = |chain: &Vec<usize>| {
        let (from, to) = (chain[0], chain[chain.len() - 1]);
        let mut points = vec![(x[from], places[from].1 + sizes[from].height / 2.0)];
        for v in &chain[1..chain.len() - 1] {
            points.extend([(x[*v], tops[at_layer[*v]].0), (x[*v], tops[at_layer[*v]].1)]);
        }
        let above = x[chain[chain.len() - 2]];
        points.push((port(above, x[to], sizes[to].width), places[to].1 - sizes[to].height / 2.0));
        points
    };
    let routes = chains.iter().map(route).collect();
    Layout { width, height: height - GAP_Y + 8.0, places, routes }
}

/// Where a line from above enters a box: towards where it comes from.
fn port(from: f64, to: f64, width: f64) -> f64 {
    to + (from - to).clamp(-width * 0.3, width * 0.3)
}

fn layers(sizes: &[Size], edges: &[(usize, usize)]) -> Vec<usize> {
    let mut layer = vec![0_usize; sizes.len()];
    let mut sorted = edges.to_vec();
    sorted.sort_unstable();
    for (from, to) in &sorted {
        layer[*to] = layer[*to].max(layer[*from] + 1);
    }
    for v in (0..sizes.len()).filter(|v| sizes[*v].low && !sorted.iter().any(|e| e.1 == *v)) {
        let lowest = sorted.iter().filter(|e| e.0 == v).map(|e| layer[e.1]).min();
        layer[v] = lowest.map_or(0, |l| l.saturating_sub(1));
    }
    layer
}

struct Neighbours {
    above: Vec<Vec<usize>>,
    below: Vec<Vec<usize>>,
    /// From here on points of long edges.
    bends: usize,
}

impl Neighbours {
    fn of(count: usize, links: &[(usize, usize)], bends: usize) -> Self {
        let mut n = Self { above: vec![vec![]; count], below: vec![vec![]; count], bends };
        for (from, to) in links {
            n.below[*from].push(*to);
            n.above[*to].push(*from);
        }
        n
    }
}

/// The order in every layer.
fn ordered(at_layer: &[usize], near: &Neighbours) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = vec![vec![]; at_layer.iter().max().map_or(0, |l| l + 1)];
    for (v, l) in at_layer.iter().enumerate() {
        rows[*l].push(v);
    }
    let mut best = (crossings(&rows, near), rows.clone());
    for sweep in 0..SWEEPS {
        let down = sweep % 2 == 0;
        let mut place = vec![0.0; at_layer.len()];
        let order: Vec<usize> = if down { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for l in order {
            let key = |v: usize, own: usize| {
                let from = if down { &near.above[v] } else { &near.below[v] };
                let sum: f64 = from.iter().map(|u| place[*u]).sum();
                if from.is_empty() { own as f64 } else { sum / from.len() as f64 }
            };
            let mut keyed: Vec<(f64, usize)> = rows[l].iter().enumerate().map(|(i, v)| (key(*v, i), *v)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            rows[l] = keyed.into_iter().map(|(_, v)| v).collect();
            for (i, v) in rows[l].iter().enumerate() {
                place[*v] = i as f64;
            }
        }
        let found = crossings(&rows, near);
        if found < best.0 {
            best = (found, rows.clone());
        }
    }
    best.1
}

/// Pairs of links that cross.
fn crossings(rows: &[Vec<usize>], near: &Neighbours) -> usize {
    let mut place = vec![0; near.above.len()];
    for row in rows {
        for (i, v) in row.iter().enumerate() {
            place[*v] = i;
        }
    }
    let mut count = 0;
    for row in rows {
        let mut seen: Vec<usize> = vec![];
        for v in row {
            let mut ends: Vec<usize> = near.below[*v].iter().map(|u| place[*u]).collect();
            ends.sort_unstable();
            count += ends.iter().map(|e| seen.iter().filter(|s| *s > e).count()).sum::<usize>();
            seen.extend(ends);
        }
    }
    count
}

/// The x of every point; the leftmost border is at 8.
fn columns(rows: &[Vec<usize>], all: &[Size], near: &Neighbours) -> Vec<f64> {
    let mut x = vec![0.0; all.len()];
    for row in rows {
        let wide: f64 = row.iter().map(|v| all[*v].width + GAP_X).sum();
        let mut left = -wide / 2.0;
        for v in row {
            x[*v] = left + all[*v].width / 2.0;
            left += all[*v].width + GAP_X;
        }
    }
    for sweep in 0..SWEEPS {
        for i in 0..rows.len() {
            let row = &rows[if sweep % 2 == 0 { i } else { rows.len() - 1 - i }];
            let wish = |v: usize| {
                // Long edges shall be straight: their points pull harder.
                let pull = |u: usize| if v >= near.bends && u >= near.bends { 24.0 } else { 1.0 };
                let both = near.above[v].iter().chain(&near.below[v]);
                let (sum, weight) = both.fold((0.0, 0.0), |(s, w), u| (s + pull(*u) * x[*u], w + pull(*u)));
                if weight == 0.0 { (x[v], 0.1) } else { (sum / weight, weight) }
            };
            let wishes: Vec<(f64, f64)> = row.iter().map(|v| wish(*v)).collect();
            let widths: Vec<f64> = row.iter().map(|v| all[*v].width).collect();
            for (v, at) in row.iter().zip(apart(&wishes, &widths)) {
                x[*v] = at;
            }
        }
    }
    let left = (0..all.len()).map(|v| x[v] - all[v].width / 2.0).fold(f64::INFINITY, f64::min);
    x.into_iter().map(|at| (at - left + 8.0).round()).collect()
}

/// The positions that minimise `sum weight (x - wish)^2` with neighbours apart by half their widths and a gap.
fn apart(wishes: &[(f64, f64)], widths: &[f64]) -> Vec<f64> {
    let mut offset = vec![0.0; widths.len()];
    for i in 1..widths.len() {
        offset[i] = offset[i - 1] + f64::midpoint(widths[i - 1], widths[i]) + GAP_X;
    }
    // Blocks of equal `x - offset`: mean, weight, length.
    let mut blocks: Vec<(f64, f64, usize)> = vec![];
    for ((wish, weight), offset) in wishes.iter().zip(&offset) {
        let mut block = (wish - offset, *weight, 1);
        while let Some(&(mean, w, n)) = blocks.last().filter(|b| b.0 > block.0) {
            block = ((mean * w + block.0 * block.1) / (w + block.1), w + block.1, n + block.2);
            blocks.pop();
        }
        blocks.push(block);
    }
    let flat = blocks.into_iter().flat_map(|(mean, _, n)| std::iter::repeat_n(mean, n));
    flat.zip(&offset).map(|(z, o)| z + o).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(n: usize) -> Vec<Size> {
        (0..n).map(|i| Size { width: 40.0 + 10.0 * (i % 4) as f64, height: 20.0, low: i % 5 == 0 }).collect()
    }

    /// Edges of a pseudo-random acyclic graph.
    fn random(n: usize, seed: u64) -> Vec<(usize, usize)> {
        let mut r = seed;
        let mut next = |n: usize| {
            r = r.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (r >> 33) as usize % n
        };
        let with_edges: Vec<usize> = (1..n).filter(|to| to % 5 != 0).collect();
        with_edges.into_iter().flat_map(|to| [next(to), next(to)].map(|from| (from, to))).collect()
    }

    #[test]
    fn boxes_are_apart_and_lines_go_down() {
        for seed in 0..200 {
            let n = 2 + seed as usize % 40;
            let (sizes, edges) = (boxes(n), random(n, seed));
            let l = layout(&sizes, &edges);
            assert_eq!(l, layout(&sizes, &edges));
            for a in 0..n {
                assert!(l.places[a].0 - sizes[a].width / 2.0 >= 0.0 && l.places[a].0 + sizes[a].width / 2.0 <= l.width);
                for b in 0..a {
                    let (dx, dy) = (l.places[a].0 - l.places[b].0, l.places[a].1 - l.places[b].1);
                    let beside = dx.abs() >= f64::midpoint(sizes[a].width, sizes[b].width) - 1.0;
                    assert!(beside || dy.abs() >= 20.0, "{a} covers {b} with seed {seed}");
                }
            }
            for (route, (from, to)) in l.routes.iter().zip(&edges) {
                assert!(route.windows(2).all(|w| w[0].1 <= w[1].1), "{route:?}");
                assert!(route[0].1 >= l.places[*from].1 && route[route.len() - 1].1 <= l.places[*to].1);
            }
        }
    }

    #[test]
    fn a_chain_is_straight() {
        let sizes = vec![Size { width: 50.0, height: 20.0, low: false }; 4];
        let l = layout(&sizes, &[(0, 1), (1, 2), (2, 3)]);
        assert!(l.places.windows(2).all(|w| w[0].0 == w[1].0), "{l:?}");
    }

    /// Two parallel chains that start crossed end uncrossed.
    #[test]
    fn crossings_are_removed() {
        let rows = vec![vec![0, 1], vec![2, 3]];
        let near = Neighbours::of(4, &[(0, 3), (1, 2)], 4);
        assert_eq!(crossings(&rows, &near), 1);
        assert_eq!(crossings(&ordered(&[0, 0, 1, 1], &near), &near), 0);
    }
}
