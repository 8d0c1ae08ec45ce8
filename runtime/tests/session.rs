//! Sequences, pages, batches: against a model that hashes all it sees.
#![allow(clippy::unwrap_used, clippy::single_match_else)]

mod common;

use common::*;
use deepfuse_artifact::exit;
use deepfuse_runtime::trace::{LAUNCHES, PROCESS, Recording, chrome_trace, worker_row};
use deepfuse_runtime::{Artifact, Error, Feed, Options, SequenceId, Session};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn feed_all(s: &mut Session, id: SequenceId, ids: &[u32]) -> Vec<Vec<f32>> {
    s.step(&[Feed::all(id, ids)]).unwrap();
    assert_eq!(s.rows(), ids.len());
    (0..ids.len()).map(|i| s.logits(i).unwrap().to_vec()).collect()
}

fn expected_all(ids: &[u32]) -> Vec<Vec<f32>> {
    (1..=ids.len()).map(|n| expected(&ids[..n])).collect()
}

#[test]
fn chunks_threads_and_single_tokens_agree() {
    let ids = ids(1, 300);
    let want = expected_all(&ids);
    for threads in [1, 2, 3, 8] {
        for chunk in [None, Some(1), Some(7), Some(64), Some(100)] {
            let mut s = session(limits(300, 2, 10), &Options { prefill_chunk: chunk, ..options(threads) });
            let id = s.add_sequence().unwrap();
            assert_eq!(feed_all(&mut s, id, &ids), want, "threads {threads}, chunk {chunk:?}");
        }
        let mut s = session(limits(1, 1, 5), &options(threads));
        let id = s.add_sequence().unwrap();
        for (i, token) in ids.iter().enumerate() {
            s.step(&[Feed::last(id, &[*token])]).unwrap();
            assert_eq!(s.logits(0).unwrap(), want[i]);
        }
        assert_eq!((s.tokens(id).unwrap(), s.free_pages()), (300, 0));
    }
}

/// Five sequences at different places; one gets a long prompt while the others decode.
#[test]
fn ragged_batches_keep_sequences_apart() {
    let mut s = session(limits(16, 5, 50), &Options { prefill_chunk: Some(5), ..options(2) });
    let mut texts: Vec<Vec<u32>> = vec![];
    let mut handles = vec![];
    for round in 0..40u64 {
        if round % 7 == 0 && handles.len() < 5 {
            handles.push(s.add_sequence().unwrap());
            texts.push(vec![]);
        }
        let fresh: Vec<Vec<u32>> = (0..handles.len())
            .map(|i| ids(round * 100 + i as u64, if texts[i].is_empty() { 1 + 13 * i } else { 1 }))
            .collect();
        // In another order every round; every third one wants no logits, some want more than one.
        let mut order: Vec<usize> = (0..handles.len()).collect();
        order.rotate_left(round as usize % handles.len());
        let feed = |i: &usize| Feed { sequence: handles[*i], ids: &fresh[*i], logits: (i % 3).min(fresh[*i].len()) };
        let feeds: Vec<Feed<'_>> = order.iter().map(feed).collect();
        s.step(&feeds).unwrap();
        let mut row = 0;
        for (i, f) in order.iter().zip(&feeds) {
            texts[*i].extend(f.ids);
            for k in (0..f.logits).rev() {
                assert_eq!(
                    s.logits(row).unwrap(),
                    expected(&texts[*i][..texts[*i].len() - k]),
                    "round {round}, sequence {i}"
                );
                row += 1;
            }
        }
        assert_eq!(s.rows(), row);
        assert!(s.logits(row).is_none());
    }
}

