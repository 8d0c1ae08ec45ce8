//! Writes the artifact: sections, then weights, streamed and packed.

use crate::calibrate::WithImportance;
use crate::error::Error;
use crate::pipeline::{Compiled, ModelTensors, Request};
use crate::report::CompileReport;
use crate::weights::{Findings, WeightError, stream};
use deepfuse_artifact::elements::{Element, Elements};
use deepfuse_artifact::manifest::{
    FormInfo, FusionInfo, GivenUpInfo, MemoryInfo, ModelInfo, NumericsInfo, SlowerInfo, TargetInfo, TokensInfo, section,
};
use deepfuse_artifact::plan::Plan;
use deepfuse_artifact::report::{Report, exit};
use deepfuse_artifact::weights::WeightDecl;
use deepfuse_artifact::writer::{About, ArtifactWriter, SECTIONS_RESERVE_BYTES, check_output};
use deepfuse_frontend::{Activations, Family, Model, read_limited};
use deepfuse_ir::weights::StoredWeight;
use deepfuse_ir::{Code, DType, Layout, PAGE_TOKENS, Quant};
use deepfuse_passes::fuse::{FuseReport, GivenUp, Slower, StoredForm};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tokens of a step that memory needs are quoted for.
pub const TYPICAL_TOKENS: u64 = 512;
/// Largest tokenizer that is copied; V3's has 8 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Context that memory needs are quoted for, at most.
const TYPICAL_CONTEXT: u64 = 4096;

/// What writing and running an artifact takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Must be free: the weights, and a reserve for all the rest.
    pub disk: u64,
    /// Mapped and shared between processes.
    pub weights: u64,
    /// Buffers of a session for [`TYPICAL_TOKENS`] tokens a step.
    pub activations: u64,
    /// Cache for a context of `context` tokens.
    pub cache: u64,
    /// 4096 tokens, or the model's own context if that is shorter.
    pub context: u64,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    pub code_bytes: u64,
    pub plan_bytes: u64,
    pub weight_bytes: u64,
    pub warnings: Vec<String>,
    /// Each quantized weight, and the root of its mean squared error relative to that of its values.
    pub losses: Vec<(String, f64)>,
}

impl Needs {
    /// Memory of a session.
    pub fn memory(&self) -> u64 {
        self.weights + self.activations + self.cache
    }
}

/// Disk and memory that the result takes.
pub fn needs_of(model: &Model, plan: &Plan, req: &Request) -> Needs {
    let weights: u64 = plan.weights.iter().map(|w| w.bytes).sum();
    let context = model.config.context.min(TYPICAL_CONTEXT);
    let pages = context.div_ceil(PAGE_TOKENS);
    let cache = pages * PAGE_TOKENS * plan.states.iter().map(|s| s.row_bytes).sum::<u64>();
    let activations = deepfuse_passes::plan::activation_bytes(plan, TYPICAL_TOKENS, pages, 1, 1);
    Needs {
        disk: if req.shapes_only { 0 } else { weights } + SECTIONS_RESERVE_BYTES,
        weights,
        activations,
        cache,
        context,
    }
}

/// [`needs_of`], checked.
///
/// Errors: `memory::limit` if a session would need more than `--memory`, and those of [`check_output`].
pub fn needs(model: &Model, plan: &Plan, req: &Request) -> Result<Needs, Error> {
    let needs = needs_of(model, plan, req);
    check_output(&req.out, needs.disk - SECTIONS_RESERVE_BYTES)?;
    let (total, Needs { weights, activations, cache, .. }) = (needs.memory(), needs);
    match req.memory.filter(|limit| total > *limit) {
        Some(limit) => Err(Report::new(
            "memory::limit",
            exit::RESOURCES,
            "running this model needs more memory than --memory allows",
        )
        .values(
            format!("at most {limit} bytes"),
            format!("{total} bytes: weights {weights}, activations {activations}, cache {cache}"),
        )
        .help("raise --memory, or use a smaller model; no other forms of its weights are smaller")
        .into()),
        None => Ok(needs),
    }
}

