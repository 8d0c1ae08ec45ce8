//! The text form of plans: round trip, places of errors, rules, and no panic whatever the bytes are.
#![allow(clippy::unwrap_used)]

use deepfuse_artifact::plan::*;
use deepfuse_artifact::{plan_check, plan_text};
use proptest::prelude::*;

const SAMPLE: &str = r#"plan 1
vocab 2048
state layers.0.latent paged row 160
state ring window 128 row 64
state "odd name" every 4 row 32
state fix fixed 3 row 8
weight w0 bytes 524288 note "bf16[2048, 128] \"dense\" embed"
weight w1 bytes 400
kernel embed_0 family embed phases 1 bytes [0, 512.5, 0, 0, 0, 0, 0, 0] operations [0, 1e30, -1, 0, 0, 0, 1, 0]
kernel head_0 family linear phases 2 bytes [0, 0, 0, 0, 0, 0, 0, 0] operations [0, 0, 0, 0, 0, 0, 0, 0]
bucket prefill tokens 128..max queries 128..4096 context 1..max pages 1..1024 {
  buffer %0 fixed offset 0 bytes 64
  buffer %1 TP offset 64 bytes 128
}
bucket decode tokens 1..max queries 1..max context 1..max pages 1..max {
  buffer %0 T offset 0 bytes 256
  buffer %1 P offset 256 bytes 64
  launch embed_0(ids, $w0, %0) label "embed"
  launch head_0(%0+64, @layers.0.latent, pos, seq, pages, page_start, rows, $w1+64, @"odd name", logits)
  copy %0+64 -> %1 bytes 64
  collective all_reduce %0 bytes 256
  wait 3
}
bucket decode-8 tokens 2..8 queries 1..1 context 1..4096 pages 1..max as decode
bucket mixed tokens 1..max queries 1..max context 1..max pages 1..max as prefill
"#;

#[test]
fn the_sample_is_canonical() {
    let plan = plan_text::parse(SAMPLE).unwrap();
    assert_eq!(plan_text::print(&plan), SAMPLE);
    assert_eq!(plan.buckets[1].actions.len(), 5);
    assert_eq!(plan.buckets[2].actions, plan.buckets[1].actions);
    assert_eq!(plan.buckets[3].buffers, plan.buckets[0].buffers);
    assert_eq!(
        plan.states[2],
        State { name: "odd name".into(), kind: StateKind::PagedEvery { every: 4 }, row_bytes: 32 }
    );
}

#[test]
fn comments_and_layout_are_free() {
    let commented = SAMPLE.replace('\n', "   // a comment\n\n");
    assert_eq!(plan_text::parse(&commented), plan_text::parse(SAMPLE));
}

#[test]
fn errors_have_a_place() {
    let cases = [
        ("vocab 2048", "vocab many", 2, 7, "expected a whole number that fits 32 bits, found `many`"),
        ("$w0, %0)", "$w9, %0)", 18, 24, "there is no weight \"w9\""),
        ("@layers.0.latent, pos", "@layers.1.latent, pos", 19, 25, "there is no state"),
        ("launch embed_0(", "launch embed_1(", 18, 10, "there is no kernel"),
        ("wait 3", "hold 3", 22, 3, "unknown action"),
        ("as prefill", "as mixed", 25, 74, "there is no bucket \"mixed\" before this one"),
        ("buffer %1 P", "buffer %2 P", 17, 11, "this is buffer %1"),
        ("buffer %1 P", "buffer %1 Q", 17, 13, "unknown arena"),
        ("state ring", "state layers.0.latent", 4, 7, "already taken"),
        ("plan 1", "plan 2", 1, 6, "version 2"),
        ("[0, 512.5, 0,", "[0, 512.5,", 9, 68, "expected `,`, found `]`"),
        ("\"odd name\" every", "\"odd name every", 5, 7, "no end on its line"),
        ("vocab 2048", "vocab 2048 §", 2, 12, "unexpected '§'"),
        ("bytes 400", "bytes 18446744073709551616", 8, 17, "fits 64 bits"),
    ];
    for (from, to, line, column, message) in cases {
        let e = plan_text::parse(&SAMPLE.replacen(from, to, 1)).unwrap_err();
        assert_eq!((e.line, e.column), (line, column), "{to}: {e}");
        assert!(e.message.contains(message), "{to}: {e}");
        assert!(e.to_string().contains('^'), "{e}");
    }
}