#[test]
fn forks_share_until_they_differ() {
    let mut s = session(limits(128, 4, 6), &options(1));
    let text = ids(3, 100);
    let a = s.add_sequence().unwrap();
    s.step(&[Feed::last(a, &text)]).unwrap();
    let b = s.fork(a).unwrap();
    let c = s.fork(a).unwrap();
    assert_eq!(s.free_pages(), 4, "a fork takes no pages");
    s.step(&[Feed::last(a, &[1]), Feed::last(b, &[2]), Feed::last(c, &[3])]).unwrap();
    for (i, next) in [1, 2, 3].into_iter().enumerate() {
        assert_eq!(s.logits(i).unwrap(), expected(&[&text[..], &[next]].concat()));
    }
    assert_eq!(s.free_pages(), 2, "two of three took a copy of the last page");
    // The first page is still shared: b can go and a still works.
    s.remove_sequence(b).unwrap();
    s.step(&[Feed::last(a, &[4])]).unwrap();
    assert_eq!(s.logits(0).unwrap(), expected(&[&text[..], &[1, 4]].concat()));
    // Truncated into the shared page, then on: c must not notice.
    s.truncate(a, 10).unwrap();
    s.step(&[Feed::last(a, &[5])]).unwrap();
    assert_eq!(s.logits(0).unwrap(), expected(&[&text[..10], &[5]].concat()));
    s.step(&[Feed::last(c, &[6])]).unwrap();
    assert_eq!(s.logits(0).unwrap(), expected(&[&text[..], &[3, 6]].concat()));
    s.remove_sequence(a).unwrap();
    s.remove_sequence(c).unwrap();
    assert_eq!(s.free_pages(), 6);
}

/// Page lists of forks can be longer than the cache: then a step takes several batches.
#[test]
fn more_shared_pages_than_pages() {
    let mut s = session(limits(300, 6, 20), &options(2));
    let text = ids(4, 256);
    let first = s.add_sequence().unwrap();
    s.step(&[Feed::last(first, &text)]).unwrap();
    let all: Vec<SequenceId> = std::iter::once(first).chain((0..5).map(|_| s.fork(first).unwrap())).collect();
    s.step(&all.iter().map(|id| Feed::last(*id, &[7])).collect::<Vec<_>>()).unwrap();
    for i in 0..6 {
        assert_eq!(s.logits(i).unwrap(), expected(&[&text[..], &[7]].concat()));
    }
}

