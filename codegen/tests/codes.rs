//! Kernels over int8 rows, and the kernel that makes them, against the evaluator.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_ir::*;

const WEIGHTS: [Quant; 2] = [Quant::INT8_R, Quant::INT4_G32];

fn case(op: Op, args: Vec<Arg>, t: usize) -> Case {
    Case { op, attrs: Attrs::new(), args, sizes: sizes(t as u64) }
}

/// Codes, offsets, scale and padding are those of the evaluator, to the bit: ties, zeros, one element, rows that end inside a group.
#[test]
fn quantize_to_the_bit() {
    let mut r = Random(1);
    for target in targets() {
        for dtype in FLOATS {
            for (t, slots, k) in [(1, 1, 1), (3, 2, 31), (2, 1, 32), (5, 3, 97), (4, 1, 129), (7, 1, 2048)] {
                let mut values: Vec<f32> = (0..t * slots * k).map(|_| r.unit()).collect();
                values[..k].fill(0.0);
                if t > 1 {
                    // All halves: every code is a tie.
                    (k..2 * k).for_each(|i| values[i] = (i % 12) as f32 + 0.5);
                    values[2 * k - 1] = -127.0;
                }
                let x = Arg::dense(dtype, &[T(), dim(slots as u64), dim(k as u64)], &[t, slots, k], values);
                let q = DType::Quant(Quant::activation(dtype).unwrap());
                let attrs = attrs(&[("dtype", Attr::DType(q))]);
                let rows = codes::rows_of(&x.value);
                let case = Case { op: Op::Quantize, attrs, args: vec![x.with_gap(3)], sizes: sizes(t as u64) };
                case.check(&target, Tolerance { absolute: 0.0, relative: 0.0 });
                let found = codes::used(&case.results(&target, 2)[0], k);
                assert!(found == codes::used(&rows, k), "{} {dtype} {t} {slots} {k}", target.name);
            }
        }
    }
}

/// Codes of norms: near those of the evaluator, and to the bit those of the normed row that the kernel itself computed.
#[test]
fn norms_with_codes() {
    let mut r = Random(8);
    for target in targets() {
        for dtype in FLOATS {
            for (t, k) in [(1, 1), (3, 31), (2, 32), (5, 97), (4, 129), (7, 2048)] {
                let q = DType::Quant(Quant::activation(dtype).unwrap());
                let attrs = attrs(&[("dtype", Attr::DType(q)), ("eps", real(1e-6))]);
                let x = Arg::random(&mut r, dtype, &[T(), dim(k as u64)], &[t, k]);
                let gain = Arg::random(&mut r, DType::F32, &[dim(k as u64)], &[k]).constant();
                let zero = Arg::dense(dtype, &[T(), dim(k as u64)], &[t, k], vec![0.0; t * k]);
                let case = |op, args| Case { op, attrs: attrs.clone(), args, sizes: sizes(t as u64) };
                let plain = case(Op::NormQuantize, vec![x.clone().with_gap(3), gain.clone()]);
                let with_sum = case(Op::AddNormQuantize, vec![x, zero, gain]);
                let step = Tolerance { absolute: 0.03, relative: 0.0 }; // no more than one code
                plain.check(&target, step);
                with_sum.check(&target, step);
                let [codes, results] = [plain.results(&target, 2), with_sum.results(&target, 3)];
                let normed = Tensor::float(dtype, &[t, k], decode(dtype, &results[1]));
                let rows = codes::used(&codes::rows_of(&normed), k);
                assert!(codes::used(&codes[0], k) == rows, "norm: {} {dtype} {t} {k}", target.name);
                assert!(codes::used(&results[2], k) == rows, "sum: {} {dtype} {t} {k}", target.name);
            }
        }
    }
}

#[test]
fn linear_over_odd_sizes() {
    const SIZES: [(usize, usize, u64); 10] = [
        (1, 1, 1),
        (1, 16, 2),
        (2, 15, 31),
        (3, 17, 33),
        (5, 48, 129),
        (7, 33, 64),
        (13, 128, 70),
        (25, 65, 257),
        (1, 90, 3000),
        (12, 80, 96),
    ];
    let mut r = Random(2);
    for (first, target) in targets().into_iter().enumerate() {
        for (i, (t, n, k)) in (first..).zip(SIZES) {
            let x = codes::activations(&mut r, FLOATS[i / 2 % 2], &[T(), dim(k)], &[t, k as usize]);
            let w = codes::matrix(&mut r, WEIGHTS[i % 2], &[n, k as usize]);
            case(Op::Linear, vec![x, w], t).check(&target, close(1e-4));
        }
    }
}

/// The largest sums that codes can make.
#[test]
fn extreme_codes_do_not_overflow() {
    let (n, k) = (16, 18_432);
    for target in targets() {
        for sign in [1.0, -1.0] {
            let x = Arg::dense(DType::F32, &[T(), dim(k)], &[1, k as usize], vec![sign; k as usize]);
            let value = Tensor::float(DType::Quant(Quant::INT8_R), &[1, k as usize], vec![sign; k as usize]);
            let ty = TensorType::new(value.dtype, [T(), dim(k)]);
            let x = Arg::new(ty, Layout::Dense, false, value, codes::rows_of(&x.value));
            for q in WEIGHTS {
                let w = codes::ones(q, n, k as usize);
                case(Op::Linear, vec![x.clone(), w], 1).check(&target, close(0.1));
            }
        }
    }
}

