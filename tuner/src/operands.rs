//! Operands of a kernel that is measured: random numbers of ordinary size, and indices of a batch of the bucket's typical sizes.
//!
//! Weights and states come in several copies that take turns, spread over more memory than the caches hold: a step reads them from memory.

use crate::random::Random;
use deepfuse_codegen::pack;
use deepfuse_ir::values::{Batch, Sequence};
use deepfuse_ir::{
    DType, Dim, KernelSpec, Layout, Op, Operand, PAGE_TOKENS, Quant, RowLayout, Sizes, Symbol, TensorType, Type,
};
use deepfuse_runtime::memory::{Region, available_bytes};
use half::{bf16, f16};

/// Bytes of weights to walk through, well above the last-level cache.
const COLD: u64 = 384 << 20;
/// Most bytes of activations, of all sets together.
const WARM: u64 = 64 << 20;
const MOST_COPIES: u64 = 24;
/// Sets of activations: few tokens meet other experts in each.
const MOST_SETS: u64 = 8;
/// Different panels of a packed matrix; more repeat them.
const PANELS: usize = 5;

/// Everything that launches of a kernel read and write.
pub struct Operands {
    /// One list a launch; lists take turns.
    pub args: Vec<Vec<u64>>,
    results: Vec<(TensorType, Region)>,
    sizes: Sizes,
    /// Kept for the addresses in `args`.
    _memory: Vec<Region>,
}

impl Operands {
    /// For a dense spec.
    ///
    /// Errors: there is no generator for an operand, or not enough memory.
    pub fn new(spec: &KernelSpec) -> Result<Self, String> {
        let sizes = spec.bucket.typical;
        let batch = batch(&sizes)?;
        let bytes = spec.inputs.iter().map(|o| bytes_of(o, &sizes)).collect::<Result<Vec<u64>, _>>()?;
        let is_cold = |o: &Operand| o.constant || o.state().is_some();
        let sum = |cold: bool| -> u64 {
            spec.inputs.iter().zip(&bytes).filter(|(o, _)| is_cold(o) == cold).map(|(_, b)| b).sum()
        };
        let copies = (COLD / sum(true).max(1)).clamp(1, MOST_COPIES);
        let sets = (WARM / sum(false).max(1)).clamp(1, MOST_SETS);
        let (needed, available) = (copies * sum(true) + sets * sum(false), available_bytes());
        if needed > available / 4 * 3 {
            return Err(format!("its operands take {} MB, of {} MB that are free", needed >> 20, available >> 20));
        }
        let mut random = Random(0x5eed);
        let mut memory = vec![];
        let mut copies_of = |cold: bool, count: u64| -> Result<Vec<Vec<u64>>, String> {
            let mut addresses = vec![];
            for _ in 0..count {
                let mut of_copy = vec![0; spec.inputs.len()];
                for (i, _) in spec.inputs.iter().enumerate().filter(|(_, o)| is_cold(o) == cold) {
                    let mut region = region(bytes[i], !cold)?;
                    fill(&mut region, bytes[i], &Filled { spec, operand: i, batch: &batch }, &mut random)?;
                    of_copy[i] = region.address();
                    memory.push(region);
                }
                addresses.push(of_copy);
            }
            Ok(addresses)
        };
        let (cold, warm) = (copies_of(true, copies)?, copies_of(false, sets)?);
        let mut results = vec![];
        for t in spec.outputs.iter().filter_map(Type::tensor) {
            results.push((t.clone(), region(t.value_bytes(&sizes), true)?));
        }
        let scratch = region(spec.scratch_bytes(&sizes), true)?;
        let lists = copies * sets / gcd(copies, sets);
        let list = |i: u64| {
            let (cold, warm) = (&cold[(i % copies) as usize], &warm[(i % sets) as usize]);
            let inputs = cold.iter().zip(warm).map(|(c, w)| c.max(w)); // the other one is 0
            let results = results.iter().map(|(_, r)| r.address());
            sizes.0.iter().copied().chain(inputs.copied()).chain(results).chain([scratch.address()]).collect()
        };
        let args = (0..lists).map(list).collect();
        memory.push(scratch);
        Ok(Self { args, results, sizes, _memory: memory })
    }

    /// Fills all results with what no kernel computes.
    pub fn spoil(&mut self) {
        for (t, region) in &mut self.results {
            repeat(region, t.value_bytes(&self.sizes), &[0xff; 4096]);
        }
    }

