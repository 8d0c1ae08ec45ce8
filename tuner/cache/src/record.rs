//! One measurement of a kernel: its text form, and what is refused in it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Value of `schema`.
pub const SCHEMA: &str = "deepfuse.record/1";
/// Variants of a kernel that one record may have.
pub const MAX_CANDIDATES: usize = 64;
/// Samples that one variant may have.
pub const MAX_SAMPLES: usize = 256;
/// An hour: no kernel takes longer.
pub const MAX_NANOS: u64 = 3_600_000_000_000;
/// Longest text of a field.
const MAX_TEXT: usize = 8192;

/// What a measurement is of. All fields are hard: another value is another key, and a record says nothing of other keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What is computed: operation, attributes, types and layouts of the operands. Strides of activations are left out: a kernel is measured dense.
    pub kernel: String,
    /// Values of the symbols that occur in `kernel`, and of `C`, the cached tokens, where `P`, the pages, do.
    pub sizes: BTreeMap<String, u64>,
    /// Target that the code is for: `x86-avx512-bf16`.
    pub target: String,
    /// Instruction set features that the code may use.
    pub features: Vec<String>,
    /// Name of the CPU that it ran on, as the CPU says.
    pub cpu: String,
    /// Threads that ran it.
    pub threads: u32,
}

/// What became of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It computes what the default variant computes, and was timed.
    Ok,
    /// It computes something else.
    Wrong,
    /// It did not end within the deadline.
    Timeout,
    /// It ended the process that measured it.
    Crash,
    /// The back end has no code for it.
    Compile,
}

/// A variant, and how it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Its named integers.
    pub parameters: BTreeMap<String, u32>,
    /// Digest of the code that was measured. Hard: of other code a measurement says nothing.
    pub code: String,
    pub outcome: Outcome,
    /// Nanoseconds a launch, one sample a round; all variants were run in every round, one after the other.
    pub nanos: Vec<u64>,
}

/// A measurement. Fields that are neither of the key nor of a candidate are for people: nothing is decided by them but the scale of estimates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub schema: String,
    pub key: Key,
    /// What measured: `deepfuse 0.1.0`.
    pub toolchain: String,
    /// Day of the measurement, UTC: `2026-11-28`.
    pub date: String,
    /// What all threads together read from memory right before, MB/s.
    pub read_mb_per_s: u64,
    /// What the back end estimated for the default variant. Its ratio to what was measured scales the estimates of kernels without a record.
    pub estimated_nanos: u64,
    /// The default variant first, then in the order of the back end's list.
    pub candidates: Vec<Candidate>,
}

impl Record {
    /// The bytes of the file: a function of the values alone.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a record has no maps with odd keys");
        text.push('\n');
        text
    }

    /// BLAKE3 of [`Record::to_json`]: the record's name.
    pub fn digest(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_string()
    }

    /// Reads a record. Only the canonical form is read: anything that would be written differently is no record.
    ///
    /// Errors: what is wrong, with the line where there is one.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        record.check()?;
        if record.to_json().as_bytes() != bytes {
            return Err("it is not in the form in which records are written".to_owned());
        }
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema: expected `{SCHEMA}`, found `{}`", shortened(&self.schema)));
        }
        let Key { kernel, sizes, target, features, cpu, threads } = &self.key;
        for (field, text) in
            [("kernel", kernel), ("target", target), ("cpu", cpu), ("toolchain", &self.toolchain), ("date", &self.date)]
        {
            plain(field, text)?;
        }
        features.iter().try_for_each(|f| plain("features", f))?;
        sizes.keys().try_for_each(|s| plain("sizes", s))?;
        within("threads", u64::from(*threads), 1, 65_536)?;
        within("read_mb_per_s", self.read_mb_per_s, 1, 1 << 40)?;
        within("estimated_nanos", self.estimated_nanos, 1, MAX_NANOS)?;
        within("number of features", features.len() as u64, 0, 256)?;
        within("number of sizes", sizes.len() as u64, 0, 8)?;
        within("number of candidates", self.candidates.len() as u64, 1, MAX_CANDIDATES as u64)?;
        for (i, c) in self.candidates.iter().enumerate() {
            c.check().map_err(|e| format!("candidate {i}: {e}"))?;
            if self.candidates[..i].iter().any(|other| other.parameters == c.parameters) {
                return Err(format!("candidate {i}: its parameters are those of an earlier one"));
            }
        }
        Ok(())
    }
}

impl Candidate {
    fn check(&self) -> Result<(), String> {
        within("number of parameters", self.parameters.len() as u64, 0, 32)?;
        self.parameters.keys().try_for_each(|p| plain("parameters", p))?;
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        let is_digest = self.code.len() == 64 && self.code.chars().all(hex);
        let has_none = self.code.is_empty() && self.outcome == Outcome::Compile;
        if !is_digest && !has_none {
            return Err("code: expected 64 hexadecimal digits".to_owned());
        }
        within("number of samples", self.nanos.len() as u64, 0, MAX_SAMPLES as u64)?;
        self.nanos.iter().try_for_each(|n| within("nanos", *n, 1, MAX_NANOS))?;
        match (self.outcome, self.nanos.is_empty()) {
            (Outcome::Ok, true) => Err("nanos: a variant that is ok was timed".to_owned()),
            (Outcome::Ok, false) | (_, true) => Ok(()),
            (_, false) => Err("nanos: only a variant that is ok is timed".to_owned()),
        }
    }
}