/// Writes the artifact to `req.out`; `progress` gets the number of weight bytes written so far.
///
/// Nothing stands at `out` until everything is written and synced; on an error or an interrupt nothing is left.
pub fn write(c: &Compiled, req: &Request, progress: &mut (dyn FnMut(u64) + Send)) -> Result<Written, Error> {
    sample_memory();
    let plan = &c.planned.plan;
    let mut writer = ArtifactWriter::create(&req.out, deepfuse_artifact::interrupt::flag())?;
    let plan_text = plan.to_string();
    writer.section(section::PLAN, "model.plan", plan_text.as_bytes())?;
    writer.section(section::CODE, &format!("kernels-{}.so", req.target.name), &c.code.shared_object)?;
    writer.section(section::CERTIFICATE, "certificate.txt", c.fused.certificate.to_string().as_bytes())?;
    writer.section(section::CHOICES, "kernels.choices", choices(c).as_bytes())?;
    writer.section(section::STEP, "step.ir", c.fused.plain.to_string().as_bytes())?;
    writer.section(section::SPECS, "kernels.specs", specs(c).as_bytes())?;
    let report = CompileReport::of(&c.fused).to_json();
    writer.section(section::REPORT, "report.json", report.as_bytes())?;
    for (name, file) in [
        (section::TOKENIZER, "tokenizer.json"),
        (section::TOKENIZER_CONFIG, "tokenizer_config.json"),
        (section::GENERATION_CONFIG, "generation_config.json"),
        (section::CHAT_TEMPLATE, "chat_template.jinja"),
    ] {
        let path = c.model.dir.join(file);
        if path.symlink_metadata().is_ok() {
            writer.section(name, file, &read_limited(&path, MAX_TOKENIZER_BYTES)?)?;
        }
    }
    let mut findings = Findings::default();
    if !req.shapes_only {
        findings = weights(c, req, &mut writer, progress)?;
    }
    writer.finish(about(c, req))?;
    Ok(Written {
        code_bytes: c.code.shared_object.len() as u64,
        plan_bytes: plan_text.len() as u64,
        weight_bytes: plan.weights.iter().map(|w| w.bytes).sum(),
        warnings: warnings(c, &findings),
        losses: losses(c, &findings),
    })
}

fn weights(
    c: &Compiled,
    req: &Request,
    writer: &mut ArtifactWriter,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Findings, Error> {
    let stored: Vec<StoredWeight> = c.weights.iter().cloned().collect();
    let declare = |(row, w): (&deepfuse_artifact::plan::Weight, &StoredWeight)| WeightDecl {
        name: row.name.clone(),
        bytes: row.bytes,
        elements: elements(w),
    };
    let list: Vec<WeightDecl> = c.planned.plan.weights.iter().zip(&stored).map(declare).collect();
    let mut file = writer.weights(&list, deepfuse_artifact::weights::MAX_FILE_BYTES)?;
    let (mut done, mut last) = (0, 0);
    let tensors = WithImportance { tensors: &ModelTensors(&c.model), calibration: c.calibration.as_ref() };
    let findings = stream(&stored, &tensors, req.jobs, &mut |i, bytes| {
        file.append(i, bytes).map_err(WeightError::Artifact)?;
        done += bytes.len() as u64;
        progress(done);
        if i != last {
            // Mapped pages of a weight that is packed need not stay resident.
            deepfuse_ir::weights::sources(&stored[last].expr, &mut |name| c.model.release(name));
            last = i;
            sample_memory();
        }
        Ok(())
    })?;
    file.finish()?;
    Ok(findings)
}

fn name_of(c: &Compiled, weight: usize) -> String {
    c.weights.get_index(weight).map_or_else(String::new, |w| deepfuse_passes::stored::describe(&w.expr))
}

fn warnings(c: &Compiled, findings: &Findings) -> Vec<String> {
    let warning = |(i, n): &(usize, u64)| {
        let elements = if *n == 1 { "1 element is" } else { &format!("{n} elements are") };
        format!("{}: {elements} NaN or Inf", name_of(c, *i))
    };
    findings.not_finite.iter().map(warning).collect()
}

/// What quantization lost of each weight, as a part of its size: roots of mean squares.
fn losses(c: &Compiled, findings: &Findings) -> Vec<(String, f64)> {
    findings.losses.iter().map(|(i, loss)| (name_of(c, *i), loss.relative())).collect()
}

/// What the stored bytes are, for `verify`.
fn elements(w: &StoredWeight) -> Elements {
    let ty = w.expr.ty();
    let element = match ty.dtype {
        DType::F32 => Element::F32,
        DType::Bf16 => Element::Bf16,
        DType::F16 => Element::F16,
        DType::I32 | DType::U32 => Element::I32,
        DType::Quant(Quant { elem: Code::E4m3, .. }) => Element::F8E4m3,
        DType::Quant(Quant { elem: Code::I8, .. }) => Element::I8,
        DType::Quant(_) => Element::U8,
    };
    let DType::Quant(q) = ty.dtype else { return Elements::all(element) };
    let dims = ty.fixed_shape().expect("a weight has no symbolic dims");
    let (rows, cols) = (dims[dims.len().saturating_sub(2)], dims[dims.len() - 1]);
    let runs = match (q, &w.layout) {
        (Quant::INT8_R, Layout::Vnni) => vec![(Element::U8, 16 * cols.next_multiple_of(64)), (Element::F32, 64)],
        (Quant::INT4_G32, Layout::Vnni) => vec![(Element::F16, 64), (Element::U8, 512)],
        _ => vec![],
    };
    if !runs.is_empty() {
        return Elements::runs(&runs).unwrap_or_else(|| Elements::all(Element::U8));
    }
    let codes = match w.layout {
        Layout::Vnni => rows.next_multiple_of(16) * cols.next_multiple_of(32),
        Layout::Dense | Layout::Strided(_) => rows * cols,
    };
    let scales = q.blocks(rows, cols).iter().product::<u64>() * 4;
    Elements::runs(&[(element, codes.next_multiple_of(64)), (Element::F32, scales.next_multiple_of(64))])
        .unwrap_or_else(|| Elements::all(element))
}

fn choices(c: &Compiled) -> String {
    let mut text = String::new();
    for (row, choice) in c.planned.plan.kernels.iter().zip(&c.choices) {
        let (basis, nanos) = (choice.basis.name(), choice.nanos);
        let records = if choice.records.is_empty() { String::new() } else { format!(" {}", choice.records.join(" ")) };
        let (symbol, variant, candidates) = (&row.symbol, &choice.variant, choice.candidates);
        writeln!(text, "{symbol}: {variant} by {basis} {nanos:.0} ns of {candidates}{records}")
            .expect("a string takes all text");
    }
    text
}

/// A line `SYMBOL: SPEC` for all that a kernel computes.
fn specs(c: &Compiled) -> String {
    let rows = c.planned.plan.kernels.iter().zip(&c.planned.computes);
    rows.flat_map(|(row, specs)| specs.iter().map(|spec| format!("{}: {spec}\n", row.symbol))).collect()
}

fn about(c: &Compiled, req: &Request) -> About {
    let (config, parameters) = (&c.model.config, c.model.parameters());
    About {
        toolchain: format!("deepfuse {}", env!("CARGO_PKG_VERSION")),
        target: TargetInfo { name: req.target.name.to_owned(), features: req.target.features.clone() },
        model: ModelInfo {
            architecture: architecture(config.family).to_owned(),
            layers: config.layers as u32,
            hidden: config.hidden as u32,
            vocab: config.vocab as u32,
            parameters: parameters.total,
            active_parameters: parameters.active,
        },
        context: config.context as u32,
        numerics: NumericsInfo {
            activations: activations_name(req).to_owned(),
            class: req.numerics.name().to_owned(),
            quant: match req.quant {
                None => "none".to_owned(),
                Some(Quant::INT8_R) => "int8".to_owned(),
                Some(Quant::INT4_G32) => "int4".to_owned(),
                Some(other) => DType::Quant(other).to_string(),
            },
            calibration: c.calibration.as_ref().map(|c| c.about.clone()),
        },
        fusion: fusion_info(&c.fused.report, req),
        tokens: TokensInfo { bos: config.bos, eos: config.eos.clone() },
    }
}

/// As published checkpoints say it.
pub fn architecture(family: Family) -> &'static str {
    match family {
        Family::DeepseekV2 => "DeepseekV2ForCausalLM",
        Family::DeepseekV3 | Family::KimiK2 => "DeepseekV3ForCausalLM",
    }
}