    /// The results as numbers, tensor by tensor.
    pub fn results(&self) -> Vec<Vec<f32>> {
        self.results.iter().map(|(t, r)| numbers(t, r.bytes_at(0, t.value_bytes(&self.sizes) as usize))).collect()
    }
}

fn region(bytes: u64, huge: bool) -> Result<Region, String> {
    Region::new("an operand", bytes.max(64), huge && bytes >= 4 << 20).map_err(|e| e.to_string())
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The typical batch: every sequence has as many tokens as the others.
fn batch(sizes: &Sizes) -> Result<Batch, String> {
    let sequences = sizes.get(Symbol::S).max(1);
    let each = |s: Symbol| (sizes.get(s) / sequences) as u32;
    let batch =
        Batch { sequences: vec![Sequence { cached: each(Symbol::C), new: each(Symbol::T) }; sequences as usize] };
    if batch.sizes() == *sizes {
        Ok(batch)
    } else {
        Err(format!("no batch of equal sequences has the sizes {:?}", sizes.0))
    }
}

/// Bytes of an operand in memory.
fn bytes_of(o: &Operand, sizes: &Sizes) -> Result<u64, String> {
    if let Some(s) = o.state() {
        let element = s.dtype.bytes().ok_or("a state of codes")?;
        return Ok((sizes.get(Symbol::P) + 1) * PAGE_TOKENS * s.width * element);
    }
    let t = o.tensor().ok_or("an operand that is no tensor")?;
    if o.layout != Layout::Vnni {
        return Ok(t.value_bytes(sizes));
    }
    let m = Matrix::of(t)?;
    Ok((m.count * m.bytes) as u64)
}

/// A packed matrix operand.
struct Matrix {
    dtype: DType,
    n: usize,
    k: usize,
    /// Matrices one after the other, bytes of each.
    count: usize,
    bytes: usize,
    panel: usize,
    /// Of block scales behind the panels.
    scales: usize,
}

impl Matrix {
    fn of(t: &TensorType) -> Result<Self, String> {
        let shape: Vec<usize> =
            t.fixed_shape().ok_or("a matrix of variable size")?.iter().map(|n| *n as usize).collect();
        let [outer @ .., n, k] = &shape[..] else { return Err("a matrix with fewer than two axes".to_owned()) };
        let (n, k) = (*n, *k);
        let (panel, scales) = match t.dtype {
            DType::Quant(Quant::INT8_R) => (pack::int8_panel_bytes(k), 0),
            DType::Quant(Quant::INT4_G32) => (pack::int4_panel_bytes(k), 0),
            DType::Quant(Quant::FP8_B128) => (pack::panel_bytes(k, 1), n.div_ceil(128) * k.div_ceil(128)),
            d => (pack::panel_bytes(k, d.bytes().ok_or_else(|| format!("a matrix of {d}"))? as usize), 0),
        };
        let codes = n.div_ceil(pack::PANEL) * panel;
        let bytes = if scales == 0 { codes } else { codes.next_multiple_of(64) + (scales * 4).next_multiple_of(64) };
        Ok(Self { dtype: t.dtype, n, k, count: outer.iter().product(), bytes, panel, scales })
    }

    /// A panel of `rows` random rows, of a size that gives results around 1.
    fn random_panel(&self, rows: usize, random: &mut Random) -> Vec<u8> {
        let (k, mut panel) = (self.k, vec![0; self.panel]);
        let spread = (3.0 / k as f32).sqrt();
        match self.dtype {
            DType::Quant(Quant::INT8_R) => {
                let codes: Vec<i8> = (0..rows * k).map(|_| (random.below(255) as i16 - 127) as i8).collect();
                let scales: Vec<f32> = (0..rows).map(|_| spread / 127.0 * (1.0 + 0.5 * random.unit())).collect();
                pack::int8_panel(&codes, &scales, k, &mut panel);
            }
            DType::Quant(Quant::INT4_G32) => {
                let codes: Vec<i8> = (0..rows * k).map(|_| random.below(16) as i8 - 8).collect();
                let scale = |x: f32| f16::from_f32(spread / 8.0 * (1.0 + 0.5 * x)).to_f32();
                let scales: Vec<f32> = (0..rows * k.div_ceil(32)).map(|_| scale(random.unit())).collect();
                pack::int4_panel(&codes, &scales, k, &mut panel);
            }
            DType::Quant(_) => {
                // Without the two NaN.
                let code = |c: u8| if c & 0x7f == 0x7f { 0 } else { c };
                let codes: Vec<u8> = (0..rows * k).map(|_| code(random.next() as u8)).collect();
                pack::panel(&codes, k, rows, k, 1, &mut panel);
            }
            d => {
                let dense: Vec<u8> = (0..rows * k).flat_map(|_| encoded(d, spread * random.unit())).collect();
                let element = self.panel / pack::PANEL / pack::padded_depth(k);
                pack::panel(&dense, k * element, rows, k, element, &mut panel);
            }
        }
        panel
    }

    fn fill(&self, region: &mut Region, random: &mut Random) {
        let panels: Vec<Vec<u8>> = (0..PANELS).map(|_| self.random_panel(pack::PANEL, random)).collect();
        let count = self.n.div_ceil(pack::PANEL);
        let last = self.random_panel(self.n - (count - 1) * pack::PANEL, random);
        // Codes of e4m3 have a root mean square around 130.
        let scale = |x: f32| 1.0 / 130.0 / (self.k as f32).sqrt() * (1.0 + 0.5 * x);
        let scales: Vec<u8> = (0..self.scales).flat_map(|_| scale(random.unit()).to_le_bytes()).collect();
        for m in 0..self.count {
            let start = m * self.bytes;
            for p in 0..count {
                let panel = if p + 1 == count { &last } else { &panels[(m + p) % PANELS] };
                region.write((start + p * self.panel) as u64, panel);
            }
            region.write((start + (count * self.panel).next_multiple_of(64)) as u64, &scales);
        }
    }
}

/// Which operand of which kernel.
struct Filled<'a> {
    spec: &'a KernelSpec,
    operand: usize,
    batch: &'a Batch,
}

