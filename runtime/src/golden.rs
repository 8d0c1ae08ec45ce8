//! Golden files: what a reference implementation computed for a prompt and its greedy answer (`golden.safetensors`).

use crate::Error;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// `P` prompt ids, `G` greedy ids after them, and logits of every token that was fed: the prompt, then the first `G - 1` ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    pub prompt_ids: Vec<u32>,
    pub generated_ids: Vec<u32>,
    /// f32 `[P + G - 1, vocab]`.
    logits: Vec<f32>,
    pub vocab: usize,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Golden {
    /// Reads the tensors `prompt_ids`, `generated_ids` (I64), `prefill_logits` and `decode_logits` (F32).
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|e| Error::input(path, e.to_string()))?;
        Self::parse(&bytes).map_err(|reason| Error::input(path, reason))
    }

    /// Reads the bytes of a file; an error in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file = File::parse(bytes)?;
        let ids = |name: &str| {
            let (_, data) = file.tensor(name, "I64", 1)?;
            let id =
                |c: &[u8; 8]| u32::try_from(i64::from_le_bytes(*c)).map_err(|_| format!("{name}: an id that is none"));
            data.as_chunks().0.iter().map(id).collect::<Result<Vec<u32>, String>>()
        };
        let (prompt_ids, generated_ids) = (ids("prompt_ids")?, ids("generated_ids")?);
        let (prefill, a) = file.tensor("prefill_logits", "F32", 2)?;
        let (decode, b) = file.tensor("decode_logits", "F32", 2)?;
        let rows = (prompt_ids.len() as u64, generated_ids.len() as u64);
        if rows.0 == 0 || rows.1 == 0 || (prefill[0], decode[0]) != (rows.0, rows.1 - 1) || prefill[1] != decode[1] {
            return Err(format!(
                "{} prompt ids and {} generated ids do not go with logits {prefill:?} and {decode:?}",
                rows.0, rows.1
            ));
        }
        let logits = [a, b].concat().as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        Ok(Self { prompt_ids, generated_ids, logits, vocab: prefill[1] as usize })
    }

    /// Ids that are fed: the prompt, then all generated ids but the last.
    pub fn fed_ids(&self) -> Vec<u32> {
        let decoded = &self.generated_ids[..self.generated_ids.len() - 1];
        [&self.prompt_ids, decoded].concat()
    }

    /// Logits after fed id `i`, `[vocab]`.
    pub fn logits(&self, i: usize) -> &[f32] {
        &self.logits[i * self.vocab..(i + 1) * self.vocab]
    }
}

struct File<'a> {
    entries: BTreeMap<String, Entry>,
    data: &'a [u8],
}

impl<'a> File<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let length = bytes.first_chunk().map(|b| u64::from_le_bytes(*b)).ok_or("shorter than 8 bytes")?;
        let end = usize::try_from(length).ok().and_then(|n| n.checked_add(8)).filter(|n| *n <= bytes.len());
        let end = end.ok_or_else(|| format!("a header of {length} bytes in a file of {}", bytes.len()))?;
        let mut header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&bytes[8..end]).map_err(|e| e.to_string())?;
        header.remove("__metadata__");
        let entry =
            |(name, value)| Ok((name, serde_json::from_value(value).map_err(|e: serde_json::Error| e.to_string())?));
        Ok(Self { entries: header.into_iter().map(entry).collect::<Result<_, String>>()?, data: &bytes[end..] })
    }

    /// Shape and bytes of a tensor of known type and rank.
    fn tensor(&self, name: &str, dtype: &str, rank: usize) -> Result<(&[u64], &'a [u8]), String> {
        let e = self.entries.get(name).ok_or_else(|| format!("there is no tensor `{name}`"))?;
        if e.dtype != dtype || e.shape.len() != rank {
            return Err(format!("{name} is {} {:?}, not {dtype} with {rank} axes", e.dtype, e.shape));
        }
        let (start, end) = e.data_offsets;
        let size = if dtype == "I64" { 8 } else { 4 };
        let bytes = e.shape.iter().try_fold(size, |n: u64, d| n.checked_mul(*d));
        let data = self.data.get(start as usize..end as usize).filter(|_| start <= end && bytes == Some(end - start));
        Ok((&e.shape, data.ok_or_else(|| format!("{name}: its data does not lie in the file"))?))
    }
}
