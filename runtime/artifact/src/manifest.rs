//! `manifest.json`: what an artifact is, and the digest of everything in it.
//!
//! Its own digest stands beside it in `manifest.blake3`, in the form that `b3sum --check` reads.

use crate::elements::Elements;
use serde::{Deserialize, Serialize};

/// Value of `format`; a directory without it is no artifact.
pub const FORMAT: &str = "deepfuse-artifact";

/// Version that this release writes.
pub const VERSION: u32 = 1;

/// Versions that this release reads: its own and the previous one.
pub const READABLE_VERSIONS: [u32; 1] = [VERSION];

/// Names of sections, each a file of the artifact.
pub mod section {
    pub const PLAN: &str = "plan";
    pub const CODE: &str = "code";
    pub const TOKENIZER: &str = "tokenizer";
    pub const TOKENIZER_CONFIG: &str = "tokenizer_config";
    pub const GENERATION_CONFIG: &str = "generation_config";
    pub const CHAT_TEMPLATE: &str = "chat_template";
    pub const CERTIFICATE: &str = "certificate";
    pub const CHOICES: &str = "choices";
    /// The plain step graph, canonical.
    pub const STEP: &str = "step";
    /// What each kernel computes.
    pub const SPECS: &str = "specs";
    /// What things of the certificate are called, as JSON.
    pub const REPORT: &str = "report";
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: String,
    pub format_version: u32,
    /// What wrote it: `deepfuse 0.1.0`.
    pub toolchain: String,
    pub target: TargetInfo,
    pub model: ModelInfo,
    pub limits: LimitsInfo,
    pub numerics: NumericsInfo,
    /// What the search for fused forms was given and came to; of artifacts before 0.2 nothing is known.
    #[serde(default)]
    pub fusion: FusionInfo,
    pub tokens: TokensInfo,
    /// Compiled from `config.json` alone: plan and code, nothing to run.
    pub shapes_only: bool,
    pub sections: Vec<Section>,
    pub weights: Vec<WeightFile>,
}

/// The machine that the code is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    pub name: String,
    /// LLVM names of the instruction set features that the code uses; what a machine must have to run it.
    pub features: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// As the checkpoint says: `DeepseekV3ForCausalLM`.
    pub architecture: String,
    pub layers: u32,
    pub hidden: u32,
    pub vocab: u32,
    /// Parameters in all, and those that one token uses.
    pub parameters: u64,
    pub active_parameters: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsInfo {
    /// Tokens of one sequence, prompt and answer together.
    pub context: u32,
    /// Tokens of a cache page.
    pub page_tokens: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumericsInfo {
    /// `f32` or `bf16`.
    pub activations: String,
    /// The strongest class of rewrites that was allowed: `exact`, `reassociates`, `requantizes`, `approximates`.
    pub class: String,
    /// What matrices were quantized to: `int8`, `int4`; `none` if they have the types of the checkpoint.
    #[serde(default = "no_quant")]
    pub quant: String,
    /// The text that says which columns of a weight matter, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationInfo>,
}

/// A text that the model read before its weights were quantized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalibrationInfo {
    /// That were read, the beginning tokens of sequences included.
    pub tokens: u64,
    /// Digest of the whole file.
    pub text_blake3: String,
}

fn no_quant() -> String {
    "none".into()
}

/// How the forms of the model were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FusionInfo {
    /// Names of rules that must not fire; `all`: none may.
    pub disabled_rules: Vec<String>,
    /// What a better extraction could save at most, over all buckets and layers, in 1/1000 ns of estimated time; 0: there is none.
    pub gap_picos: Option<u64>,
    /// What that is a part of: the estimated time of a step in every bucket, and charges for stored weights, in 1/1000 ns.
    #[serde(default)]
    pub total_picos: Option<u64>,
    /// What a limit on memory cost, if it was in the way.
    #[serde(default)]
    pub memory: Option<MemoryInfo>,
}

impl FusionInfo {
    /// How far the forms may be from the cheapest, in words: `proved to be the cheapest`, `within 12.0 us (0.003 %) of the cheapest`.
    pub fn proof(&self) -> Option<String> {
        let gap = self.gap_picos? as f64;
        if gap == 0.0 {
            return Some("proved to be the cheapest".to_owned());
        }
        let part = self.gap_percent().map_or(String::new(), |p| format!(" ({p:.3} %)"));
        Some(format!("within {:.1} us{part} of the cheapest", gap / 1e6))
    }

    /// [`FusionInfo::gap_picos`] in percent of the total.
    pub fn gap_percent(&self) -> Option<f64> {
        let total = self.total_picos.filter(|t| *t > 0)?;
        Some(100.0 * self.gap_picos? as f64 / total as f64)
    }
}

