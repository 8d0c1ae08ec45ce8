//! Laws that hold for all values: one or more for each class of ops. A fused op computes what its plain form computes.

#![allow(clippy::unwrap_used)]

use crate::Graph;
use crate::eval::evaluate;
use crate::tensor::Tensor;
use crate::testing::{Batch, batches, values};
use crate::text::parse;
use proptest::prelude::*;

/// Parameters that the graphs below choose from.
const PARAMS: &str = "
  %x: f32[T, 24], %d: f32[T, 24], %kv: f32[T, 20], %qn: f32[T, 4, 8], %qr: f32[T, 4, 4], %s: f32[T, 16],
  %pos: i32[T], %seq: i32[T], %pages: i32[P], %page_start: i32[S+1],
  weight %gain: f32[24] @ \"gain\", weight %latent_gain: f32[16] @ \"latent_gain\", weight %bias: f32[16] @ \"bias\",
  weight %wg: fp8b128[36, 24] @ \"wg\", weight %wu: fp8b128[36, 24] @ \"wu\", weight %router: f32[16, 24] @ \"router\",
  weight %eg: bf16[16, 12, 24] @ \"e.{0..16}.g\", weight %eu: bf16[16, 12, 24] @ \"e.{0..16}.u\", weight %ed: bf16[16, 24, 12] @ \"e.{0..16}.d\",
  weight %kv_b: f32[56, 16] @ \"kv_b\",
  state @kv_cache: paged f32[20],
";
const ROPE: &str =
    "attn_factor = 1.3, beta_fast = 32.0, beta_slow = 1.0, factor = 40.0, original = 64.0, theta = 10000.0";

fn graph(results: &str, body: &str) -> Graph {
    let text = format!("graph @law({PARAMS}) -> {results} {{{body}}}").replace("ROPE", ROPE);
    parse(&text).unwrap_or_else(|e| panic!("{}", e[0].render(&text)))
}

fn outputs(g: &Graph, batch: &Batch, seed: u64) -> Vec<Tensor> {
    evaluate(g, &batch.sizes(), &mut values(g, batch, seed), &mut |_, _| {}).unwrap().outputs
}

/// Largest difference relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest
}

/// Outputs come in pairs of plain and fused.
fn pairs_agree(results: &str, body: &str, batch: &Batch, seed: u64) -> Result<(), TestCaseError> {
    for pair in outputs(&graph(results, body), batch, seed).chunks(2) {
        prop_assert_eq!((&pair[0].shape, pair[0].dtype), (&pair[1].shape, pair[1].dtype));
        let far = distance(pair[1].floats(), pair[0].floats());
        prop_assert!(far < 2e-6, "plain and fused differ by {far}");
    }
    Ok(())
}

