//! How far two graphs with the same parameters and outputs are apart, by the reference evaluator.
//!
//! ```text
//! error = max over outputs and states y of  rms(y_found - y_expected) / rms(y_expected)
//! ```
//!
//! Both are evaluated on one ragged batch with random weights and several kinds of inputs.

use deepfuse_ir::eval::{Evaluated, evaluate};
use deepfuse_ir::tensor::Data;
use deepfuse_ir::values::{Batch, Sequence, values};
use deepfuse_ir::{Graph, ParamKind, Sizes, Symbol, Tensor};

/// Elements of all parameters of a graph (f32 each in the evaluator) above which it is not evaluated: 1 GiB, minutes.
pub const ELEMENT_LIMIT: u64 = 1 << 28;

/// Kinds of inputs.
#[derive(Clone, Copy, Debug)]
enum Inputs {
    /// Uniform, variance 1.
    Random,
    /// A thousand times that.
    Large,
    /// Neighbours of opposite sign: sums cancel.
    Cancelling,
    /// All the same: scores and norms are equal.
    Equal,
    Zero,
}

const KINDS: [Inputs; 5] = [Inputs::Random, Inputs::Large, Inputs::Cancelling, Inputs::Equal, Inputs::Zero];

/// Elements of all parameters.
pub fn elements(graph: &Graph) -> u64 {
    let sizes = Sizes([1; Symbol::COUNT]);
    graph.params.iter().filter_map(|p| p.ty.tensor()).map(|t| t.elements(&sizes)).sum()
}

/// Results of a graph, one for each kind of inputs.
pub fn results(graph: &Graph) -> Vec<Evaluated> {
    KINDS.into_iter().map(|kind| run(graph, kind)).collect()
}

fn run(graph: &Graph, inputs: Inputs) -> Evaluated {
    let sequence = |(cached, new)| Sequence { cached, new };
    let batch = Batch { sequences: [(0, 3), (70, 1), (63, 2)].map(sequence).to_vec() };
    let mut random = values(graph, &batch, 1);
    let mut all = |name: &str, kind: &ParamKind| {
        let value = random(name, kind)?;
        Some(if *kind == ParamKind::Input { inputs.of(value) } else { value })
    };
    evaluate(graph, &batch.sizes(), &mut all, &mut |_, _| {}).expect("every parameter has a value")
}

impl Inputs {
    /// Activations of this kind; whole numbers (positions, pages) stay as they are.
    fn of(self, value: Tensor) -> Tensor {
        let Data::Float(mut x) = value.data else { return value };
        match self {
            Self::Random => {}
            Self::Large => x.iter_mut().for_each(|x| *x *= 1e3),
            Self::Cancelling => x.chunks_exact_mut(2).for_each(|pair| pair[1] = -pair[0]),
            Self::Equal => x.fill(1.0),
            Self::Zero => x.fill(0.0),
        }
        Tensor::float(value.dtype, &value.shape, x)
    }
}

/// The largest error over kinds of inputs, outputs and states.
pub fn worst(expected: &[Evaluated], found: &[Evaluated]) -> f64 {
    let errors = expected.iter().zip(found).flat_map(|(e, f)| {
        let outputs = e.outputs.iter().zip(&f.outputs).map(|(e, f)| relative(e, f));
        let states = e.states.iter().map(|(name, e)| f.states.get(name).map_or(f64::NAN, |f| relative(e, f)));
        outputs.chain(states).collect::<Vec<_>>()
    });
    errors.fold(0.0, |worst, e| if e.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(e) })
}

/// `rms(found - expected) / rms(expected)`; 0 where both are the same, infinite where something stands for nothing.
fn relative(expected: &Tensor, found: &Tensor) -> f64 {
    match (&expected.data, &found.data) {
        (Data::Float(e), Data::Float(f)) if e.len() == f.len() => {
            let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
            let off = squares(&mut e.iter().zip(f).map(|(e, f)| f64::from(*f) - f64::from(*e)));
            let size = squares(&mut e.iter().map(|e| f64::from(*e)));
            if off == 0.0 { 0.0 } else { (off / size).sqrt() }
        }
        (Data::Int(e), Data::Int(f)) if e == f => 0.0,
        _ => f64::INFINITY,
    }
}
