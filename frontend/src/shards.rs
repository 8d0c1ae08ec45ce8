//! The tensors of a checkpoint directory: one `model.safetensors`, or shards under `model.safetensors.index.json`, mapped.
//!
//! Mapped bytes are file pages, not anonymous memory. A shard must not be truncated by another process while it is open:
//! the operating system answers reads beyond the end with SIGBUS.

use crate::error::{Code, Error, Result};
use crate::json::{Unique, open_plain, read_limited};
use crate::safetensors::{Entry, StoredType, parse};
use indexmap::IndexMap;
use memmap2::Mmap;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// V3's index has 92 thousand entries in 9 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A tensor in a mapped file: `bytes` are its elements, row-major, little endian, as stored.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub dtype: StoredType,
    pub shape: &'a [u64],
    pub bytes: &'a [u8],
    pub file: &'a Path,
}

/// One mapped safetensors file.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    entries: IndexMap<String, Entry>,
}

impl Shard {
    /// Maps a file and checks its header; reads no data.
    pub fn open(path: &Path) -> Result<Self> {
        let (file, bytes) = open_plain(path)?;
        if bytes == 0 {
            // An empty file cannot be mapped; the parser has the right words for it.
            return Err(parse(&[]).expect_err("no header fits in no bytes").file(path));
        }
        // SAFETY: the map is read-only and lives as long as the views into it. Another process that shortens the file
        // makes reads fail with SIGBUS, which the module documents; it cannot make them unsound otherwise, since every bit
        // pattern is a valid u8.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, &e))?;
        let entries = parse(&map).map_err(|e| e.file(path))?;
        Ok(Self { path: path.to_owned(), map, entries })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        (0..self.entries.len()).map(|i| self.at(i))
    }

    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.entries.get_index_of(name).map(|i| self.at(i))
    }

    fn at(&self, index: usize) -> TensorView<'_> {
        let (name, e) = self.entries.get_index(index).expect("an index of this table");
        TensorView { name, dtype: e.dtype, shape: &e.shape, bytes: &self.map[e.range.clone()], file: &self.path }
    }

    #[cfg(unix)]
    fn prefetch(&self, index: usize) {
        let range = self.entries[index].range.clone();
        // Advice only: a refusal costs speed, not correctness.
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    }

    #[cfg(unix)]
    fn release(&self, index: usize) {
        let range = self.entries[index].range.clone();
        // SAFETY: the mapping is of a file and never written, so dropped pages read the same bytes from the file again.
        let _ =
            unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }

    #[cfg(not(unix))]
    fn prefetch(&self, _: usize) {}

    #[cfg(not(unix))]
    fn release(&self, _: usize) {}
}

/// All tensors of a checkpoint, by name, in the order of the shards and their data.
#[derive(Debug)]
pub struct Shards {
    files: Vec<Shard>,
    /// Name -> shard and entry within it.
    places: IndexMap<String, (u32, u32)>,
    notices: Vec<String>,
}