#[test]
fn errors_change_nothing() {
    let mut s = session(limits(600, 2, 3), &options(1));
    let (a, b) = (s.add_sequence().unwrap(), s.add_sequence().unwrap());
    assert!(matches!(s.add_sequence(), Err(Error::TooManySequences { limit: 2 })));
    let text = ids(5, 150);
    s.step(&[Feed::last(a, &text[..100])]).unwrap();
    let long = ids(6, 65);
    let full = s.step(&[Feed::last(a, &text[100..]), Feed::last(b, &long)]).unwrap_err();
    assert!(matches!(full, Error::CacheFull { needed: 2, free: 1 }), "{full:?}");
    assert_eq!(full.exit(), exit::RESOURCES);
    let cases: [(&[Feed<'_>], &str, u8); 6] = [
        (&[Feed::last(a, &[1]), Feed::last(b, &[VOCAB])], "runtime::vocabulary", exit::INPUT),
        (&[Feed::last(a, &[1]), Feed::last(a, &[2])], "runtime::sequence-twice", exit::USAGE),
        (&[Feed::last(a, &[1]), Feed::last(b, &[])], "runtime::no-tokens", exit::INPUT),
        (&[Feed::last(a, &[1; 901])], "runtime::context", exit::INPUT),
        (&[Feed { sequence: a, ids: &[1], logits: 2 }], "runtime::rows", exit::USAGE),
        (&[Feed::all(a, &[1; 601])], "runtime::rows", exit::USAGE),
    ];
    for (feeds, code, exit) in cases {
        let e = s.step(feeds).unwrap_err();
        assert_eq!((e.code(), e.exit()), (code, exit), "{e}");
    }
    assert_eq!((s.tokens(a).unwrap(), s.tokens(b).unwrap(), s.free_pages()), (100, 0, 1));
    s.step(&[Feed::last(a, &text[100..])]).unwrap();
    assert_eq!(s.logits(0).unwrap(), expected(&text));
    s.remove_sequence(a).unwrap();
    for gone in [
        s.tokens(a).unwrap_err(),
        s.truncate(a, 0).unwrap_err(),
        s.fork(a).unwrap_err(),
        s.remove_sequence(a).unwrap_err(),
    ] {
        assert_eq!(gone.code(), "runtime::no-sequence");
    }
    let again = s.add_sequence().unwrap();
    assert_ne!(again, a, "a handle is not reused");
    assert!(matches!(s.truncate(b, 1), Err(Error::Truncate { tokens: 0, to: 1 })));
    s.step(&[]).unwrap();
    assert_eq!(s.rows(), 0);
}

#[test]
fn the_context_can_be_shorter_not_longer() {
    let load =
        |context| Session::load(artifact(), limits(8, 1, 100), &Options { context: Some(context), ..options(1) });
    let mut s = load(10).unwrap();
    let id = s.add_sequence().unwrap();
    s.step(&[Feed::last(id, &[1; 10])]).unwrap();
    assert!(matches!(s.step(&[Feed::last(id, &[1])]), Err(Error::Context { tokens: 11, context: 10 })));
    assert_eq!(load(1001).unwrap_err().exit(), exit::USAGE);
    assert_eq!(load(0).unwrap_err().exit(), exit::USAGE);
    let none = Session::load(artifact(), limits(8, 1, 0), &options(1)).unwrap_err();
    assert!(none.to_string().contains("one page of 64 tokens takes 1024"), "{none}");
}

#[test]
fn buckets_are_chosen_by_their_assumptions() {
    let text = ids(8, 400);
    let run = |force: Option<&str>, n: usize| {
        let force_bucket = force.map(str::to_owned);
        let mut s = Session::load(artifact(), limits(512, 1, 20), &Options { force_bucket, ..options(2) })?;
        s.record(Recording::Events);
        let id = s.add_sequence()?;
        s.step(&[Feed::last(id, &text[..n])])?;
        assert_eq!(s.logits(0).unwrap(), expected(&text[..n]));
        let bucket = s.recorder().events()[0].bucket;
        assert!(s.recorder().events().iter().all(|e| e.bucket == bucket));
        Ok::<u32, Error>(bucket)
    };
    assert_eq!(run(None, 7).unwrap(), 2, "too few tokens");
    assert_eq!(run(None, 8).unwrap(), 0);
    assert_eq!(run(None, 256).unwrap(), 0);
    assert_eq!(run(None, 257).unwrap(), 2, "too many pages");
    assert_eq!(run(Some("long"), 1).unwrap(), 0);
    assert_eq!(run(Some("general"), 100).unwrap(), 2);
    assert_eq!(run(Some("few"), 100).unwrap(), 1, "in batches of at most 2");
    assert!(matches!(run(Some("long"), 257), Err(Error::Bucket { .. })));
    assert!(matches!(run(Some("none"), 1), Err(Error::NoBucket { .. })));
}

/// Queries are averaged over context rows: one token over a long context outweighs a short prompt. The longest sequence is the context.
#[test]
fn every_sequence_counts_for_the_bucket() {
    let mut s = session(limits(512, 2, 20), &options(1));
    s.record(Recording::Events);
    let text = ids(9, 100);
    let (a, b) = (s.add_sequence().unwrap(), s.add_sequence().unwrap());
    let mut bucket = |feeds: &[Feed<'_>]| {
        s.record(Recording::Events);
        s.step(feeds).unwrap();
        s.artifact().plan().buckets[s.recorder().events()[0].bucket as usize].name.clone()
    };
    // (16 * 16 + 8 * 8) / (16 + 8) queries.
    assert_eq!(bucket(&[Feed::last(a, &text[..16]), Feed::last(b, &text[..8])]), "long");
    assert_eq!(bucket(&[Feed::last(a, &text[..1]), Feed::last(b, &text[..1])]), "few");
    assert_eq!(bucket(&[Feed::last(a, &text[..22])]), "long");
    assert_eq!(bucket(&[Feed::last(a, &text[..1])]), "few");
    assert_eq!(bucket(&[Feed::last(a, &text[..1])]), "general", "a context of 41");
    // (1 * 42 + 8 * 17) / (42 + 17) = 3.02, rounded up.
    assert_eq!(bucket(&[Feed::last(a, &text[..1]), Feed::last(b, &text[..8])]), "general");
}

#[test]
fn times_are_recorded() {
    let mut s = session(limits(64, 1, 20), &options(2));
    s.record(Recording::Events);
    let id = s.add_sequence().unwrap();
    s.step(&[Feed::last(id, &ids(1, 100))]).unwrap();
    let totals = s.recorder().totals();
    assert_eq!(totals.iter().map(|t| t.calls).collect::<Vec<_>>(), [2, 2, 0, 2]);
    assert_eq!((totals[0].bytes, totals[0].operations), (6400.0, 100.0));
    assert_eq!(totals[3].bytes, 1024.0 * 3.0 + 1280.0);
    assert_eq!(totals[3].operations, 64.0 * (64.0 + 36.0 * 2.0));
    check_trace(&chrome_trace(s.artifact().plan(), s.recorder()), [LAUNCHES, worker_row(0), worker_row(1)]);
    s.record(Recording::Off);
    s.step(&[Feed::last(id, &[1])]).unwrap();
    assert!(s.recorder().events().is_empty());
}

/// What Perfetto needs of a trace: complete events with times in microseconds, a name for every row, none of them the row of no thread or of
/// the main thread, and on one row no overlap.
fn check_trace(trace: &serde_json::Value, tracks: [u32; 3]) {
    let all = trace["traceEvents"].as_array().unwrap();
    let (rows, events): (Vec<_>, Vec<_>) = all.iter().partition(|e| e["ph"] == "M");
    let named =
        |tid: u32| rows.iter().find(|e| e["tid"] == tid && e["name"] == "thread_name").unwrap()["args"]["name"].clone();
    assert_eq!(tracks.map(named), ["launches", "worker 0", "worker 1"]);
    assert!(tracks.iter().all(|tid| *tid != 0 && *tid != PROCESS));
    let number = |e: &serde_json::Value, key: &str| e[key].as_f64().unwrap();
    for tid in tracks {
        let on_row: Vec<_> = events.iter().filter(|e| e["tid"] == tid).collect();
        let ends = |e: &serde_json::Value| number(e, "ts") + number(e, "dur");
        assert!(on_row.windows(2).all(|w| ends(w[0]) <= number(w[1], "ts") + 1e-3), "one after the other");
    }
    assert!(
        events.iter().all(|e| e["ph"] == "X" && e["pid"] == PROCESS && e["name"].is_string() && e["cat"].is_string())
    );
    let launches: Vec<_> = events.iter().filter(|e| e["tid"] == LAUNCHES).collect();
    assert_eq!(launches.len(), 6);
    assert_eq!((launches[0]["name"].as_str(), launches[1]["name"].as_str()), (Some("embed"), Some("write")));
    // Every part of every phase was run by one worker, inside its launch.
    let parts: Vec<_> = events.iter().filter(|e| e["tid"] != LAUNCHES).collect();
    for launch in launches {
        let (start, end) = (number(launch, "ts"), number(launch, "ts") + number(launch, "dur"));
        let inside = |e: &&&&serde_json::Value| {
            number(e, "ts") >= start - 1e-3 && number(e, "ts") + number(e, "dur") <= end + 1e-3
        };
        let mine: Vec<_> = parts.iter().filter(inside).collect();
        let count = mine[0]["args"]["parts"].as_u64().unwrap();
        assert!(mine.len() as u64 >= count && (mine.len() as u64).is_multiple_of(count));
    }
}

#[test]
fn artifacts_that_cannot_run_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let load = |kind: &Kind<'_>| {
        let path = write(&dir.path().join("x.dfz"), kind);
        Session::load(Artifact::open(&path).unwrap().into(), limits(8, 1, 10), &options(1)).unwrap_err()
    };
    let isa = load(&Kind { features: &["sse2", "avx9000"], ..PLAIN });
    assert_eq!(isa.exit(), exit::REJECTED);
    let report = isa.report();
    assert!(report.message.contains("artifact for another ISA: it needs avx9000"), "{report}");
    assert!(report.expected.unwrap().contains("sse2 avx9000") && report.found.is_some());
    let shapes = load(&Kind { weights: false, ..PLAIN });
    assert_eq!((shapes.code(), shapes.exit()), ("artifact::shapes-only", exit::REJECTED));
    let gone = load(&Kind {
        plan: &PLAIN.plan.replace("kernel write", "kernel wrote").replace("launch write", "launch wrote"),
        ..PLAIN
    });
    assert_eq!((gone.code(), gone.exit()), ("runtime::code", exit::REJECTED));
    assert!(gone.to_string().contains("no symbol `wrote`"));
    let ring = load(&Kind { plan: &PLAIN.plan.replace("cache paged", "cache window 64"), ..PLAIN });
    assert_eq!(ring.exit(), exit::UNSUPPORTED);
    let queues = load(&Kind { plan: &PLAIN.plan.replace("copy %0 -> %1 bytes 0", "wait 1"), ..PLAIN });
    assert_eq!(queues.exit(), exit::UNSUPPORTED);
    let huge = Session::load(artifact(), limits(u32::MAX, 1, 10), &options(1)).unwrap_err();
    assert_eq!((huge.code(), huge.exit()), ("runtime::memory", exit::RESOURCES));
}

