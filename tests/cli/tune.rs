//! From measurement to choice: `tune`, and `compile` and `explain` with its records.

use crate::support::{checkpoint, deepfuse, fails, golden, names, object};
use deepfuse_cache::{Candidate, Outcome, Record, Store};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// A model, records of a few of its kernels, and artifacts.
struct Workplace(tempfile::TempDir);

/// What a command prints.
fn json(verb: &str, path: &Path, more: &[&str]) -> Value {
    let given = [OsStr::new(verb), path.as_os_str(), OsStr::new("--json")];
    let out = deepfuse(&[&given[..], &more.iter().map(OsStr::new).collect::<Vec<_>>()].concat());
    assert_eq!(out.code, 0, "{verb} {more:?}: {out:?}");
    object(&out)
}

impl Workplace {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tune(&self, records: &str, more: &[&str]) -> Value {
        let records = self.path(records);
        let given = ["--activations", "f32", "--records", records.to_str().unwrap()];
        json("tune", &checkpoint("tiny-python"), &[&given[..], more].concat())
    }

    /// Compiles; what was chosen for every kernel.
    fn choices(&self, name: &str, records: Option<&str>) -> Vec<String> {
        let out = self.path(name);
        let records = records.map(|r| self.path(r));
        let mut given = vec!["--activations", "f32", "-o", out.to_str().unwrap()];
        if let Some(records) = &records {
            given.extend(["--records", records.to_str().unwrap()]);
        }
        let compiled = json("compile", &checkpoint("tiny-python"), &given);
        let text = fs::read_to_string(out.join("kernels.choices")).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(
            lines.iter().filter(|l| l.contains(" by record ")).count() as u64,
            compiled["measured"].as_u64().unwrap()
        );
        lines
    }

    /// Compares an artifact with the golden.
    fn verify(&self, artifact: &str) {
        let golden = golden("tiny-python");
        let verified = json("verify", &self.path(artifact), &["--golden", golden.to_str().unwrap()]);
        assert_eq!(verified["ok"], true, "{verified}");
    }

    fn files(&self, artifact: &str) -> Vec<(String, Vec<u8>)> {
        let path = self.path(artifact);
        names(&path).into_iter().map(|n| (n.clone(), fs::read(path.join(&n)).unwrap())).collect()
    }
}

#[test]
fn records_are_made_used_and_never_trusted() {
    let w = Workplace(tempfile::tempdir().unwrap());
    let told = w.tune("records", &["--kernel", "T=1: linear", "--budget", "5m"]);
    let kernels = told["kernels"].as_array().unwrap();
    assert_eq!((told["schema"].as_str(), told["left"].as_u64()), (Some("deepfuse.tune/1"), Some(0)), "{told}");
    assert_eq!(told["failed"], serde_json::json!({}));
    assert!(kernels.len() > 1 && told["measured"].as_u64() >= Some(kernels.len() as u64), "{told}");
    let again = w.tune("records", &["--kernel", "T=1: linear"]);
    assert_eq!(
        (&again["measured"], &again["kernels"]),
        (&0.into(), &told["kernels"]),
        "what is measured is not measured again"
    );
    let none = w.tune("elsewhere", &["--budget", "0s"]);
    assert!(
        none["measured"] == 0 && none["left"].as_u64() > Some(kernels.len() as u64) && !w.path("elsewhere").exists()
    );

    // Without records nothing changes; with the same ones the bytes are the same.
    let plain = w.choices("plain.dfz", None);
    assert!(plain.iter().all(|l| l.contains(" by estimate ")));
    let chosen = w.choices("tuned.dfz", Some("records"));
    let digests: BTreeSet<&str> = chosen.iter().flat_map(|l| l.split(' ')).filter(|w| w.len() == 64).collect();
    let store = Store::new(&w.path("records"));
    let all = store.read().unwrap();
    assert!(!digests.is_empty() && digests.iter().all(|d| all.iter().any(|(digest, _)| digest == d)), "{chosen:?}");
    w.verify("tuned.dfz");
    w.choices("again.dfz", Some("records"));
    assert_eq!(w.files("tuned.dfz"), w.files("again.dfz"));
    explained(&w);
    poisoned(&w, &all);
    damaged(&w, &all[0]);
}

