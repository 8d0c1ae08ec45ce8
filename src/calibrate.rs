//! `compile --calibration FILE`: which columns of a weight matter, measured on a text.
//!
//! ```text
//! importance[k] = mean over the rows x that meet the weight of x[k]^2
//! ```
//!
//! The model is compiled as the checkpoint has it, with f32 activations and nothing fused, beside the artifact that is to be written; it reads the
//! text, and what each projection is given is looked at on the way. An expert is met by the rows that choose it; one that none chooses has
//! importance 0 throughout, as if all were equal.

use crate::error::Error;
use crate::output;
use crate::pipeline::{Event, Request, compile};
use crate::weights::Tensors;
use deepfuse_artifact::manifest::CalibrationInfo;
use deepfuse_artifact::plan::{Action, Arg};
use deepfuse_artifact::report::{Report, exit};
use deepfuse_artifact::{Artifact, interrupt};
use deepfuse_codegen::x86::targets;
use deepfuse_frontend::Activations;
use deepfuse_ir::weights::{WeightExpr, source_names};
use deepfuse_ir::{Graph, Op, ParamKind, Sizes};
use deepfuse_passes::IMPORTANCE;
use deepfuse_passes::fuse::Numerics;
use deepfuse_runtime::look::Look;
use deepfuse_runtime::session::page_bytes;
use deepfuse_runtime::tokenizer::Tokenizer;
use deepfuse_runtime::{Feed, Limits, Options, Session};
use indexmap::IndexMap;
use std::collections::HashMap;
use std::path::Path;

/// Tokens of the text that are read at most, and of one sequence with its beginning token. llama.cpp's importance matrices take as long sequences.
pub const MAX_TOKENS: usize = 8192;
pub const WINDOW: usize = 512;
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Importance of columns, by the name of a tensor of the checkpoint with [`IMPORTANCE`] behind it.
#[derive(Clone, Debug)]
pub struct Calibration {
    pub about: CalibrationInfo,
    columns: HashMap<String, Vec<u8>>,
}

impl Calibration {
    /// f32, one a column.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.columns.get(name).map(Vec::as_slice)
    }
}

/// The checkpoint's tensors, and importance beside them.
pub struct WithImportance<'a> {
    pub tensors: &'a dyn Tensors,
    pub calibration: Option<&'a Calibration>,
}

impl Tensors for WithImportance<'_> {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.calibration.and_then(|c| c.bytes(name)).or_else(|| self.tensors.bytes(name))
    }
}

