//! Beginning of sentence exactly once; characters whole.
#![allow(clippy::unwrap_used)]

mod common;

use common::checkpoint;
use deepfuse_artifact::manifest::TokensInfo;
use deepfuse_runtime::tokenizer::Tokenizer;
use proptest::prelude::*;
use std::sync::OnceLock;

/// Tokenizer of a checkpoint, with another configuration.
fn tokenizer(name: &str, change: impl Fn(&mut serde_json::Value)) -> Tokenizer {
    let dir = checkpoint(name);
    let config = std::fs::read(dir.join("tokenizer_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    change(&mut config);
    let tokens = TokensInfo { bos: Some(0), eos: vec![1] };
    Tokenizer::new(&std::fs::read(dir.join("tokenizer.json")).unwrap(), Some(config.to_string().as_bytes()), &tokens)
        .unwrap()
}

const BOS: &str = "<｜begin▁of▁sentence｜>";

#[test]
fn the_post_processor_adds_bos() {
    let t = tokenizer("tiny-v3", |_| ());
    assert_eq!(t.bos(), Some(0));
    let ids = t.encode("fast, exact").unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 0).count(), 1);
    assert_eq!(ids[0], 0);
    // It does so whatever the configuration says; that is the tokenizer's own rule.
    assert_eq!(tokenizer("tiny-v3", |c| c["add_bos_token"] = false.into()).encode("fast, exact").unwrap(), ids);
    assert_eq!(t.encode(&format!("{BOS}fast, exact")).unwrap(), ids, "not again where the text begins with it");
    assert_eq!(t.encode_plain("fast, exact").unwrap(), ids[1..]);
    assert_eq!(t.encode("").unwrap(), [0]);
}

#[test]
fn the_configuration_adds_bos_where_the_tokenizer_does_not() {
    let t = tokenizer("tiny-python", |_| ());
    let ids = t.encode("def f():\n").unwrap();
    assert_eq!((ids[0], ids.iter().filter(|id| **id == 0).count()), (0, 1));
    assert_eq!(t.encode(&format!("{BOS}def f():\n")).unwrap(), ids);
    assert_eq!(t.encode_plain("def f():\n").unwrap(), ids[1..]);
    let without = tokenizer("tiny-python", |c| c["add_bos_token"] = false.into());
    assert_eq!(without.encode("def f():\n").unwrap(), ids[1..]);
    let object = tokenizer("tiny-python", |c| c["bos_token"] = serde_json::json!({"content": BOS, "lstrip": false}));
    assert_eq!(object.encode("def f():\n").unwrap(), ids);
}

#[test]
fn goldens_of_the_oracle_are_reproduced() {
    let t = tokenizer("tiny-python", |_| ());
    let golden = deepfuse_runtime::golden::Golden::read(&checkpoint("tiny-python").join("golden.safetensors")).unwrap();
    assert_eq!(t.encode("def read_file(path):\n").unwrap(), golden.prompt_ids);
    assert_eq!(golden.generated_ids.len(), 25);
    let text = std::fs::read_to_string(checkpoint("tiny-python").join("held-out.txt")).unwrap();
    assert_eq!(t.encode_plain(&text).unwrap().len() + 1, 11_399);
}

#[test]
fn broken_files_are_errors() {
    let tokens = TokensInfo::default();
    assert!(Tokenizer::new(b"{}", None, &tokens).is_err());
    let json = std::fs::read(checkpoint("tiny-v3").join("tokenizer.json")).unwrap();
    assert!(Tokenizer::new(&json, Some(b"{"), &tokens).is_err());
    assert_eq!(Tokenizer::new(&json, None, &tokens).unwrap().bos(), None);
}

fn shared() -> &'static Tokenizer {
    static SHARED: OnceLock<Tokenizer> = OnceLock::new();
    SHARED.get_or_init(|| tokenizer("tiny-python", |_| ()))
}

/// Pieces of a stream.
fn pieces(t: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = t.stream();
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn characters_of_several_tokens_come_whole() {
    let t = shared();
    let text = "naïve 🦀 日本語 and a last é";
    let ids = t.encode_plain(text).unwrap();
    let pieces = pieces(t, &ids);
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{pieces:?}");
    assert!(pieces.iter().any(|p| p == "🦀"), "{pieces:?}");
    // Cut in the middle of a character: the rest comes at the end, as a replacement character.
    let crab = t.encode_plain("ok 🦀").unwrap();
    let cut = self::pieces(t, &crab[..crab.len() - 1]);
    assert_eq!(cut.concat(), "ok \u{fffd}");
    assert_eq!(cut.last().unwrap(), "\u{fffd}");
}

#[test]
fn special_tokens_are_silent() {
    let t = shared();
    let ids = [&[0], &t.encode_plain("x = 1").unwrap()[..], &[1]].concat();
    assert_eq!(pieces(t, &ids).concat(), "x = 1");
}

proptest! {
    #[test]
    fn a_stream_says_what_decoding_at_once_says(ids in proptest::collection::vec(0..2048u32, 0..60)) {
        let t = shared();
        prop_assert_eq!(pieces(t, &ids).concat(), t.decode(&ids).unwrap());
    }

    #[test]
    fn any_text_streams_unchanged(text in "\\PC{0,40}") {
        let t = shared();
        let ids = t.encode_plain(&text).unwrap();
        let pieces = pieces(t, &ids);
        prop_assert_eq!(pieces.concat(), text);
    }
}
