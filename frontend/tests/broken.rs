//! Every way in which the files of a checkpoint can be broken: the exact code, and the place that the message names.
#![allow(clippy::unwrap_used)]

use deepfuse_frontend::{Code, Error, Model};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name)
}

/// A checkpoint to break. Its files are links to the originals, as in a download cache, until a case replaces them.
struct Dir(tempfile::TempDir);

impl Dir {
    fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in fs::read_dir(checkpoint(name)).unwrap() {
            let file = file.unwrap();
            let target = fs::canonicalize(file.path()).unwrap();
            std::os::unix::fs::symlink(target, dir.path().join(file.file_name())).unwrap();
        }
        Self(dir)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    /// Replaces a link or a file.
    fn write(&self, file: &str, bytes: &[u8]) {
        let _ = fs::remove_file(self.path(file));
        fs::write(self.path(file), bytes).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).unwrap();
    }

    fn json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(file)).unwrap();
        edit(&mut value);
        self.write(file, value.to_string().as_bytes());
    }

    fn header(&self) -> (Value, Vec<u8>) {
        let bytes = self.read(SINGLE);
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..8 + n]).unwrap(), bytes[8 + n..].to_vec())
    }

    /// Changes the header of the single file; the data stays.
    fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let (mut header, data) = self.header();
        edit(&mut header);
        self.raw(header.to_string().as_bytes(), &data);
    }

    /// Header text and data, with the right length before them.
    fn raw(&self, header: &[u8], data: &[u8]) {
        self.write(SINGLE, &[&(header.len() as u64).to_le_bytes(), header, data].concat());
    }

    /// Changes stored bytes of one tensor.
    fn poke(&self, tensor: &str, at: usize, bytes: &[u8]) {
        let (header, mut data) = self.header();
        let from = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + at;
        data[from..from + bytes.len()].copy_from_slice(bytes);
        self.raw(header.to_string().as_bytes(), &data);
    }

    /// Leaves a tensor out, data and all.
    fn drop_tensor(&self, tensor: &str) {
        let (header, data) = self.header();
        let mut next = serde_json::Map::new();
        let mut kept = vec![];
        let mut members: Vec<_> =
            header.as_object().unwrap().iter().filter(|(k, _)| *k != tensor && *k != "__metadata__").collect();
        members.sort_by_key(|(_, v)| v["data_offsets"][0].as_u64());
        for (name, entry) in members {
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let mut entry = entry.clone();
            let start = kept.len();
            kept.extend_from_slice(&data[at(0)..at(1)]);
            entry["data_offsets"] = json!([start, kept.len()]);
            next.insert(name.clone(), entry);
        }
        self.raw(Value::Object(next).to_string().as_bytes(), &kept);
    }

    /// Adds a tensor at the end.
    fn add_tensor(&self, name: &str, dtype: &str, shape: &[u64], bytes: &[u8]) {
        let (mut header, mut data) = self.header();
        let start = data.len();
        data.extend_from_slice(bytes);
        header[name] = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        self.raw(header.to_string().as_bytes(), &data);
    }

    fn open(&self) -> Result<Model, Error> {
        Model::open(self.0.path())
    }
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-000002.safetensors";
const SECOND: &str = "model-00002-of-000002.safetensors";
const NORM: &str = "model.norm.weight";
const KV_A: &str = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight";

