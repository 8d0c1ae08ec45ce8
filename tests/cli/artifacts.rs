//! Damaged and foreign artifacts.

use crate::support::{compile, compiled, copy_of, deepfuse, fails, golden, names, object, request};
use deepfuse_artifact::Artifact;
use deepfuse_codegen::x86::targets;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn manifest(artifact: &Path) -> Value {
    serde_json::from_slice(&fs::read(artifact.join("manifest.json")).unwrap()).unwrap()
}

fn run_args(path: &Path) -> [&std::ffi::OsStr; 6] {
    ["run".as_ref(), path.as_os_str(), "--ids".as_ref(), "1,2,3".as_ref(), "--max-new-tokens".as_ref(), "2".as_ref()]
}

/// A flipped byte, in the middle of every file but the weights' data, and in the weights' header.
#[test]
fn one_flipped_byte_anywhere_is_refused() {
    let good = compiled("tiny-v2");
    let weights = manifest(&good)["weights"].clone();
    for file in names(&good) {
        let (_dir, path) = copy_of(&good);
        let bytes = fs::metadata(path.join(&file)).unwrap().len() as usize;
        let header = weights.as_array().unwrap().iter().find(|w| w["file"] == file.as_str());
        let at = header.map_or(bytes, |w| w["header_bytes"].as_u64().unwrap() as usize) / 2;
        flip(&path.join(&file), at);
        for args in
            [&run_args(&path)[..], &["verify".as_ref(), path.as_os_str()], &["inspect".as_ref(), path.as_os_str()]]
        {
            let report = fails(args, 5, "artifact::digest");
            let place = if file == "manifest.blake3" { "manifest.json" } else { &file };
            assert!(report["file"].as_str().unwrap().ends_with(place), "{file}: {report}");
            assert_ne!(report["expected"], report["found"], "{report}");
            assert!(report["help"].as_str().unwrap().contains("compile it again"), "{report}");
        }
    }
}

#[test]
fn every_byte_of_the_manifest_counts() {
    let (_dir, path) = copy_of(&compiled("tiny-v2"));
    let file = path.join("manifest.json");
    for at in (0..fs::metadata(&file).unwrap().len() as usize).step_by(61) {
        flip(&file, at);
        let e = Artifact::open(&path).unwrap_err();
        assert_eq!(e.exit(), 5, "byte {at}: {e}");
        flip(&file, at);
    }
    Artifact::open(&path).unwrap();
}

/// Weights are not read at load: `verify` gives a negative verdict, and `run --verify-weights` refuses.
#[test]
fn a_flipped_byte_in_the_weights() {
    let good = compiled("tiny-v2");
    let weights = manifest(&good)["weights"][0].clone();
    let file = weights["file"].as_str().unwrap();
    let data = fs::metadata(good.join(file)).unwrap().len() as usize - 4096;
    for at in [4096, 4096 + data / 2, 4096 + data - 1] {
        let (_dir, path) = copy_of(&good);
        flip(&path.join(file), at);
        let out = deepfuse(&["verify".as_ref(), path.as_os_str(), "--json".as_ref()]);
        assert_eq!(out.code, 1, "{out:?}");
        let verdict = object(&out);
        assert_eq!((verdict["schema"].as_str(), verdict["ok"].as_bool()), (Some("deepfuse.verify/1"), Some(false)));
        let check = verdict["checks"].as_array().unwrap().iter().find(|c| c["name"] == "weights").unwrap();
        assert!(check["detail"].as_str().unwrap().contains("does not match its digest"), "{check}");
        // What damaged weights compute is not compared with anything.
        let with_golden = [
            "verify".as_ref(),
            path.as_os_str(),
            "--golden".as_ref(),
            golden("tiny-v2").into_os_string().leak() as &std::ffi::OsStr,
        ];
        assert_eq!(deepfuse(&with_golden).code, 1);
        let report =
            fails(&[&run_args(&path)[..], &["--verify-weights".as_ref()]].concat(), 5, "artifact::weight-digest");
        assert!(report["tensor"].is_string(), "{report}");
    }
}

#[test]
fn truncated_and_missing_files() {
    let good = compiled("tiny-v2");
    for file in names(&good) {
        let (_dir, path) = copy_of(&good);
        let target = path.join(&file);
        let bytes = fs::read(&target).unwrap();
        for keep in [bytes.len() - 1, bytes.len() / 2, 0] {
            fs::write(&target, &bytes[..keep]).unwrap();
            let e = Artifact::open(&path).unwrap_err();
            assert_eq!(e.exit(), 5, "{file} cut to {keep}: {e}");
        }
        fs::remove_file(&target).unwrap();
        let out = deepfuse(&run_args(&path));
        assert_eq!(out.code, 5, "{file} removed: {out:?}");
        assert!(out.stderr.contains(&file), "{file} removed: {out:?}");
    }
    let report = fails(&run_args(Path::new("no-such.dfz")), 3, "artifact::not-found");
    assert!(report["help"].is_string());
    fails(&run_args(Path::new(env!("CARGO_MANIFEST_DIR"))), 5, "artifact::not-an-artifact");
}

#[test]
fn a_newer_format_is_named_as_such() {
    let (_dir, path) = copy_of(&compiled("tiny-v2"));
    let mut m = manifest(&path);
    m["format_version"] = 99.into();
    fs::write(path.join("manifest.json"), m.to_string()).unwrap();
    let report = fails(&run_args(&path), 5, "artifact::version");
    assert_eq!((report["expected"].as_str(), report["found"].as_str()), (Some("1"), Some("99")));
}

#[test]
fn an_artifact_for_another_isa_says_what_is_missing() {
    let native = targets::native();
    let Some(foreign) = targets::names().find(|n| targets::named(n).unwrap().features.iter().any(|f| !targets::has(f)))
    else {
        eprintln!("skipped: {} runs code for every target", native.name);
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("foreign.dfz");
    let mut req = request("tiny-v2", &path);
    req.target = targets::named(foreign).unwrap();
    compile(&req);
    let report = fails(&run_args(&path), 5, "runtime::isa");
    let missing: Vec<&String> = req.target.features.iter().filter(|f| !targets::has(f)).collect();
    for feature in missing {
        assert!(report["message"].as_str().unwrap().contains(feature.as_str()), "{feature}: {report}");
    }
    assert!(report["help"].as_str().unwrap().contains("--target native"));
    let doctor = deepfuse(&["doctor".as_ref(), path.as_os_str()]);
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.stdout.contains("does not run here"), "{doctor:?}");
    // `verify` still checks the bytes, and says that it cannot run them.
    let verdict = deepfuse(&["verify".as_ref(), path.as_os_str()]);
    assert_eq!(verdict.code, 1, "{verdict:?}");
    assert!(verdict.stdout.contains("FAILED  target"), "{verdict:?}");
}
