#![allow(clippy::unwrap_used)]

use super::*;
use crate::{Basis, choose};
use deepfuse_cache::SCHEMA;
use deepfuse_codegen::x86::{X86, targets};
use deepfuse_ir::{Attrs, Bucket, DType, Dim, Layout, Operand, TensorType};

fn target() -> Target {
    targets::named("x86-avx512-bf16").unwrap()
}

fn machine() -> Machine {
    Machine { cpu: "a CPU".to_owned(), threads: 2 }
}

fn operand(dims: &[Dim], layout: Layout, constant: bool) -> Operand {
    Operand { layout, constant, ..Operand::dense(TensorType::new(DType::Bf16, dims.iter().copied()).into()) }
}

/// `linear` with `n` outputs.
fn linear(n: u64, bucket: &str) -> KernelSpec {
    let [rows, n, k] = [Dim::symbol(Symbol::T), Dim::fixed(n), Dim::fixed(64)];
    KernelSpec {
        family: Family::Linear,
        op: Op::Linear,
        attrs: Attrs::new(),
        inputs: vec![operand(&[rows, k], Layout::Dense, false), operand(&[n, k], Layout::Vnni, true)],
        outputs: vec![TensorType::new(DType::Bf16, [rows, n]).into()],
        prologue: vec![],
        epilogue: vec![],
        bucket: Bucket::named(bucket).unwrap(),
    }
}

/// A record in which variant `i` takes `nanos(i)` in each of seven rounds.
fn record(spec: &KernelSpec, nanos: impl Fn(usize) -> u64) -> Record {
    let variants = X86.variants(spec, &target());
    let one = |(i, v): (usize, &Variant)| Candidate {
        parameters: parameters(v),
        code: code_digest(spec, v, &target(), &X86).unwrap(),
        outcome: Outcome::Ok,
        nanos: vec![nanos(i); 7],
    };
    Record {
        schema: SCHEMA.to_owned(),
        key: key_of(spec, &target(), &machine()).unwrap(),
        toolchain: "deepfuse 0.1.0".to_owned(),
        date: "2026-11-28".to_owned(),
        read_mb_per_s: 37_000,
        estimated_nanos: X86.estimate(spec, &variants[0], &target()).round() as u64,
        candidates: variants.iter().enumerate().map(one).collect(),
    }
}

fn with_digests(all: &[Record]) -> Vec<(String, Record)> {
    all.iter().map(|r| (r.digest(), r.clone())).collect()
}

fn of(all: &[Record]) -> Records {
    Records::of(with_digests(all), machine())
}

fn third_is_fastest(i: usize) -> u64 {
    if i == 2 { 500 } else { 1000 }
}

#[test]
fn a_record_decides() {
    let spec = linear(64, "decode-1");
    let (variants, measured) = (X86.variants(&spec, &target()), record(&spec, third_is_fastest));
    let choice = choose(&spec, &target(), &X86, Some(&of(std::slice::from_ref(&measured)))).unwrap();
    assert_eq!((choice.variant, choice.nanos, choice.basis), (variants[2].clone(), 500.0, Basis::Record));
    assert_eq!((choice.records, choice.candidates), (vec![measured.digest()], variants.len()));
    let estimated = choose(&spec, &target(), &X86, None).unwrap();
    assert_eq!((estimated.variant, estimated.basis), (variants[0].clone(), Basis::Estimate));
}

#[test]
fn of_another_key_it_says_nothing() {
    let spec = linear(64, "decode-1");
    let measured = record(&spec, third_is_fastest);
    let records = of(std::slice::from_ref(&measured));
    let says = |spec: &KernelSpec, t: &Target, records: &Records| records.evidence(spec, t, &X86).is_some();
    assert!(says(&spec, &target(), &records));
    assert!(says(&linear(64, "decode-1-long"), &target(), &records), "the pages are not its business");
    assert!(!says(&linear(64, "decode-8"), &target(), &records), "sizes");
    assert!(!says(&linear(80, "decode-1"), &target(), &records), "kernel");
    assert!(!says(&spec, &targets::named("x86-avx512").unwrap(), &records), "target");
    let fewer = Target { features: target().features[1..].to_vec(), ..target() };
    assert!(!says(&spec, &fewer, &records), "features");
    for other in [Machine { cpu: "another".to_owned(), ..machine() }, Machine { threads: 1, ..machine() }] {
        assert!(!says(&spec, &target(), &Records::of(with_digests(std::slice::from_ref(&measured)), other)));
    }
}

/// A view's strides are no part of a key: in the e-graph operands are dense, and both must cost the same.
#[test]
fn strides_do_not_count() {
    let mut strided = linear(64, "decode-1");
    strided.inputs[0].layout = Layout::Strided(vec![128, 1]);
    let records = of(&[record(&linear(64, "decode-1"), third_is_fastest)]);
    assert_eq!(records.evidence(&strided, &target(), &X86).unwrap().nanos, 500);
}

