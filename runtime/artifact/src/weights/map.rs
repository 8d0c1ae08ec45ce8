//! Weight files, mapped read-only and shared between processes.

use super::{DATA_ALIGN, TENSOR_ALIGN};
use crate::Error;
use crate::manifest::{WeightFile, WeightTensor};
use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// All tensors of an artifact by name.
#[derive(Debug, Default)]
pub struct Weights {
    maps: Vec<Mmap>,
    places: HashMap<String, (usize, Range<usize>)>,
}

impl Weights {
    /// Maps the files in `dir` and checks their sizes and headers, not their data.
    pub(crate) fn open(dir: &Path, files: &[WeightFile]) -> Result<Self, Error> {
        let mut weights = Self::default();
        for file in files {
            let path = dir.join(&file.file);
            let map = map_file(&path, file)?;
            let offsets = header_offsets(&path, file, &map[..file.header_bytes as usize])?;
            for (tensor, range) in file.tensors.iter().zip(offsets) {
                let start = file.header_bytes as usize;
                let place = (weights.maps.len(), start + range.start as usize..start + range.end as usize);
                if weights.places.insert(tensor.name.clone(), place).is_some() {
                    return Err(Error::malformed(
                        &path,
                        &file.file,
                        &format_args!("the tensor {} is there twice", tensor.name),
                    ));
                }
            }
            weights.maps.push(map);
        }
        Ok(weights)
    }

    /// Bytes of a tensor with its padding to 64 bytes; aligned to 64 bytes.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let (file, range) = self.places.get(name)?;
        Some(&self.maps[*file][range.clone()])
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.maps.iter().map(|m| m.len() as u64).sum()
    }
}

/// Maps one file after checking its size and the digest of its header.
fn map_file(path: &Path, file: &WeightFile) -> Result<Mmap, Error> {
    let meta = std::fs::metadata(path).map_err(|e| crate::reader::missing(path, &file.file, e))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, &file.file, &"not a regular file"));
    }
    if meta.len() != file.bytes || file.header_bytes > file.bytes || file.header_bytes < 8 {
        let (expected, found) = (file.bytes, meta.len());
        return Err(Error::Length { path: path.to_owned(), section: file.file.clone(), expected, found });
    }
    let handle = std::fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    // SAFETY: the map is read-only. Files of an artifact are replaced by renaming, never changed in place; somebody who truncates
    // one under a running process gets that process a SIGBUS, as with any mapped program.
    let map = unsafe { Mmap::map(&handle) }.map_err(|e| Error::io(path, "map", e))?;
    let header =
        map.get(..file.header_bytes as usize).ok_or_else(|| Error::malformed(path, &file.file, &"the file shrank"))?;
    let found = blake3::hash(header).to_string();
    if found != file.header_blake3 {
        let (section, expected) = (format!("{} (header)", file.file), file.header_blake3.clone());
        return Err(Error::Digest { path: path.to_owned(), section, expected, found });
    }
    Ok(map)
}

/// Offsets of the tensors in the data section, after checking that they follow each other without gaps to the end of the file.
fn header_offsets(path: &Path, file: &WeightFile, header: &[u8]) -> Result<Vec<Range<u64>>, Error> {
    let bad = |reason: &str| Error::malformed(path, &file.file, &reason);
    let length = header.first_chunk().map(|b| u64::from_le_bytes(*b));
    if length != Some(file.header_bytes - 8) || !file.header_bytes.is_multiple_of(DATA_ALIGN) {
        return Err(bad("the header's length is wrong"));
    }
    let entries: Entries = serde_json::from_slice(&header[8..]).map_err(|e| bad(&e.to_string()))?;
    if !entries.0.iter().map(|(name, _)| name).eq(file.tensors.iter().map(|t: &WeightTensor| &t.name)) {
        return Err(bad("its tensors are not those of the manifest"));
    }
    let mut at = 0;
    for (name, range) in &entries.0 {
        if range.start != at || range.end <= at || !range.end.is_multiple_of(TENSOR_ALIGN) {
            return Err(bad(&format!(
                "the tensor {name} lies at {}..{} where {at} is expected",
                range.start, range.end
            )));
        }
        at = range.end;
    }
    if at != file.bytes - file.header_bytes {
        return Err(bad("its tensors do not fill the file"));
    }
    Ok(entries.0.into_iter().map(|(_, range)| range).collect())
}

/// Tensor names and offsets of a header, in the order of the text.
struct Entries(Vec<(String, Range<u64>)>);

#[derive(Deserialize)]
struct Entry {
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a safetensors header")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = vec![];
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    let (start, end) = map.next_value::<Entry>()?.data_offsets;
                    entries.push((name, start..end));
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(Pairs)
    }
}
