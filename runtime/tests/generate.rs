//! Generation, golden comparison and perplexity, against the fake model.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use deepfuse_runtime::generate::{Request, StopReason, generate};
use deepfuse_runtime::golden::Golden;
use deepfuse_runtime::sample::{Sampling, greedy};
use deepfuse_runtime::verify::{Check, Settings, Verdict, against_golden, perplexity};
use deepfuse_runtime::{Artifact, Error, Options};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Greedy ids after a prompt.
fn answer(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    (0..n).for_each(|_| text.push(greedy(&expected(&text)).unwrap()));
    text[prompt.len()..].to_vec()
}

fn request<'a>(prompt: &'a [u32], max_new_tokens: u32, stop_ids: &'a [u32]) -> Request<'a> {
    Request { prompt, max_new_tokens, stop_ids, sampling: Sampling::greedy() }
}

#[test]
fn answers_end_for_a_reason() {
    let mut s = session(limits(16, 1, 16), &options(1));
    let prompt = ids(1, 40);
    let want = answer(&prompt, 30);
    let mut go_on = |_| Ok(ControlFlow::Continue(()));
    let length = generate(&mut s, &request(&prompt, 30, &[]), &mut go_on).unwrap();
    assert_eq!((&length.ids, length.stop), (&want, StopReason::Length));
    assert!(length.decode_tokens_per_second().unwrap() > 0.0);
    let stop = [VOCAB + 5, want[7], want[12]];
    let eos = generate(&mut s, &request(&prompt, 30, &stop), &mut go_on).unwrap();
    let first = want.iter().position(|id| stop.contains(id)).unwrap();
    assert_eq!((&eos.ids[..], eos.stop), (&want[..=first], StopReason::Eos));
    let mut count = 0;
    let caller = generate(&mut s, &request(&prompt, 30, &[]), &mut |_| {
        count += 1;
        Ok(if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    assert_eq!(caller.unwrap().stop, StopReason::Caller);
    let none = generate(&mut s, &request(&prompt, 0, &[]), &mut go_on).unwrap();
    assert_eq!((none.ids.len(), none.stop), (0, StopReason::Length));
    let failed = generate(&mut s, &request(&prompt, 5, &[]), &mut |_| Err(Error::Interrupted));
    assert!(matches!(failed, Err(Error::Interrupted)));
    assert!(matches!(generate(&mut s, &request(&[], 5, &[]), &mut go_on), Err(Error::NoTokens)));
    assert_eq!(s.free_pages(), 16, "every sequence was removed");

    let mut short = session(limits(64, 1, 16), &Options { context: Some(50), ..options(1) });
    let context = generate(&mut short, &request(&prompt, 30, &[]), &mut go_on).unwrap();
    assert_eq!((context.ids.len(), context.stop), (11, StopReason::Context));
    let beyond = generate(&mut short, &request(&ids(1, 51), 1, &[]), &mut go_on).unwrap_err();
    assert_eq!((beyond.code(), beyond.exit()), ("runtime::context", 3));
}

fn compare(golden: &Golden, change: impl Fn(&mut Settings)) -> Vec<Check> {
    let mut settings = Settings { options: options(1), tolerance: None, sequences: 1 };
    change(&mut settings);
    against_golden(&artifact(), golden, &settings).unwrap()
}

#[test]
fn goldens_hold_in_every_arrangement() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden.safetensors");
    write_golden(&path, &ids(3, 70), 9, |_, _| ());
    let golden = Golden::read(&path).unwrap();
    for (chunk, sequences, threads) in [(None, 1, 1), (Some(7), 1, 2), (None, 5, 2), (Some(7), 5, 1), (Some(1), 3, 1)] {
        let checks = compare(&golden, |s| {
            s.options.prefill_chunk = chunk;
            s.options.threads = threads;
            s.sequences = sequences;
        });
        assert!(Verdict::of(checks.clone()).ok, "{checks:?}");
        assert_eq!((checks[0].max_abs, checks[1].max_abs), (Some(0.0), Some(0.0)));
        assert!(checks[2].detail.as_ref().unwrap().starts_with(&format!("{} ids, 0 differ", 9 * sequences)));
    }
}

#[test]
fn differences_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden.safetensors");
    let write = |row: usize, by: f32| {
        write_golden(&path, &ids(3, 20), 5, move |i, logits| logits[0] += if i == row { by } else { 0.0 });
        Golden::read(&path).unwrap()
    };
    let names = |checks: &[Check]| checks.iter().filter(|c| !c.ok).map(|c| c.name).collect::<Vec<_>>();
    assert_eq!(names(&compare(&write(4, 2e-3), |_| ())), ["prefill_logits"]);
    let decode = compare(&write(21, 2e-3), |_| ());
    assert_eq!(names(&decode), ["decode_logits"]);
    assert!(
        (decode[1].max_abs.unwrap() - 2e-3).abs() < 1e-6
            && decode[1].rms.unwrap() < 1e-3
            && decode[1].kl.unwrap() > 0.0
    );
    assert!(names(&compare(&write(21, 2e-3), |s| s.tolerance = Some(3e-3))).is_empty());
    // Another id than the golden's, where its best logit is far ahead.
    let mut golden = write(99, 0.0);
    golden.generated_ids[2] ^= 1;
    let checks = compare(&golden, |_| ());
    let mismatch = checks[2].first_mismatch.as_ref().unwrap();
    assert_eq!((mismatch.position, mismatch.expected), (2, golden.generated_ids[2]));
    assert!(!checks[2].ok);
}

#[test]
fn broken_goldens_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("golden.safetensors");
    write_golden(&path, &ids(3, 20), 5, |_, _| ());
    let good = std::fs::read(&path).unwrap();
    for (bad, reason) in [
        (good[..5].to_vec(), "shorter than 8 bytes"),
        (good[..100].to_vec(), "a header of"),
        (good[..good.len() - 1].to_vec(), "does not lie in the file"),
        ([&good[..8], b"x", &good[9..]].concat(), "expected value"),
        (String::from_utf8_lossy(&good[..500]).replace("prompt_ids", "prompt_idx").into_bytes(), ""),
    ] {
        let e = Golden::parse(&bad).unwrap_err();
        assert!(e.contains(reason), "{e}");
    }
    let e = Golden::read(&dir.path().join("none")).unwrap_err();
    assert_eq!(e.exit(), 3);
}