/// Measures what `graph`, with the parameters of [`deepfuse_passes::quantize`], asks for.
///
/// Errors: those of compiling and running; `calibration::text` (exit 3) if the text has no token.
pub fn measure(graph: &Graph, req: &Request, text: &Path) -> Result<Calibration, Error> {
    let bytes = deepfuse_frontend::read_limited(text, MAX_TEXT_BYTES).map_err(|e| bad(text, &e.message))?;
    let _whole = interrupt::hold(); // until the folder is gone; `run` looks at the flag
    let beside = req.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new()
        .prefix(".deepfuse-calibration-")
        .tempdir_in(beside)
        .map_err(|e| Report::new("calibration::folder", exit::ENVIRONMENT, format!("{}: {e}", beside.display())))?;
    let plain = Request {
        out: folder.path().join("plain.dfz"),
        target: targets::native(),
        activations: Activations::F32,
        quant: None,
        calibration: None,
        numerics: Numerics::Exact,
        disabled_rules: vec!["all".to_owned()],
        memory: None,
        records: None, // what is measured must not depend on them
        ..req.clone()
    };
    let compiled = compile(&plain, &mut |_: Event<'_>| {})?;
    output::write(&compiled, &plain, &mut |_| {})?;
    let artifact = Artifact::open(&plain.out)?;
    let windows = windows(&artifact, text, &bytes)?;
    let mut sums = Sums::of(graph);
    run(artifact, &windows, &mut |look| {
        let Action::Launch(launch) = look.action else { return };
        let spec = &compiled.planned.specs[launch.kernel as usize];
        let at = match spec.op {
            Op::Linear => 1,
            Op::ExpertLinear => 2,
            _ => return,
        };
        let Some(Arg::Weight { index, offset: 0 }) = launch.args.get(at) else { return };
        let weight = compiled.weights.get_index(*index as usize).map(|w| &w.expr);
        let Some(WeightExpr::Source { name, .. }) = weight else { return };
        let Some(of) = sums.by_source.get_mut(name) else { return };
        of.add(look, spec, at);
    })?;
    let tokens = windows.iter().map(Vec::len).sum::<usize>() as u64;
    sums.finish(CalibrationInfo { tokens, text_blake3: deepfuse_artifact::digest(&bytes) })
}

/// The ids of the text, in sequences that begin as a prompt does.
fn windows(artifact: &Artifact, file: &Path, text: &[u8]) -> Result<Vec<Vec<u32>>, Error> {
    let text = std::str::from_utf8(text).map_err(|e| bad(file, &format!("no UTF-8 text: {e}")))?;
    let tokenizer = Tokenizer::of(artifact)?;
    let bos: Vec<u32> = tokenizer.bos().into_iter().collect();
    let mut ids = tokenizer.encode_plain(text)?;
    ids.truncate(MAX_TOKENS);
    if ids.is_empty() {
        return Err(bad(file, "the text has no token").into());
    }
    let window = WINDOW.min(artifact.manifest().limits.context as usize).saturating_sub(bos.len()).max(1);
    Ok(ids.chunks(window).map(|chunk| [&bos, chunk].concat()).collect())
}

fn bad(file: &Path, message: &str) -> Report {
    let mut report = Report::new("calibration::text", exit::INPUT, format!("{}: {message}", file.display()));
    report.file = Some(file.display().to_string());
    report.help("give a text file like those that the model will see")
}

fn run(artifact: Artifact, windows: &[Vec<u32>], observer: &mut dyn FnMut(&Look<'_>)) -> Result<(), Error> {
    let longest = windows.iter().map(Vec::len).max().unwrap_or(1) as u32;
    let pages = u64::from(longest.div_ceil(deepfuse_artifact::PAGE_TOKENS));
    let limits = Limits { max_tokens: longest, max_sequences: 1, cache_bytes: pages * page_bytes(artifact.plan()) };
    let mut session = Session::load(artifact.into(), limits, &Options::automatic())?;
    let sequence = session.add_sequence()?;
    for ids in windows {
        if interrupt::requested() {
            return Err(deepfuse_artifact::Error::Interrupted.into());
        }
        session.truncate(sequence, 0)?;
        // All rows, so that the head is met by all of them too.
        session.step_observed(&[Feed::all(sequence, ids)], Some(observer))?;
    }
    Ok(())
}

/// Sums of squares of one weight, by matrix and column.
struct Sum {
    squares: Vec<f64>,
    rows: Vec<u64>,
    columns: usize,
}

struct Sums {
    by_source: IndexMap<String, Sum>,
}

impl Sums {
    /// Zeros for all that the graph asks for.
    fn of(graph: &Graph) -> Self {
        let sum = |p: &deepfuse_ir::Param| {
            let ParamKind::Weight { source } = &p.kind else { return None };
            let source = source.strip_suffix(IMPORTANCE)?.to_owned();
            let shape = p.ty.tensor()?.fixed_shape()?;
            let (columns, matrices) = (*shape.last()? as usize, shape[..shape.len() - 1].iter().product::<u64>());
            let zeros = vec![0.0; columns * matrices as usize];
            Some((source, Sum { squares: zeros, rows: vec![0; matrices as usize], columns }))
        };
        Self { by_source: graph.params.iter().filter_map(sum).collect() }
    }

    fn finish(self, about: CalibrationInfo) -> Result<Calibration, Error> {
        let mut columns = HashMap::new();
        for (source, sum) in self.by_source {
            if sum.rows.iter().all(|rows| *rows == 0) {
                let message = format!("`{source}` was quantized, but no projection was seen to read it");
                return Err(Report::new("calibration::unseen", exit::BUG, message).into());
            }
            let matrices = sum.squares.chunks(sum.columns).zip(&sum.rows);
            for (name, (squares, rows)) in source_names(&source).iter().zip(matrices) {
                let mean = squares.iter().map(|s| (s / (*rows).max(1) as f64) as f32);
                columns.insert(format!("{name}{IMPORTANCE}"), mean.flat_map(f32::to_le_bytes).collect());
            }
        }
        Ok(Calibration { about, columns })
    }
}

impl Sum {
    /// Adds the rows that a launch multiplies with the weight, operand `at`.
    fn add(&mut self, look: &Look<'_>, spec: &deepfuse_ir::KernelSpec, at: usize) {
        let (x, sizes) = (&spec.inputs[0], Sizes(look.sizes.symbols()));
        let (Some(bytes), Some(ty), Some(strides)) = (look.bytes(0), x.tensor(), x.strides()) else { return };
        let number = |at: usize| f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let shape: Vec<u64> = ty.shape.iter().map(|d| d.eval(&sizes)).collect();
        let choices = if at == 2 { look.bytes(1) } else { None };
        let slots = if at == 2 { spec.inputs[1].tensor().map_or(1, |t| t.shape[1].eval(&sizes)) } else { 1 };
        for row in 0..shape[0] * slots {
            let matrix = choices.map_or(0, |c| {
                let c = &c[row as usize * 4..];
                u32::from_le_bytes([c[0], c[1], c[2], c[3]]) as usize
            });
            let start = match strides[..] {
                [outer, middle, _] => row / slots * outer + row % slots * middle,
                [outer, ..] => row / slots * outer,
                [] => 0,
            };
            self.rows[matrix] += 1;
            let squares = &mut self.squares[matrix * self.columns..][..self.columns];
            for (k, square) in squares.iter_mut().enumerate() {
                let value = f64::from(number((start as usize + k) * 4));
                *square += value * value;
            }
        }
    }
}