/// One action of the random test.
#[derive(Clone, Debug)]
enum Do {
    Add,
    Step(Vec<(usize, usize)>),
    Fork(usize),
    Truncate(usize, usize),
    Remove(usize),
}

fn action() -> impl Strategy<Value = Do> {
    prop_oneof![
        2 => Just(Do::Add),
        6 => proptest::collection::vec((0..6usize, prop_oneof![1..4usize, 1..150usize]), 1..5).prop_map(Do::Step),
        2 => (0..6usize).prop_map(Do::Fork),
        2 => (0..6usize, 0..200usize).prop_map(|(i, n)| Do::Truncate(i, n)),
        1 => (0..6usize).prop_map(Do::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever happens to sequences in a small cache, each one's logits are those of its own tokens, and no page is lost.
    #[test]
    fn any_history_of_sequences(actions in proptest::collection::vec(action(), 1..40), threads in 1..3u32, chunk in prop_oneof![Just(None), (1..40u32).prop_map(Some)]) {
        const PAGES: u64 = 9;
        let mut s = session(limits(70, 6, PAGES), &Options { prefill_chunk: chunk, ..options(threads) });
        let mut live: Vec<(SequenceId, Vec<u32>)> = vec![];
        for (turn, action) in actions.into_iter().enumerate() {
            let pick = |i: usize, live: &Vec<_>| if live.is_empty() { None } else { Some(i % live.len()) };
            match action {
                Do::Add => match s.add_sequence() {
                    Ok(id) => live.push((id, vec![])),
                    Err(_) => prop_assert_eq!(live.len(), 6),
                },
                Do::Fork(i) => if let Some(i) = pick(i, &live) {
                    match s.fork(live[i].0) {
                        Ok(id) => live.push((id, live[i].1.clone())),
                        Err(_) => prop_assert_eq!(live.len(), 6),
                    }
                },
                Do::Truncate(i, n) => if let Some(i) = pick(i, &live) {
                    let n = n.min(live[i].1.len());
                    s.truncate(live[i].0, n as u32).unwrap();
                    live[i].1.truncate(n);
                },
                Do::Remove(i) => if let Some(i) = pick(i, &live) {
                    s.remove_sequence(live.remove(i).0).unwrap();
                },
                Do::Step(list) => {
                    let mut feeds: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
                    for (k, (i, n)) in list.into_iter().enumerate() {
                        if let Some(i) = pick(i, &live) {
                            feeds.insert(i, ids((turn * 10 + k) as u64, n));
                        }
                    }
                    let step: Vec<Feed<'_>> = feeds.iter().map(|(i, ids)| Feed::last(live[*i].0, ids)).collect();
                    let before = s.free_pages();
                    match s.step(&step) {
                        Ok(()) => for (row, (i, ids)) in feeds.iter().enumerate() {
                            live[*i].1.extend(ids);
                            prop_assert_eq!(s.logits(row).unwrap(), &expected(&live[*i].1)[..]);
                        },
                        Err(Error::CacheFull { needed, free }) => {
                            prop_assert!(needed > 0);
                            prop_assert_eq!((free, s.free_pages()), (before, before));
                        }
                        Err(e) => prop_assert!(matches!(e, Error::Context { .. }), "{}", e),
                    }
                }
            }
            for (id, text) in &live {
                prop_assert_eq!(s.tokens(*id).unwrap() as usize, text.len());
            }
        }
        for (id, _) in live {
            s.remove_sequence(id).unwrap();
        }
        prop_assert_eq!(u64::from(s.free_pages()), PAGES);
    }
}
