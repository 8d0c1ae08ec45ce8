//! Writes a checkpoint with random weights, to measure a geometry without downloading a model:
//! `cargo run --release -p deepfuse-frontend --example checkpoint -- CONFIG.json OUT [FIELD=JSON ..]`.
//!
//! `docs/measurements.md` uses two: `v2-lite-4l` is `tests/checkpoints/deepseek-v2-lite-config/config.json` with `num_hidden_layers=4` (4.5 GB), `v3-2l` is
//! `tests/checkpoints/deepseek-v3-config/config.json` with `num_hidden_layers=2 first_k_dense_replace=1 n_routed_experts=64 vocab_size=32768`
//! (4.6 GB, FP8). Weights are nearly normal with variance 1 / inputs, so that activations keep their size and tokens spread over the experts.
#![allow(clippy::print_stdout)]

use deepfuse_frontend::{Config, Role, expected};
use serde_json::{Value, json};
use std::io::{BufWriter, Write};
use std::path::Path;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [config, out, fields @ ..] = args.as_slice() else {
        return Err("usage: checkpoint CONFIG.json OUT [FIELD=JSON ..]".into());
    };
    let mut json: Value = serde_json::from_slice(&std::fs::read(config)?)?;
    for field in fields {
        let (name, value) = field.split_once('=').ok_or_else(|| format!("{field}: expected FIELD=JSON"))?;
        json[name] = serde_json::from_str(value)?;
    }
    let text = serde_json::to_string_pretty(&json)?;
    let config = Config::parse(text.as_bytes())?;
    let out = Path::new(out);
    std::fs::create_dir(out)?;
    std::fs::write(out.join("config.json"), text)?;
    let bytes = write(&stored(&config), &out.join("model.safetensors"))?;
    println!("{}: {:.2} GB", out.display(), bytes as f64 / 1e9);
    Ok(())
}

/// A tensor of the file.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    values: Values,
}

/// What its elements are.
enum Values {
    Normal { mean: f32, deviation: f32 },
    E4m3,
    Equal(f32),
}

/// 448, the greatest value of e4m3, lies at so many standard deviations.
const SPREAD: f32 = 4.0;

fn stored(config: &Config) -> Vec<Stored> {
    let mut all = Vec::new();
    for t in expected(config) {
        let deviation = 1.0 / (*t.shape.last().expect("tensors have axes") as f32).sqrt();
        let mut add = |name: &str, dtype, shape, values| all.push(Stored { name: name.into(), dtype, shape, values });
        match t.role {
            Role::Norm => add(&t.name, "BF16", t.shape, Values::Normal { mean: 1.0, deviation: 0.125 }),
            Role::RouterBias => add(&t.name, "F32", t.shape, Values::Equal(0.0)),
            Role::Embed => add(&t.name, "BF16", t.shape, Values::Normal { mean: 0.0, deviation: 1.0 }),
            role if config.quantization.is_some() && role.is_quantized() => {
                let blocks = t.shape.iter().map(|d| d.div_ceil(128)).collect();
                add(&t.name, "F8_E4M3", t.shape, Values::E4m3);
                let scale = Values::Equal(deviation * SPREAD / 448.0);
                add(&format!("{}_scale_inv", t.name), "F32", blocks, scale);
            }
            _ => add(&t.name, "BF16", t.shape, Values::Normal { mean: 0.0, deviation }),
        }
    }
    all
}

fn write(tensors: &[Stored], path: &Path) -> Result<u64, Failure> {
    let elements = |t: &Stored| t.shape.iter().product::<u64>();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for t in tensors {
        let start = end;
        end += elements(t) * if t.dtype == "F32" { 4 } else { 2 - u64::from(t.dtype == "F8_E4M3") };
        header.insert(t.name.clone(), json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [start, end] }));
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;

    let mut random = Random(1);
    let normal: Vec<f32> = (0..1 << 16).map(|_| random.normal()).collect();
    let codes: Vec<u8> = normal.iter().map(|v| e4m3(v * 448.0 / SPREAD)).collect();
    let mut chunk = Vec::new();
    for t in tensors {
        let bf16 = |v: f32| ((v.to_bits() + 0x8000) >> 16) as u16;
        let table: Vec<u16> = match t.values {
            Values::Normal { mean, deviation } => normal.iter().map(|v| bf16(mean + v * deviation)).collect(),
            _ => Vec::new(),
        };
        let mut left = elements(t);
        while left > 0 {
            chunk.clear();
            let n = left.min(1 << 16);
            for _ in 0..n.div_ceil(4) {
                let bits = random.next();
                for draw in (0..4).map(|i| (bits >> (16 * i)) as usize & 0xffff) {
                    match t.values {
                        Values::Normal { .. } => chunk.extend_from_slice(&table[draw].to_le_bytes()),
                        Values::E4m3 => chunk.push(codes[draw]),
                        Values::Equal(v) => chunk.extend_from_slice(&v.to_le_bytes()),
                    }
                }
            }
            chunk.truncate(n as usize * chunk.len() / (n.div_ceil(4) * 4) as usize);
            file.write_all(&chunk)?;
            left -= n;
        }
    }
    file.into_inner()?.sync_all()?;
    Ok(end)
}

/// The code of the nearest value of e4m3.
fn e4m3(value: f32) -> u8 {
    let decode = |code: u8| {
        let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
        if exponent == 0 { fraction * 2f32.powi(-6) } else { (1.0 + fraction) * 2f32.powi(exponent - 7) }
    };
    // 0x7f is NaN.
    let nearest =
        (0..0x7f_u8).min_by(|a, b| (decode(*a) - value.abs()).abs().total_cmp(&(decode(*b) - value.abs()).abs()));
    nearest.expect("there are codes") | u8::from(value < 0.0) << 7
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Mean 0, variance 1: the sum of twelve uniform numbers, less 6.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }
}
