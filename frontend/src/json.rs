//! JSON as strict as a checkpoint needs it: a repeated key is an error, and only plain files of a sane size are read.

use crate::error::{Code, Error, Result};
use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A JSON value; objects keep their order and have distinct keys.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// An integer that fits.
    Int(i128),
    Float(f64),
    Str(String),
    List(Vec<Json>),
    Map(IndexMap<String, Json>),
}

impl Json {
    /// Parses one document. The error is serde_json's text with line and column.
    pub fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        serde_json::from_slice(text).map_err(|e| e.to_string())
    }
}

impl fmt::Display for Json {
    /// A short rendering for messages: containers by their size, long strings cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Str(s) if s.chars().count() > 60 => write!(f, "\"{}...\"", s.chars().take(60).collect::<String>()),
            Self::Str(s) => write!(f, "\"{s}\""),
            Self::List(v) => write!(f, "a list of {}", v.len()),
            Self::Map(m) => write!(f, "an object of {}", m.len()),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, b: bool) -> std::result::Result<Json, E> {
        Ok(Json::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> std::result::Result<Json, E> {
        Ok(Json::Int(n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> std::result::Result<Json, E> {
        Ok(Json::Int(n.into()))
    }

    fn visit_f64<E>(self, x: f64) -> std::result::Result<Json, E> {
        Ok(Json::Float(x))
    }

    fn visit_str<E>(self, s: &str) -> std::result::Result<Json, E> {
        Ok(Json::Str(s.to_owned()))
    }

    fn visit_string<E>(self, s: String) -> std::result::Result<Json, E> {
        Ok(Json::Str(s))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Json, A::Error> {
        let mut list = vec![];
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Json, A::Error> {
        unique(map).map(Json::Map)
    }
}

/// An object whose keys are distinct and whose values are of one type.
#[derive(Debug)]
pub struct Unique<V>(pub IndexMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct UniqueVisitor<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
                unique(map).map(Unique)
            }
        }
        deserializer.deserialize_map(UniqueVisitor(std::marker::PhantomData))
    }
}

fn unique<'de, V: Deserialize<'de>, A: MapAccess<'de>>(
    mut map: A,
) -> std::result::Result<IndexMap<String, V>, A::Error> {
    let mut object = IndexMap::new();
    while let Some(key) = map.next_key::<String>()? {
        if object.contains_key(&key) {
            return Err(serde::de::Error::custom(format!("key `{key}` appears twice")));
        }
        object.insert(key, map.next_value()?);
    }
    Ok(object)
}

/// Opens a plain file for reading. The type is checked before the open, which would block on a FIFO.
/// Symbolic links are followed: download caches are made of them.
pub fn open_plain(path: &Path) -> Result<(File, u64)> {
    let check = |meta: &std::fs::Metadata| {
        if meta.is_file() {
            return Ok(());
        }
        let found = if meta.is_dir() { "a directory" } else { "a FIFO, socket or device" };
        Err(Error::new(Code::NotAFile, "not a plain file").file(path).values("a plain file", found))
    };
    check(&std::fs::metadata(path).map_err(|e| Error::io(path, &e))?)?;
    let file = File::open(path).map_err(|e| Error::io(path, &e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, &e))?;
    check(&meta)?;
    Ok((file, meta.len()))
}

/// Bytes of a plain file of at most `limit_bytes`.
pub fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let (file, bytes) = open_plain(path)?;
    if bytes > limit_bytes {
        let e = Error::new(Code::JsonSyntax, "file is too large to be what its name says").file(path);
        return Err(e.values(format!("at most {limit_bytes} bytes"), format!("{bytes} bytes")));
    }
    let mut text = Vec::with_capacity(bytes as usize);
    file.take(limit_bytes).read_to_end(&mut text).map_err(|e| Error::io(path, &e))?;
    Ok(text)
}

/// Parses a JSON object.
pub fn parse_object(text: &[u8]) -> Result<IndexMap<String, Json>> {
    match Json::parse(text) {
        Ok(Json::Map(map)) => Ok(map),
        Ok(other) => Err(Error::new(Code::JsonSyntax, "not a JSON object").values("an object", other.to_string())),
        Err(message) => Err(Error::new(Code::JsonSyntax, message)
            .help("JSON has no NaN, Infinity or comments, and a key may appear once")),
    }
}