fn fill(region: &mut Region, bytes: u64, what: &Filled<'_>, random: &mut Random) -> Result<(), String> {
    let operand = &what.spec.inputs[what.operand];
    if let Some(s) = operand.state() {
        repeat(region, bytes, &floats(s.dtype, 1.0, random));
        return Ok(());
    }
    let t = operand.tensor().ok_or("an operand that is no tensor")?;
    if operand.layout == Layout::Vnni {
        Matrix::of(t)?.fill(region, random);
        return Ok(());
    }
    let width = t.shape.last().and_then(Dim::as_fixed);
    if let Some(row) = width.and_then(|k| t.dtype.quantized_row(k)) {
        let rows: Vec<u8> = (0..61).flat_map(|_| coded_row(row, width.unwrap_or(0) as usize, random)).collect();
        repeat(region, bytes, &rows);
        return Ok(());
    }
    match t.dtype {
        DType::I32 => {
            let values = what.indices(random)?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            region.write(0, &bytes);
        }
        DType::F32 | DType::Bf16 | DType::F16 => repeat(region, bytes, &floats(t.dtype, 1.0, random)),
        other => return Err(format!("no numbers for an operand of {other}")),
    }
    Ok(())
}

/// A block of random numbers, of odd length so that no two rows are equal.
fn floats(dtype: DType, size: f32, random: &mut Random) -> Vec<u8> {
    (0..65_521).flat_map(|_| encoded(dtype, size * random.unit())).collect()
}

fn encoded(dtype: DType, x: f32) -> Vec<u8> {
    match dtype {
        DType::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    }
}

/// A row of random codes, see [`RowLayout`].
fn coded_row(row: RowLayout, width: usize, random: &mut Random) -> Vec<u8> {
    let codes: Vec<i8> = (0..width).map(|_| (random.below(255) as i16 - 127) as i8).collect();
    let sum = |codes: &[i8]| codes.iter().map(|c| i32::from(*c)).sum::<i32>();
    let mut out = vec![0; row.bytes as usize];
    let mut put = |at: u64, bytes: [u8; 4]| out[at as usize..at as usize + 4].copy_from_slice(&bytes);
    for (g, group) in codes.chunks(32).enumerate() {
        put(row.offsets + 4 * g as u64, (-8 * sum(group)).to_le_bytes());
    }
    put(row.scale, (1.0f32 / 127.0).to_le_bytes());
    put(row.scale + 4, (-128 * sum(&codes)).to_le_bytes());
    out.iter_mut().zip(&codes).for_each(|(byte, code)| *byte = code.cast_unsigned());
    out
}