/// A text without control characters, not empty, not endless.
fn plain(field: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(format!("{field}: expected 1 to {MAX_TEXT} printable bytes, found `{}`", shortened(text)));
    }
    Ok(())
}

fn within(field: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{field}: expected {least} to {most}, found {value}"))
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Two variants of a small kernel.
    pub fn example() -> Record {
        let candidate = |rows, nanos: &[u64]| Candidate {
            parameters: [("rows".to_owned(), rows)].into(),
            code: format!("{rows:064x}"),
            outcome: Outcome::Ok,
            nanos: nanos.to_vec(),
        };
        Record {
            schema: SCHEMA.to_owned(),
            key: Key {
                kernel: "linear(bf16[T, 64], bf16[64, 64] vnni weight) -> bf16[T, 64]".to_owned(),
                sizes: [("T".to_owned(), 1)].into(),
                target: "x86-avx512-bf16".to_owned(),
                features: vec!["avx512bf16".to_owned()],
                cpu: "a CPU".to_owned(),
                threads: 2,
            },
            toolchain: "deepfuse 0.1.0".to_owned(),
            date: "2026-11-28".to_owned(),
            read_mb_per_s: 37_000,
            estimated_nanos: 1000,
            candidates: vec![candidate(6, &[1000, 1010]), candidate(8, &[900, 910])],
        }
    }

    #[test]
    fn text_and_back() {
        let record = example();
        assert_eq!(Record::from_json(record.to_json().as_bytes()), Ok(record.clone()));
        assert_eq!(record.digest().len(), 64);
    }

    /// Every field of the key is hard: another value is another key and another file.
    #[test]
    fn every_field_of_the_key_counts() {
        let changes: [fn(&mut Key); 6] = [
            |k| k.kernel.push(' '),
            |k| *k.sizes.get_mut("T").unwrap() = 8,
            |k| k.target = "x86-avx2".to_owned(),
            |k| k.features.clear(),
            |k| k.cpu.push('!'),
            |k| k.threads = 1,
        ];
        let record = example();
        for change in changes {
            let mut other = record.clone();
            change(&mut other.key);
            assert_ne!(other.key, record.key);
            assert_ne!(other.digest(), record.digest());
        }
    }

    /// The other fields belong to the measurement: the key is the same, the file is another.
    #[test]
    fn the_rest_is_no_part_of_the_key() {
        let changes: [fn(&mut Record); 5] = [
            |r| r.toolchain.push('1'),
            |r| r.date.push('1'),
            |r| r.read_mb_per_s += 1,
            |r| r.estimated_nanos += 1,
            |r| r.candidates[1].nanos.push(1),
        ];
        let record = example();
        for change in changes {
            let mut other = record.clone();
            change(&mut other);
            assert_eq!(other.key, record.key);
            assert_ne!(other.digest(), record.digest());
        }
    }

    #[test]
    fn what_is_no_record() {
        let refused = |change: &dyn Fn(&mut Record), why: &str| {
            let mut record = example();
            change(&mut record);
            let error = Record::from_json(record.to_json().as_bytes()).unwrap_err();
            assert!(error.contains(why), "{error} for {why}");
        };
        refused(
            &|r| r.schema = "deepfuse.record/2".to_owned(),
            "expected `deepfuse.record/1`, found `deepfuse.record/2`",
        );
        refused(&|r| r.key.kernel = String::new(), "kernel: expected 1 to");
        refused(&|r| r.key.cpu = "a\nb".to_owned(), "cpu: expected 1 to");
        refused(&|r| r.key.threads = 0, "threads: expected 1 to 65536, found 0");
        refused(&|r| r.read_mb_per_s = 0, "read_mb_per_s");
        refused(&|r| r.estimated_nanos = 0, "estimated_nanos");
        refused(&|r| r.candidates.clear(), "number of candidates: expected 1 to 64, found 0");
        refused(&|r| r.candidates[1].code = "ab".to_owned(), "candidate 1: code");
        refused(&|r| r.candidates[1].nanos = vec![0], "candidate 1: nanos: expected 1 to");
        refused(&|r| r.candidates[1].nanos = vec![], "a variant that is ok was timed");
        refused(&|r| r.candidates[1].nanos = vec![1; 257], "number of samples");
        refused(&|r| r.candidates[1].outcome = Outcome::Wrong, "only a variant that is ok is timed");
        refused(&|r| r.candidates[1].parameters = r.candidates[0].parameters.clone(), "those of an earlier one");
    }

    #[test]
    fn only_the_canonical_text_is_read() {
        let text = example().to_json();
        for other in [
            text.replace("\"threads\": 2", "\"threads\":  2"),
            text.replace("\"rows\": 6", "\"rows\": 5, \"rows\": 6"),
            format!("{text}\n"),
        ] {
            assert!(Record::from_json(other.as_bytes()).unwrap_err().contains("form in which records are written"));
        }
        for (from, to, why) in [
            ("\"date\"", "\"day\"", "unknown field `day`"),
            ("\"ok\"", "\"fast\"", "unknown variant `fast`"),
            ("\"threads\": 2", "\"threads\": -2", "invalid value"),
            ("\"T\": 1", "\"T\": 1e3", "invalid type"),
        ] {
            let error = Record::from_json(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.contains(why) && error.contains("line "), "{error}");
        }
        assert!(Record::from_json("[".repeat(100_000).as_bytes()).is_err(), "deep");
    }
}