#[test]
fn names_of_a_record_are_looked_up_and_never_trusted() {
    let spec = linear(64, "decode-1");
    let default = X86.variants(&spec, &target())[0].clone();
    let spoilt = |spoil: &dyn Fn(&mut Record)| {
        let mut bad = record(&spec, third_is_fastest);
        spoil(&mut bad);
        of(&[bad]).evidence(&spec, &target(), &X86)
    };
    let kept = |spoil: &dyn Fn(&mut Record)| assert_eq!(spoilt(spoil).unwrap().variant, default);
    kept(&|r| r.candidates[2].parameters.extend([("rows".to_owned(), 99)]));
    kept(&|r| r.candidates[2].parameters.extend([("speed".to_owned(), 1)]));
    kept(&|r| r.candidates[2].parameters.retain(|name, _| name != "rows"));
    kept(&|r| r.candidates[2].code = "0".repeat(64)); // other code than the back end makes today
    kept(&|r| drop(r.candidates.remove(2)));
    for outcome in [Outcome::Wrong, Outcome::Crash, Outcome::Timeout, Outcome::Compile] {
        kept(&|r| r.candidates[2].outcome = outcome);
    }
    assert_eq!(spoilt(&|r| r.candidates[0].code = "0".repeat(64)), None, "nothing to compare with");
    assert_eq!(spoilt(&|r| r.candidates.truncate(0)), None);
}

/// One record says that a variant computes something else: no speed in another one makes up for it.
#[test]
fn wrong_once_is_never_chosen() {
    let spec = linear(64, "decode-1");
    let good = record(&spec, third_is_fastest);
    let mut bad = good.clone();
    (bad.candidates[2].outcome, bad.candidates[2].nanos) = (Outcome::Wrong, vec![]);
    let evidence = of(&[good, bad]).evidence(&spec, &target(), &X86).unwrap();
    assert!(evidence.is_default && evidence.records.len() == 2);
}

#[test]
fn the_order_of_records_does_not_count() {
    let spec = linear(64, "decode-1");
    let all: Vec<Record> = (1..6).map(|n| record(&spec, |i| third_is_fastest(i) * n)).collect();
    let mut turned = all.clone();
    turned.reverse();
    let evidence = |all: &[Record]| of(all).evidence(&spec, &target(), &X86).unwrap();
    assert_eq!(evidence(&all), evidence(&turned));
    assert_eq!((evidence(&all).nanos, evidence(&all).default_nanos), (1500, 3000));
}

#[test]
fn measured_is_what_has_todays_code() {
    let spec = linear(64, "decode-1");
    let mut r = record(&spec, third_is_fastest);
    assert!(of(std::slice::from_ref(&r)).measured(&spec, &target(), &X86));
    r.candidates[1].code = "0".repeat(64);
    assert!(!of(std::slice::from_ref(&r)).measured(&spec, &target(), &X86));
}

/// Beside a measured kernel an estimated one would look cheap on a machine that is slower than estimates think.
#[test]
fn estimates_are_scaled_by_how_far_they_are_off() {
    let (spec, other) = (linear(64, "decode-1"), linear(80, "decode-1"));
    let estimate = X86.estimate(&spec, &X86.variants(&spec, &target())[0], &target()).round() as u64;
    let nanos = |records: &Records, spec: &KernelSpec| choose(spec, &target(), &X86, Some(records)).unwrap().nanos;
    let plain = choose(&other, &target(), &X86, None).unwrap().nanos;
    assert_eq!(nanos(&of(&[]), &other), plain);
    assert_eq!(nanos(&of(&[record(&spec, |_| 2 * estimate)]), &other), 2.0 * plain);
    assert_eq!(nanos(&of(&[record(&spec, |_| 100 * estimate)]), &other), MOST_SCALE * plain);
    let records = of(&[record(&spec, |_| 2 * estimate)]);
    assert_eq!(records.scale(Family::Norm, &target()), 2.0, "no record of its family: all count");
    assert_eq!(records.scale(Family::Norm, &targets::named("x86-avx2").unwrap()), 1.0, "of another target");
}

/// Few rows want logits in a typical prompt, but all may: the estimate knows, a measurement of the typical batch would not.
#[test]
fn experts_by_token_of_few_rows_have_no_key() {
    let rows = |s: Symbol| {
        let mut spec = linear(64, "prefill-512");
        spec.op = Op::ExpertDownByToken;
        spec.inputs[0] = operand(&[Dim::symbol(s), Dim::fixed(64)], Layout::Dense, false);
        spec.outputs = vec![TensorType::new(DType::Bf16, [Dim::symbol(s), Dim::fixed(64)]).into()];
        key_of(&spec, &target(), &machine()).is_some()
    };
    assert!(rows(Symbol::T) && !rows(Symbol::R));
}
