//! The safetensors header, strictly: 8 bytes of header length (little endian), that many bytes of JSON, then the data.
//!
//! Accepted is what the reference crate accepts: data contiguous from offset 0 to the end of the file, no overlap, no hole.
//! Nothing here touches the data, and no input makes it panic.

use crate::error::{Code, Error, Result};
use crate::json::Unique;
use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use std::fmt;
use std::ops::Range;

/// The limit of the reference crate.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// No tensor of a checkpoint has more axes.
const MAX_AXES: usize = 32;

/// Element types that the format knows. Only some of them are used by a model, see [`crate::Role`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoredType {
    F64,
    F32,
    F16,
    Bf16,
    F8E4m3,
    F8E5m2,
    F8E8m0,
    F6E2m3,
    F6E3m2,
    F4,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    C64,
}

impl StoredType {
    const TABLE: &[(&str, Self, u64)] = &[
        ("F64", Self::F64, 64),
        ("F32", Self::F32, 32),
        ("F16", Self::F16, 16),
        ("BF16", Self::Bf16, 16),
        ("F8_E4M3", Self::F8E4m3, 8),
        ("F8_E5M2", Self::F8E5m2, 8),
        ("F8_E8M0", Self::F8E8m0, 8),
        ("F6_E2M3", Self::F6E2m3, 6),
        ("F6_E3M2", Self::F6E3m2, 6),
        ("F4", Self::F4, 4),
        ("I64", Self::I64, 64),
        ("I32", Self::I32, 32),
        ("I16", Self::I16, 16),
        ("I8", Self::I8, 8),
        ("U64", Self::U64, 64),
        ("U32", Self::U32, 32),
        ("U16", Self::U16, 16),
        ("U8", Self::U8, 8),
        ("BOOL", Self::Bool, 8),
        ("C64", Self::C64, 64),
    ];

    fn row(self) -> &'static (&'static str, Self, u64) {
        Self::TABLE.iter().find(|r| r.1 == self).expect("the table lists every type")
    }

    /// The name in the file: `F8_E4M3`.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    pub fn bits(self) -> u64 {
        self.row().2
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::TABLE.iter().find(|r| r.0 == name).map(|r| r.1)
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One tensor of a shard: `range` are its bytes within the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub dtype: StoredType,
    pub shape: Vec<u64>,
    pub range: Range<usize>,
}

/// The entry as it stands in the JSON; a repeated or absent field is an error, an unknown one is not.
#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Axes,
    data_offsets: [u64; 2],
}

struct Axes(Vec<u64>);

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct AxesVisitor;
        impl<'de> Visitor<'de> for AxesVisitor {
            type Value = Axes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_AXES} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Axes, A::Error> {
                let mut axes = vec![];
                while let Some(n) = seq.next_element()? {
                    if axes.len() == MAX_AXES {
                        return Err(serde::de::Error::invalid_length(MAX_AXES + 1, &self));
                    }
                    axes.push(n);
                }
                Ok(Axes(axes))
            }
        }
        deserializer.deserialize_seq(AxesVisitor)
    }
}

/// A member of the header: free text under `__metadata__`, a tensor under any other name.
enum Member {
    Metadata,
    Tensor(RawEntry),
}

