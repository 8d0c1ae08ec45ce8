//! Typed, range-checked access to the fields of a JSON object. Every error names the field, what it must be and what it is.

use crate::error::{Code, Error, Result};
use crate::json::Json;
use indexmap::IndexMap;
use std::ops::RangeInclusive;

/// Largest size of an axis; far above every release (V3's vocabulary is 2^17), far below an overflow of any product of ours.
pub const MAX_DIM: u64 = 1 << 24;

/// An object of a configuration file and the path that leads to it.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a IndexMap<String, Json>,
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    pub fn new(map: &'a IndexMap<String, Json>) -> Self {
        Self { map, prefix: "" }
    }

    /// The value, if it is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Json> {
        self.map.get(name).filter(|v| **v != Json::Null)
    }

    /// Whether the key is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    pub fn error(&self, name: &str, message: &str, expected: impl Into<String>) -> Error {
        let found = self.map.get(name).map_or("nothing".into(), Json::to_string);
        let path = if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) };
        Error::new(Code::ConfigField, message).field(path).values(expected, found)
    }

    fn missing(&self, name: &str, expected: impl Into<String>) -> Error {
        self.error(name, "the field is required", expected)
    }

    /// An object within this one; `None` if absent or null.
    pub fn object(&self, name: &'a str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Map(map)) => Ok(Some(Fields { map, prefix: name })),
            Some(_) => Err(self.error(name, "wrong type", "an object")),
        }
    }

    pub fn int(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        match self.get(name) {
            None => Ok(None),
            Some(Json::Int(n)) => match u64::try_from(*n) {
                Ok(n) if range.contains(&n) => Ok(Some(n)),
                _ => Err(self.error(name, "out of range", expected())),
            },
            Some(_) => Err(self.error(name, "wrong type", expected())),
        }
    }

    /// A required integer.
    pub fn required(&self, name: &str, range: RangeInclusive<u64>) -> Result<u64> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.int(name, range)?.ok_or_else(|| self.missing(name, expected))
    }

    /// A required size of an axis.
    pub fn dim(&self, name: &str) -> Result<u64> {
        self.required(name, 1..=MAX_DIM)
    }

    /// A finite number; integers count.
    pub fn float(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Int(n)) => Ok(Some(*n as f64)),
            Some(Json::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(_) => Err(self.error(name, "wrong type", "a finite number")),
        }
    }

    /// A number above zero and at most `max`.
    pub fn positive(&self, name: &str, max: f64) -> Result<Option<f64>> {
        match self.float(name)? {
            Some(x) if x <= 0.0 || x > max => {
                Err(self.error(name, "out of range", format!("a number above 0, at most {max:?}")))
            }
            other => Ok(other),
        }
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.error(name, "wrong type", "true or false")),
        }
    }

    pub fn str(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Str(s)) => Ok(Some(s)),
            Some(_) => Err(self.error(name, "wrong type", "a string")),
        }
    }

    /// One token id or a list of them; absent and null give an empty list.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let expected = "a token id or a list of token ids";
        let one = |value: &Json| match value {
            Json::Int(n) => u32::try_from(*n).map_err(|_| self.error(name, "out of range", expected)),
            _ => Err(self.error(name, "wrong type", expected)),
        };
        match self.get(name) {
            None => Ok(vec![]),
            Some(Json::List(items)) => items.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    /// Refuses a value that would change the mathematics in a way that is not built here.
    pub fn only(&self, name: &str, allowed: &[&str]) -> Result<()> {
        let Some(value) = self.get(name) else { return Ok(()) };
        let text = if let Json::Str(s) = value { s.clone() } else { value.to_string() };
        if allowed.contains(&text.as_str()) {
            return Ok(());
        }
        let e = self.error(name, "this value is not supported", format!("one of: {}", allowed.join(", ")));
        Err(Error::unsupported(&e))
    }
}

impl Error {
    /// The same place and values under the code for sound but unsupported input.
    pub(crate) fn unsupported(e: &Error) -> Error {
        let (field, expected, found) = (e.field.clone(), e.expected.clone(), e.found.clone());
        let new = Error::new(Code::Unsupported, e.message.clone())
            .values(expected.unwrap_or_default(), found.unwrap_or_default());
        match field {
            Some(field) => new.field(field),
            None => new,
        }
    }
}