/// `explain` says of each kernel what its cost rests on, of checkpoints and of artifacts.
fn explained(w: &Workplace) {
    let records = w.path("records");
    let given = ["--records", records.to_str().unwrap()];
    let of_checkpoint = ["--activations", "f32"];
    for (path, more) in [(checkpoint("tiny-python"), &of_checkpoint[..]), (w.path("tuned.dfz"), &[])] {
        let bases = |given: &[&str]| -> BTreeSet<String> {
            let told = json("explain", &path, &[given, more, &["--rule", "norm-linear"]].concat());
            let buckets = told["classes"].as_array().unwrap().iter().flat_map(|c| c["buckets"].as_array().unwrap());
            let kernels = buckets.flat_map(|b| b["kernels"].as_array().unwrap());
            let each: BTreeSet<String> = kernels.map(|k| k["basis"].as_str().unwrap().to_owned()).collect();
            assert_eq!(told["basis"].as_str(), each.iter().next_back().map(String::as_str));
            each
        };
        assert_eq!(bases(&given), ["estimate".to_owned(), "record".to_owned()].into());
    }
    let text =
        deepfuse(&[OsStr::new("explain"), w.path("tuned.dfz").as_os_str(), OsStr::new(given[0]), records.as_os_str()]);
    assert!(text.stdout.contains("by record") && text.stdout.contains("kernels with * were measured"), "{text:?}");
}

/// Records that lie about every kernel: the slowest variant or one that does not exist is the fastest. The model computes what it did.
fn poisoned(w: &Workplace, all: &[(String, Record)]) {
    let store = Store::new(&w.path("poisoned"));
    for (_, record) in all {
        let mut lie = record.clone();
        lie.candidates.iter_mut().for_each(|c| (c.outcome, c.nanos) = (Outcome::Ok, vec![1_000_000_000; 9]));
        lie.candidates.last_mut().unwrap().nanos = vec![10; 9];
        lie.candidates.push(Candidate {
            parameters: [("rows".to_owned(), 4_000_000)].into(),
            code: "0".repeat(64),
            outcome: Outcome::Ok,
            nanos: vec![1; 9],
        });
        store.add(&lie).unwrap();
    }
    let chosen = w.choices("poisoned.dfz", Some("poisoned"));
    w.verify("poisoned.dfz");
    assert!(chosen.iter().any(|l| l.contains(" by record 10 ns ")), "{chosen:?}");
    assert!(!chosen.iter().any(|l| l.contains("4000000")), "{chosen:?}");
}

/// A file that is no record, and no directory.
fn damaged(w: &Workplace, (digest, record): &(String, Record)) {
    let dir = w.path("damaged");
    fs::create_dir(&dir).unwrap();
    let (model, config) = (checkpoint("tiny-python"), OsStr::new("--records"));
    let compile = |records: &Path, exit, code| {
        let out = w.path("never.dfz");
        let given =
            [OsStr::new("compile"), model.as_os_str(), OsStr::new("-o"), out.as_os_str(), config, records.as_os_str()];
        fails(&given, exit, code)
    };
    let text = record.to_json();
    for (bytes, why) in [(&text[..text.len() / 2], "EOF"), ("{\n  \"schema\": 1\n}\n", "line 2")] {
        fs::write(dir.join(format!("{digest}.json")), bytes).unwrap();
        let told = compile(&dir, 5, "records::damaged");
        assert!(
            told["message"].as_str().unwrap().contains(why) && told["file"].as_str().unwrap().contains(digest),
            "{told}"
        );
    }
    let told = compile(&w.path("nowhere"), 6, "records::io");
    assert!(told["help"].as_str().unwrap().contains("deepfuse tune"), "{told}");
}

/// The kernels of other models have operands too: experts of groups, caches, rows that want logits.
#[test]
fn kernels_of_every_kind_can_be_measured() {
    let w = Workplace(tempfile::tempdir().unwrap());
    for (model, kernel) in [("tiny-v3", "T=8 S=2"), ("tiny-v2-236b", "R=1:")] {
        let records = w.path("records");
        let given = ["--records", records.to_str().unwrap(), "--kernel", kernel, "--threads", "1"];
        let told = json("tune", &checkpoint(model), &given);
        assert_eq!(told["failed"], serde_json::json!({}), "{model}");
        assert_eq!(told["left"], 0);
    }
    let all = Store::new(&w.path("records")).read().unwrap();
    let bad = |c: &Candidate| c.outcome != Outcome::Ok;
    let wrong: Vec<&str> =
        all.iter().filter(|(_, r)| r.candidates.iter().any(bad)).map(|(_, r)| r.key.kernel.as_str()).collect();
    assert!(!all.is_empty() && wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_cannot_be_tuned() {
    let w = Workplace(tempfile::tempdir().unwrap());
    let (model, records) = (checkpoint("tiny-python"), w.path("records"));
    let given = |more: &[&str]| -> Vec<std::ffi::OsString> {
        let usual = [OsStr::new("tune"), model.as_os_str(), OsStr::new("--records"), records.as_os_str()];
        usual.iter().map(Into::into).chain(more.iter().map(Into::into)).collect()
    };
    fails(&given(&["--target", "pdp-11"]), 4, "target::unknown");
    fails(&given(&["--budget", "10 parsecs"]), 2, "usage");
    if !deepfuse_codegen::x86::targets::has("amx-tile") {
        let told = fails(&given(&["--target", "x86-amx"]), 6, "tune::target");
        assert!(told["found"].as_str().unwrap().contains("amx-tile"), "{told}");
    }
}