/// Forms of weights that were given up for a limit on memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// Bytes that were left for weights, that the stored ones take, and that they would take without the limit.
    pub limit: u64,
    pub stored: u64,
    pub wanted: u64,
    pub given_up: Vec<GivenUpInfo>,
    pub slower: Vec<SlowerInfo>,
}

/// Forms of the same tensors that would be stored without the limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUpInfo {
    /// Layer class, and the number of its layers.
    pub class: usize,
    pub regions: usize,
    pub forms: Vec<FormInfo>,
    /// What these tensors are stored as.
    pub instead: Vec<FormInfo>,
    /// Bytes that it saves, what is stored instead and would not be otherwise being counted.
    pub saved: i64,
    /// Buckets whose steps take longer for want of these forms.
    pub slower: Vec<SlowerInfo>,
}

/// A form of weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormInfo {
    /// By the tensors of the first layer of the class.
    pub form: String,
    /// In all layers of the class.
    pub bytes: u64,
    /// It would not be stored without the limit.
    pub new: bool,
}

/// What the limit costs in one bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowerInfo {
    pub bucket: String,
    /// By how much a step takes longer, and what it would take without the limit, in 1/1000 ns of estimated time.
    pub picos: i64,
    pub of_picos: u64,
}

impl SlowerInfo {
    pub fn percent(&self) -> f64 {
        100.0 * self.picos as f64 / self.of_picos.max(1) as f64
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensInfo {
    pub bos: Option<u32>,
    /// Every id that ends an answer.
    pub eos: Vec<u32>,
}

/// A file whose content is checked at every load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// See [`section`].
    pub name: String,
    pub file: String,
    pub bytes: u64,
    pub blake3: String,
}

/// A safetensors file of packed weights. At load its size and header are checked, tensors by `verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightFile {
    pub file: String,
    pub bytes: u64,
    /// Length and digest of everything before the first tensor.
    pub header_bytes: u64,
    pub header_blake3: String,
    /// In the order of the file.
    pub tensors: Vec<WeightTensor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightTensor {
    /// As in the plan.
    pub name: String,
    /// What the bytes are, see [`Elements`].
    pub elements: Elements,
    /// Of the tensor with its padding to 64 bytes.
    pub blake3: String,
}

impl Manifest {
    /// The bytes of `manifest.json`.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest has no maps with odd keys");
        text.push('\n');
        text
    }

    /// Reads `manifest.json`.
    ///
    /// Errors: what is wrong, in words; [`ManifestError::Version`] for a version that this release does not read.
    pub fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        let head: Head = serde_json::from_slice(text).map_err(|e| ManifestError::Json(e.to_string()))?;
        if head.format != FORMAT {
            return Err(ManifestError::Format(head.format));
        }
        if !READABLE_VERSIONS.iter().any(|v| u64::from(*v) == head.format_version) {
            return Err(ManifestError::Version(head.format_version));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|e| ManifestError::Json(e.to_string()))?;
        manifest.check().map_err(ManifestError::Rule)?;
        Ok(manifest)
    }

    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Bytes of all files that the manifest names.
    pub fn total_bytes(&self) -> u64 {
        let sizes = self.sections.iter().map(|s| s.bytes).chain(self.weights.iter().map(|w| w.bytes));
        sizes.fold(0, u64::saturating_add)
    }

    fn check(&self) -> Result<(), String> {
        let files = self.sections.iter().map(|s| &s.file).chain(self.weights.iter().map(|w| &w.file));
        let mut seen = std::collections::HashSet::new();
        for file in files {
            if !is_plain_file_name(file) {
                return Err(format!("{file:?} is not a plain file name"));
            }
            if !seen.insert(file) {
                return Err(format!("the file {file} is named twice"));
            }
        }
        for name in [section::PLAN, section::CODE] {
            if self.section(name).is_none() {
                return Err(format!("there is no section `{name}`"));
            }
        }
        if self.limits.page_tokens != crate::PAGE_TOKENS || self.limits.context == 0 {
            return Err("a limit that this runtime does not know".to_owned());
        }
        if self.shapes_only != self.weights.is_empty() {
            return Err("weights and `shapes_only` contradict each other".to_owned());
        }
        Ok(())
    }
}

/// The first thing that is read, so that a newer format is named as such.
#[derive(Deserialize)]
struct Head {
    format: String,
    format_version: u64,
}

/// Why a text is not a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}")]
    Json(String),
    #[error("its format is {0:?}, not \"{FORMAT}\"")]
    Format(String),
    #[error("format version {0}")]
    Version(u64),
    #[error("{0}")]
    Rule(String),
}

/// A name inside the artifact's directory: no separators, no leading dot.
pub fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
}
