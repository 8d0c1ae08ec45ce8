//! The text forms that `--stop-after` prints.

use crate::catalog::BackendCatalog;
use crate::error::Error;
use crate::pipeline::{self, Request};
use deepfuse_codegen::Form;
use deepfuse_passes::plan::{Planned, plan};
use deepfuse_passes::select::{KernelCall, Selection, Source, Weights};
use std::fmt::Write;

/// A stop of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Stop {
    /// The plain graph of one step, as the model is defined
    Build,
    /// The same with quantized weights and activations, below what each weight became (with `--quant none` as it was)
    Quantize,
    /// The form that fusion rules match
    Canonicalize,
    /// The fused graph of each bucket
    Fuse,
    /// Kernel calls and what stored weights are made of
    Select,
    /// What the runtime executes: buffers, kernels, launches
    Plan,
    /// The variant chosen for each kernel
    Choose,
    /// LLVM IR of all kernels
    Codegen,
    /// Assembly of all kernels
    Asm,
}

/// The text of a stop. `bucket` picks one where there is one text a bucket.
pub fn at_stop(req: &Request, stop: Stop, bucket: Option<&str>) -> Result<String, Error> {
    let model = pipeline::open(req)?;
    let graph = pipeline::build(&model, req)?;
    if stop == Stop::Build {
        return Ok(graph.to_string());
    }
    let (graph, report) = pipeline::quantize(graph, req)?;
    match stop {
        Stop::Quantize => return Ok(format!("{}{graph}", report.map_or_else(String::new, |r| r.to_string()))),
        Stop::Canonicalize => return Ok(deepfuse_passes::canonicalize(graph)?.to_string()),
        _ => {}
    }
    let catalog = BackendCatalog::of(req);
    let fused = pipeline::fuse(&model, graph, req, &catalog)?;
    let names: Vec<&str> = fused.graphs.iter().map(|(b, _)| b.name.as_str()).collect();
    if let Some(b) = bucket.filter(|b| !names.contains(b)) {
        return Err(Error::usage(format!("there is no bucket `{b}`"), format!("buckets: {}", names.join(", "))));
    }
    let wanted = |name: &str| bucket.is_none_or(|b| b == name);
    if stop == Stop::Fuse {
        let graphs = fused.graphs.iter().filter(|(b, _)| wanted(&b.name));
        return Ok(graphs.map(|(b, g)| format!("// bucket {}\n{g}", b.name)).collect::<Vec<_>>().join("\n"));
    }
    let (calls, weights) = pipeline::select_all(&fused, &catalog)?;
    if stop == Stop::Select {
        let lists = calls.iter().filter(|s| wanted(&s.bucket.name));
        return Ok(lists.map(|s| selection(s, &weights)).collect::<Vec<_>>().join("\n"));
    }
    let mut planned = plan(&calls, &weights, model.config.vocab as u32)?;
    if let Some(b) = bucket {
        planned.plan.buckets.retain(|p| p.name == b);
    }
    let choices = pipeline::choose(&mut planned, req);
    Ok(match stop {
        Stop::Choose => choices_text(&planned, &choices),
        Stop::Codegen => {
            deepfuse_codegen::emit_text(&pipeline::kernels(&planned, &choices), &req.target, Form::Ir, req.jobs)?
        }
        Stop::Asm => {
            deepfuse_codegen::emit_text(&pipeline::kernels(&planned, &choices), &req.target, Form::Assembly, req.jobs)?
        }
        _ => planned.plan.to_string(),
    })
}

fn selection(s: &Selection, weights: &Weights) -> String {
    let mut text = format!("bucket {}\n", s.bucket.name);
    for call in &s.calls {
        writeln!(text, "  {}", call_text(s, call, weights)).expect("a string takes all text");
    }
    text
}

fn call_text(s: &Selection, call: &KernelCall, weights: &Weights) -> String {
    let source = |i: &Source| match i {
        Source::Input(name) => format!("%{name}"),
        Source::Value { value, offset: 0 } => format!("v{value}"),
        Source::Value { value, offset } => format!("v{value}+{offset}"),
        Source::State(i) => format!("@{}", s.states[*i].0),
        Source::Weight(i) => {
            weights.get_index(*i).map_or_else(String::new, |w| deepfuse_passes::stored::describe(&w.expr))
        }
    };
    let inputs: Vec<String> = call.inputs.iter().map(source).collect();
    let outputs: Vec<String> = call.outputs.iter().flatten().map(|v| format!("v{v}: {}", s.values[*v])).collect();
    let family = call.spec.family.name();
    format!(
        "{} = {family}.{}({}) // {:.1} us, {}",
        outputs.join(", "),
        call.spec.op.name(),
        inputs.join(", "),
        call.nanos / 1e3,
        call.label
    )
}

fn choices_text(planned: &Planned, choices: &[deepfuse_tuner::Choice]) -> String {
    let mut text = String::new();
    for (row, choice) in planned.plan.kernels.iter().zip(choices) {
        let (us, basis) = (choice.nanos / 1e3, choice.basis.name());
        writeln!(
            text,
            "{}: {} // {us:.1} us by {basis}, of {} variants",
            row.symbol, choice.variant, choice.candidates
        )
        .expect("a string takes all text");
    }
    text
}