#[test]
fn rules_are_checked() {
    let cases = [
        ("1..max as prefill", "2..max as prefill", "the last bucket must take any batch"),
        ("tokens 128..max", "tokens 128..127", "the range of tokens is empty"),
        ("offset 256 bytes 64", "offset 250 bytes 64", "multiples of 64"),
        ("%0+64,", "%0+256,", "byte 256 of buffer 0, which has 256"),
        ("$w1+64", "$w1+400", "byte 400 of weight 1, which has 400"),
        ("%0+64 -> %1 bytes 64", "%0+64 -> %1 bytes 65", "copies 65 bytes"),
        ("%0+64 -> %1 bytes 64", "%0+64 -> $w0 bytes 64", "into a weight"),
        ("window 128", "window 0", "a size of 0 rows"),
        ("phases 2", "phases 0", "0 phases"),
        ("vocab 2048", "vocab 0", "vocab is 0"),
        ("kernel head_0", "kernel \"head 0\"", "not a symbol name"),
        ("1e30", "1e999", "not finite"),
        ("bucket decode-8", "bucket decode", "two buckets have the name decode"),
    ];
    for (from, to, message) in cases {
        let text = SAMPLE
            .replacen(from, to, 1)
            .replace("launch head_0(", if to.contains("head 0") { "launch \"head 0\"(" } else { "launch head_0(" });
        let e = plan_text::parse(&text).unwrap_err();
        assert!(e.message.contains(message), "{to}: {e}");
    }
    let nothing = plan_text::parse("plan 1 vocab 8").unwrap_err();
    assert!(nothing.message.contains("there is no bucket"));
}

#[test]
fn all_problems_are_reported() {
    let text = SAMPLE.replacen("vocab 2048", "vocab 0", 1).replacen("phases 2", "phases 65", 1);
    let e = plan_text::parse(&text).unwrap_err();
    assert!(e.message.contains("vocab is 0") && e.message.contains("65 phases"), "{e}");
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z][a-z0-9_.]{0,8}", 1 => "\\PC{1,8}", 1 => Just("a\n\"\\\t\u{1}//".to_owned())]
}

fn names(max: usize) -> impl Strategy<Value = Vec<String>> {
    proptest::collection::btree_set(name(), 1..max).prop_map(|s| s.into_iter().collect())
}

fn range() -> impl Strategy<Value = Range> {
    (1..200u32, prop_oneof![1..200u32, Just(u32::MAX)]).prop_map(|(a, b)| Range { min: a.min(b), max: a.max(b) })
}

fn kind() -> impl Strategy<Value = StateKind> {
    prop_oneof![
        Just(StateKind::Paged),
        (1..9u32).prop_map(|every| StateKind::PagedEvery { every }),
        (1..9u32).prop_map(|window| StateKind::Window { window }),
        (1..9u32).prop_map(|rows| StateKind::Fixed { rows }),
    ]
}

fn finite() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>().prop_filter("finite", |x| x.is_finite()), (0..1000u32).prop_map(f64::from)]
}

fn buffer() -> impl Strategy<Value = Buffer> {
    let arena = prop_oneof![
        Just(Arena::Fixed),
        Just(Arena::PerTokenPage),
        (0..5usize).prop_map(|i| Arena::Per(Symbol::ALL[i]))
    ];
    (arena, 0..99u64, 1..99u64).prop_map(|(arena, offset, bytes)| Buffer {
        arena,
        offset: offset * 64,
        bytes: bytes * 64,
    })
}

fn arg(buffers: u32, states: u32, weights: u32) -> impl Strategy<Value = Arg> {
    prop_oneof![
        (0..6usize).prop_map(|i| Arg::Input(Input::ALL[i])),
        (0..buffers, 0..64u64).prop_map(|(index, offset)| Arg::Buffer { index, offset }),
        (0..states).prop_map(Arg::State),
        (0..weights, 0..64u64).prop_map(|(index, offset)| Arg::Weight { index, offset }),
        Just(Arg::Logits),
    ]
}