/// Type of the values between operations.
pub fn activations_name(req: &Request) -> &'static str {
    if req.activations == Activations::F32 { "f32" } else { "bf16" }
}

/// How the forms of the model were found.
pub fn fusion_info(report: &FuseReport, req: &Request) -> FusionInfo {
    FusionInfo {
        disabled_rules: req.disabled_rules.clone(),
        gap_picos: Some(report.gap_picos()),
        total_picos: Some(report.total_picos()),
        memory: memory_info(report),
    }
}

/// What was given up for a limit on memory; none if nothing was.
fn memory_info(report: &FuseReport) -> Option<MemoryInfo> {
    let m = report.memory.as_ref().filter(|m| !m.given_up.is_empty())?;
    let form = |f: &StoredForm| FormInfo { form: f.name.clone(), bytes: f.bytes, new: f.new };
    let slower = |all: &[Slower]| {
        let one = |s: &Slower| SlowerInfo { bucket: s.bucket.clone(), picos: s.picos, of_picos: s.of_picos };
        all.iter().map(one).collect()
    };
    let given_up = |g: &GivenUp| GivenUpInfo {
        class: g.class,
        regions: g.regions,
        forms: g.forms.iter().map(form).collect(),
        instead: g.instead.iter().map(form).collect(),
        saved: g.saved(),
        slower: slower(&g.slower),
    };
    Some(MemoryInfo {
        limit: m.limit,
        stored: m.stored,
        wanted: m.wanted,
        given_up: m.given_up.iter().map(given_up).collect(),
        slower: slower(&m.slower),
    })
}

static ANONYMOUS: AtomicU64 = AtomicU64::new(0);

fn sample_memory() {
    ANONYMOUS.fetch_max(status_kib("RssAnon:") * 1024, Ordering::Relaxed);
}

/// Largest anonymous memory of this process at any sample so far, bytes: what is its own, mapped files not included. It is sampled
/// after code generation and after every weight.
pub fn peak_memory() -> u64 {
    sample_memory();
    ANONYMOUS.load(Ordering::Relaxed)
}

fn status_kib(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}