fn any_batch() -> impl Strategy<Value = (Batch, u64)> {
    (batches(), any::<u64>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn swiglu_is_its_plain_form((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 36], f32[T, 36]", "
            %0 = linear %x, %wg : f32[T, 36]
            %1 = silu %0 : f32[T, 36]
            %2 = linear %x, %wu : f32[T, 36]
            %3 = mul %1, %2 : f32[T, 36]
            %4 = swiglu %x, %wg, %wu : f32[T, 36]
            return %3, %4", &batch, seed)?;
    }

    /// Codes are inside every form as they are between the plain operations.
    #[test]
    fn quantized_projections_are_their_plain_forms((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 36], f32[T, 36]", "
            %0 = quantize %x {dtype = int8r} : int8r[T, 24]
            %1 = quantize %wg {dtype = int8r} : int8r[36, 24]
            %2 = quantize %wu {dtype = int8r} : int8r[36, 24]
            %3 = linear %0, %1 : f32[T, 36]
            %4 = silu %3 : f32[T, 36]
            %5 = linear %0, %2 : f32[T, 36]
            %6 = mul %4, %5 : f32[T, 36]
            %7 = swiglu %0, %1, %2 : f32[T, 36]
            return %6, %7", &batch, seed)?;
    }

    /// No value moves by more than half a step, and what is quantized already stays as it is.
    #[test]
    fn quantization_rounds_to_the_nearest_code((batch, seed) in any_batch()) {
        let g = graph("f32[T, 24], f32[T, 24], f32[T, 24], f32[T, 24]", "
            %0 = quantize %x {dtype = int8r} : int8r[T, 24]
            %1 = quantize %0 {dtype = int8r} : int8r[T, 24]
            %2 = quantize %x {dtype = int4g32} : int4g32[T, 24]
            %3 = convert %0 {dtype = f32} : f32[T, 24]
            %4 = convert %1 {dtype = f32} : f32[T, 24]
            %5 = convert %2 {dtype = f32} : f32[T, 24]
            return %x, %3, %4, %5");
        let y = outputs(&g, &batch, seed);
        prop_assert!(distance(y[2].floats(), y[1].floats()) < 1e-6);
        for r in 0..y[0].rows() {
            let largest = y[0].row(r).iter().fold(0f32, |m, v| m.max(v.abs()));
            let far = |i: usize| y[0].row(r).iter().zip(y[i].row(r)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            prop_assert!(far(1) <= 0.5001 * largest / 127.0);
            // The mirror image of the extreme is 7 scales, each off by a part in 2^11; all others are within half of this.
            prop_assert!(far(3) <= (1.0 + 7.5 / 2048.0) * largest / 8.0);
        }
    }

    #[test]
    fn add_norm_is_its_plain_form((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 24], f32[T, 24], f32[T, 24], f32[T, 24]", "
            %0 = add %x, %d : f32[T, 24]
            %1 = rms_norm %0, %gain {eps = 1e-6} : f32[T, 24]
            %2, %3 = add_norm %x, %d, %gain {eps = 1e-6} : f32[T, 24], f32[T, 24]
            return %0, %2, %1, %3", &batch, seed)?;
    }

    /// To the bit: codes are those of the rounded norm.
    #[test]
    fn norms_with_codes_are_their_plain_forms((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 24], f32[T, 24], f32[T, 24], f32[T, 24], int8r[T, 24], int8r[T, 24], int8r[T, 24], int8r[T, 24]", "
            %0 = add %x, %d : f32[T, 24]
            %1 = rms_norm %0, %gain {eps = 1e-6} : f32[T, 24]
            %2 = quantize %1 {dtype = int8r} : int8r[T, 24]
            %3, %4, %5 = add_norm_quantize %x, %d, %gain {dtype = int8r, eps = 1e-6} : f32[T, 24], f32[T, 24], int8r[T, 24]
            %6 = norm_quantize %0, %gain {dtype = int8r, eps = 1e-6} : int8r[T, 24]
            return %0, %3, %1, %4, %2, %5, %2, %6", &batch, seed)?;
    }

    #[test]
    fn norm_linear_is_its_plain_form((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 36], f32[T, 36]", "
            %0 = rms_norm %x {eps = 1e-6} : f32[T, 24]
            %1 = linear %0, %wg : f32[T, 36]
            %2 = norm_linear %x, %wg {eps = 1e-6} : f32[T, 36]
            return %1, %2", &batch, seed)?;
    }

    #[test]
    fn routing_and_experts_are_their_plain_forms((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 3], f32[T, 3], f32[T, 24], f32[T, 24], f32[T, 24], f32[T, 24]", "
            %1 = linear %x, %router : f32[T, 16]
            %2 = sigmoid %1 : f32[T, 16]
            %3 = add %2, %bias : f32[T, 16]
            %4 = group_limit %3 {by = top2, fill = neg_inf, groups = 4, keep = 2} : f32[T, 16]
            %5, %6 = top_k %4 {k = 3} : f32[T, 3], i32[T, 3]
            %7 = gather %2, %6 : f32[T, 3]
            %8 = normalize %7 {eps = 1e-20} : f32[T, 3]
            %9 = scale %8 {value = 2.5} : f32[T, 3]
            %10 = expert_linear %x, %6, %eg : f32[T, 3, 12]
            %11 = silu %10 : f32[T, 3, 12]
            %12 = expert_linear %x, %6, %eu : f32[T, 3, 12]
            %13 = mul %11, %12 : f32[T, 3, 12]
            %14 = expert_linear %13, %6, %ed : f32[T, 3, 24]
            %15 = combine %14, %9 : f32[T, 24]
            %16, %17 = route %x, %router, %bias {append = 0, by = top2, eps = 1e-20, fill = neg_inf, groups = 4, k = 3, keep = 2, normalize = 1, scale = 2.5, scoring = sigmoid} : i32[T, 3], f32[T, 3]
            %18 = expert_swiglu %x, %16, %eg, %eu : f32[T, 3, 12]
            %19 = expert_down %18, %16, %17, %ed : f32[T, 24]
            %20 = scale_rows %13, %9 : f32[T, 3, 12]
            %21 = expert_linear %20, %6, %ed : f32[T, 3, 24]
            %22 = combine %21 : f32[T, 24]
            return %9, %17, %15, %19, %15, %22", &batch, seed)?;
    }

    /// Both forms of MLA, and the whole cache path, against the plain form.
    #[test]
    fn attention_is_its_plain_form((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 4, 6], f32[T, 4, 6], f32[T, 4, 6], f32[T, 4, 6], f32[T, 4, 16], f32[T, 4, 16]", "
            %6 = rope_cache %kv, %latent_gain, @kv_cache, %pos, %seq, %pages, %page_start {eps = 1e-6, ROPE} : paged f32[20]
            %7 = read %6, %pages : f32[64*P, 20]
            %8 = slice %7 {axis = 1, start = 0, len = 16} : f32[64*P, 16]
            %9 = slice %7 {axis = 1, start = 16, len = 4} : f32[64*P, 4]
            %10 = linear %8, %kv_b : f32[64*P, 56]
            %11 = reshape %10 {shape = [64*P, 4, 14]} : f32[64*P, 4, 14]
            %12 = slice %11 {axis = 2, start = 0, len = 8} : f32[64*P, 4, 8]
            %13 = slice %11 {axis = 2, start = 8, len = 6} : f32[64*P, 4, 6]
            %19 = einsum %qn, %12 {eq = \"tnd,xnd->tnx\"} : f32[T, 4, 64*P]
            %20 = einsum %qr, %9 {eq = \"tnr,xr->tnx\"} : f32[T, 4, 64*P]
            %21 = add %19, %20 : f32[T, 4, 64*P]
            %22 = scale %21 {value = 0.25} : f32[T, 4, 64*P]
            %23 = causal_mask %22, %pos, %seq, %page_start : f32[T, 4, 64*P]
            %24 = softmax %23 : f32[T, 4, 64*P]
            %25 = einsum %24, %13 {eq = \"tnx,xnv->tnv\"} : f32[T, 4, 6]
            %30 = mla_expanded %qn, %qr, %12, %13, %9, %pos, %seq, %page_start {scale = 0.25} : f32[T, 4, 6]
            %40 = head_rows %kv_b {heads = 4, start = 0, len = 8} : f32[4, 8, 16]
            %41 = permute %40 {axes = [0, 2, 1]} : f32[4, 16, 8]
            %42 = head_linear %qn, %41 : f32[T, 4, 16]
            %43 = mla_absorbed %42, %qr, %6, %pos, %seq, %pages, %page_start {scale = 0.25} : f32[T, 4, 16]
            %44 = head_rows %kv_b {heads = 4, start = 8, len = 6} : f32[4, 6, 16]
            %45 = head_linear %43, %44 : f32[T, 4, 6]
            %46 = mla_absorbed_split %42, %qr, %6, %pos, %seq, %pages, %page_start {scale = 0.25, splits = 2} : f32[T, 4, 16]
            return %25, %30, %25, %45, %43, %46", &batch, seed)?;
    }

    #[test]
    fn rope_cache_is_its_plain_form((batch, seed) in any_batch()) {
        let fused = graph("f32[64*P, 20]", "
            %0 = rope_cache %kv, %latent_gain, @kv_cache, %pos, %seq, %pages, %page_start {eps = 1e-6, ROPE} : paged f32[20]
            %1 = read %0, %pages : f32[64*P, 20]
            return %1");
        let plain = graph("f32[64*P, 20]", "
            %1 = slice %kv {axis = 1, start = 0, len = 16} : f32[T, 16]
            %2 = rms_norm %1, %latent_gain {eps = 1e-6} : f32[T, 16]
            %3 = slice %kv {axis = 1, start = 16, len = 4} : f32[T, 4]
            %4 = rope %3, %pos {ROPE} : f32[T, 4]
            %5 = concat %2, %4 {axis = 1} : f32[T, 20]
            %6 = write @kv_cache, %5, %pos, %seq, %pages, %page_start : paged f32[20]
            %7 = read %6, %pages : f32[64*P, 20]
            return %7");
        prop_assert_eq!(outputs(&fused, &batch, seed), outputs(&plain, &batch, seed));
    }

    /// A write changes the rows of the step's tokens and nothing else.
    #[test]
    fn writes_change_their_rows_only((batch, seed) in any_batch()) {
        let g = graph("f32[64*P, 20], f32[64*P, 20], f32[T, 20]", "
            %0 = read @kv_cache, %pages : f32[64*P, 20]
            %1 = write @kv_cache, %kv, %pos, %seq, %pages, %page_start : paged f32[20]
            %2 = read %1, %pages : f32[64*P, 20]
            return %0, %2, %kv");
        let out = outputs(&g, &batch, seed);
        let (starts, pos, seq) = (batch.input("page_start").unwrap(), batch.input("pos").unwrap(), batch.input("seq").unwrap());
        let row_of = |t: usize| (starts[seq[t] as usize] * 64 + pos[t]) as usize;
        let written: std::collections::BTreeMap<usize, usize> = (0..pos.len()).map(|t| (row_of(t), t)).collect();
        prop_assert_eq!(written.len(), pos.len());
        for row in 0..out[0].rows() {
            let wanted = written.get(&row).map_or_else(|| out[0].row(row), |t| out[2].row(*t));
            prop_assert_eq!(out[1].row(row), wanted);
        }
    }

    /// Rows sum to one, and a constant added to a row changes nothing.
    #[test]
    fn softmax_is_a_distribution((batch, seed) in any_batch()) {
        let g = graph("f32[T, 16], f32[T, 16]", "
            %0 = softmax %s : f32[T, 16]
            %1 = linear %x, %router : f32[T, 16]
            %2 = scale %1 {value = 0.0} : f32[T, 16]
            %3 = add %2, %s : f32[T, 16]
            %4 = softmax %3 : f32[T, 16]
            return %0, %4");
        let out = outputs(&g, &batch, seed);
        for r in 0..out[0].rows() {
            prop_assert!((out[0].row(r).iter().sum::<f32>() - 1.0).abs() < 1e-5);
            prop_assert!(out[0].row(r).iter().all(|p| *p >= 0.0));
        }
        prop_assert!(distance(out[1].floats(), out[0].floats()) < 1e-6);
    }

    /// Without eps a norm forgets the length of its row.
    #[test]
    fn norms_forget_scale((batch, seed) in any_batch()) {
        pairs_agree("f32[T, 24], f32[T, 24]", "
            %0 = rms_norm %x, %gain {eps = 0.0} : f32[T, 24]
            %1 = scale %x {value = 8.0} : f32[T, 24]
            %2 = rms_norm %1, %gain {eps = 0.0} : f32[T, 24]
            return %0, %2", &batch, seed)?;
    }

    /// Layout ops lose nothing: cutting and joining, turning twice, splitting and joining axes.
    #[test]
    fn layout_ops_are_undone((batch, seed) in any_batch()) {
        let g = graph("f32[T, 4, 8], f32[T, 4, 8], f32[T, 4, 8], f32[T, 4, 8]", "
            %0 = slice %qn {axis = 2, start = 0, len = 3} : f32[T, 4, 3]
            %1 = slice %qn {axis = 2, start = 3, len = 5} : f32[T, 4, 5]
            %2 = concat %0, %1 {axis = 2} : f32[T, 4, 8]
            %3 = permute %qn {axes = [2, 0, 1]} : f32[8, T, 4]
            %4 = permute %3 {axes = [1, 2, 0]} : f32[T, 4, 8]
            %5 = reshape %qn {shape = [T, 2, 16]} : f32[T, 2, 16]
            %6 = reshape %5 {shape = [T, 4, 8]} : f32[T, 4, 8]
            return %qn, %2, %4, %6");
        let out = outputs(&g, &batch, seed);
        prop_assert!(out[1..].iter().all(|o| *o == out[0]));
    }

    /// Rotation keeps the length of every pair, but for the factor.
    #[test]
    fn rope_keeps_lengths((batch, seed) in any_batch()) {
        let g = graph("f32[T, 4, 8], f32[T, 4, 8]", "
            %0 = rope %qn, %pos {ROPE} : f32[T, 4, 8]
            return %qn, %0");
        let out = outputs(&g, &batch, seed);
        for (a, b) in out[0].floats().chunks(2).zip(out[1].floats().chunks(2)) {
            prop_assert!((a[0].hypot(a[1]) * 1.3 - b[0].hypot(b[1])).abs() < 1e-4);
        }
    }

    /// Chosen scores descend, are the scores at their indices, and none that is left out is larger; kept groups are as many as asked.
    #[test]
    fn choices_are_the_best((batch, seed) in any_batch()) {
        let g = graph("f32[T, 16], f32[T, 5], i32[T, 5], f32[T, 5], f32[T, 16], f32[T, 5]", "
            %0, %1 = top_k %s {k = 5} : f32[T, 5], i32[T, 5]
            %2 = gather %s, %1 : f32[T, 5]
            %3 = group_limit %s {by = max, fill = neg_inf, groups = 8, keep = 3} : f32[T, 16]
            %4 = sigmoid %0 : f32[T, 5]
            %5 = normalize %4 {eps = 0.0} : f32[T, 5]
            return %s, %0, %1, %2, %3, %5");
        let out = outputs(&g, &batch, seed);
        prop_assert_eq!(&out[1], &out[3]);
        for r in 0..out[0].rows() {
            let (all, best) = (out[0].row(r), out[1].row(r));
            prop_assert!(best.is_sorted_by(|a, b| a >= b));
            let chosen = &out[2].ints()[r * 5..r * 5 + 5];
            prop_assert!((0..16).all(|e| chosen.contains(&e) || all[e as usize] <= best[4]));
            let kept = out[4].row(r).chunks(2).filter(|g| g.iter().all(|v| v.is_finite())).count();
            prop_assert_eq!(kept, 3);
            prop_assert!((out[5].row(r).iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }

    /// bf16 results are the f32 results rounded once, for ops that promise one rounding.
    #[test]
    fn one_rounding(values in prop::collection::vec(-4f32..4.0, 24), w in prop::collection::vec(-1f32..1.0, 48)) {
        use crate::ops::{Op, attrs};
        use crate::types::{DType, Sizes};
        let sizes = Sizes([2, 1, 1, 1, 0]);
        let run = |dtype: DType| {
            let x = Tensor::float(DType::Bf16, &[2, 12], values.clone()).narrow(dtype);
            let w = Tensor::float(DType::Bf16, &[4, 12], w.clone());
            let one = |op: Op, x: &[&Tensor]| op.eval(x, &attrs(&[]), &sizes).remove(0);
            [one(Op::Linear, &[&x, &w]), one(Op::Silu, &[&x]), one(Op::Softmax, &[&x]), one(Op::Add, &[&x, &x]), one(Op::Swiglu, &[&x, &w, &w])]
        };
        for (exact, rounded) in run(DType::F32).iter().zip(run(DType::Bf16)) {
            prop_assert_eq!(exact.narrow(DType::Bf16), rounded);
        }
    }
}