#[test]
fn swiglu() {
    let mut r = Random(3);
    for target in targets() {
        for (i, (t, h, n)) in [(1, 64, 48), (14, 130, 90), (3, 31, 5), (8, 65, 33)].into_iter().enumerate() {
            for q in WEIGHTS {
                let x = codes::activations(&mut r, FLOATS[i % 2], &[T(), dim(h)], &[t, h as usize]);
                let [gate, up] = [(); 2].map(|()| codes::matrix(&mut r, q, &[n, h as usize]));
                case(Op::Swiglu, vec![x, gate, up], t).check(&target, close(1e-4));
            }
        }
    }
}

#[test]
fn experts() {
    let mut r = Random(4);
    for target in targets() {
        for (i, (t, h, n, e, k)) in [(1, 64, 32, 4, 2), (9, 70, 45, 8, 3), (33, 33, 16, 5, 2)].into_iter().enumerate() {
            for q in WEIGHTS {
                let of = FLOATS[i % 2];
                let ids: Vec<i32> = (0..t * k).map(|_| r.below(e as u64 - 1) as i32).collect(); // the last one is empty
                let idx = || Arg::ints(&[T(), dim(k as u64)], &[t, k], ids.clone());
                let x = codes::activations(&mut r, of, &[T(), dim(h)], &[t, h as usize]);
                let [gate, up] = [(); 2].map(|()| codes::matrix(&mut r, q, &[e, n, h as usize]));
                case(Op::ExpertLinear, vec![x.clone(), idx(), gate.clone()], t).check(&target, close(1e-4));
                for op in [Op::ExpertSwiglu, Op::ExpertSwigluByToken] {
                    case(op, vec![x.clone(), idx(), gate.clone(), up.clone()], t).check(&target, close(1e-4));
                }
                let y = codes::activations(&mut r, of, &[T(), dim(k as u64), dim(n as u64)], &[t, k, n]);
                let factors = Arg::random(&mut r, DType::F32, &[T(), dim(k as u64)], &[t, k]);
                let down = codes::matrix(&mut r, q, &[e, h as usize, n]);
                for op in [Op::ExpertDown, Op::ExpertDownByToken] {
                    case(op, vec![y.clone(), idx(), factors.clone(), down.clone()], t).check(&target, close(1e-4));
                }
            }
        }
    }
}

#[test]
fn every_variant() {
    let mut r = Random(5);
    let target = targets().pop().unwrap();
    for q in WEIGHTS {
        let (n, k) = (170, 66);
        let [gate, up] = [(); 2].map(|()| codes::matrix(&mut r, q, &[n, k as usize]));
        // One and two rows are left for the shapes of few.
        for (op, t, weights) in [(Op::Linear, 25, vec![gate.clone()]), (Op::Swiglu, 26, vec![gate, up])] {
            let x = codes::activations(&mut r, DType::Bf16, &[T(), dim(k)], &[t, k as usize]);
            case(op, [vec![x], weights].concat(), t).check_all(&target, close(1e-4));
        }
    }
}

#[test]
fn rows_move_whole() {
    let mut r = Random(7);
    for target in targets() {
        for (t, slots, k) in [(3, 1, 70), (5, 2, 64)] {
            let dims = [T(), dim(slots), dim(k)];
            let x = codes::activations(&mut r, DType::Bf16, &dims, &[t, slots as usize, k as usize]);
            let row = x.bytes.len() / t;
            let want: Vec<u8> = [2, 0].iter().flat_map(|i| x.bytes[i * row..(i + 1) * row].to_vec()).collect();
            let ids = Arg::ints(&[Dim::symbol(Symbol::R)], &[2], vec![2, 0]);
            let case = Case {
                op: Op::GatherRows,
                attrs: Attrs::new(),
                args: vec![x, ids],
                sizes: Sizes([t as u64, 1, 1, 2, 0]),
            };
            assert!(case.results(&target, 2) == [want], "{}", target.name);
        }
    }
}

/// Codes and floats do not meet: such a kernel is refused, not guessed.
#[test]
fn float_activations_of_int8_weights_are_refused() {
    use deepfuse_codegen::{Backend, EmitError, x86::X86};
    let mut r = Random(6);
    let target = targets().pop().unwrap();
    let x = Arg::random(&mut r, DType::Bf16, &[T(), dim(64)], &[2, 64]);
    let spec = case(Op::Linear, vec![x, codes::matrix(&mut r, Quant::INT8_R, &[16, 64])], 2).spec();
    let variants = X86.variants(&spec, &target);
    assert!(matches!(X86.emit(&spec, &variants[0], &target), Err(EmitError::Unsupported { .. })));
}