#[test]
fn perplexity_is_that_of_the_formula() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir.path().join("t.dfz"), &Kind { tokenizer: Some(&checkpoint("tiny-v3")), ..PLAIN });
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    let file = dir.path().join("text.txt");
    let text = "The compiler reads 128 experts, and the router picks a few. ".repeat(9);
    std::fs::write(&file, &text).unwrap();
    let check = perplexity(&artifact, &file, 32, &options(1)).unwrap();

    let tokenizer = deepfuse_runtime::tokenizer::Tokenizer::of(&artifact).unwrap();
    let all = [vec![0], tokenizer.encode_plain(&text).unwrap()].concat();
    let (mut sum, mut n) = (0.0, 0);
    for window in all.chunks_exact(32) {
        for i in 1..32 {
            let logits = expected(&window[..i]);
            let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            sum -= f64::from(logits[window[i] as usize]) - total.ln();
            n += 1;
        }
    }
    let want = (sum / f64::from(n)).exp();
    assert!((check.perplexity.unwrap() / want - 1.0).abs() < 1e-6, "{check:?} {want}");
    assert!(perplexity(&artifact, &file, 1, &options(1)).is_err());
    std::fs::write(&file, "short").unwrap();
    assert_eq!(perplexity(&artifact, &file, 32, &options(1)).unwrap_err().exit(), 3);
    assert_eq!(perplexity(&artifact, &dir.path().join("none"), 32, &options(1)).unwrap_err().exit(), 3);
}
