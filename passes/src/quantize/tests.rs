#![allow(clippy::unwrap_used)]

use super::*;
use deepfuse_ir::text::parse;

/// A projection of tokens, one of cached rows, a router, experts, and a head over rows.
const PLAIN: &str = "graph @step(%x: bf16[T, 64], %c: bf16[64*P, 64], %rows: i32[R],
  weight %q: bf16[96, 64] @ \"q\", weight %kv_b: bf16[96, 64] @ \"kv_b\", weight %router: bf16[8, 64] @ \"r\",
  weight %e: bf16[8, 64, 64] @ \"e.{0..8}\", weight %gain: bf16[64] @ \"g\", weight %head: fp8b128[50, 64] @ \"h\") -> bf16[T, 96], bf16[64*P, 96], f32[T, 2], bf16[T, 2, 64], f32[R, 50] {
  %0 = rms_norm %x, %gain {eps = 1e-6} : bf16[T, 64]
  %1 = linear %0, %q : bf16[T, 96]
  %2 = linear %c, %kv_b : bf16[64*P, 96]
  %3 = convert %0 {dtype = f32} : f32[T, 64]
  %4 = linear %3, %router : f32[T, 8]
  %5 = softmax %4 : f32[T, 8]
  %6, %7 = top_k %5 {k = 2} : f32[T, 2], i32[T, 2]
  %8 = expert_linear %0, %7, %e : bf16[T, 2, 64]
  ---- cut
  %9 = gather_rows %0, %rows : bf16[R, 64]
  %10 = convert %9 {dtype = f32} : f32[R, 64]
  %11 = linear %10, %head : f32[R, 50]
  return %1, %2, %6, %8, %11
}";

#[test]
fn projections_of_tokens_are_quantized_and_nothing_else() {
    let (g, report) = quantize(parse(PLAIN).unwrap(), Quant::INT8_R, Rounding::Nearest).unwrap();
    let text = g.to_string();
    for line in [
        "quantize %0 {dtype = int8r_bf16} : int8r_bf16[T, 64]",
        "quantize %q {dtype = int8r} : int8r[96, 64]",
        "quantize %e {dtype = int8r} : int8r[8, 64, 64]",
        // The head's input is f32, and so are the logits.
        "{dtype = int8r} : int8r[R, 64]",
        "quantize %head {dtype = int8r} : int8r[50, 64]",
        "linear %c, %kv_b : bf16[64*P, 96]",
        ", %router : f32[T, 8]",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // `%0` is read by two projections and quantized once.
    assert_eq!(text.matches("= quantize").count(), 5, "{text}");
    let kept = |name: &str| {
        let d = report.decisions.iter().find(|d| d.weight == name).unwrap();
        if let Became::Kept(why) = d.became { why } else { "" }
    };
    assert!(kept("kv_b").contains("absorbed") && kept("router") == "the router" && kept("q").is_empty());
    let d = report.decisions.iter().find(|d| d.weight == "q").unwrap();
    assert_eq!(d.bytes(), [96 * 64 * 2, 96 * 64 + 96 * 4]);
}

#[test]
fn the_report_is_a_comment_of_the_graph() {
    let (g, report) = quantize(parse(PLAIN).unwrap(), Quant::INT4_G32, Rounding::Nearest).unwrap();
    assert_eq!(parse(&format!("{report}{g}")).unwrap(), g);
    let text = report.to_string();
    assert!(
        text.contains("bf16 -> int4g32") && text.contains("fp8b128 -> int4g32") && text.contains("the router"),
        "{text}"
    );
}

#[test]
fn a_matrix_with_another_use_is_kept() {
    let text = PLAIN.replace("linear %c, %kv_b", "linear %c, %q");
    let (_, report) = quantize(parse(&text).unwrap(), Quant::INT8_R, Rounding::Nearest).unwrap();
    assert!(report.decisions.iter().any(|d| d.weight == "q" && matches!(d.became, Became::Kept(_))));
}

#[test]
fn a_calibration_is_a_parameter_beside_each_quantized_weight() {
    let (g, _) = quantize(parse(PLAIN).unwrap(), Quant::INT4_G32, Rounding::Calibrated).unwrap();
    let text = g.to_string();
    for line in [
        "weight %q.importance: f32[64] @ \"q.importance\"",
        "weight %e.importance: f32[8, 64] @ \"e.{0..8}.importance\"",
        "quantize %e, %e.importance {dtype = int4g32} : int4g32[8, 64, 64]",
        "quantize %0 {dtype = int8r_bf16} : int8r_bf16[T, 64]",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(g.params.len(), parse(PLAIN).unwrap().params.len() + 3);
    assert_eq!(parse(&text).unwrap(), g);
}