struct Members(IndexMap<String, Member>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Members, A::Error> {
                let mut members = IndexMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if members.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("key `{key}` appears twice")));
                    }
                    let member = if key == "__metadata__" {
                        map.next_value::<Unique<String>>()?;
                        Member::Metadata
                    } else {
                        Member::Tensor(map.next_value()?)
                    };
                    members.insert(key, member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// Reads the header of a whole shard. Tensors come in the order of their data.
///
/// Errors: [`Code::ShardTruncated`], [`Code::ShardHeader`], [`Code::ShardOffsets`]; the file is for the caller to name.
pub fn parse(file: &[u8]) -> Result<IndexMap<String, Entry>> {
    let text = header_text(file)?;
    let members: Members = serde_json::from_slice(text).map_err(|e| {
        header_error(format!("{e}")).help("the file is damaged or no safetensors file; download it again")
    })?;
    let mut raw = vec![];
    for (name, member) in members.0 {
        if let Member::Tensor(entry) = member {
            raw.push((name, entry));
        }
    }
    raw.sort_by_key(|(_, e)| e.data_offsets);
    let data_start = 8 + text.len();
    check_offsets(&raw, (file.len() - data_start) as u64)?;
    let place = |(name, e): (String, RawEntry)| {
        let dtype = stored_type(&name, &e.dtype)?;
        let [begin, end] = e.data_offsets.map(|o| data_start + o as usize);
        Ok((name, Entry { dtype, shape: e.shape.0, range: begin..end }))
    };
    raw.into_iter().map(place).collect()
}

fn header_error(message: impl Into<String>) -> Error {
    Error::new(Code::ShardHeader, message)
}

/// The JSON between the length and the data.
fn header_text(file: &[u8]) -> Result<&[u8]> {
    let truncated = |expected: String| {
        Error::new(Code::ShardTruncated, "the file ends before its header does")
            .values(expected, format!("{} bytes", file.len()))
            .help("the download was cut; fetch the shard again")
    };
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(truncated("at least 8 bytes".into()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let e = header_error("the header is larger than the format allows");
        return Err(e.values(format!("at most {MAX_HEADER_BYTES} bytes"), format!("{length} bytes")));
    }
    let text = rest.get(..length as usize).ok_or_else(|| truncated(format!("8 + {length} bytes")))?;
    if std::str::from_utf8(text).is_err() {
        return Err(header_error("the header is not UTF-8").help("the file is damaged or no safetensors file"));
    }
    if text.first() != Some(&b'{') {
        return Err(header_error("the header does not begin with `{`"));
    }
    Ok(text)
}

fn stored_type(tensor: &str, name: &str) -> Result<StoredType> {
    StoredType::from_name(name).ok_or_else(|| {
        let known: Vec<_> = StoredType::TABLE.iter().map(|r| r.0).collect();
        header_error("unknown element type").tensor(tensor).values(format!("one of {}", known.join(" ")), name)
    })
}

/// Offsets ascend, touch, agree with dtype and shape, and end where the file ends.
fn check_offsets(raw: &[(String, RawEntry)], data_bytes: u64) -> Result<()> {
    let mut end = 0;
    let mut before = "";
    for (name, e) in raw {
        let [from, to] = e.data_offsets;
        let bad = |message: String| Error::new(Code::ShardOffsets, message).tensor(name);
        if from < end {
            return Err(
                bad(format!("data overlaps that of `{before}`")).values(format!("begin at {end}"), from.to_string())
            );
        }
        if from > end {
            return Err(bad("bytes before this tensor belong to none".into())
                .values(format!("begin at {end}"), from.to_string()));
        }
        let bytes = to.checked_sub(from).ok_or_else(|| bad("data ends before it begins".into()))?;
        let bits = stored_type(name, &e.dtype)?.bits();
        let product = e.shape.0.iter().try_fold(bits, |n, axis| n.checked_mul(*axis));
        let wanted = product.ok_or_else(|| bad(format!("the size of shape {:?} overflows", e.shape.0)))?;
        if !wanted.is_multiple_of(8) || wanted / 8 != bytes {
            let expected = format!("{} bytes for {} {:?}", wanted.div_ceil(8), e.dtype, e.shape.0);
            return Err(bad("dtype and shape contradict the bytes".into()).values(expected, format!("{bytes} bytes")));
        }
        (end, before) = (to, name);
    }
    match end.cmp(&data_bytes) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Error::new(Code::ShardTruncated, "the file ends before its data does")
            .values(format!("{end} bytes of data"), format!("{data_bytes} bytes"))
            .help("the download was cut; fetch the shard again")),
        std::cmp::Ordering::Less => Err(Error::new(Code::ShardOffsets, "bytes after the last tensor belong to none")
            .values(format!("{end} bytes of data"), format!("{data_bytes} bytes"))),
    }
}