impl Shards {
    /// Opens the weights of a checkpoint directory. A `model.safetensors` has precedence over an index, as in transformers.
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        let exists = |p: &Path| std::fs::symlink_metadata(p).is_ok();
        if exists(&single) {
            let mut shards = Self::collect(vec![Shard::open(&single)?])?;
            if exists(&index) {
                shards.notices.push(format!("{INDEX} ignored: {SINGLE} is there too"));
            }
            return Ok(shards);
        }
        if exists(&index) {
            return Self::open_indexed(dir, &index);
        }
        Err(Error::new(Code::NoWeights, format!("neither {SINGLE} nor {INDEX} is here")).file(dir).help(
            "give the directory that holds config.json and the shards; pickled *.bin weights must be converted first",
        ))
    }

    fn open_indexed(dir: &Path, index: &Path) -> Result<Self> {
        let map = parse_index(&read_limited(index, MAX_INDEX_BYTES)?).map_err(|e| e.file(index))?;
        let mut files: IndexMap<&str, &str> = IndexMap::new();
        for (tensor, file) in &map {
            files.entry(file).or_insert(tensor);
        }
        let open = |(file, tensor): (&&str, &&str)| {
            let path = dir.join(*file);
            Shard::open(&path).map_err(|e| match e.code {
                Code::NotFound => Error::new(Code::ShardMissing, "the index names this shard, but it is not here")
                    .file(&path)
                    .tensor(*tensor)
                    .help("the download is incomplete"),
                _ => e,
            })
        };
        let mut shards = Self::collect(files.iter().map(open).collect::<Result<_>>()?)?;
        shards.keep_indexed(&map, index)?;
        Ok(shards)
    }

    fn collect(files: Vec<Shard>) -> Result<Self> {
        let mut places: IndexMap<String, (u32, u32)> = IndexMap::new();
        for (i, shard) in files.iter().enumerate() {
            for (j, name) in shard.entries.keys().enumerate() {
                let Some((other, _)) = places.insert(name.clone(), (i as u32, j as u32)) else { continue };
                let first = &files[other as usize].path;
                return Err(Error::new(Code::TensorDuplicate, "the same tensor is in two shards")
                    .file(&shard.path)
                    .tensor(name)
                    .values("one shard", format!("{} and {}", first.display(), shard.path.display())));
            }
        }
        Ok(Self { files, places, notices: vec![] })
    }

    /// Checks every entry of the index and leaves out tensors that it does not name.
    fn keep_indexed(&mut self, map: &IndexMap<String, String>, index: &Path) -> Result<()> {
        for (tensor, file) in map {
            let found = self.places.get(tensor).map(|(shard, _)| &self.files[*shard as usize].path);
            if found.is_some_and(|p| p.file_name() == Some(file.as_ref())) {
                continue;
            }
            let found = found.map_or("in no shard".into(), |p| p.display().to_string());
            return Err(Error::new(Code::Index, "the index names a tensor that its shard does not hold")
                .file(index)
                .tensor(tensor)
                .values(file, found));
        }
        let before = self.places.len();
        self.places.retain(|name, _| map.contains_key(name));
        if self.places.len() < before {
            self.notices
                .push(format!("{} tensors of the shards are not in {INDEX} and ignored", before - self.places.len()));
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let (shard, entry) = self.places.get(name)?;
        Some(self.files[*shard as usize].at(*entry as usize))
    }

    pub fn iter(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.places.values().map(|(shard, entry)| self.files[*shard as usize].at(*entry as usize))
    }

    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.places.get_index_of(name)
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Files in the order of the index.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(Shard::path)
    }

    /// Asks the system to read a tensor ahead of its use.
    pub fn prefetch(&self, name: &str) {
        if let Some((shard, entry)) = self.places.get(name) {
            self.files[*shard as usize].prefetch(*entry as usize);
        }
    }

    /// Lets the pages of a tensor go after its use, so that streaming a large model keeps resident memory small. It can be read again.
    pub fn release(&self, name: &str) {
        if let Some((shard, entry)) = self.places.get(name) {
            self.files[*shard as usize].release(*entry as usize);
        }
    }

    /// What was left out, one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }
}

#[derive(serde::Deserialize)]
struct RawIndex {
    weight_map: Unique<String>,
}

/// Tensor -> file name, as `model.safetensors.index.json` has it. Names must be plain: a checkpoint reaches no other directory.
pub fn parse_index(text: &[u8]) -> Result<IndexMap<String, String>> {
    let index: RawIndex = serde_json::from_slice(text).map_err(|e| Error::new(Code::JsonSyntax, e.to_string()))?;
    let map = index.weight_map.0;
    if map.is_empty() {
        return Err(Error::new(Code::Index, "`weight_map` is empty"));
    }
    for (tensor, file) in &map {
        let mut parts = Path::new(file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(p)), None) if p == file.as_str());
        if !plain || file.contains(['\\', '\0']) {
            return Err(Error::new(Code::Index, "a shard must be a file beside the index")
                .tensor(tensor)
                .values("a plain file name", format!("{file:?}")));
        }
    }
    Ok(map)
}