fn bucket(states: u32, weights: u32, kernels: u32) -> impl Strategy<Value = BucketPlan> {
    let buffers = proptest::collection::vec(buffer(), 1..6);
    (buffers, range(), range(), range(), range()).prop_flat_map(move |(buffers, tokens, queries, context, pages)| {
        let arg = || arg(buffers.len() as u32, states, weights);
        let launch = (0..kernels, proptest::collection::vec(arg(), 0..6), prop_oneof![Just(String::new()), name()]);
        let writable = (0..buffers.len() as u32).prop_map(|index| Arg::Buffer { index, offset: 0 });
        let action = prop_oneof![
            launch.prop_map(|(kernel, args, label)| Action::Launch(Launch { kernel, args, label })),
            (arg(), writable, 0..1u64).prop_map(|(from, to, bytes)| Action::Copy { from, to, bytes }),
            (name(), arg(), any::<u64>()).prop_map(|(kind, buffer, bytes)| Action::Collective { kind, buffer, bytes }),
            any::<u32>().prop_map(|queue| Action::Wait { queue }),
        ];
        let assumptions = Assumptions { tokens, queries, context, pages };
        let buffers = buffers.clone();
        proptest::collection::vec(action, 0..8).prop_map(move |actions| BucketPlan {
            name: String::new(),
            assumptions,
            buffers: buffers.clone(),
            actions,
        })
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let symbols = proptest::collection::btree_set("[a-z_][a-z0-9_]{0,9}", 1..4);
    (1..9999u32, names(4), names(4), symbols, names(4)).prop_flat_map(|(vocab, states, weights, symbols, labels)| {
        let counts = (states.len() as u32, weights.len() as u32, symbols.len() as u32);
        let buckets = proptest::collection::vec(bucket(counts.0, counts.1, counts.2), labels.len());
        let state =
            |name| (Just(name), kind(), 1..999u64).prop_map(|(name, kind, row_bytes)| State { name, kind, row_bytes });
        let note = || prop_oneof![Just(String::new()), name()];
        let weight = |name| {
            (Just(name), 64..9999u64, 1..3u32, note()).prop_map(|(name, bytes, matrices, note)| Weight {
                name,
                bytes,
                matrices,
                note,
            })
        };
        let terms = || std::array::from_fn::<_, 8, _>(|_| finite());
        let kernel = |symbol| {
            (Just(symbol), name(), 1..4u32, 0..99u32, terms(), terms()).prop_map(
                |(symbol, family, phases, saturates, bytes, operations)| Kernel {
                    symbol,
                    family,
                    phases,
                    saturates,
                    bytes,
                    operations,
                },
            )
        };
        let states: Vec<_> = states.into_iter().map(state).collect();
        let weights: Vec<_> = weights.into_iter().map(weight).collect();
        let kernels: Vec<_> = symbols.into_iter().map(kernel).collect();
        (states, weights, kernels, buckets).prop_map(move |(states, weights, kernels, mut buckets)| {
            buckets.iter_mut().zip(&labels).for_each(|(b, name)| b.name.clone_from(name));
            let all = Range { min: 1, max: u32::MAX };
            buckets.last_mut().unwrap().assumptions =
                Assumptions { tokens: all, queries: all, context: all, pages: all };
            Plan { vocab, states, weights, kernels, buckets }
        })
    })
}

proptest! {
    #[test]
    fn parse_reads_what_print_wrote(plan in plan()) {
        prop_assert_eq!(plan_check::problems(&plan), Vec::<String>::new());
        let text = plan_text::print(&plan);
        prop_assert_eq!(plan_text::parse(&text).map_err(|e| e.to_string()), Ok(plan), "{}", text);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = plan_text::parse(&text);
    }

    #[test]
    fn a_changed_sample_never_panics(at in 0..SAMPLE.len(), len in 0..20usize, new in "[ -~\n]{0,6}") {
        let mut text = SAMPLE.to_owned();
        text.replace_range(at..(at + len).min(SAMPLE.len()), &new);
        if let Ok(plan) = plan_text::parse(&text) {
            prop_assert_eq!(plan_text::parse(&plan_text::print(&plan)), Ok(plan));
        }
    }
}
