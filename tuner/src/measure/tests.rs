#![allow(clippy::unwrap_used)]

use super::*;
use deepfuse_codegen::x86::targets;
use deepfuse_ir::text::parse_unchecked;

/// The kernel that a graph of one operation is.
fn ask(text: &str, bucket: &str) -> Ask {
    let graph = parse_unchecked(text).unwrap();
    let appended = vec![0; graph.params.len()];
    let ask = Ask { graph: graph.to_string(), appended, bucket: bucket.to_owned(), known: BTreeMap::new() };
    assert_eq!(Ask::of(&ask.spec().unwrap()).unwrap(), ask, "a spec and back");
    ask
}

fn small_linear(weight: &str) -> Ask {
    let x = if weight.starts_with("int") { "int8r_bf16" } else { "bf16" };
    let text = format!(
        "graph @kernel(%x0: {x}[T, 96], weight %x1: {weight}[40, 96] @ \"w1\") -> bf16[T, 40] {{\n  %0 = linear %x0, %x1 : bf16[T, 40]\n  return %0\n}}"
    );
    ask(&text, "decode-8")
}

fn events(asks: &[Ask], threads: u32) -> Vec<Event> {
    let lines: Vec<String> = asks.iter().map(|a| serde_json::to_string(a).unwrap()).collect();
    let mut events = vec![];
    serve(lines.join("\n").as_bytes(), &targets::native(), threads, &mut |e| events.push(e.clone())).unwrap();
    events
}

fn records(events: &[Event]) -> Vec<&Record> {
    assert!(!events.iter().any(|e| matches!(e, Event::Failed(_))), "{events:?}");
    fn record(e: &Event) -> Option<&Record> {
        if let Event::Done(r) = e { Some(r) } else { None }
    }
    events.iter().filter_map(record).collect()
}

/// Every stored type of a matrix: all variants compute what the default one does.
#[test]
fn variants_of_a_small_kernel() {
    let asks = ["bf16", "f32", "fp8b128", "int8r", "int4g32"].map(small_linear);
    for threads in [1, 2] {
        let events = events(&asks, threads);
        let records = records(&events);
        assert_eq!(records.len(), asks.len());
        for r in records {
            assert_eq!(Record::from_json(r.to_json().as_bytes()).as_ref(), Ok(r));
            assert_eq!((r.key.threads, r.key.sizes["T"]), (threads, 8));
            assert!(r.candidates.iter().all(|c| c.outcome == Outcome::Ok), "{r:?}");
            assert!(r.candidates[0].nanos.len() >= ENOUGH.0);
        }
        assert!(events.contains(&Event::At(1)), "variants are told before they run");
    }
}

#[test]
fn known_variants_are_not_run_again() {
    let mut ask = small_linear("bf16");
    ask.known = [(1, Outcome::Crash)].into();
    let told = events(std::slice::from_ref(&ask), 1);
    assert!(!told.contains(&Event::At(1)));
    let outcomes: Vec<Outcome> = records(&told)[0].candidates.iter().map(|c| c.outcome).take(3).collect();
    assert_eq!(outcomes[..2], [Outcome::Ok, Outcome::Crash]);
    ask.known = [(0, Outcome::Timeout)].into();
    let told = events(&[ask], 1);
    let candidates = &records(&told)[0].candidates;
    assert_eq!((candidates.len(), candidates[0].outcome), (1, Outcome::Timeout), "nothing to compare with");
}

/// Kernels that address the cache, and those that select rows: batches of all buckets have valid indices.
#[test]
fn kernels_over_a_batch() {
    let addressing = "%x3: i32[T], %x4: i32[T], %x5: i32[P], %x6: i32[S+1]";
    let attention = |op: &str, attrs: &str| {
        format!(
            "graph @kernel(%x0: bf16[T, 2, 32], %x1: bf16[T, 2, 16], state @x2: paged bf16[48], {addressing}) -> bf16[T, 2, 32] {{
  %0 = {op} %x0, %x1, @x2, %x3, %x4, %x5, %x6 {{{attrs}}} : bf16[T, 2, 32]
  return %0
}}"
        )
    };
    let experts = "graph @kernel(%x0: bf16[T, 64], %x1: i32[T, 3], weight %x2: bf16[8, 32, 64] @ \"w2\", weight %x3: bf16[8, 32, 64] @ \"w3\") -> bf16[T, 3, 32] {
  %0 = expert_swiglu %x0, %x1, %x2, %x3 : bf16[T, 3, 32]
  return %0
}";
    let rows = "graph @kernel(%x0: bf16[T, 64], %x1: i32[R]) -> bf16[R, 64] {
  %0 = gather_rows %x0, %x1 : bf16[R, 64]
  return %0
}";
    let mut shared = ask(experts, "decode-8");
    shared.appended[1] = 1;
    assert_eq!(Ask::of(&shared.spec().unwrap()).unwrap(), shared);
    let mut asks = vec![shared];
    for bucket in ["decode-1", "decode-8", "verify", "prefill-64", "mixed"] {
        asks.extend([
            ask(&attention("mla_absorbed", "scale = 0.1"), bucket),
            ask(&attention("mla_absorbed_split", "scale = 0.1, splits = 4"), bucket),
            ask(experts, bucket),
            ask(rows, bucket),
        ]);
    }
    let events = events(&asks, 2);
    let records = records(&events);
    assert_eq!(records.len(), asks.len());
    assert!(records[0].key.kernel.contains("operand 1: the last 1 columns"), "another key than without");
    assert!(records.iter().flat_map(|r| &r.candidates).all(|c| c.outcome == Outcome::Ok), "{records:?}");
}

#[test]
fn what_is_asked_for_must_be_a_kernel() {
    let mut unknown = small_linear("bf16");
    unknown.bucket = "decode-7".to_owned();
    let mut none = small_linear("bf16");
    none.graph = "graph".to_owned();
    let told = events(&[unknown, none], 1);
    let [Event::Failed(bucket), Event::Failed(_)] = &told[..] else { panic!("{told:?}") };
    assert!(bucket.contains("no bucket `decode-7`"), "{bucket}");
}

#[test]
fn results_that_agree() {
    let expected = vec![vec![1.0, -2.0, 0.001, 4.0]];
    let with = |at: usize, x: f32| {
        let mut other = expected.clone();
        other[0][at] = x;
        other
    };
    assert!(agree(Op::Linear, &expected, &with(1, -2.02)) && agree(Op::Linear, &expected, &with(2, 0.002)));
    for (at, x) in [(0, -1.0), (2, 0.5), (3, f32::NAN), (3, f32::INFINITY), (1, 0.0)] {
        assert!(!agree(Op::Linear, &expected, &with(at, x)), "{x}");
    }
    let indices: Vec<Vec<f32>> = vec![(0..200).map(|i| i as f32).collect()];
    let exchanged = |n: usize| {
        let mut other = indices.clone();
        other[0][..n].fill(1000.0);
        other
    };
    assert!(agree(Op::Route, &indices, &exchanged(2)) && !agree(Op::Route, &indices, &exchanged(3)));
    assert!(!agree(Op::TopK, &indices, &exchanged(1)));
}

#[test]
fn days() {
    assert_eq!([0, 11_016, 20_785].map(date), ["1970-01-01", "2000-02-29", "2026-11-28"]);
}