/// `block` over and over, up to `bytes`.
fn repeat(region: &mut Region, bytes: u64, block: &[u8]) {
    let mut at = 0;
    while at < bytes {
        let n = (block.len() as u64).min(bytes - at);
        region.write(at, &block[..n as usize]);
        at += n;
    }
}

/// The input of a step that an operand is.
fn input_name(op: Op, operand: usize) -> Option<&'static str> {
    const ADDRESSING: [&str; 4] = ["pos", "seq", "pages", "page_start"];
    let from = |first: usize| operand.checked_sub(first).and_then(|i| ADDRESSING.get(i)).copied();
    match (op, operand) {
        (Op::Read, 1) => Some("pages"),
        (Op::GatherRows, 1) => Some("rows"),
        (Op::Write, _) => from(2),
        (Op::RopeCache | Op::MlaAbsorbed | Op::MlaAbsorbedSplit, _) => from(3),
        (Op::MlaExpanded, 5) | (Op::CausalMask | Op::Rope, 1) => Some("pos"),
        (Op::MlaExpanded, 6) | (Op::CausalMask, 2) => Some("seq"),
        (Op::MlaExpanded, 7) | (Op::CausalMask, 3) => Some("page_start"),
        _ => None,
    }
}

impl Filled<'_> {
    fn indices(&self, random: &mut Random) -> Result<Vec<i32>, String> {
        let (spec, i, sizes) = (self.spec, self.operand, self.batch.sizes());
        let shape: Vec<u64> =
            spec.inputs[i].tensor().map_or(vec![], |t| t.shape.iter().map(|d| d.eval(&sizes)).collect());
        let count = shape.iter().product::<u64>() as usize;
        if let Some(name) = input_name(spec.op, i) {
            let all = self.batch.input(name).ok_or_else(|| format!("no batch input `{name}`"))?;
            let of_rows = all.len() != count && matches!(name, "pos" | "seq");
            let rows = self.batch.input("rows").filter(|rows| of_rows && rows.len() == count);
            let values = rows.map_or(all.clone(), |rows| rows.iter().map(|r| all[*r as usize]).collect());
            return if values.len() == count { Ok(values) } else { Err(format!("`{name}` of another length")) };
        }
        let length = |operand: usize, axis: usize| {
            let t = spec.inputs.get(operand).and_then(Operand::tensor);
            t.and_then(|t| Some(t.shape.get(axis)?.eval(&sizes))).unwrap_or(1)
        };
        let appended = spec.inputs[i].appended as usize;
        let (rows, of) = match (spec.op, i) {
            (Op::Embed, 0) => (count, length(1, 0)),
            (Op::Gather, 1) => (shape[0] as usize, length(0, 1)),
            (
                Op::ExpertLinear | Op::ExpertSwiglu | Op::ExpertDown | Op::ExpertSwigluByToken | Op::ExpertDownByToken,
                1,
            ) => (shape[0] as usize, length(spec.inputs.len() - 1, 0)),
            (Op::Extend | Op::GatherRows, 0) => (count, 64),
            _ => return Err(format!("no indices for operand {i} of {}", spec.op.name())),
        };
        let each = count / rows.max(1);
        if each as u64 > of || appended > each {
            return Err(format!("{each} different indices below {of}, {appended} of them in every row"));
        }
        // Those that every row has are the last ones.
        let of = of - appended as u64;
        let row = |random: &mut Random| {
            let mut row: Vec<i32> = vec![];
            while row.len() < each - appended {
                let next = random.below(of) as i32;
                if !row.contains(&next) {
                    row.push(next);
                }
            }
            row.extend((of..).take(appended).map(|n| n as i32));
            row
        };
        Ok((0..rows).flat_map(|_| row(random)).collect())
    }
}

/// Values of a result in memory.
fn numbers(t: &TensorType, bytes: &[u8]) -> Vec<f32> {
    let width = t.shape.last().and_then(Dim::as_fixed).unwrap_or(0);
    if let Some(layout) = t.dtype.quantized_row(width) {
        let row = |row: &[u8]| -> Vec<f32> {
            let scale = row[layout.scale as usize..].first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b));
            row[..width as usize].iter().map(|c| scale * f32::from(c.cast_signed())).collect()
        };
        return bytes.chunks_exact(layout.bytes as usize).flat_map(row).collect();
    }
    match t.dtype {
        DType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::I32 | DType::U32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        DType::F32 | DType::Quant(_) => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}