/// Name, checkpoint, how to break it, code, what the message contains.
type Case = (&'static str, &'static str, fn(&Dir), Code, &'static str);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ("5 bytes", "tiny-v3", |d| d.write(SINGLE, b"12345"), Code::ShardTruncated, "at least 8 bytes"),
    ("0 bytes", "tiny-v3", |d| d.write(SINGLE, b""), Code::ShardTruncated, "at least 8 bytes"),
    ("header longer than the file", "tiny-v3", |d| d.write(SINGLE, b"\xff\0\0\0\0\0\0\0{}"), Code::ShardTruncated, "8 + 255 bytes"),
    ("header over 100 MB", "tiny-v3", |d| d.write(SINGLE, &[0xff; 64]), Code::ShardHeader, "at most 100000000 bytes"),
    ("header is not UTF-8", "tiny-v3", |d| d.raw(b"{\"\xff\xfe\": {}}", b""), Code::ShardHeader, "not UTF-8"),
    ("header is no object", "tiny-v3", |d| d.raw(b"[1, 2]", b""), Code::ShardHeader, "begin with `{`"),
    ("header is no JSON", "tiny-v3", |d| d.raw(b"{\"a\": }", b""), Code::ShardHeader, "line 1 column"),
    ("header is empty", "tiny-v3", |d| d.raw(b"", b""), Code::ShardHeader, "begin with `{`"),
    ("no tensors", "tiny-v3", |d| d.raw(b"{}", b""), Code::TensorMissing, "tensors are missing"),
    ("unknown element type", "tiny-v3", |d| d.edit(|h| h[NORM]["dtype"] = json!("BF17")), Code::ShardHeader, "BF17"),
    ("negative size", "tiny-v3", |d| d.edit(|h| h[NORM]["shape"] = json!([-1])), Code::ShardHeader, "-1"),
    ("entry without a shape", "tiny-v3", |d| d.edit(|h| { h[NORM].as_object_mut().unwrap().remove("shape"); }), Code::ShardHeader, "missing field `shape`"),
    ("metadata is no map of text", "tiny-v3", |d| d.edit(|h| h["__metadata__"] = json!({"a": 1})), Code::ShardHeader, "expected a string"),
    ("too many axes", "tiny-v3", |d| d.edit(|h| h[NORM]["shape"] = json!(vec![1; 40])), Code::ShardHeader, "at most 32"),
    ("duplicate key", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]), Code::ShardHeader, "`a` appears twice"),
    ("duplicate key within an entry", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]), Code::ShardHeader, "duplicate field `dtype`"),
    ("truncated shard", "tiny-v3", |d| { let b = d.read(SINGLE); d.write(SINGLE, &b[..b.len() - 10]); }, Code::ShardTruncated, "before its data does"),
    ("bytes after the data", "tiny-v3", |d| { let b = d.read(SINGLE); d.write(SINGLE, &[&b[..], b"x"].concat()); }, Code::ShardOffsets, "after the last tensor"),
    ("overlapping offsets", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#, &[0; 6]), Code::ShardOffsets, "overlaps that of `a`"),
    ("hole between tensors", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]}}"#, &[0; 10]), Code::ShardOffsets, "belong to none"),
    ("offsets beyond the file", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, &[0; 8]), Code::ShardTruncated, "16 bytes of data"),
    ("huge offsets", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615]}}"#, &[0; 16]), Code::ShardOffsets, "contradict the bytes"),
    ("offsets that go backwards", "tiny-v3", |d| d.raw(br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[1],"data_offsets":[16,12]}}"#, &[0; 16]), Code::ShardOffsets, "ends before it begins"),
    ("shape product overflows", "tiny-v3", |d| d.edit(|h| h[NORM]["shape"] = json!([1u64 << 40, 1u64 << 40])), Code::ShardOffsets, "overflows"),
    ("shape contradicts the bytes", "tiny-v3", |d| d.edit(|h| h[NORM]["shape"] = json!([127])), Code::ShardOffsets, "254 bytes for BF16 [127]"),

    ("missing tensor", "tiny-v3", |d| d.drop_tensor(KV_A), Code::TensorMissing, KV_A),
    ("wrong element type", "tiny-v3", |d| d.edit(|h| h[NORM]["dtype"] = json!("I16")), Code::TensorDtype, "found I16"),
    ("FP8 where it is not allowed", "tiny-v3-fp8", |d| d.edit(|h| { h[NORM]["dtype"] = json!("F8_E4M3"); h[NORM]["shape"] = json!([384]); }), Code::TensorDtype, "BF16, F16, F32"),
    ("FP8 without a quantization_config", "tiny-v3-fp8", |d| d.json("config.json", |c| { c.as_object_mut().unwrap().remove("quantization_config"); }), Code::TensorDtype, "no quantization_config"),
    ("experts of two types", "tiny-v3", |d| d.edit(|h| h["model.layers.1.mlp.experts.3.up_proj.weight"]["dtype"] = json!("F16")), Code::TensorDtype, "one element type"),
    ("hidden size contradicts the tensors", "tiny-v3", |d| d.json("config.json", |c| c["hidden_size"] = json!(256)), Code::TensorShape, "[320, 256] = [vocab_size, hidden_size], found [320, 128]"),
    ("transposed tensor", "tiny-v3", |d| d.edit(|h| h[KV_A]["shape"] = json!([128, 80])), Code::TensorShape, "found [128, 80]"),
    ("fewer layers in config.json", "tiny-v3", |d| d.json("config.json", |c| c["num_hidden_layers"] = json!(2)), Code::ConfigField, "num_hidden_layers"),
    ("more layers in config.json", "tiny-v3", |d| d.json("config.json", |c| c["num_hidden_layers"] = json!(4)), Code::TensorMissing, "model.layers.3."),
    ("absurdly many experts in config.json", "tiny-v3", |d| d.json("config.json", |c| { c["n_routed_experts"] = json!(4096); c["num_hidden_layers"] = json!(4096); }), Code::TensorShape, "[n_routed_experts, hidden_size]"),
    ("scale missing", "tiny-v3-fp8", |d| d.drop_tensor("model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv"), Code::TensorMissing, "weight_scale_inv"),
    ("scale of the wrong shape", "tiny-v3-fp8", |d| d.edit(|h| { let s = &mut h["model.layers.1.self_attn.o_proj.weight_scale_inv"]["shape"]; *s = json!([s[1], s[0]]); }), Code::TensorShape, "[2, 1] = [ceil(192/128), ceil(96/128)], found [1, 2]"),
    ("scale of the wrong type", "tiny-v3-fp8", |d| d.edit(|h| { let e = &mut h["model.layers.1.self_attn.o_proj.weight_scale_inv"]; e["dtype"] = json!("BF16"); e["shape"] = json!([4, 1]); }), Code::TensorDtype, "expected F32, found BF16"),

    ("no weights", "tiny-v3", |d| d.remove(SINGLE), Code::NoWeights, INDEX),
    ("no config.json", "tiny-v3", |d| d.remove("config.json"), Code::NotFound, "config.json"),
    ("config.json is a directory", "tiny-v3", |d| { d.remove("config.json"); fs::create_dir(d.path("config.json")).unwrap(); }, Code::NotAFile, "a directory"),
    ("config.json is a FIFO", "tiny-v3", |d| fifo(d, "config.json"), Code::NotAFile, "FIFO"),
    ("config.json is huge", "tiny-v3", |d| d.write("config.json", &vec![b' '; 5 << 20]), Code::JsonSyntax, "too large"),
    ("single file is a FIFO", "tiny-v3", |d| fifo(d, SINGLE), Code::NotAFile, "FIFO"),
    ("shard is a FIFO", "tiny-v3-mtp", |d| fifo(d, FIRST), Code::NotAFile, "FIFO"),
    ("shard is a directory", "tiny-v3-mtp", |d| { d.remove(FIRST); fs::create_dir(d.path(FIRST)).unwrap(); }, Code::NotAFile, "a directory"),
    ("shard is a device", "tiny-v3-mtp", |d| { d.remove(FIRST); std::os::unix::fs::symlink("/dev/zero", d.path(FIRST)).unwrap(); }, Code::NotAFile, "device"),
    ("index is a FIFO", "tiny-v3-mtp", |d| fifo(d, INDEX), Code::NotAFile, "FIFO"),
    ("shard is absent", "tiny-v3-mtp", |d| d.remove(SECOND), Code::ShardMissing, SECOND),
    ("shard is a dangling link", "tiny-v3-mtp", |d| { d.remove(SECOND); std::os::unix::fs::symlink("nowhere", d.path(SECOND)).unwrap(); }, Code::ShardMissing, SECOND),
    ("index with ../", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!("../model.safetensors")), Code::Index, "../model.safetensors"),
    ("index with an absolute path", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!("/etc/passwd")), Code::Index, "/etc/passwd"),
    ("index with a subdirectory", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!("a/b")), Code::Index, "plain file name"),
    ("index with ..", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!("..")), Code::Index, "plain file name"),
    ("index with an empty name", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!("")), Code::Index, "plain file name"),
    ("index with a NUL", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!("a\0b")), Code::Index, "plain file name"),
    ("index with a number", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!(1)), Code::JsonSyntax, "expected a string"),
    ("index without a map", "tiny-v3-mtp", |d| d.write(INDEX, b"{}"), Code::JsonSyntax, "weight_map"),
    ("index with an empty map", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"] = json!({})), Code::Index, "empty"),
    ("index names a tensor of another shard", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"][NORM] = json!(FIRST)), Code::Index, NORM),
    ("index names a tensor of no shard", "tiny-v3-mtp", |d| d.json(INDEX, |i| i["weight_map"]["ghost"] = json!(FIRST)), Code::Index, "in no shard"),
    ("tensor in two shards", "tiny-v3-mtp", |d| { let b = d.read(FIRST); d.write(SECOND, &b); }, Code::TensorDuplicate, "is in two shards"),
];

fn fifo(d: &Dir, file: &str) {
    d.remove(file);
    assert!(std::process::Command::new("mkfifo").arg(d.path(file)).status().unwrap().success());
}

#[test]
fn broken_files() {
    let mut wrong = vec![];
    for (name, base, break_it, code, text) in CASES {
        let dir = Dir::of(base);
        dir.open().unwrap_or_else(|e| panic!("{base}, unbroken: {e}"));
        break_it(&dir);
        match dir.open() {
            Ok(_) => wrong.push(format!("{name}: accepted")),
            Err(e) if e.code != *code => wrong.push(format!("{name}: wanted {}, found {e}", code.name())),
            Err(e) if !e.to_string().contains(text) => wrong.push(format!("{name}: no `{text}` in: {e}")),
            Err(e) if e.file.is_none() => wrong.push(format!("{name}: no file in: {e}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn broken_scales() {
    let name = "model.layers.2.mlp.experts.3.down_proj.weight_scale_inv";
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -1.0] {
        let dir = Dir::of("tiny-v3-fp8");
        dir.poke(name, 4, &bad.to_le_bytes());
        let model = dir.open().unwrap();
        let e = model.check_scales().unwrap_err();
        assert_eq!((e.code, e.tensor.as_deref()), (Code::ScaleValue, Some(name)), "{bad}: {e}");
        assert!(e.message.contains("block [0, 1]"), "{e}");
    }
    assert!(Dir::of("tiny-v3-fp8").open().unwrap().check_scales().is_ok());
    // An MTP layer is left out, so its scales are nobody's business.
    assert!(Dir::of("tiny-v3-mtp").open().unwrap().check_scales().is_ok());
}

#[test]
fn nan_weights_are_counted() {
    let dir = Dir::of("tiny-v3-fp8");
    dir.poke(NORM, 0, &0x7fc0u16.to_le_bytes());
    dir.poke(NORM, 6, &0xffffu16.to_le_bytes());
    dir.poke(NORM, 8, &0x7f80u16.to_le_bytes()); // infinity
    dir.poke(KV_A, 3, &[0x7f, 0xff, 0x7e]);
    let model = dir.open().unwrap();
    let count = |name| {
        let view = model.tensor(name).unwrap();
        deepfuse_frontend::count_nan(view.dtype, view.bytes)
    };
    assert_eq!((count(NORM), count(KV_A), count("lm_head.weight")), (2, 2, 0));
    use deepfuse_frontend::StoredType::{F16, F32};
    let halves: Vec<u8> = [0x7c00u16, 0x7c01, 0xfe00, 0x3c00].iter().flat_map(|h| h.to_le_bytes()).collect();
    let floats: Vec<u8> = [f32::NAN, f32::INFINITY, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!((deepfuse_frontend::count_nan(F16, &halves), deepfuse_frontend::count_nan(F32, &floats)), (2, 1));
}

#[test]
fn extra_tensors_are_left_out_and_said_so() {
    let mtp = Dir::of("tiny-v3-mtp").open().unwrap();
    assert_eq!(mtp.notices.len(), 1, "{:?}", mtp.notices);
    assert!(mtp.notices[0].starts_with("layer 3 is for multi-token prediction"), "{:?}", mtp.notices);

    let dir = Dir::of("tiny-v3");
    dir.add_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", &[8], &[0; 32]);
    assert_eq!(dir.open().unwrap().notices, Vec::<String>::new());
    dir.add_tensor("model.layers.0.self_attn.q_a_proj.bias", "BF16", &[48], &[0; 96]);
    dir.add_tensor("vision.weight", "F64", &[1], &[0; 8]);
    let notices = dir.open().unwrap().notices;
    assert!(notices.len() == 1 && notices[0].starts_with("2 tensors are unknown"), "{notices:?}");

    let dir = Dir::of("tiny-v3");
    dir.json("config.json", |c| c["tie_word_embeddings"] = json!(true));
    let model = dir.open().unwrap();
    assert!(model.notices[0].contains("lm_head.weight ignored"), "{:?}", model.notices);
    dir.drop_tensor("lm_head.weight");
    assert_eq!(dir.open().unwrap().notices, Vec::<String>::new());

    let dir = Dir::of("tiny-v3-mtp");
    dir.json(INDEX, |i| {
        i["weight_map"].as_object_mut().unwrap().retain(|name, _| !name.starts_with("model.layers.3."));
    });
    let notices = dir.open().unwrap().notices;
    assert!(notices.len() == 1 && notices[0].contains("are not in model.safetensors.index.json"), "{notices:?}");
}

#[test]
fn a_file_instead_of_a_directory() {
    let dir = Dir::of("tiny-v3");
    let e = Model::open(&dir.path("config.json")).unwrap_err();
    assert_eq!(e.code, Code::NotAFile);
    assert!(Model::open_config(&dir.path("config.json")).is_ok());
    assert_eq!(Model::open(&dir.path("nothing")).unwrap_err().code, Code::NotFound);
}

/// Streaming advice changes no bytes.
#[test]
fn released_pages_read_the_same() {
    let model = Dir::of("tiny-python").open().unwrap();
    let shards = model.tensors.as_ref().unwrap();
    let sum = |name: &str| shards.get(name).unwrap().bytes.iter().map(|b| u64::from(*b)).sum::<u64>();
    for view in shards.iter() {
        let before = sum(view.name);
        shards.prefetch(view.name);
        shards.release(view.name);
        assert_eq!(sum(view.name), before, "{}", view.name);
    }
}
